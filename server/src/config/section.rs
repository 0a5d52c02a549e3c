//! Reads one table of the merged tree into types, and notices the keys nobody asked for.
//!
//! Every reader returns `None` for a key that is absent or wrong; a wrong one is noted in the
//! shared list, so that one run names everything that is wrong.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Cause, Place, Problem};
use super::tree::{Entry, Node, Value};
use super::units;

/// Two names further apart than this are not the same word mistyped.
const TYPO_DISTANCE_MAX: usize = 3;

#[derive(Default)]
pub struct Sink(pub RefCell<Vec<Problem>>);

impl Sink {
    pub fn push(&self, place: &Place, cause: Cause) {
        let place = place.clone();
        self.0.borrow_mut().push(Problem { place, cause });
    }
}

pub struct Section<'n> {
    entries: &'n [Entry],
    place: Place,
    /// `project.dh`, or empty at the top.
    path: String,
    /// How messages call it: `[project.dh]`.
    title: String,
    asked: RefCell<Vec<&'static str>>,
    sink: &'n Sink,
}

impl<'n> Section<'n> {
    pub fn root(node: &'n Node, sink: &'n Sink) -> Section<'n> {
        let entries: &[Entry] = match &node.value {
            Value::Table(entries) => entries,
            _ => &[],
        };
        let title = "the top level".to_owned();
        Section::new(entries, node.place.clone(), String::new(), title, sink)
    }

    fn new(
        entries: &'n [Entry],
        place: Place,
        path: String,
        title: String,
        sink: &'n Sink,
    ) -> Section<'n> {
        let asked = RefCell::default();
        Section {
            entries,
            place,
            path,
            title,
            asked,
            sink,
        }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    /// The full name of a key, as messages use it.
    pub fn key(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    pub fn wrong(&self, place: &Place, cause: Cause) {
        self.sink.push(place, cause);
    }

    pub fn place_of(&self, key: &str) -> Option<&'n Place> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(&entry.node.place)
    }

    fn get(&self, key: &'static str) -> Option<&'n Entry> {
        self.asked.borrow_mut().push(key);
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn wrong_type(&self, key: &str, node: &Node, expected: &'static str) {
        let cause = Cause::WrongType {
            key: self.key(key),
            expected,
            found: node.value.kind().to_owned(),
        };
        self.sink.push(&node.place, cause);
    }

    pub fn wrong_value(&self, key: &str, place: &Place, found: &str, expected: &str) {
        let cause = Cause::WrongValue {
            key: self.key(key),
            expected: expected.to_owned(),
            found: shown(found),
        };
        self.sink.push(place, cause);
    }

    pub fn text(&self, key: &'static str) -> Option<(&'n str, &'n Place)> {
        self.text_of(key, self.get(key)?, "a string")
    }

    fn text_of(
        &self,
        key: &str,
        entry: &'n Entry,
        expected: &'static str,
    ) -> Option<(&'n str, &'n Place)> {
        let node = &entry.node;
        match as_text(&node.value) {
            Some(text) => Some((text, &node.place)),
            None => {
                self.wrong_type(key, node, expected);
                None
            }
        }
    }

    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        let node = &self.get(key)?.node;
        match node.value.plain() {
            Value::Boolean(boolean) => Some(*boolean),
            _ => {
                self.wrong_type(key, node, "true or false");
                None
            }
        }
    }

    pub fn number(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let node = &self.get(key)?.node;
        let Value::Integer(number) = node.value.plain() else {
            self.wrong_type(key, node, "a whole number");
            return None;
        };
        let fitting = u64::try_from(*number).ok().filter(|n| range.contains(n));
        if fitting.is_none() {
            let expected = format!("a number from {} to {}", range.start(), range.end());
            self.wrong_value(key, &node.place, &number.to_string(), &expected);
        }
        fitting
    }

    pub fn duration(&self, key: &'static str, min: Duration) -> Option<Duration> {
        let (text, place) = self.text_of(key, self.get(key)?, units::DURATION_EXPECTED)?;
        let duration = units::parse_duration(text);
        match duration {
            None => self.wrong_value(key, place, text, units::DURATION_EXPECTED),
            Some(short) if short < min => {
                let expected = format!("at least {}", units::format_duration(min));
                self.wrong_value(key, place, text, &expected);
            }
            Some(_) => return duration,
        }
        None
    }

    pub fn size(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let (text, place) = self.text_of(key, self.get(key)?, units::SIZE_EXPECTED)?;
        let size = units::parse_size(text);
        match size {
            None => self.wrong_value(key, place, text, units::SIZE_EXPECTED),
            Some(size) if !range.contains(&size) => {
                let [min, max] = [range.start(), range.end()].map(|size| units::format_size(*size));
                self.wrong_value(key, place, text, &format!("a size from {min} to {max}"));
            }
            Some(_) => return size,
        }
        None
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let (text, place) = self.text(key)?;
        let known = words.iter().find(|(word, _)| *word == text);
        if known.is_none() {
            let quoted: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong_value(key, place, text, &quoted.join(" or "));
        }
        known.map(|(_, meaning)| *meaning)
    }

    /// An array of strings, or a single string.
    pub fn texts(&self, key: &'static str) -> Option<Vec<(&'n str, &'n Place)>> {
        let node = &self.get(key)?.node;
        if let Some(text) = as_text(&node.value) {
            return Some(vec![(text, &node.place)]);
        }
        let texts = match node.value.plain() {
            Value::Array(elements) => elements
                .iter()
                .map(|element| Some((as_text(&element.value)?, &element.place)))
                .collect(),
            _ => None,
        };
        if texts.is_none() {
            self.wrong_type(key, node, "an array of strings");
        }
        texts
    }

    pub fn table(&self, key: &'static str) -> Option<Section<'n>> {
        let entry = self.get(key)?;
        let path = self.key(key);
        let title = format!("[{path}]");
        self.section(key, &entry.node, &entry.place, path, title)
    }

    /// An array of tables, each with its own place.
    pub fn tables(&self, key: &'static str) -> Option<Vec<Section<'n>>> {
        let node = &self.get(key)?.node;
        let Value::Array(elements) = node.value.plain() else {
            self.wrong_type(key, node, "an array of tables");
            return None;
        };
        let path = self.key(key);
        let sections = elements.iter().filter_map(|element| {
            let title = format!("[[{path}]]");
            self.section(key, element, &element.place, path.clone(), title)
        });
        Some(sections.collect())
    }

    /// The tables of a table whose keys are names that the operator chose.
    pub fn named_tables(&self, key: &'static str) -> Vec<(&'n str, Section<'n>)> {
        let Some(all) = self.table(key) else {
            return Vec::new();
        };
        let sections = all.entries.iter().filter_map(|entry| {
            let name = quote(&entry.key);
            let path = format!("{}.{name}", all.path);
            let title = format!("[{path}]");
            let section = all.section(&name, &entry.node, &entry.place, path, title)?;
            Some((entry.key.as_str(), section))
        });
        sections.collect()
    }

    fn section(
        &self,
        key: &str,
        node: &'n Node,
        place: &Place,
        path: String,
        title: String,
    ) -> Option<Section<'n>> {
        match node.value.plain() {
            Value::Table(entries) => {
                Some(Section::new(entries, place.clone(), path, title, self.sink))
            }
            _ => {
                self.wrong_type(key, node, "a table");
                None
            }
        }
    }

    /// Call last: every key that was not asked for is unknown.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for entry in self.entries {
            if !asked.contains(&entry.key.as_str()) {
                self.sink.push(&entry.place, self.unknown(entry, &asked));
            }
        }
    }

    fn unknown(&self, entry: &Entry, known: &[&str]) -> Cause {
        let is_table = matches!(entry.node.value, Value::Table(_));
        if let Some(name) = self.path.strip_prefix("project.")
            && is_table
            && !name.contains('.')
        {
            return Cause::UnquotedName(format!("{name}.{}", entry.key));
        }
        let distance = |word: &&&str| strsim::damerau_levenshtein(word, &entry.key);
        let nearest = known.iter().min_by_key(distance);
        let nearest = nearest.filter(|word| distance(word) <= TYPO_DISTANCE_MAX);
        Cause::UnknownKey {
            key: entry.key.clone(),
            section: self.title.clone(),
            nearest: nearest.map(|word| word.to_string()),
            known: known.join(", "),
        }
    }
}

/// In place of what may be a password.
pub const NOT_SHOWN: &str = "(not shown)";

/// What was found, unless it may hold somebody's password: `user:password@host` (R11).
pub fn shown(found: &str) -> String {
    match found.contains('@') {
        true => NOT_SHOWN.to_owned(),
        false => found.to_owned(),
    }
}

/// A key as TOML wants it written.
pub fn quote(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !key.is_empty() && key.bytes().all(bare) {
        true => key.to_owned(),
        false => toml::Value::from(key).to_string(),
    }
}

/// What was typed as a flag is a string wherever a string is wanted: `password=12345`.
fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Typed { text, .. } => Some(text),
        _ => None,
    }
}
