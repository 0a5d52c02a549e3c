//! One request to one upstream, through its gate.

use std::sync::Arc;

use super::{Round, Search, Sources, Wanted, heard};
use crate::failure::{Failure, FailureKind};
use crate::gate::{Enter, Gates, Lane, Name, Pass, Refusal};
use crate::mailbox::Message;
use crate::project::Repository;
use crate::upstream::{Part, Request, Response, UpstreamId, without_account};

impl Sources {
    pub(super) async fn ask(
        &self,
        (upstream, origin): (UpstreamId, &Arc<str>),
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: &Search<'_>,
        round: &Round,
    ) -> Result<Response, Refusal> {
        if search.refused.is_some_and(|refused| refused(origin)) {
            let place = without_account(origin);
            let why = format!(
                "{place} is passed over for {}: its last answer was of no use",
                wanted.path
            );
            return Err(Failure::new(FailureKind::BadBody, why).into());
        }
        let cached = search.came_from.is_some() || search.anew;
        let source = (upstream, origin);
        let mut pass = self
            .enter(source, repository, wanted, cached, round)
            .await?;
        let request = Request {
            method: wanted.method,
            repository: repository.name.to_string(),
            path_and_query: format!("/v2/{}/{}", repository.name, wanted.path),
            elsewhere: None,
            accept: wanted.accept,
            range: wanted.range.clone().map(|part| Part {
                if_range: part.if_range.filter(|known| known.asked == *origin),
                ..part
            }),
        };
        let mut response = match self.client.send(upstream, &request).await {
            Ok(response) => response,
            Err(error) => {
                let failure = Failure::upstream(origin, &error);
                pass.heard(heard::nothing(&failure, error.blames(origin)));
                return Err(failure.into());
            }
        };
        let good = response.status == 200 || (response.status == 206 && wanted.range.is_some());
        let retry_after = response.head.field("retry-after");
        let failure = (!good).then(|| Failure::status(origin, response.status, retry_after));
        let heard = heard::answer(&response, failure.clone());
        let holds = heard.holds;
        pass.heard(heard);
        match failure {
            Some(failure) => {
                // Its words are not needed; its connection is.
                response.body.drain().await;
                Err(Refusal { failure, holds })
            }
            None => {
                response.body.keep(pass);
                Ok(response)
            }
        }
    }

    /// Waits for leave to send one request.
    pub(super) async fn enter(
        &self,
        (upstream, origin): (UpstreamId, &Arc<str>),
        repository: &Repository,
        wanted: &Wanted<'_>,
        cached: bool,
        round: &Round,
    ) -> Result<Pass, Refusal> {
        let project = self.project(repository.project).name.clone();
        let namer = self.board.namer();
        let question = namer.question(&project, &repository.name, wanted.method, wanted.path);
        let owner = Gates::owner(upstream, self.post.shards());
        let enter = |reply| {
            Message::Enter(Enter {
                upstream,
                name: Name {
                    project: project.clone(),
                    origin: without_account(origin).into(),
                },
                rules: self.client.gate(upstream),
                lane: Lane::of(wanted.method, wanted.path),
                question: (!cached).then_some(question),
                urgency: round.urgency,
                deadline: round.deadline,
                reply,
            })
        };
        self.post.ask(owner, enter).await?
    }
}
