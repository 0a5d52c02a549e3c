//! Passwords and client certificates in files, followed while the server runs.
//!
//! One thread looks at the files of all upstreams and puts what has changed where the shards find
//! it; no shard waits for a file (R3). It compares contents: mounted secrets change by swapped
//! links, which neither times nor watches show reliably. A file that cannot be read changes
//! nothing and is logged once.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config;

use super::{Login, Upstream};

/// A rotated password should be in use before anybody asks why it is not; a few small files from
/// the page cache cost microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Starts the thread, which lives as long as the process; `upstreams` are those that are
/// configured now.
pub fn follow_files(upstreams: impl Fn() -> Vec<Arc<Upstream>> + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("credentials".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(LOOK_EVERY);
                upstreams().iter().for_each(|upstream| upstream.refresh());
            }
        })?;
    Ok(())
}

impl Upstream {
    /// Reads its files again. Blocks.
    pub(super) fn refresh(&self) {
        let outcome = self
            .refresh_password()
            .and_then(|()| self.refresh_identity());
        let before = self.unreadable.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(error) if !before => tracing::warn!(
                upstream = %self.origin, %error,
                "credentials could not be read again: the former ones stay in use"
            ),
            _ => {}
        }
    }

    fn refresh_password(&self) -> Result<(), String> {
        let Some(login) = self.login() else {
            return Ok(());
        };
        let Some(password) = config::reread(&login.password) else {
            return Ok(());
        };
        let password = password.map_err(|error| format!("password: {error}"))?;
        if password != login.password {
            let login = Login::new(&login.username, password);
            *self.login.write().unwrap_or_else(PoisonError::into_inner) = Some(login);
            tracing::info!(upstream = %self.origin, "the password has changed");
        }
        Ok(())
    }

    fn refresh_identity(&self) -> Result<(), String> {
        let Some(identity) = &self.identity else {
            return Ok(());
        };
        let before = identity.account();
        if identity.refresh().map_err(|error| error.to_string())? {
            match identity.account() == before {
                true => {
                    tracing::info!(upstream = %self.origin, "the client certificate has changed");
                }
                false => tracing::warn!(
                    upstream = %self.origin,
                    "the client certificate is somebody else's now: what the former one was shown \
                     is served until a reload"
                ),
            }
        }
        Ok(())
    }
}
