//! The yardstick of eviction: an exact LRU of whole bodies within so many bytes.

use std::collections::{BTreeMap, HashMap};

pub struct Lru {
    capacity: u64,
    used: u64,
    now: u64,
    bodies: HashMap<u32, (u64, u64)>,
    by_time: BTreeMap<u64, u32>,
}

impl Lru {
    pub fn new(capacity: u64) -> Lru {
        Lru {
            capacity,
            used: 0,
            now: 0,
            bodies: HashMap::new(),
            by_time: BTreeMap::new(),
        }
    }

    /// Asks for a body of `len` bytes and keeps it if it can fit. Whether it was there.
    pub fn ask(&mut self, body: u32, len: u64) -> bool {
        self.now += 1;
        let known = self.bodies.remove(&body);
        if let Some((time, _)) = known {
            self.by_time.remove(&time);
        } else if len > self.capacity {
            return false;
        } else {
            self.used += len;
        }
        self.bodies.insert(body, (self.now, len));
        self.by_time.insert(self.now, body);
        while self.used > self.capacity {
            let (_, oldest) = self.by_time.pop_first().expect("something is used");
            let (_, len) = self.bodies.remove(&oldest).expect("both maps agree");
            self.used -= len;
        }
        known.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recent_goes_first() {
        let mut lru = Lru::new(100);
        assert!(!lru.ask(1, 50) && !lru.ask(2, 40));
        assert!(lru.ask(1, 50));
        assert!(!lru.ask(3, 20), "which drops 2");
        assert!(lru.ask(1, 50) && lru.ask(3, 20));
        assert!(!lru.ask(2, 40), "which drops 1");
        assert!(!lru.ask(1, 50));
        assert!(!lru.ask(4, 101) && !lru.ask(4, 101), "never fits");
    }
}
