//! What a start found, held against what the model allows.

use std::rc::Rc;

use entrepot_storage::Recovered;

use super::client::Process;
use super::model::Presence;

pub async fn check(process: &Rc<Process>, recovered: &Recovered) {
    process.note_beginning(recovered);
    // A volume that lacks records cannot stand alone: it is emptied while the one that has them
    // all is away.
    let emptied = |drive| recovered.emptied.contains(&drive) && !recovered.away.is_empty();
    let failed = |drive| process.failed(drive) || process.model.borrow().lenient[drive];
    let doubtful = |drive| failed(drive) || emptied(drive);
    // Small records are on every drive: one that never failed has them all.
    let lenient = process.drives().all(doubtful);
    // Of several drives one may have had a record that was never said to be durable, and leave.
    let alone = process.drives().len() == 1;
    let count = process.model.borrow().contents.len();
    let mut there = Vec::new();
    for content in 0..count {
        let digest = process.model.borrow().contents[content]
            .digest
            .parse()
            .expect("a digest");
        let found = process.store.body(&digest);
        let state = process.model.borrow().bodies[content].clone();
        let lost = process.lost(&state);
        let drives = || state.files.iter().map(|(drive, _)| *drive);
        let away = drives().any(|drive| recovered.away.contains(&drive));
        let lenient = if state.files.is_empty() {
            process.drives().any(doubtful)
        } else {
            drives().any(doubtful)
        };
        process
            .model
            .borrow_mut()
            .found_body(content, found.is_some(), lenient, lost, away);
        there.extend(found.map(|body| (content, body)));
    }
    // Only now: what is dropped as damaged is written down, and others may go for the room.
    for (content, body) in there {
        process.check_found(content, &body).await;
    }
    let amnesia = process.model.borrow().amnesia;
    let tags: Vec<String> = process.model.borrow().tags.keys().cloned().collect();
    for key in tags {
        let found = process.found_tag(&key);
        let mut model = process.model.borrow_mut();
        if let Some(value) = &found {
            // A tag is written after its body: only a purge can have parted them.
            let body = &model.bodies[value.content];
            let there = body.now == Presence::Present;
            let content = value.content;
            assert!(
                there || body.parted || amnesia,
                "tag {key} to a missing body {content}"
            );
        }
        let state = model.tags.get_mut(&key).expect("just listed");
        state.found(&format!("tag {key}"), found, lenient, amnesia, alone);
    }
    let links: Vec<(String, usize)> = process.model.borrow().links.keys().cloned().collect();
    for key in links {
        let found = process.found_link(&key);
        let mut model = process.model.borrow_mut();
        let state = model.links.get_mut(&key).expect("just listed");
        state.found(&format!("link {key:?}"), found, lenient, amnesia, alone);
    }
}
