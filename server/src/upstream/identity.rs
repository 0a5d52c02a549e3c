//! The client certificate that one upstream asks for, read again when its files change.
//!
//! Given to rustls as a resolver, so that a handshake takes what is current. Sent to the
//! upstream's origin and token service only: see `tls::Settings`.

use std::sync::{Arc, PoisonError, RwLock};

use entrepot_storage::Digest;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use crate::config::{IdentityFiles, load_identity};

use super::error::SetupError;

#[derive(Debug)]
pub(super) struct Identity {
    files: IdentityFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Identity {
    /// Blocks on files.
    pub fn load(files: IdentityFiles) -> Result<Identity, SetupError> {
        let loaded = load_identity(&files).map_err(|reason| SetupError::Identity {
            path: files.cert.clone(),
            reason,
        })?;
        Ok(Identity {
            files,
            current: RwLock::new(Arc::new(loaded)),
        })
    }

    /// Reads the files again and says whether there is another certificate. A pair that does not
    /// fit, as while both are being replaced, changes nothing. Blocks.
    pub fn refresh(&self) -> Result<bool, SetupError> {
        let loaded = Identity::load(self.files.clone())?.current();
        let changed = loaded.cert != self.current().cert;
        if changed {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        }
        Ok(changed)
    }

    /// Whom the current certificate is for: the same when it was renewed, by another authority or
    /// with another key.
    pub fn account(&self) -> Digest {
        let current = self.current();
        // A pair that was loaded has a certificate.
        current
            .cert
            .first()
            .map_or_else(|| Digest::sha256(b""), holder)
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Its subject and its names (RFC 5280 §4.1.2.6, §4.2.1.6). One that is too old to be read is
/// known by its bytes.
fn holder(certificate: &CertificateDer<'_>) -> Digest {
    let Ok(parsed) = EndEntityCert::try_from(certificate) else {
        return Digest::sha256(certificate);
    };
    let names: Vec<&str> = parsed
        .valid_dns_names()
        .chain(parsed.valid_uri_names())
        .collect();
    Digest::sha256(format!("{:?}", (parsed.subject(), names)).as_bytes())
}

impl ResolvesClientCert for Identity {
    // Which authorities the server names is left to it: it may refuse what we have.
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let current = self.current();
        current
            .key
            .choose_scheme(schemes)
            .is_some()
            .then_some(current)
    }

    fn has_certs(&self) -> bool {
        true
    }
}
