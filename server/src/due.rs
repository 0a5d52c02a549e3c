//! When a tag's last check has grown too old.
//!
//! Called for each pull of a tag, on any shard: pure, so that all of them say the same of the same
//! check. Tags that were checked together do not all become due together.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use entrepot_storage::Seconds;

/// The jitter: a check is due up to this part of its time early, never late, since the time is
/// what an operator promised.
const EARLY_PART: u64 = 10;

/// Whether what was checked then needs no question now. `name` is the tag's, in full.
pub fn is_fresh(checked: Seconds, now: Seconds, fresh_s: u64, name: &(&str, &str, &str)) -> bool {
    // A check from the future (the clock was set back) is no check.
    let Some(age_s) = now.checked_sub(checked) else {
        return false;
    };
    let early_s_max = fresh_s / EARLY_PART;
    if age_s >= fresh_s || age_s < fresh_s - early_s_max {
        return age_s < fresh_s;
    }
    // The second of the check is part of it, so that two tags do not stay together either.
    let mut hasher = DefaultHasher::new();
    (name, checked).hash(&mut hasher);
    let early_s = hasher.finish() % (early_s_max + 1);
    age_s < fresh_s - early_s
}

#[cfg(test)]
mod tests {
    use super::is_fresh;

    const APP: (&str, &str, &str) = ("dh", "library/app", "1");

    /// Seconds after its check at which a tag is due.
    fn due_after(checked: u64, fresh_s: u64, tag: &str) -> u64 {
        let name = ("dh", "library/app", tag);
        let is_due = |age_s: &u64| !is_fresh(checked, checked + age_s, fresh_s, &name);
        (0..=fresh_s).find(is_due).expect("due at its time")
    }

    #[test]
    fn short_times_are_exact() {
        for fresh_s in 0..10 {
            assert_eq!(due_after(1_000, fresh_s, "1"), fresh_s);
        }
        assert!(!is_fresh(1_000, 999, 60, &APP), "the clock was set back");
    }

    #[test]
    fn tags_that_were_checked_together_are_due_apart_and_never_late() {
        let due: Vec<u64> = (0..200)
            .map(|tag| due_after(1_000, 3_600, &tag.to_string()))
            .collect();
        assert!(due.iter().all(|due| (3_240..=3_600).contains(due)));
        let together = due.iter().filter(|other| **other == due[0]).count();
        assert!(together < 20, "{together} of 200 are due in one second");
        let apart = due.iter().max().unwrap() - due.iter().min().unwrap();
        assert!(apart > 300, "all within {apart} s");
    }

    #[test]
    fn once_due_it_stays_due() {
        for checked in 0..50 {
            let due = due_after(checked, 600, "1");
            assert!((due..700).all(|age_s| !is_fresh(checked, checked + age_s, 600, &APP)));
        }
    }
}
