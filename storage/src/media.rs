//! Media types: a table of the few texts that millions of index entries share.
//!
//! Only grows, so a look-up takes no lock. They come from upstreams, so it is bounded; a body
//! whose type does not fit is found without one, and its reader learns it from the bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Types a store can tell apart. A registry has about twenty; at `MEDIA_TYPE_LEN_MAX` all of them
/// take 4 MiB.
const MEDIA_TYPES_MAX: usize = 4096;

const _: () = assert!(MEDIA_TYPES_MAX < u16::MAX as usize);

/// A media type of the table, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MediaId(u16);

impl MediaId {
    pub(crate) const NONE: MediaId = MediaId(0);
}

pub(crate) struct MediaTypes {
    texts: Box<[OnceLock<Arc<str>>]>,
    ids: Mutex<HashMap<Arc<str>, MediaId>>,
}

impl Default for MediaTypes {
    fn default() -> MediaTypes {
        MediaTypes {
            texts: (0..MEDIA_TYPES_MAX).map(|_| OnceLock::new()).collect(),
            ids: Mutex::default(),
        }
    }
}

impl MediaTypes {
    pub(crate) fn get(&self, id: MediaId) -> Option<Arc<str>> {
        let at = usize::from(id.0).checked_sub(1)?;
        self.texts[at].get().cloned()
    }

    /// The id of `text`, which is `NONE` if there is no text or no more room.
    pub(crate) fn intern(&self, text: Option<&Arc<str>>) -> MediaId {
        let Some(text) = text else {
            return MediaId::NONE;
        };
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = ids.get(text).copied() {
            return id;
        }
        let at = ids.len();
        let Some(slot) = self.texts.get(at) else {
            return MediaId::NONE;
        };
        slot.get_or_init(|| Arc::clone(text));
        let id = MediaId(at as u16 + 1);
        ids.insert(Arc::clone(text), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_id_and_the_table_a_bound() {
        let types = MediaTypes::default();
        let text = |n: usize| Arc::<str>::from(format!("application/{n}"));
        assert_eq!(types.intern(None), MediaId::NONE);
        assert_eq!(types.get(MediaId::NONE), None);
        let first = types.intern(Some(&text(0)));
        assert_eq!(types.intern(Some(&text(0))), first);
        for n in 1..MEDIA_TYPES_MAX {
            let id = types.intern(Some(&text(n)));
            assert_eq!(types.get(id), Some(text(n)));
        }
        assert_eq!(
            types.intern(Some(&text(MEDIA_TYPES_MAX))),
            MediaId::NONE,
            "full"
        );
        assert_eq!(types.get(first), Some(text(0)));
    }
}
