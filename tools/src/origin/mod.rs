//! A synthetic upstream registry with scripted faults; README.md is its manual.
//!
//! `Origin` holds all state. Each listener has a thread, each connection another; what they do
//! with a request is in `connection`, `respond` (real answers), `plan` and `send` (faults).

mod answer;
mod auth;
mod body;
pub mod cli;
mod connection;
mod content;
mod control;
mod digest;
mod endpoint;
mod fault;
mod http;
mod image;
mod layer;
mod listener;
mod log;
mod noise;
mod pace;
mod plan;
mod registry;
mod respond;
mod send;
mod stored;
mod tar;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod wire;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Deserialize;

use auth::{Auth, Rules};
use endpoint::Side;
use fault::Faults;
use image::{Description, ImageError, ImageSpec};
use layer::Layers;
use listener::{Connections, Listener};
use log::Log;
use pace::Pace;
use registry::Registry;
use tls::Identity;

pub struct Options {
    pub registry: SocketAddr,
    pub cdn: SocketAddr,
    pub token: SocketAddr,
    pub control: SocketAddr,
    identity: Option<Identity>,
    rules: Rules,
    pub seed: u64,
    pub log: Option<File>,
    pub rate: Option<u64>,
}

/// Where the listeners are.
#[derive(Clone, Debug)]
pub struct Urls {
    pub registry: String,
    pub cdn: String,
    pub token: String,
    pub control: String,
}

struct Origin {
    seed: u64,
    urls: Urls,
    tls: Option<Identity>,
    registry: Mutex<Registry>,
    /// Images not yet made, by repository.
    pending: Mutex<HashMap<String, Vec<ImageSpec>>>,
    layers: Layers,
    auth: Mutex<Auth>,
    limit: Mutex<Option<RateLimit>>,
    faults: Faults,
    pace: Pace,
    log: Log,
    listeners: HashMap<Side, Arc<Listener>>,
    connections: Connections,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimit {
    limit: u64,
    window_s: u64,
    remaining: u64,
}

/// A started origin; dropping it ends the listeners and the connections.
pub struct Running {
    origin: Arc<Origin>,
    control: Arc<Listener>,
}

impl Running {
    pub fn start(options: Options) -> io::Result<Running> {
        let control = Arc::new(Listener::bind(options.control)?);
        let mut listeners = HashMap::new();
        for side in Side::ALL {
            let addr = match side {
                Side::Registry => options.registry,
                Side::Cdn => options.cdn,
                Side::Token => options.token,
            };
            listeners.insert(side, Arc::new(Listener::bind(addr)?));
        }
        let scheme = if options.identity.is_some() {
            "https"
        } else {
            "http"
        };
        let url = |side: Side| format!("{scheme}://{}", listeners[&side].addr);
        let urls = Urls {
            registry: url(Side::Registry),
            cdn: url(Side::Cdn),
            token: url(Side::Token),
            control: format!("http://{}", control.addr),
        };
        let realm = format!("{}/token", urls.token);
        let origin = Arc::new(Origin {
            seed: options.seed,
            urls,
            tls: options.identity,
            registry: Mutex::default(),
            pending: Mutex::default(),
            layers: Layers::default(),
            auth: Mutex::new(Auth::new(options.rules, realm)),
            limit: Mutex::default(),
            faults: Faults::default(),
            pace: Pace::default(),
            log: Log::new(options.log),
            listeners,
            connections: Connections::default(),
        });
        origin.pace.set(options.rate);
        for (side, listener) in &origin.listeners {
            accept_in_thread(&origin, Some(*side), listener)?;
        }
        accept_in_thread(&origin, None, &control)?;
        Ok(Running { origin, control })
    }

    pub fn urls(&self) -> &Urls {
        &self.origin.urls
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is left to do for a listener that is gone already.
        let _ = self.control.end();
        for listener in self.origin.listeners.values() {
            let _ = listener.end();
        }
        self.origin.connections.close(&Side::ALL, None);
        self.origin.faults.clear(None);
    }
}

fn accept_in_thread(
    origin: &Arc<Origin>,
    side: Option<Side>,
    listener: &Arc<Listener>,
) -> io::Result<()> {
    let (origin, listener) = (origin.clone(), listener.clone());
    std::thread::Builder::new()
        .name("listener".into())
        .spawn(move || {
            while let Some(stream) = listener.accept() {
                let stream = Arc::new(stream);
                let Some(id) = origin.connections.add(side, &stream) else {
                    continue;
                };
                // Stopped meanwhile: whoever closes the open ones may not have seen this one.
                if listener.is_open() {
                    serve_in_thread(&origin, side, id, stream);
                } else {
                    origin.connections.remove(id);
                }
            }
        })?;
    Ok(())
}

fn serve_in_thread(origin: &Arc<Origin>, side: Option<Side>, id: u64, stream: Arc<TcpStream>) {
    let of_thread = origin.clone();
    let thread = std::thread::Builder::new().name("connection".into());
    let spawned = thread.spawn(move || {
        connection::serve(&of_thread, side, id, stream);
        of_thread.connections.remove(id);
    });
    if let Err(error) = spawned {
        eprintln!("entrepot-origin: no thread for a connection: {error}");
        origin.connections.remove(id);
    }
}

impl Origin {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap()
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap()
    }

    fn put_image(&self, spec: &ImageSpec) -> Result<Description, ImageError> {
        let image = spec.build(&self.layers, self.seed)?;
        self.registry().put_image(&image);
        Ok(image.description)
    }

    /// To be made when its repository is first asked for.
    fn defer_image(&self, spec: ImageSpec) {
        let mut pending = self.pending.lock().unwrap();
        pending
            .entry(spec.repository.clone())
            .or_default()
            .push(spec);
    }

    /// Makes what was deferred; others who ask meanwhile wait.
    fn make_pending(&self, repository: &str) {
        let mut pending = self.pending.lock().unwrap();
        for spec in pending.remove(repository).unwrap_or_default() {
            if let Err(error) = self.put_image(&spec) {
                eprintln!("entrepot-origin: image {repository}: {error}");
            }
        }
    }

    fn make_all_pending(&self) {
        let names: Vec<String> = self.pending.lock().unwrap().keys().cloned().collect();
        for name in names {
            self.make_pending(&name);
        }
    }
}
