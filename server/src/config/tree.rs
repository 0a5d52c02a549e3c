//! The raw values of all sources, merged, each still knowing where it was written.
//!
//! A TOML file and the built-in text become trees; flags and `--set` are laid over them. `section`
//! reads a tree into types. Nothing here knows which keys exist.

use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::{Cause, Place, Problem, Problems};

#[derive(Clone, Debug)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    String(String),
    /// Wider than TOML's: a number out of its range is then out of every key's range.
    Integer(i128),
    Float,
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// A scalar from a flag: a string after all if the key wants one (`password=12345`).
    Typed {
        text: String,
        value: Box<Value>,
    },
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    /// Of the key, or of the table's header.
    pub place: Place,
    pub node: Node,
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float => "a float",
            Value::Boolean(_) => "a boolean",
            Value::Datetime => "a date",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
            Value::Typed { value, .. } => value.kind(),
        }
    }

    /// Its TOML meaning, also when it was typed as a flag.
    pub fn plain(&self) -> &Value {
        match self {
            Value::Typed { value, .. } => value,
            other => other,
        }
    }
}

/// Reads `text`; `at` turns a line number into its place.
pub fn parse(text: &str, at: &dyn Fn(usize) -> Place) -> Result<Node, Problems> {
    let lines = Lines { text, at };
    let table = DeTable::parse(text);
    let table = table.map_err(|error| Problems(vec![syntax(&error, &lines)]))?;
    let entries = convert_table(table.into_inner(), &lines);
    Ok(Node {
        place: at(1),
        value: Value::Table(entries),
    })
}

/// Reads as much of `text` as is TOML; what is wrong with the rest comes with it.
pub fn parse_rest(text: &str, at: &dyn Fn(usize) -> Place) -> (Node, Problems) {
    let lines = Lines { text, at };
    let (table, errors) = DeTable::parse_recoverable(text);
    let problems = errors.iter().map(|error| syntax(error, &lines)).collect();
    let root = Node {
        place: at(1),
        value: Value::Table(convert_table(table.into_inner(), &lines)),
    };
    (root, Problems(problems))
}

fn syntax(error: &toml::de::Error, lines: &Lines<'_>) -> Problem {
    Problem {
        place: lines.place(error.span().map_or(0, |span| span.start)),
        cause: Cause::Syntax(error.message().replace('\n', "; ")),
    }
}

/// Lays `value` over the tree at a dotted key: tables are made as needed, a number steps into an
/// array, the number after its last element appends a table.
pub fn set(root: &mut Node, key: &str, value: Value, flag: &str) -> Result<(), Problems> {
    let place = Place::Flag(Arc::from(flag));
    let wrong = |cause| Problems::one(place.clone(), cause);
    let parts = split_key(key).ok_or_else(|| wrong(Cause::SetSyntax))?;
    let mut node = root;
    let mut rest = &parts[..];
    while !rest.is_empty() {
        let path = parts[..parts.len() - rest.len()].join(".");
        let (next, taken) = step(node, rest, &path, &place).map_err(wrong)?;
        node = next;
        rest = &rest[taken..];
    }
    *node = Node { place, value };
    Ok(())
}

/// The meaning of the text after `key=`: TOML if it parses as a value, else the text itself.
pub fn typed(text: &str, flag: &str) -> Value {
    let at = |_| Place::Flag(Arc::from(flag));
    let value = match DeValue::parse(text) {
        Ok(value) => convert(value.into_inner(), &Lines { text, at: &at }),
        Err(_) => return Value::String(text.to_owned()),
    };
    match value {
        Value::String(_) | Value::Array(_) | Value::Table(_) => value,
        value => Value::Typed {
            text: text.to_owned(),
            value: Box::new(value),
        },
    }
}

/// One step down, and how many parts of the key it took: the longest name that exists, so that
/// `project.quay.io.access` needs no quotes.
fn step<'n>(
    node: &'n mut Node,
    rest: &[String],
    path: &str,
    place: &Place,
) -> Result<(&'n mut Node, usize), Cause> {
    let part = &rest[0];
    let found = node.value.kind();
    let new = |value| Node {
        place: place.clone(),
        value,
    };
    match &mut node.value {
        Value::Table(entries) => {
            let known = (1..=rest.len()).rev().find_map(|taken| {
                let name = rest[..taken].join(".");
                let at = entries.iter().position(|entry| entry.key == name)?;
                Some((at, taken))
            });
            let (at, taken) = known.unwrap_or_else(|| {
                entries.push(Entry {
                    key: part.clone(),
                    place: place.clone(),
                    node: new(Value::Table(Vec::new())),
                });
                (entries.len() - 1, 1)
            });
            Ok((&mut entries[at].node, taken))
        }
        Value::Array(elements) => {
            let len = elements.len();
            let index = part.parse::<usize>().ok().filter(|index| *index <= len);
            let key = path.to_owned();
            let index = index.ok_or(Cause::SetIndex { key, len })?;
            if index == len {
                elements.push(new(Value::Table(Vec::new())));
            }
            Ok((&mut elements[index], 1))
        }
        _ => Err(Cause::SetInside {
            key: path.to_owned(),
            found,
            part: part.clone(),
        }),
    }
}

/// `a.b."c.d"` into its parts; `None` if a part is empty or a quote is left open.
fn split_key(key: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quote = None;
    for character in key.trim().chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '.') => parts.push(std::mem::take(&mut part)),
            _ => part.push(character),
        }
    }
    parts.push(part);
    (quote.is_none() && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

struct Lines<'t> {
    text: &'t str,
    at: &'t dyn Fn(usize) -> Place,
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        (self.at)(1 + before.iter().filter(|byte| **byte == b'\n').count())
    }
}

/// In the order written: the parser's map is sorted by name.
fn convert_table(table: DeTable<'_>, lines: &Lines<'_>) -> Vec<Entry> {
    let mut entries: Vec<(usize, Entry)> = table
        .into_iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let place = lines.place(value.span().start);
            let entry = Entry {
                place: lines.place(start),
                key: key.into_inner().into_owned(),
                node: Node {
                    place,
                    value: convert(value.into_inner(), lines),
                },
            };
            (start, entry)
        })
        .collect();
    entries.sort_by_key(|(start, _)| *start);
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn convert(value: DeValue<'_>, lines: &Lines<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            Value::Integer(number.unwrap_or(i128::MAX))
        }
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(boolean) => Value::Boolean(boolean),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(elements) => Value::Array(
            elements
                .into_iter()
                .map(|element| Node {
                    place: lines.place(element.span().start),
                    value: convert(element.into_inner(), lines),
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, lines)),
    }
}
