//! `herd`: many clients, one body, one moment.

use std::rc::Rc;

use super::client::Client;
use super::run::{Work, Worker, Workload};
use super::single::Single;

/// Every client connects, waits for all others, and asks once.
pub struct Herd(pub Single);

impl Workload for Herd {
    fn client(&self, worker: Rc<Worker>, client: Client) -> Work {
        let target = self.0.target();
        Box::pin(async move {
            client.prepare(target.origin()).await;
            let started = worker.together().await;
            // What fails is counted.
            let _ = client.ask(&target, started).await;
        })
    }
}
