//! Layers that no upstream has and that a manifest says are elsewhere.
//!
//! A place is asked like one that an upstream redirected to: https only, without credentials, and
//! at a private address only where the upstream's `private` says so. Which hosts may be asked is
//! the project's `foreign_layers`; whether the bytes are right is for the digest to say.

use std::sync::Arc;
use std::time::Instant;

use super::{Answer, Round, Search, Sources, Unanswered, Wanted};
use crate::failure::{Failure, FailureKind};
use crate::foreign::ForeignAsk;
use crate::gate::{Heard, Standing, Urgency, WAIT_MAX};
use crate::mailbox::Message;
use crate::project::{Repository, repository_owner};
use crate::upstream::{Part, Place, Request, Response, UpstreamId};

impl Sources {
    /// The answer of the first permitted place that has the layer, or what is known already.
    pub(super) async fn elsewhere(
        &self,
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: &Search<'_>,
        unanswered: Unanswered,
    ) -> Result<Answer, Unanswered> {
        let project = self.project(repository.project);
        let nowhere = unanswered.report.kind == FailureKind::NotFound;
        let layer = search
            .layer
            .filter(|_| nowhere && project.has_foreign_layers());
        let (Some(digest), Some(upstream)) = (layer, project.upstreams.first()) else {
            return Err(unanswered);
        };
        let Unanswered { mut report, own } = unanswered;
        let source = repository.clone();
        let owner = repository_owner(&project.name, &source.name, self.post.shards());
        let places = |reply| {
            Message::Foreign(ForeignAsk::Places {
                source,
                digest,
                reply,
            })
        };
        let places = self.post.ask(owner, places).await?;
        for url in places {
            // A reload may have taken its host away.
            let place = Place::parse(&url).ok();
            let Some(place) = place.filter(|place| project.leads_to(place.origin())) else {
                continue;
            };
            let origin: Arc<str> = place.origin().to_string().into();
            let address: Arc<str> = place.address().into();
            if search.refused.is_some_and(|refused| refused(&address)) {
                let why = "passed over: its last answer was of no use";
                report = Failure::worse(report, Failure::of(FailureKind::BadBody, &origin, why));
                continue;
            }
            let asked = self.ask_at((place, &address), upstream, repository, wanted, &origin);
            match asked.await {
                Ok(response) => {
                    return Ok(Answer {
                        origin,
                        place: Some(address),
                        response,
                    });
                }
                Err(failure) => {
                    // A query may be a signature.
                    let path = address.split('?').next().unwrap_or_default();
                    self.log(&origin, repository, path, &failure);
                    report = Failure::worse(report, failure);
                }
            }
        }
        Err(Unanswered { report, own })
    }

    /// In the name of an upstream, whose connections it counts among and whose rules it goes by.
    async fn ask_at(
        &self,
        (place, address): (Place, &Arc<str>),
        (upstream, of): &(UpstreamId, Arc<str>),
        repository: &Repository,
        wanted: &Wanted<'_>,
        origin: &str,
    ) -> Result<Response, Failure> {
        let round = Round {
            upstreams: Vec::new(),
            unanswered: None,
            deadline: Instant::now() + WAIT_MAX,
            urgency: Urgency::Patient,
        };
        let named = Wanted {
            path: address,
            range: None,
            ..*wanted
        };
        let entered = self.enter((*upstream, of), repository, &named, false, &round);
        let mut pass = entered.await.map_err(|refusal| refusal.failure)?;
        let request = Request {
            method: wanted.method,
            repository: String::new(),
            path_and_query: String::new(),
            elsewhere: Some(place),
            accept: wanted.accept,
            range: wanted.range.clone().map(|part| Part {
                if_range: part.if_range.filter(|known| known.asked == *address),
                ..part
            }),
        };
        let answered = match self.client.send(*upstream, &request).await {
            Ok(response) => {
                let partial = response.status == 206 && wanted.range.is_some();
                match response.status == 200 || partial {
                    true => Ok(response),
                    false => Err(Failure::status(origin, response.status, None)),
                }
            }
            Err(error) => Err(Failure::upstream(origin, &error)),
        };
        // None of it is about the upstream itself.
        pass.heard(Heard {
            standing: Standing::Unknown,
            failure: answered.as_ref().err().cloned(),
            holds: false,
            wait: None,
            budget: None,
        });
        answered.map(|mut response| {
            response.body.keep(pass);
            response
        })
    }
}
