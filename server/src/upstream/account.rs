//! The mark of an account, which tells in records whom something was shown to.
//!
//! What one account was shown is proven for no other, and not for everybody once the login is gone
//! (R9). So the mark covers what tells accounts apart, and that is not only the user name: where
//! a token is the password, the name is often the same for everybody. A password that stands in
//! the configuration or the environment counts by itself: another one there may be another
//! account's. One that is read from a file counts by the name of the file, and a certificate by
//! those it is for: both are followed while the server runs, since they are renewed in place.
//!
//! Marks are on the disks of the store, which are guarded less than a configuration. So the one of
//! a password comes of many rounds of hashing: whoever tries likely passwords against it pays those
//! for each. A token is too long to be tried.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use entrepot_storage::Digest;

use crate::config::{self, Secret, SecretSource};

use super::identity::Identity;

/// Before the mark of an account; no configured origin has one.
const SEPARATOR: char = '#';
/// Of the mark, in hexadecimal digits: enough to tell the accounts of one registry apart.
const MARK_LEN: usize = 16;
/// Of hashing a password: some 20 ms, for each one in the configuration at a start, and for each
/// guess.
const ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();

/// The origin of an upstream, and who we are there. Blocks for the hashing.
pub(super) fn record_origin(config: &config::Upstream, identity: Option<&Identity>) -> String {
    let origin = config.url.to_string();
    if config.username.is_none() && identity.is_none() {
        return origin;
    }
    let username = config.username.as_deref().unwrap_or_default();
    let password = config.password.as_ref();
    let password = password.map(|password| named_by(&format!("{origin} {username}"), password));
    let certified = identity.map(Identity::account);
    let account = format!("{:?}", (username, password, certified));
    let mark = Digest::sha256(account.as_bytes()).to_string();
    let (_, mark) = mark.split_once(':').unwrap_or_default();
    format!("{origin}{SEPARATOR}{}", &mark[..MARK_LEN])
}

/// What a password tells of whose it is; `salt` keeps one table of guesses from doing for all.
fn named_by(salt: &str, password: &Secret) -> String {
    match password.source() {
        SecretSource::File(path) => format!("file {path:?}"),
        SecretSource::Credential { name, .. } => format!("credential {name}"),
        SecretSource::Inline | SecretSource::Env(_) => {
            let mut hashed = [0; 32];
            let secret = password.expose().as_bytes();
            let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
            pbkdf2::derive(algorithm, ROUNDS, salt.as_bytes(), secret, &mut hashed);
            format!("password {hashed:?}")
        }
    }
}

/// Whether a record of one origin counts where another, or the same, is asked: what everybody
/// was shown is shown to an account too.
pub fn counts_for(record_origin: &str, asked: &str) -> bool {
    record_origin == asked || record_origin == without_account(asked)
}

/// The origin alone, as errors name it.
pub fn without_account(record_origin: &str) -> &str {
    let (origin, _) = record_origin
        .split_once(SEPARATOR)
        .unwrap_or((record_origin, ""));
    origin
}
