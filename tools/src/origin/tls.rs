//! CAs and certificates for the listeners and their clients, made anew for each run.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{fs, io};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;

use super::endpoint::Side;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaf {
    #[default]
    Good,
    Expired,
    NotYetValid,
    WrongName,
    /// Of a CA that nobody was told of.
    UnknownCa,
}

/// Names that the good certificate always holds.
const NAMES: [&str; 3] = ["127.0.0.1", "::1", "localhost"];

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("PEM: {0}")]
    Pem(#[from] pem::Error),
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("client certificates: {0}")]
    Clients(#[from] VerifierBuilderError),
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("this origin speaks no TLS")]
    Off,
}

struct Ca {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Result<Ca, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        Ok(Ca {
            certificate,
            issuer,
        })
    }

    fn certify(
        &self,
        params: &CertificateParams,
    ) -> Result<(rcgen::Certificate, KeyPair), TlsError> {
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

/// A certificate's chain and its key.
type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Who the listeners are, and who their clients have to be.
pub struct Identity {
    ca: Ca,
    names: Vec<String>,
    /// Of the registry and the token service.
    demanded: Arc<dyn ClientCertVerifier>,
    /// Of the cdn, which only looks whether somebody shows one.
    asked: Arc<dyn ClientCertVerifier>,
    current: Mutex<Arc<Configs>>,
}

struct Configs {
    own: Arc<ServerConfig>,
    cdn: Arc<ServerConfig>,
}

impl Identity {
    /// `clients`: a folder that gets the certificates of a good client and of a stranger; then
    /// clients have to show the good one.
    pub fn new(
        leaf: Leaf,
        extra_names: &[String],
        clients: Option<&Path>,
    ) -> Result<Identity, TlsError> {
        let ca = Ca::new("entrepot-origin CA")?;
        let (demanded, asked) = match clients {
            Some(folder) => verifiers(folder)?,
            None => {
                let nobody: Arc<dyn ClientCertVerifier> = Arc::new(NoClientAuth);
                (nobody.clone(), nobody)
            }
        };
        let names = NAMES.iter().map(|name| (*name).to_owned());
        let names: Vec<String> = names.chain(extra_names.iter().cloned()).collect();
        let configs = Configs::new(leaf_of(&ca, &names, leaf)?, &demanded, &asked)?;
        Ok(Identity {
            ca,
            names,
            demanded,
            asked,
            current: Mutex::new(Arc::new(configs)),
        })
    }

    /// Of the listeners' CA.
    pub fn ca_pem(&self) -> String {
        self.ca.certificate.pem()
    }

    pub fn config(&self, side: Side) -> Arc<ServerConfig> {
        let current = self.current.lock().unwrap();
        match side {
            Side::Registry | Side::Token => current.own.clone(),
            Side::Cdn => current.cdn.clone(),
        }
    }

    /// New connections are shown this one.
    pub fn show(&self, leaf: Leaf) -> Result<(), TlsError> {
        self.replace(leaf_of(&self.ca, &self.names, leaf)?)
    }

    /// New connections are shown a certificate that was made elsewhere.
    pub fn show_pem(&self, chain: &str, key: &str) -> Result<(), TlsError> {
        let chain: Result<_, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        self.replace((chain?, PrivateKeyDer::from_pem_slice(key.as_bytes())?))
    }

    fn replace(&self, shown: Shown) -> Result<(), TlsError> {
        let configs = Configs::new(shown, &self.demanded, &self.asked)?;
        *self.current.lock().unwrap() = Arc::new(configs);
        Ok(())
    }
}

impl Configs {
    fn new(
        (chain, key): Shown,
        demanded: &Arc<dyn ClientCertVerifier>,
        asked: &Arc<dyn ClientCertVerifier>,
    ) -> Result<Configs, TlsError> {
        let config = |verifier: &Arc<dyn ClientCertVerifier>| {
            ServerConfig::builder()
                .with_client_cert_verifier(verifier.clone())
                .with_single_cert(chain.clone(), key.clone_key())
                .map(Arc::new)
        };
        Ok(Configs {
            own: config(demanded)?,
            cdn: config(asked)?,
        })
    }
}

fn leaf_of(ca: &Ca, names: &[String], leaf: Leaf) -> Result<Shown, TlsError> {
    let names = match leaf {
        Leaf::WrongName => vec!["wrong.example".to_owned()],
        _ => names.to_vec(),
    };
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "entrepot-origin");
    let years = match leaf {
        Leaf::Expired => Some((2001, 2002)),
        Leaf::NotYetValid => Some((4001, 4002)),
        _ => None,
    };
    if let Some((from, to)) = years {
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
    }
    let (certificate, key) = match leaf {
        Leaf::UnknownCa => Ca::new("nobody's CA")?.certify(&params)?,
        _ => ca.certify(&params)?,
    };
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Ok((vec![certificate.der().clone()], key))
}

type Verifiers = (Arc<dyn ClientCertVerifier>, Arc<dyn ClientCertVerifier>);

/// Writes `good` and `stranger`, each as `.pem` and `.key`; only the first is let in.
fn verifiers(folder: &Path) -> Result<Verifiers, TlsError> {
    let ours = Ca::new("entrepot-origin clients")?;
    for (name, ca) in [("good", &ours), ("stranger", &Ca::new("strangers")?)] {
        let params = CertificateParams::new(vec![format!("{name}.example")])?;
        let (certificate, key) = ca.certify(&params)?;
        fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    let mut roots = RootCertStore::empty();
    roots.add(ours.certificate.der().clone())?;
    let builder = WebPkiClientVerifier::builder(Arc::new(roots));
    Ok((
        builder.clone().build()?,
        builder.allow_unauthenticated().build()?,
    ))
}
