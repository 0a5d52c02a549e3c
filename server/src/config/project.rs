//! Reads `[project.*]`: names, routes, freshness, stale times. Upstreams: see `upstream`.

use std::net::SocketAddr;
use std::time::Duration;

use regex::RegexBuilder;

use super::error::{Cause, Place};
use super::patterns;
use super::section::{Section, Sink};
use super::{Access, ColdRanges, MIB, Project, Stale, Tier, Url, upstream, url};

/// What a tag expression may take when compiled. The default of the crate, 10 MiB, times a
/// hundred tiers would be more than the rest of the server.
const REGEX_LEN_MAX: usize = MIB as usize;

const HOST_EXPECTED: &str = "a registry host, such as \"docker.io\" or \"registry.example:5000\"";

pub fn read_all(
    root: &Section<'_>,
    listen: &[SocketAddr],
    warnings: &Sink,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<Project> {
    let mut projects = Vec::new();
    let mut claims = Claims::default();
    for (name, section) in root.named_tables("project") {
        if !is_project_name(name) {
            section.wrong(section.place(), Cause::ProjectName(name.to_owned()));
        }
        projects.push(read(name, section, &mut claims, listen, warnings, env));
    }
    projects
}

/// What only one project can have.
#[derive(Default)]
struct Claims {
    default: Option<(String, Place)>,
    hosts: Vec<(String, String, Place)>,
}

fn read(
    name: &str,
    section: Section<'_>,
    claims: &mut Claims,
    listen: &[SocketAddr],
    warnings: &Sink,
    env: &dyn Fn(&str) -> Option<String>,
) -> Project {
    let project = Project {
        name: name.to_owned(),
        serves: read_serves(name, &section, claims),
        default: read_default(name, &section, claims),
        access: section.word("access", &[("anonymous", Access::Anonymous)]),
        freshness: read_freshness(&section),
        stale: read_stale(section.table("stale")),
        cold_ranges: read_cold_ranges(&section),
        offline: section.boolean("offline").unwrap_or(false),
        allow: patterns::read(&section, "allow"),
        deny: patterns::read(&section, "deny"),
        foreign_layers: read_foreign_layers(&section),
        upstreams: upstream::read_all(&section, warnings, env),
    };
    if project.upstreams.is_empty() {
        section.wrong(
            section.place(),
            Cause::NoUpstream(super::section::quote(name)),
        );
    }
    refuse_open_to_all(&project, &section, listen);
    section.finish();
    project
}

/// OCI distribution spec, "Pulling manifests": one component of a repository name. `v2` would
/// make `/v2/v2/…` ambiguous.
fn is_project_name(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = name.bytes().next().is_some_and(alphanumeric)
        && name.bytes().last().is_some_and(alphanumeric);
    let mut separators = name.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separated = separators.all(|between| {
        matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
    });
    edges && separated && name != "v2" && name.len() <= 128
}

fn read_serves(name: &str, section: &Section<'_>, claims: &mut Claims) -> Vec<String> {
    let mut serves = Vec::new();
    for (text, place) in section.texts("serves").unwrap_or_default() {
        let host = text.to_ascii_lowercase();
        if !is_registry_host(&host) {
            section.wrong_value("serves", place, text, HOST_EXPECTED);
            continue;
        }
        if let Some((_, project, at)) = claims.hosts.iter().find(|claim| claim.0 == host) {
            let (project, at) = (project.clone(), at.clone());
            let host = host.clone();
            section.wrong(place, Cause::ServedTwice { host, project, at });
        }
        claims
            .hosts
            .push((host.clone(), name.to_owned(), place.clone()));
        serves.push(host);
    }
    serves
}

/// Hosts with an optional port; they are asked by https only.
fn read_foreign_layers(section: &Section<'_>) -> Vec<Url> {
    const KEY: &str = "foreign_layers";
    let texts = section.texts(KEY).unwrap_or_default();
    let hosts = texts.into_iter().filter_map(|(text, place)| {
        let origin = format!("https://{text}").parse().ok();
        if origin.is_none() {
            section.wrong_value(KEY, place, text, HOST_EXPECTED);
        }
        origin
    });
    hosts.collect()
}

fn is_registry_host(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    match text.split_once(':') {
        Some((host, port)) => url::is_host_name(host) && is_port(port),
        None => url::is_host_name(text),
    }
}

fn read_default(name: &str, section: &Section<'_>, claims: &mut Claims) -> bool {
    if section.boolean("default") != Some(true) {
        return false;
    }
    let place = section.place_of("default").unwrap_or(section.place());
    match &claims.default {
        Some((project, at)) => {
            let (project, at) = (project.clone(), at.clone());
            section.wrong(place, Cause::DefaultTwice { project, at });
        }
        None => claims.default = Some((name.to_owned(), place.clone())),
    }
    true
}

fn read_freshness(section: &Section<'_>) -> Vec<Tier> {
    let mut tiers: Vec<Tier> = Vec::new();
    for tier in section.tables("freshness").unwrap_or_default() {
        if tiers.last().is_some_and(|last| last.tags.is_none()) {
            tier.wrong(tier.place(), Cause::CatchAllNotLast);
        }
        let tags = tier.text("tags").and_then(|(text, place)| {
            let regex = RegexBuilder::new(text).size_limit(REGEX_LEN_MAX).build();
            let wrong = |error: regex::Error| Cause::Regex {
                key: tier.key("tags"),
                error: error.to_string(),
            };
            regex.map_err(|error| tier.wrong(place, wrong(error))).ok()
        });
        let for_ = tier.duration("for", Duration::ZERO);
        if tier.place_of("for").is_none() {
            missing("for", &tier);
        }
        tiers.push(Tier {
            tags,
            for_: for_.unwrap_or_default(),
        });
        tier.finish();
    }
    if tiers.last().is_none_or(|last| last.tags.is_some()) {
        let for_ = Duration::ZERO;
        tiers.push(Tier { tags: None, for_ });
    }
    tiers
}

fn missing(key: &'static str, section: &Section<'_>) {
    let title = section.title().to_owned();
    section.wrong(
        section.place(),
        Cause::Missing {
            key,
            section: title,
        },
    );
}

fn read_stale(section: Option<Section<'_>>) -> Stale {
    let mut stale = Stale::default();
    let Some(section) = section else {
        return stale;
    };
    for (key, time) in [
        ("unreachable", &mut stale.unreachable),
        ("timeout", &mut stale.timeout),
        ("server_error", &mut stale.server_error),
        ("rate_limited", &mut stale.rate_limited),
        ("not_found", &mut stale.not_found),
        ("denied", &mut stale.denied),
    ] {
        *time = section.duration(key, Duration::ZERO).unwrap_or(*time);
    }
    section.finish();
    stale
}

fn read_cold_ranges(section: &Section<'_>) -> ColdRanges {
    let words = [("fill", ColdRanges::Fill), ("pass", ColdRanges::Pass)];
    section.word("cold_ranges", &words).unwrap_or_default()
}

/// Who may pull is not decided per client yet, so private content must not leak before.
fn refuse_open_to_all(project: &Project, section: &Section<'_>, listen: &[SocketAddr]) {
    let private = project
        .upstreams
        .iter()
        .any(|upstream| upstream.password.is_some() || upstream.identity.is_some());
    let open = listen.iter().find(|address| !address.ip().is_loopback());
    if let (true, None, Some(listen)) = (private, project.access, open) {
        let project = super::section::quote(&project.name);
        let listen = *listen;
        section.wrong(section.place(), Cause::OpenToAll { project, listen });
    }
}
