//! Reads lists of repositories: glob patterns, `*` within a component, `**` across them.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::error::Cause;
use super::section::Section;

/// Patterns of one list. A repository is matched whole, by the name that upstream knows.
#[derive(Clone, Debug)]
pub struct Patterns {
    /// As they were written.
    pub texts: Vec<String>,
    set: GlobSet,
}

impl Patterns {
    pub fn matches(&self, repository: &str) -> bool {
        self.set.is_match(repository)
    }
}

/// `None` when the key is absent.
pub fn read(section: &Section<'_>, key: &'static str) -> Option<Patterns> {
    let mut texts = Vec::new();
    let mut builder = GlobSetBuilder::new();
    for (text, place) in section.texts(key)? {
        match GlobBuilder::new(text).literal_separator(true).build() {
            Ok(glob) => {
                builder.add(glob);
                texts.push(text.to_owned());
            }
            Err(error) => {
                let (key, error) = (section.key(key), error.kind().to_string());
                section.wrong(place, Cause::Pattern { key, error });
            }
        }
    }
    match builder.build() {
        Ok(set) => Some(Patterns { texts, set }),
        Err(error) => {
            let place = section.place_of(key).unwrap_or(section.place());
            let (key, error) = (section.key(key), error.to_string());
            section.wrong(place, Cause::Pattern { key, error });
            None
        }
    }
}
