//! Reads `[[project.<name>.upstream]]`: where a registry is, how it is reached, and as whom.

use std::path::PathBuf;
use std::time::Duration;

use super::error::Cause;
use super::proxy::{self, Proxies};
use super::section::{Section, Sink, shown};
use super::url::{self, Url};
use super::{Secret, credentials, units};
use crate::gate::BreakerRules;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub url: Url,
    /// Set exactly when `password` is.
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// What TLS shows of us to this origin and its token service.
    pub identity: Option<IdentityFiles>,
    /// Of TCP, and of TLS, for each address tried.
    pub connect_timeout: Duration,
    /// An upstream that sends no byte for this long has failed.
    pub read_timeout: Duration,
    /// From a request to the last byte of its answer; `None` lets a body take as long as it moves.
    pub total_timeout: Option<Duration>,
    pub tls_verify: bool,
    /// PEM certificates trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    pub proxies: Proxies,
    /// Origins that may be token services although they are of another domain.
    pub realms: Vec<Url>,
    /// Whether redirects and token services may be at private addresses. `None`: they may where
    /// the upstream itself is at one, link-local ones excepted.
    pub private: Option<bool>,
    /// An inactive upstream is never asked.
    pub active: bool,
    /// Requests under way at once, over all shards.
    pub connections_max: usize,
    pub breaker: BreakerRules,
    /// How long what it does not have, or does not give, is not asked for again.
    pub negative_for: Duration,
}

/// PEM files of a client certificate with its chain, and of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Hub's storage was seen to pause for tens of seconds and go on.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Shorter ones are mistakes: nothing answers within one.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Four images of 64 layers at once, and what a registry on one machine serves without pain.
const UPSTREAM_CONNECTIONS_MAX: usize = 256;
/// More than all shards of a large machine may open.
const CONNECTIONS_CEILING: u64 = 65_536;
/// One failure may be chance and three a restart; five in a row cost clients a while each.
const BREAKER: BreakerRules = BreakerRules {
    failures: 5,
    pause: Duration::from_secs(1),
    pause_max: Duration::from_secs(30),
};
/// More failures in a row than this are no breaker.
const FAILURES_MAX: u64 = 1_000_000;
/// Long enough for clients that retry at once, short enough for who pushes and pulls.
const NEGATIVE_FOR: Duration = Duration::from_secs(5);
/// Longer would hide what was pushed meanwhile.
const NEGATIVE_FOR_MAX: Duration = Duration::from_secs(30);

impl Upstream {
    /// With every other key left out.
    pub fn new(url: Url) -> Upstream {
        Upstream {
            url,
            username: None,
            password: None,
            identity: None,
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
            total_timeout: None,
            tls_verify: true,
            ca_file: None,
            proxies: Proxies::default(),
            realms: Vec::new(),
            private: None,
            active: true,
            connections_max: UPSTREAM_CONNECTIONS_MAX,
            breaker: BREAKER,
            negative_for: NEGATIVE_FOR,
        }
    }
}

pub fn read_all(
    section: &Section<'_>,
    warnings: &Sink,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<Upstream> {
    let sections = section.tables("upstream").unwrap_or_default();
    sections
        .into_iter()
        .map(|section| read(section, warnings, env))
        .collect()
}

fn read(section: Section<'_>, warnings: &Sink, env: &dyn Fn(&str) -> Option<String>) -> Upstream {
    let mut upstream = Upstream::new(read_url(&section));
    (upstream.username, upstream.password) = credentials::read(&section, warnings, env);
    let time = |key, time: &mut Duration| {
        *time = section.duration(key, TIMEOUT_MIN).unwrap_or(*time);
    };
    time("connect_timeout", &mut upstream.connect_timeout);
    time("read_timeout", &mut upstream.read_timeout);
    upstream.total_timeout = section.duration("total_timeout", TIMEOUT_MIN);
    upstream.tls_verify = section.boolean("tls_verify").unwrap_or(true);
    upstream.ca_file = credentials::read_ca_file(&section);
    upstream.identity = credentials::read_identity(&section, &upstream.url);
    upstream.proxies = proxy::read(&section, env);
    upstream.realms = read_realms(&section);
    upstream.private = section.boolean("private");
    upstream.active = section.boolean("active").unwrap_or(true);
    if let Some(connections) = section.number("connections_max", 1..=CONNECTIONS_CEILING) {
        upstream.connections_max = connections as usize;
    }
    upstream.breaker = read_breaker(section.table("breaker"));
    upstream.negative_for = read_negative_for(&section);
    credentials::warn_of_exposure(&upstream, section.place(), warnings);
    section.finish();
    upstream
}

fn read_breaker(section: Option<Section<'_>>) -> BreakerRules {
    let Some(section) = section else {
        return BREAKER;
    };
    let at_least = Duration::from_millis(1);
    let failures = section.number("failures", 0..=FAILURES_MAX);
    let pause = section.duration("pause", at_least).unwrap_or(BREAKER.pause);
    let breaker = BreakerRules {
        failures: failures.map_or(BREAKER.failures, |failures| failures as u32),
        pause,
        pause_max: section
            .duration("pause_max", pause)
            .unwrap_or(BREAKER.pause_max.max(pause)),
    };
    section.finish();
    breaker
}

fn read_negative_for(section: &Section<'_>) -> Duration {
    const KEY: &str = "negative_for";
    let time = section
        .duration(KEY, Duration::ZERO)
        .unwrap_or(NEGATIVE_FOR);
    if time > NEGATIVE_FOR_MAX {
        let place = section.place_of(KEY).unwrap_or(section.place());
        let [found, max] = [time, NEGATIVE_FOR_MAX].map(units::format_duration);
        section.wrong_value(KEY, place, &found, &format!("at most {max}"));
    }
    time
}

fn read_url(section: &Section<'_>) -> Url {
    let Some((text, place)) = section.text("url") else {
        if section.place_of("url").is_none() {
            let title = section.title().to_owned();
            let cause = Cause::Missing {
                key: "url",
                section: title,
            };
            section.wrong(section.place(), cause);
        }
        return unknown_url();
    };
    text.parse().unwrap_or_else(|error| {
        section.wrong(place, wrong_url(section.key("url"), text, error));
        unknown_url()
    })
}

fn read_realms(section: &Section<'_>) -> Vec<Url> {
    let texts = section.texts("realms").unwrap_or_default();
    texts
        .into_iter()
        .filter_map(|(text, place)| {
            let parsed = text.parse();
            parsed
                .map_err(|error| {
                    section.wrong(place, wrong_url(section.key("realms"), text, error));
                })
                .ok()
        })
        .collect()
}

fn wrong_url(key: String, text: &str, error: url::UrlError) -> Cause {
    let found = shown(text);
    Cause::Url { key, found, error }
}

/// Stands in for a wrong one until the configuration is refused for it.
fn unknown_url() -> Url {
    Url {
        scheme: url::Scheme::Https,
        host: String::new(),
        port: 443,
    }
}
