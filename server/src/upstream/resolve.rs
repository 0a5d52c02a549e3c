//! Names to addresses, off the shards.
//!
//! getaddrinfo blocks, so it runs on a few plain threads (R3). One more thread, the keeper, owns
//! all state: what is known, for how long, and who waits for what, so that a herd asks once.
//! Shards talk to it through a bounded queue and a slot of their own for the reply (R4).
//! The order of the addresses is getaddrinfo's (RFC 6724); which are allowed is decided by
//! `connect`. The threads live as long as the process.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::origin::literal;

/// One slow name server must not hold up every other name.
const LOOKUPS_MAX: usize = 8;
/// Questions in the queue; a shard has at most its connections' worth.
const ASKED_MAX: usize = 4096;
/// Names waiting for a lookup thread, and names remembered: far more than upstreams and CDNs.
const NAMES_MAX: usize = 512;
/// CDNs move within a minute; a fresh connection after that should follow.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// Long enough to spare a broken resolver the herd, short enough not to be noticed.
const FAILED_FOR: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    #[error("{0}")]
    Lookup(String),
    #[error("no address")]
    NoAddress,
    #[error("only private addresses, which are not allowed here")]
    Private,
    #[error("too many lookups are waiting")]
    Busy,
}

type Answer = Result<Arc<[IpAddr]>, NamesError>;

enum Message {
    Ask {
        host: String,
        reply: flume::Sender<Answer>,
    },
    Found {
        host: String,
        answer: Answer,
    },
}

/// A way to ask the names threads; clone one for each shard.
#[derive(Clone)]
pub struct Resolver {
    keeper: flume::Sender<Message>,
}

impl Resolver {
    /// Starts the threads, with the system's name service behind them.
    pub fn start() -> io::Result<Resolver> {
        Resolver::start_with(|host| {
            // The port is not part of the question, but getaddrinfo wants one.
            let addresses = (host, 0).to_socket_addrs()?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }

    /// The same with another name service.
    pub fn start_with<F>(lookup: F) -> io::Result<Resolver>
    where
        F: Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    {
        let (keeper, messages) = flume::bounded(ASKED_MAX);
        let (jobs, hosts) = flume::bounded::<String>(NAMES_MAX);
        let lookup = Arc::new(lookup);
        for _ in 0..LOOKUPS_MAX {
            let (hosts, keeper, lookup) = (hosts.clone(), keeper.clone(), lookup.clone());
            thread::Builder::new()
                .name("names".to_owned())
                .spawn(move || {
                    for host in hosts {
                        let answer = settle(lookup(&host));
                        if keeper.send(Message::Found { host, answer }).is_err() {
                            return;
                        }
                    }
                })?;
        }
        let mut names = Names {
            jobs,
            known: HashMap::new(),
            waiting: HashMap::new(),
        };
        thread::Builder::new()
            .name("names-keeper".to_owned())
            .spawn(move || {
                for message in messages {
                    names.take(message, Instant::now());
                }
            })?;
        Ok(Resolver { keeper })
    }

    /// The addresses of a host, never empty; a literal is its own answer.
    pub(super) async fn lookup(&self, host: &str) -> Answer {
        if let Some(address) = literal(host) {
            return Ok(Arc::new([address]));
        }
        let (reply, answer) = flume::bounded(1);
        let ask = Message::Ask {
            host: host.to_owned(),
            reply,
        };
        self.keeper.try_send(ask).map_err(|_| NamesError::Busy)?;
        answer.recv_async().await.unwrap_or(Err(NamesError::Busy))
    }
}

fn settle(found: io::Result<Vec<IpAddr>>) -> Answer {
    let mut addresses = found.map_err(|error| NamesError::Lookup(error.to_string()))?;
    // One socket type is asked for, but some resolvers repeat themselves.
    let mut seen = Vec::with_capacity(addresses.len());
    addresses.retain(|address| {
        let new = !seen.contains(address);
        seen.push(*address);
        new
    });
    match addresses.is_empty() {
        true => Err(NamesError::NoAddress),
        false => Ok(addresses.into()),
    }
}

/// What the keeper keeps.
struct Names {
    jobs: flume::Sender<String>,
    known: HashMap<String, (Answer, Instant)>,
    waiting: HashMap<String, Vec<flume::Sender<Answer>>>,
}

impl Names {
    // Never blocks: the lookup threads wait for the keeper, so it must not wait for them. A reply
    // has its slot, and fails only when its asker has gone.
    fn take(&mut self, message: Message, now: Instant) {
        match message {
            Message::Ask { host, reply } => self.ask(host, reply, now),
            Message::Found { host, answer } => {
                for reply in self.waiting.remove(&host).unwrap_or_default() {
                    let _ = reply.try_send(answer.clone());
                }
                self.remember(host, answer, now);
            }
        }
    }

    fn ask(&mut self, host: String, reply: flume::Sender<Answer>, now: Instant) {
        if let Some((answer, until)) = self.known.get(&host)
            && now < *until
        {
            let _ = reply.try_send(answer.clone());
            return;
        }
        if let Some(waiting) = self.waiting.get_mut(&host) {
            waiting.retain(|reply| !reply.is_disconnected());
            match waiting.len() < ASKED_MAX {
                true => waiting.push(reply),
                false => drop(reply.try_send(Err(NamesError::Busy))),
            }
            return;
        }
        match self.jobs.try_send(host.clone()) {
            Ok(()) => drop(self.waiting.insert(host, vec![reply])),
            Err(_) => drop(reply.try_send(Err(NamesError::Busy))),
        }
    }

    fn remember(&mut self, host: String, answer: Answer, now: Instant) {
        if self.known.len() >= NAMES_MAX {
            self.known.retain(|_, (_, until)| now < *until);
        }
        // Still full of fresh names: forgetting them costs a lookup each.
        if self.known.len() >= NAMES_MAX {
            self.known.clear();
        }
        let known_for = if answer.is_ok() {
            KNOWN_FOR
        } else {
            FAILED_FOR
        };
        self.known.insert(host, (answer, now + known_for));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::{KNOWN_FOR, Message, Names, NamesError, Resolver};

    #[test]
    fn a_herd_asks_once() {
        let (go, gate) = flume::bounded::<()>(1);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let resolver = Resolver::start_with(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            gate.recv().map_err(io::Error::other)?;
            Ok(vec!["192.0.2.1".parse().map_err(io::Error::other)?; 2])
        })
        .expect("threads");
        let replies: Vec<_> = (0..64)
            .map(|_| {
                let (reply, answer) = flume::bounded(1);
                let ask = Message::Ask {
                    host: "r.example".to_owned(),
                    reply,
                };
                resolver.keeper.send(ask).expect("keeper");
                answer
            })
            .collect();
        go.send(()).expect("lookup");
        for answer in replies {
            let addresses = answer.recv().expect("reply").expect("addresses");
            assert_eq!(addresses.len(), 1, "repeated addresses are one");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    fn names() -> (Names, flume::Receiver<String>) {
        let (jobs, hosts) = flume::bounded(1);
        (
            Names {
                jobs,
                known: Default::default(),
                waiting: Default::default(),
            },
            hosts,
        )
    }

    #[test]
    fn answers_age() {
        let (mut names, hosts) = names();
        let start = Instant::now();
        let ask = |names: &mut Names, now| {
            let (reply, answer) = flume::bounded(1);
            names.take(
                Message::Ask {
                    host: "r.example".to_owned(),
                    reply,
                },
                now,
            );
            answer
        };
        let first = ask(&mut names, start);
        let host = hosts.try_recv().expect("a lookup");
        let found = Ok(vec!["192.0.2.1".parse().expect("address")].into());
        names.take(
            Message::Found {
                host,
                answer: found,
            },
            start,
        );
        assert!(first.try_recv().expect("reply").is_ok());

        assert!(
            ask(&mut names, start + Duration::from_secs(1))
                .try_recv()
                .is_ok()
        );
        assert!(hosts.is_empty());
        assert!(ask(&mut names, start + KNOWN_FOR).try_recv().is_err());
        let host = hosts.try_recv().expect("asked again");
        let failed = Err(NamesError::Lookup("no".to_owned()));
        names.take(
            Message::Found {
                host,
                answer: failed,
            },
            start + KNOWN_FOR,
        );
        let soon = ask(&mut names, start + KNOWN_FOR)
            .try_recv()
            .expect("remembered");
        assert!(soon.is_err());
    }

    #[test]
    fn a_full_queue_refuses() {
        let (mut names, _hosts) = names();
        let mut ask = |host: &str| {
            let (reply, answer) = flume::bounded(1);
            names.take(
                Message::Ask {
                    host: host.to_owned(),
                    reply,
                },
                Instant::now(),
            );
            answer.try_recv()
        };
        assert!(ask("a.example").is_err());
        assert_eq!(ask("b.example"), Ok(Err(NamesError::Busy)));
        assert!(ask("a.example").is_err(), "joins the lookup that waits");
    }
}
