//! A CA and a certificate for the listeners, made anew for each run.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Leaf {
    #[default]
    Good,
    Expired,
    WrongName,
}

/// Names that the good certificate always holds.
const NAMES: [&str; 3] = ["127.0.0.1", "::1", "localhost"];

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

pub struct Identity {
    pub config: Arc<ServerConfig>,
    /// The CA's certificate.
    pub ca_pem: String,
}

impl Identity {
    pub fn new(leaf: Leaf, extra_names: &[String]) -> Result<Identity, TlsError> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(DnType::CommonName, "entrepot-origin CA");
        let ca_key = KeyPair::generate()?;
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);

        let names = match leaf {
            Leaf::Good | Leaf::Expired => {
                let names = NAMES.iter().map(|name| (*name).to_owned());
                names.chain(extra_names.iter().cloned()).collect()
            }
            Leaf::WrongName => vec!["wrong.example".to_owned()],
        };
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "entrepot-origin");
        if leaf == Leaf::Expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;

        let chain = vec![certificate.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Identity {
            config: Arc::new(config),
            ca_pem: ca_certificate.pem(),
        })
    }
}
