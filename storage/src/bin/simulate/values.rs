//! Tags and links as clients put, look at and forget them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use entrepot_storage::{Digest, ForgetKey, LinkKey, LinkRecord, Proof, TagKey, TagKind, TagRecord};

use super::client::Process;
use super::model::Value;

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
        if self
            .model
            .borrow()
            .tags
            .get(&key)
            .is_some_and(|state| state.forgetting)
        {
            return;
        }
        let record = TagRecord {
            digest: self.digest(value.content),
            origin: value.origin.as_str().into(),
            checked: value.time,
            note: "n".repeat(value.note_len).into(),
        };
        self.model.borrow_mut().put_tag(&key, value);
        let writer = &self.writers[self.repository_writer(repository(&key))];
        ready(writer.put_tag(tag_key(&key), record)).expect("few records wait");
    }

    pub fn put_link(&self) {
        let repository = self.plan.repository(self.below(self.plan.repositories));
        let value = self.value();
        let key = (repository.clone(), value.content);
        if self
            .model
            .borrow()
            .links
            .get(&key)
            .is_some_and(|state| state.forgetting)
        {
            return;
        }
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
        self.model.borrow_mut().put_link(key, value);
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
            if !state.forgetting {
                assert_eq!(self.found_tag(key), state.now, "tag {key}");
            }
        }
        for (key, state) in &self.model.borrow().links {
            if !state.forgetting {
                assert_eq!(self.found_link(key), state.now, "link {key:?}");
            }
        }
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

/// Of calls that change memory only: they never wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// Keys of tags are `repository:name`.
pub fn repository(key: &str) -> &str {
    key.split(':').next().expect("split yields one at least")
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
