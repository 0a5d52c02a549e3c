//! What must be true of tags and links, as the model has them.

/// A value of a tag or link, as the model has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub content: usize,
    pub origin: String,
    pub time: u64,
    /// Its length: how it is spelled does not matter.
    pub note_len: usize,
}

impl Value {
    /// Equal but for the time.
    pub fn says_the_same(&self, other: &Value) -> bool {
        (self.content, &self.origin, self.note_len)
            == (other.content, &other.origin, other.note_len)
    }
}

#[derive(Clone, Debug, Default)]
pub struct ValueState {
    pub now: Option<Value>,
    /// What a crash may leave.
    pub possible: Vec<Option<Value>>,
    pub forgetting: bool,
    /// As of bodies.
    pub shaky: bool,
    /// Was not put since the start: no group writes it, so a drive that comes back may bring a
    /// later value of which nobody was told that it is durable.
    pub found: bool,
    /// A drive is coming back, which may have another value, or the record of a purge.
    pub returning: bool,
    pub version: u64,
    /// When it was put, its body was there and had been purged so often.
    pub body_purges: Option<u64>,
    /// Its repository or project is being forgotten: what is `possible` from here on came since.
    scoped: Option<usize>,
}

/// One repository, or all of them: the only project there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(pub Option<String>);

impl Scope {
    pub fn holds(&self, repository: &str) -> bool {
        self.0.as_ref().is_none_or(|one| one == repository)
    }
}

impl ValueState {
    pub fn absent() -> ValueState {
        ValueState {
            possible: vec![None],
            ..ValueState::default()
        }
    }

    pub fn put(&mut self, value: Value) {
        let same = |now: &Value| now.says_the_same(&value);
        // Of a value that says the same nothing may be written.
        self.shaky &= self.now.as_ref().is_some_and(same);
        self.found = false;
        self.returning = false;
        self.possible.push(Some(value.clone()));
        self.now = Some(value);
        self.version += 1;
    }

    /// Only what says the same as `value` can be found from now on.
    pub fn settle(&mut self, value: &Value) {
        if self.forgetting || self.shaky || self.found {
            return;
        }
        self.possible
            .retain(|other| other.as_ref().is_some_and(|o| o.says_the_same(value)));
    }

    pub fn forgotten(&mut self) {
        self.returning = false;
        self.now = None;
        self.possible = vec![None];
    }

    /// Its scope is being forgotten. Puts go on; which of them it kills is not known. What somebody
    /// forgets by its own key stays with them.
    pub fn scope_begins(&mut self) {
        if !self.forgetting {
            self.forgetting = true;
            self.scoped = Some(self.possible.len());
            self.possible.push(None);
        }
    }

    /// It is put while its scope is being forgotten. Whether it may be.
    pub fn put_in_scope(&mut self) -> bool {
        if !self.forgetting {
            self.forgetting = true;
            self.scoped = Some(0);
            self.possible.push(None);
        }
        self.scoped.is_some()
    }

    /// That the scope is forgotten is durable: what was put before cannot come back.
    pub fn scope_killed(&mut self) {
        if let Some(before) = &mut self.scoped {
            self.possible.drain(..std::mem::take(before));
        }
    }

    /// `now` is what is left of it. Panics if that was there before, and `durable` the end of it.
    pub fn scope_ends(&mut self, what: &str, now: Option<Value>, durable: bool) {
        if self.scoped.take().is_none() {
            return;
        }
        self.forgetting = false;
        assert!(
            self.possible.contains(&now),
            "{what}: forgotten with its scope, and there is {now:?} of {:?}",
            self.possible
        );
        self.body_purges = None;
        self.version += 1;
        if now.is_none() && durable {
            self.forgotten();
        } else {
            // The record may yet be written, and kill what other writers still have.
            self.shaky |= !durable && now.is_some();
            self.now = now;
        }
    }

    /// What was put or forgotten since the start is newer than what a drive may bring.
    pub fn may_return(&mut self) {
        self.returning |= self.found;
    }

    /// The drive is back, and this is there. Panics if it can't be.
    pub fn returned(&mut self, what: &str, now: Option<Value>) {
        if !std::mem::take(&mut self.returning) || self.forgetting {
            return;
        }
        self.may_be(what, &now);
        self.now = now;
        self.version += 1;
        self.body_purges = None;
    }

    /// Panics if this can't be found while a drive comes back.
    pub fn may_be(&self, what: &str, now: &Option<Value>) {
        assert!(
            self.possible.contains(now),
            "{what}: there is {now:?}, possible: {:?}",
            self.possible
        );
    }

    /// The process ended.
    pub fn crashed(&mut self) {
        self.returning = false;
        self.forgetting = false;
        self.scoped = None;
    }

    pub fn found(
        &mut self,
        what: &str,
        found: Option<Value>,
        lenient: bool,
        amnesia: bool,
        alone: bool,
    ) {
        let right = self.possible.contains(&found) || (lenient && found.is_none()) || amnesia;
        assert!(
            right,
            "{what}: found {found:?}, possible: {:?}",
            self.possible
        );
        self.shaky = lenient;
        self.found = true;
        if lenient || !alone {
            self.possible.push(found.clone());
        } else {
            self.possible = vec![found.clone()];
        }
        self.now = found;
        self.version += 1;
        self.body_purges = None;
    }
}

/// Keys of tags are `repository:name`.
pub fn repository(key: &str) -> &str {
    key.split(':').next().expect("split yields one at least")
}
