//! Writes a configuration as TOML that [`load`](super::load) reads back to the same values.
//!
//! Passwords are masked; those from a file or the environment are written as where they are.

use std::fmt::Write;
use std::path::Path;

use super::section::quote;
use super::units::{format_duration, format_size};
use super::{
    Access, Capacity, ColdRanges, Config, CongestionControl, Limits, Log, LogFormat, MASK, Project,
    SecretSource,
};
use super::{StoreConfig, Tier, Upstream, Url};

pub fn print(config: &Config) -> String {
    let mut out = String::new();
    line(
        &mut out,
        "# Durations: ms, s, m, h, d, w. Sizes: B, KiB, MiB, GiB, TiB.",
    );
    let listen: Vec<_> = config.listen.iter().map(|address| text(address)).collect();
    line(&mut out, &format!("listen = [{}]", listen.join(", ")));
    line(&mut out, &format!("admin = {}", text(&config.admin)));
    line(&mut out, &format!("control = {}", path(&config.control)));
    match config.shards {
        Some(shards) => line(&mut out, &format!("shards = {shards}")),
        None => line(&mut out, "# shards: one per core"),
    }
    match &config.congestion_control {
        CongestionControl::Preferred => {
            line(
                &mut out,
                "# congestion_control: cubic, if the kernel permits it",
            );
        }
        CongestionControl::System => key(&mut out, "congestion_control", text(&"system")),
        CongestionControl::Named(name) => key(&mut out, "congestion_control", text(name)),
    }
    print_log(&mut out, &config.log);
    print_store(&mut out, &config.store);
    print_limits(&mut out, &config.limits);
    for project in &config.projects {
        print_project(&mut out, project);
    }
    out
}

fn line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn key(out: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{key} = {value}");
}

/// A TOML string.
fn text(value: &dyn std::fmt::Display) -> String {
    toml::Value::from(value.to_string()).to_string()
}

fn path(path: &Path) -> String {
    text(&path.display())
}

fn print_log(out: &mut String, log: &Log) {
    line(out, "\n[log]");
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    key(out, "format", text(&format));
    key(out, "level", text(&log.level));
}

fn print_store(out: &mut String, store: &StoreConfig) {
    line(out, "\n[store]");
    let paths: Vec<_> = store.paths.iter().map(|dir| path(dir)).collect();
    key(out, "paths", format!("[{}]", paths.join(", ")));
    let capacity = match store.capacity {
        Capacity::Percent(percent) => format!("{percent}%"),
        Capacity::Bytes(bytes) => format_size(bytes),
    };
    key(out, "capacity", text(&capacity));
    match store.segment {
        Some(segment) => key(out, "segment", text(&format_size(segment))),
        None => line(out, "# segment: chosen by the capacity"),
    }
    match store.solo_min {
        Some(len) => key(out, "solo_min", text(&format_size(len))),
        None => line(out, "# solo_min: chosen by the capacity"),
    }
    key(out, "small_max", text(&format_size(store.small_max)));
    key(out, "small_budget", text(&format_size(store.small_budget)));
    for (name, time) in [
        ("idle_after", store.idle_after),
        ("small_idle_after", store.small_idle_after),
        ("scrub_every", store.scrub_every),
        ("pin_max", store.pin_max),
    ] {
        key(out, name, text(&format_duration(time)));
    }
    key(
        out,
        "background_rate",
        text(&format_size(store.background_rate)),
    );
}

fn print_limits(out: &mut String, limits: &Limits) {
    line(out, "\n[limits]");
    key(
        out,
        "head_len_max",
        text(&format_size(limits.head_len_max as u64)),
    );
    key(out, "connections_max", limits.connections_max);
    key(
        out,
        "idle_timeout",
        text(&format_duration(limits.idle_timeout)),
    );
    key(
        out,
        "head_timeout",
        text(&format_duration(limits.head_timeout)),
    );
    key(
        out,
        "send_timeout",
        text(&format_duration(limits.send_timeout)),
    );
    key(out, "fills_max", limits.fills_max);
    key(out, "followers_max", limits.followers_max);
    key(out, "body_max", text(&format_size(limits.body_max)));
    key(
        out,
        "manifest_max",
        text(&format_size(limits.manifest_max as u64)),
    );
    key(
        out,
        "mismatch_holdoff",
        text(&format_duration(limits.mismatch_holdoff)),
    );
    key(
        out,
        "drain_timeout",
        text(&format_duration(limits.drain_timeout)),
    );
}

fn print_project(out: &mut String, project: &Project) {
    let name = quote(&project.name);
    line(out, &format!("\n[project.{name}]"));
    let serves: Vec<_> = project.serves.iter().map(|host| text(host)).collect();
    key(out, "serves", format!("[{}]", serves.join(", ")));
    key(out, "default", project.default);
    if project.access == Some(Access::Anonymous) {
        key(out, "access", text(&"anonymous"));
    }
    let tiers: Vec<_> = project.freshness.iter().map(tier).collect();
    key(out, "freshness", format!("[{}]", tiers.join(", ")));
    let stale = &project.stale;
    let classes = [
        ("unreachable", stale.unreachable),
        ("timeout", stale.timeout),
        ("server_error", stale.server_error),
        ("rate_limited", stale.rate_limited),
        ("not_found", stale.not_found),
        ("denied", stale.denied),
    ];
    let classes =
        classes.map(|(class, time)| format!("{class} = {}", text(&format_duration(time))));
    key(out, "stale", format!("{{ {} }}", classes.join(", ")));
    let cold_ranges = match project.cold_ranges {
        ColdRanges::Fill => "fill",
        ColdRanges::Pass => "pass",
    };
    key(out, "cold_ranges", text(&cold_ranges));
    key(out, "offline", project.offline);
    for (name, list) in [("allow", &project.allow), ("deny", &project.deny)] {
        if let Some(list) = list {
            let texts: Vec<_> = list.texts.iter().map(|pattern| text(pattern)).collect();
            key(out, name, format!("[{}]", texts.join(", ")));
        }
    }
    if !project.foreign_layers.is_empty() {
        let hosts: Vec<_> = project.foreign_layers.iter().map(Url::authority).collect();
        let hosts: Vec<_> = hosts.iter().map(|host| text(host)).collect();
        key(out, "foreign_layers", format!("[{}]", hosts.join(", ")));
    }
    for upstream in &project.upstreams {
        line(out, &format!("[[project.{name}.upstream]]"));
        print_upstream(out, upstream);
    }
}

fn tier(tier: &Tier) -> String {
    let time = text(&format_duration(tier.for_));
    match &tier.tags {
        Some(tags) => format!("{{ tags = {}, for = {time} }}", text(tags)),
        None => format!("{{ for = {time} }}"),
    }
}

fn print_upstream(out: &mut String, upstream: &Upstream) {
    key(out, "url", text(&upstream.url));
    if let Some(username) = &upstream.username {
        key(out, "username", text(username));
    }
    match upstream.password.as_ref().map(|password| password.source()) {
        Some(SecretSource::Inline) => key(out, "password", text(&MASK)),
        Some(SecretSource::File(file)) => key(out, "password_file", path(file)),
        Some(SecretSource::Env(name)) => key(out, "password_env", text(name)),
        Some(SecretSource::Credential { name, .. }) => {
            key(out, "password_credential", text(name));
        }
        None => {}
    }
    key(
        out,
        "connect_timeout",
        text(&format_duration(upstream.connect_timeout)),
    );
    key(
        out,
        "read_timeout",
        text(&format_duration(upstream.read_timeout)),
    );
    match upstream.total_timeout {
        Some(time) => key(out, "total_timeout", text(&format_duration(time))),
        None => line(out, "# total_timeout: none"),
    }
    key(out, "tls_verify", upstream.tls_verify);
    if let Some(file) = &upstream.ca_file {
        key(out, "ca_file", path(file));
    }
    if let Some(identity) = &upstream.identity {
        key(out, "client_cert_file", path(&identity.cert));
        key(out, "client_key_file", path(&identity.key));
    }
    print_ways(out, upstream);
    key(out, "active", upstream.active);
    key(out, "connections_max", upstream.connections_max);
    let time = |time| text(&format_duration(time));
    let (failures, breaker) = (upstream.breaker.failures, &upstream.breaker);
    let (pause, pause_max) = (time(breaker.pause), time(breaker.pause_max));
    let breaker = format!("failures = {failures}, pause = {pause}, pause_max = {pause_max}");
    key(out, "breaker", format!("{{ {breaker} }}"));
    key(out, "negative_for", time(upstream.negative_for));
}

/// Where it may lead, and through what.
fn print_ways(out: &mut String, upstream: &Upstream) {
    let list = |texts: Vec<String>| format!("[{}]", texts.join(", "));
    match &upstream.proxies.written {
        Some(proxy) => key(out, "proxy", text(proxy)),
        None => line(out, "# proxy: from the environment"),
    }
    let exceptions = &upstream.proxies.exceptions_written;
    if !exceptions.is_empty() {
        let exceptions = exceptions.iter().map(|it| text(it)).collect();
        key(out, "no_proxy", list(exceptions));
    }
    if !upstream.realms.is_empty() {
        let realms = upstream.realms.iter().map(|it| text(it)).collect();
        key(out, "realms", list(realms));
    }
    match upstream.private {
        Some(private) => key(out, "private", private),
        None => line(out, "# private: as the upstream itself"),
    }
}
