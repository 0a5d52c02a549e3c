//! Which keys of a configuration take effect with a restart only.

use std::collections::BTreeMap;

use super::{Config, print};

/// Keys outside of projects that differ, but for the log's level, which can change at any time.
pub fn needing_restart(running: &Config, read: &Config) -> Vec<String> {
    let (running, read) = (fixed(running), fixed(read));
    let keys = running.keys().chain(read.keys());
    let mut differing: Vec<String> = keys
        .filter(|key| running.get(*key) != read.get(*key))
        .cloned()
        .collect();
    differing.sort();
    differing.dedup();
    differing
}

/// Full keys and values as `print-config` writes them, so that no key can be left out.
fn fixed(config: &Config) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in print(config).lines() {
        if let Some(title) = line.strip_prefix('[') {
            if title.starts_with("project.") {
                break;
            }
            section = format!("{}.", title.trim_end_matches(']'));
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with('#')
        {
            keys.insert(format!("{section}{key}"), value.to_owned());
        }
    }
    keys.remove("log.level");
    keys
}
