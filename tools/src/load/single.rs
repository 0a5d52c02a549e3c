//! `blob` and `manifest`: one path, again and again.

use std::rc::Rc;

use super::client::Client;
use super::digest::Expected;
use super::meter::Kind;
use super::run::{Work, Worker, Workload};
use super::schedule::Turn;
use super::target::Target;
use super::url::Url;

pub struct Single {
    pub url: Url,
    pub kind: Kind,
    pub head_only: bool,
    /// Whole lines of the request's head.
    pub fields: String,
    pub digest: Option<Expected>,
}

impl Single {
    pub fn target(&self) -> Target {
        let mut target = Target::new(self.url.clone(), self.kind, self.head_only, &self.fields);
        target.digest.clone_from(&self.digest);
        target
    }
}

impl Workload for Single {
    fn client(&self, worker: Rc<Worker>, client: Client) -> Work {
        let target = self.target();
        Box::pin(async move {
            client.prepare(target.origin()).await;
            let ask = async |turn: Turn| {
                // What fails is counted; the next turn is another try.
                let _ = client.ask(&target, turn.at).await;
            };
            worker.each_turn(ask).await;
        })
    }
}
