//! Tags and links as clients put, look at and forget them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use entrepot_storage::{
    Digest, ForgetKey, LinkKey, LinkRecord, Proof, ScopeKey, TagKey, TagKind, TagRecord, owner,
};

use super::client::Process;
use super::named::{Scope, Value, ValueState, repository};
use super::steps::Done;

impl Process {
    fn value(&self) -> Value {
        let content = self.pick_content();
        let origin = format!("https://{}.example", self.below(2));
        let long = self.chance(200);
        let note_len = if long { self.below(3000) as usize } else { 0 };
        Value {
            content,
            origin,
            time: self.now(),
            note_len,
        }
    }

    pub fn put_tag(&self) {
        let key = self.plan.tag(self.below(self.plan.tags));
        let again = self
            .model
            .borrow()
            .tags
            .get(&key)
            .and_then(|state| state.now.clone());
        let value = match again {
            Some(again) if self.chance(400) => Value {
                time: self.now(),
                ..again
            },
            _ => self.value(),
        };
        let record = TagRecord {
            digest: self.digest(value.content),
            origin: value.origin.as_str().into(),
            checked: value.time,
            note: "n".repeat(value.note_len).into(),
        };
        if !self.model.borrow_mut().put_tag(&key, value) {
            return;
        }
        let writer = &self.writers[self.repository_writer(repository(&key))];
        ready(writer.put_tag(tag_key(&key), record)).expect("few records wait");
    }

    pub fn put_link(&self) {
        let repository = self.plan.repository(self.below(self.plan.repositories));
        let value = self.value();
        let key = (repository.clone(), value.content);
        let value = Value {
            note_len: 0,
            ..value
        };
        let record = LinkRecord {
            origin: value.origin.as_str().into(),
            proof: Proof::Fetched,
            at: value.time,
        };
        let link = self.link_key(&key);
        if !self.model.borrow_mut().put_link(key, value) {
            return;
        }
        let writer = &self.writers[self.repository_writer(&repository)];
        ready(writer.put_link(link, record)).expect("few records wait");
    }

    fn link_key(&self, (repository, content): &(String, usize)) -> LinkKey {
        let digest = self.digest(*content);
        LinkKey {
            project: "p".into(),
            repository: repository.as_str().into(),
            digest,
        }
    }

    pub fn look_at_tags(&self) {
        for (key, state) in &self.model.borrow().tags {
            look_at(&format!("tag {key}"), state, self.found_tag(key));
        }
        for (key, state) in &self.model.borrow().links {
            look_at(&format!("link {key:?}"), state, self.found_link(key));
        }
    }

    /// A drive is back: what it brought is there, and nothing else.
    pub fn see_what_returned(&self) {
        let mut model = self.model.borrow_mut();
        let mut tags = std::mem::take(&mut model.tags);
        let mut links = std::mem::take(&mut model.links);
        drop(model);
        for (key, state) in &mut tags {
            state.returned(&format!("tag {key}"), self.found_tag(key));
        }
        for (key, state) in &mut links {
            state.returned(&format!("link {key:?}"), self.found_link(key));
        }
        let mut model = self.model.borrow_mut();
        (model.tags, model.links) = (tags, links);
    }

    pub fn found_tag(&self, key: &str) -> Option<Value> {
        let found = self.store.tag(&tag_key(key))?;
        Some(Value {
            content: self.content_of(&found.digest),
            origin: found.origin.to_string(),
            time: found.checked,
            note_len: found.note.len(),
        })
    }

    pub fn found_link(&self, key: &(String, usize)) -> Option<Value> {
        let found = self.store.link(&self.link_key(key))?;
        let (origin, time) = (found.origin.to_string(), found.at);
        Some(Value {
            content: key.1,
            origin,
            time,
            note_len: 0,
        })
    }

    fn content_of(&self, digest: &Digest) -> usize {
        let text = digest.to_string();
        let model = self.model.borrow();
        model
            .contents
            .iter()
            .position(|content| content.digest == text)
            .expect("one of ours")
    }

    pub async fn forget_tag(&self) {
        let key = self.plan.tag(self.below(self.plan.tags));
        match self.model.borrow_mut().tags.get_mut(&key) {
            Some(state) if !state.forgetting => {
                state.forgetting = true;
                state.possible.push(None);
            }
            _ => return,
        }
        let writer = &self.writers[self.repository_writer(repository(&key))];
        let outcome = self.forget(writer, ForgetKey::Tag(tag_key(&key))).await;
        let mut model = self.model.borrow_mut();
        let state = model.tags.get_mut(&key).expect("keys stay");
        state.forgetting = false;
        state.version += 1;
        match outcome {
            Ok(()) => state.forgotten(),
            Err(_) => state.now = None,
        }
    }

    /// A repository or the project as a whole, as the server does it: the owner of the scope with
    /// one record, then every other writer what it has of it.
    pub async fn forget_scope(&self) {
        let all = self.chance(300);
        let one = self.plan.repository(self.below(self.plan.repositories));
        let scope = Scope((!all).then_some(one));
        if !self.model.borrow_mut().scope_begins(&scope) {
            return;
        }
        self.counts.borrow_mut().count(if all {
            Done::ProjectForgotten
        } else {
            Done::RepositoryForgotten
        });
        self.scoping.set(true);
        let key = ScopeKey {
            project: "p".into(),
            repository: scope.0.as_deref().map(Into::into),
        };
        let mine = owner(key.slice(), self.writers.len());
        let outcome = self.forget(&self.writers[mine], ForgetKey::Scope(key));
        let mut durable = outcome.await.is_ok();
        if durable {
            self.model.borrow_mut().scope_killed(&scope);
            for number in (0..self.writers.len()).filter(|number| *number != mine) {
                let keys = self.keys_of(number, &scope);
                durable &= self.forget_all(&self.writers[number], keys).await.is_ok();
            }
        }
        self.scope_ended(&scope, durable);
        self.scoping.set(false);
    }

    /// Of the scope, what the writer owns.
    fn keys_of(&self, writer: usize, scope: &Scope) -> Vec<ForgetKey> {
        let mine = |name: &str| scope.holds(name) && self.repository_writer(name) == writer;
        let model = self.model.borrow();
        let tags = model.tags.keys().filter(|key| mine(repository(key)));
        let links = model.links.keys().filter(|(name, _)| mine(name));
        let tags = tags.map(|key| ForgetKey::Tag(tag_key(key)));
        let links = links.map(|key| ForgetKey::Link(self.link_key(key)));
        tags.chain(links).collect()
    }

    /// `durable`: so are the records of all writers.
    fn scope_ended(&self, scope: &Scope, durable: bool) {
        let mut model = self.model.borrow_mut();
        model.scope_ends();
        let mut tags = std::mem::take(&mut model.tags);
        let mut links = std::mem::take(&mut model.links);
        drop(model);
        for (key, state) in &mut tags {
            if scope.holds(repository(key)) {
                state.scope_ends(&format!("tag {key}"), self.found_tag(key), durable);
            }
        }
        for (key, state) in &mut links {
            if scope.holds(&key.0) {
                state.scope_ends(&format!("link {key:?}"), self.found_link(key), durable);
            }
        }
        let mut model = self.model.borrow_mut();
        (model.tags, model.links) = (tags, links);
    }

    pub async fn forget_link(&self) {
        let keys: Vec<_> = self.model.borrow().links.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.below(keys.len() as u64) as usize].clone();
        match self.model.borrow_mut().links.get_mut(&key) {
            Some(state) if !state.forgetting => {
                state.forgetting = true;
                state.possible.push(None);
            }
            _ => return,
        }
        let writer = &self.writers[self.repository_writer(&key.0)];
        let outcome = self
            .forget(writer, ForgetKey::Link(self.link_key(&key)))
            .await;
        let mut model = self.model.borrow_mut();
        let state = model.links.get_mut(&key).expect("keys stay");
        state.forgetting = false;
        state.version += 1;
        match outcome {
            Ok(()) => state.forgotten(),
            Err(_) => state.now = None,
        }
    }
}

fn look_at(what: &str, state: &ValueState, found: Option<Value>) {
    match state {
        ValueState {
            forgetting: true, ..
        } => {}
        ValueState {
            returning: true, ..
        } => state.may_be(what, &found),
        _ => assert_eq!(found, state.now, "{what}"),
    }
}

/// Of calls that change memory only: they never wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn tag_key(key: &str) -> TagKey {
    let (repository, name) = key.split_once(':').expect("a tag's key");
    let kind = if name.starts_with("list") {
        TagKind::Listing
    } else {
        TagKind::Tag
    };
    TagKey {
        project: "p".into(),
        repository: repository.into(),
        kind,
        name: name.into(),
    }
}
