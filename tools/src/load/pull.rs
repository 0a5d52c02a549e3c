//! `pull`: whole images, as real clients fetch them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::client::Client;
use super::digest::Expected;
use super::executor;
use super::image::{Content, Descriptor, Name, Platform};
use super::meter::{ErrorClass, Kind, Sample};
use super::run::{Work, Worker, Workload};
use super::schedule::Turn;
use super::target::{Target, pull_scope};
use super::url::Url;

/// Indexes of indexes: one more than any client knows.
const INDEX_DEPTH_MAX: usize = 3;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_V1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const JSON: &str = "application/json";

/// Whose requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Player {
    /// HEAD by tag, then GET; no probe; one Accept line.
    Containerd,
    /// Probe, HEAD by tag, then GET; six Accept lines.
    Docker,
    /// skopeo, podman, buildah: probe, GET only; six Accept lines.
    Skopeo,
    /// Probe, HEAD by tag, then GET; one Accept line.
    Crane,
}

impl Player {
    fn probes(self) -> bool {
        self != Player::Containerd
    }

    fn asks_head(self) -> bool {
        self != Player::Skopeo
    }

    pub fn user_agent(self) -> &'static str {
        match self {
            Player::Containerd => "containerd/2.0.0",
            Player::Docker => "docker/20.10.24 go/go1.19.8 os/linux arch/amd64 UpstreamClient()",
            Player::Skopeo => "containers/5.24.1 (github.com/containers/image)",
            Player::Crane => "crane/0.20.2 go-containerregistry/0.20.2",
        }
    }

    /// Lines of Accept for manifests.
    fn accepts(self) -> String {
        match self {
            Player::Containerd => {
                format!("Accept: {DOCKER_MANIFEST}, {DOCKER_LIST}, {MANIFEST}, {INDEX}, */*\r\n")
            }
            Player::Crane => {
                format!("Accept: {DOCKER_MANIFEST},{DOCKER_LIST},{INDEX},{MANIFEST}\r\n")
            }
            Player::Docker | Player::Skopeo => {
                let types = [
                    DOCKER_MANIFEST,
                    DOCKER_LIST,
                    DOCKER_V1,
                    MANIFEST,
                    INDEX,
                    JSON,
                ];
                types.map(|kind| format!("Accept: {kind}\r\n")).concat()
            }
        }
    }
}

pub struct Pull {
    pub images: Vec<Name>,
    pub player: Player,
    pub platform: Platform,
    /// Bodies of one image at the same time.
    pub parallel: usize,
    pub verify: bool,
    /// `?ns=...`, as containerd says to a mirror; or nothing.
    pub query: String,
    /// Lines of every request.
    pub fields: String,
}

impl Workload for Pull {
    fn client(&self, worker: Rc<Worker>, client: Client) -> Work {
        let plan = Plan {
            player: self.player,
            platform: self.platform.clone(),
            parallel: self.parallel,
            verify: self.verify,
            query: self.query.clone(),
            fields: self.fields.clone(),
            manifest_fields: format!("{}{}", self.fields, self.player.accepts()),
        };
        let images = self.images.clone();
        Box::pin(async move {
            let pull = async |turn: Turn| {
                let image = &images[turn.index as usize % images.len()];
                plan.pull(&client, image, turn.at).await;
            };
            worker.each_turn(pull).await;
        })
    }
}

/// What one client needs to know.
struct Plan {
    player: Player,
    platform: Platform,
    parallel: usize,
    verify: bool,
    query: String,
    fields: String,
    manifest_fields: String,
}

impl Plan {
    /// Counts a whole pull or a failed one.
    async fn pull(&self, client: &Client, image: &Name, asked_at: Instant) {
        client.forget();
        let meter = &client.net.meter;
        match self.pull_parts(client, image, asked_at).await {
            Ok(first_byte_at) => meter.answered(&Sample {
                kind: Kind::Image,
                status: 200,
                asked_at,
                first_byte_at,
                done_at: client.net.executor.now(),
            }),
            Err(_) => meter.image_failed(),
        }
    }

    /// Answers when the first manifest began to come.
    async fn pull_parts(
        &self,
        client: &Client,
        image: &Name,
        asked_at: Instant,
    ) -> Result<Instant, ErrorClass> {
        let mut at = asked_at;
        if self.player.probes() {
            let url = Url {
                origin: image.registry.clone(),
                path: "/v2/".to_owned(),
            };
            let mut ping = Target::get(url, Kind::Ping, &self.fields);
            ping.scope = Some(pull_scope(&image.repository));
            at = client.ask(&ping, at).await?.done_at;
        }
        let mut digest = Expected::parse(&image.reference);
        if self.player.asks_head() && digest.is_none() {
            let url = image.url("manifests", &image.reference, &self.query);
            let head = Target::new(url, Kind::Head, true, &self.manifest_fields);
            let answer = client.ask(&head, at).await?;
            digest = answer.digest;
            at = answer.done_at;
        }
        let mut first_byte_at = None;
        for _ in 0..INDEX_DEPTH_MAX {
            let target = self.manifest(image, digest);
            let answer = client.ask(&target, at).await?;
            at = answer.done_at;
            let first_byte_at = *first_byte_at.get_or_insert(answer.first_byte_at);
            match Content::parse(&answer.body, &self.platform) {
                Some(Content::Index(descriptor)) => {
                    digest = Some(self.digest_of(client, &descriptor)?);
                }
                Some(Content::Image(parts)) => {
                    self.fetch_all(client, image, parts).await?;
                    return Ok(first_byte_at);
                }
                None => return Err(bad_manifest(client)),
            }
        }
        Err(bad_manifest(client))
    }

    /// By its digest if that is known, which is then verified.
    fn manifest(&self, image: &Name, digest: Option<Expected>) -> Target {
        let named = digest.as_ref().map(Expected::to_string);
        let reference = named.as_deref().unwrap_or(&image.reference);
        let url = image.url("manifests", reference, &self.query);
        let mut target = Target::get(url, Kind::Manifest, &self.manifest_fields);
        target.digest = digest;
        target.keep = true;
        target
    }

    fn digest_of(&self, client: &Client, part: &Descriptor) -> Result<Expected, ErrorClass> {
        Expected::parse(&part.digest).ok_or_else(|| bad_manifest(client))
    }

    /// Config and layers, some at a time. One that fails ends the others when they are done.
    async fn fetch_all(
        &self,
        client: &Client,
        image: &Name,
        parts: Vec<Descriptor>,
    ) -> Result<(), ErrorClass> {
        let mut targets = VecDeque::new();
        for (nth, part) in parts.iter().enumerate() {
            let digest = self.digest_of(client, part)?;
            let url = image.url("blobs", &digest.to_string(), &self.query);
            let kind = if nth == 0 { Kind::Config } else { Kind::Blob };
            let mut target = Target::get(url, kind, &self.fields);
            target.digest = self.verify.then_some(digest);
            target.len = Some(part.size);
            targets.push_back(target);
        }
        let targets = RefCell::new(targets);
        let outcome = RefCell::new(Ok(()));
        let fetch = || async {
            loop {
                let Some(target) = targets.borrow_mut().pop_front() else {
                    return;
                };
                if let Err(class) = client.ask(&target, Instant::now()).await {
                    targets.borrow_mut().clear();
                    *outcome.borrow_mut() = Err(class);
                }
            }
        };
        let mut fetches: Vec<executor::Part<'_>> = Vec::new();
        for _ in 0..self.parallel {
            fetches.push(Box::pin(fetch()));
        }
        executor::all(fetches).await;
        outcome.into_inner()
    }
}

fn bad_manifest(client: &Client) -> ErrorClass {
    let now = client.net.executor.now();
    client.net.meter.failed(ErrorClass::Manifest, now);
    ErrorClass::Manifest
}
