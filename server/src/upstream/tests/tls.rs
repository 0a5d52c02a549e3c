//! TLS with an authority of the test's own; its end of the wire is rustls as a server.

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::origin::{Origin, Wire, answer};
use super::plain::long_body;
use super::{Shard, get, run, upstream};
use crate::config;
use crate::upstream::error::{BodyError, FailureClass, SetupError, TlsFailure, UpstreamError};
use crate::upstream::identity::Identity;
use crate::upstream::{TrustRoots, Upstream};

/// Numbers what must have names of their own.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A certificate authority and its certificate in a file of its own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: TempFile,
}

/// A file that goes with its owner.
struct TempFile(PathBuf);

impl TempFile {
    fn new(bytes: &str) -> TempFile {
        let nth = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("entrepot-upstream-{}-{nth}.pem", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        // Authorities of one name would be told apart by their signatures only.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("Authority {serial}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let file = TempFile::new(&certificate.pem());
        Authority {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    /// A server's settings, with a certificate for `name`.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue(name);
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let mut config = config.expect("a matching key");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// A server that lets in only whom this authority knows.
    fn strict_server(&self, name: &str) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(&self.file.0).expect("a certificate");
        roots.add(certificate).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        let (chain, key) = self.issue(name);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(vec![chain.der().clone()], key);
        Arc::new(config.expect("a matching key"))
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate, key)
    }

    fn trusted_by(&self, mut upstream: config::Upstream) -> config::Upstream {
        upstream.ca_file = Some(self.file.0.clone());
        upstream
    }
}

fn layer(config: Arc<ServerConfig>) -> impl Fn(TcpStream) -> Box<dyn Wire> + Send + Sync {
    move |stream| {
        let session = ServerConnection::new(config.clone()).expect("a session");
        Box::new(StreamOwned::new(session, stream))
    }
}

fn https(origin: &Origin) -> String {
    format!("https://127.0.0.1:{}", origin.port)
}

#[test]
fn bodies_through_tls_and_connections_kept() {
    let authority = Authority::new();
    let body = long_body(3_000_001);
    let sent = body.clone();
    let origin = Origin::start_with(layer(authority.server("127.0.0.1")), move |mut peer| {
        while peer.request().is_some() {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                sent.len()
            ));
            peer.send(&sent);
        }
    });
    run(async {
        let shard = Shard::new(&[authority.trusted_by(upstream(&https(&origin)))]);
        for _ in 0..2 {
            let mut response = shard.send(get("/")).await.expect("an answer");
            let mut got = Vec::new();
            while let Some(piece) = response.body.read().await.expect("a piece") {
                got.extend_from_slice(&piece);
            }
            assert!(got == body);
        }
        assert_eq!(shard.client.counters().connections.get(), 1);
    });
}

#[test]
fn sessions_are_resumed_and_http_1_1_is_chosen() {
    let authority = Authority::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let server = authority.server("127.0.0.1");
    let layer = move |stream: TcpStream| -> Box<dyn Wire> {
        let session = ServerConnection::new(server.clone()).expect("a session");
        let mut stream = StreamOwned::new(session, stream);
        stream
            .conn
            .complete_io(&mut stream.sock)
            .expect("a handshake");
        let protocol = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
        log.lock()
            .expect("no panic")
            .push((stream.conn.handshake_kind(), protocol));
        Box::new(stream)
    };
    let origin = Origin::start_with(layer, |mut peer| {
        peer.request();
        peer.send(answer(200, &["Connection: close"], "x"));
    });
    run(async {
        let shard = Shard::new(&[authority.trusted_by(upstream(&https(&origin)))]);
        for _ in 0..2 {
            assert_eq!(shard.get("/").await, (200, "x".to_owned()));
        }
    });
    let http = Some(b"http/1.1".to_vec());
    let expected = [
        (Some(HandshakeKind::Full), http.clone()),
        (Some(HandshakeKind::Resumed), http),
    ];
    assert_eq!(*seen.lock().expect("no panic"), expected);
}

/// The error of a GET through TLS settings that should not be accepted.
fn refused(config: config::Upstream) -> UpstreamError {
    run(async {
        let error = Shard::new(&[config]).send(get("/")).await.err();
        error.expect("a refusal")
    })
}

#[test]
fn certificates_that_do_not_hold() {
    let (own, other) = (Authority::new(), Authority::new());
    let start = |name: &str| {
        Origin::start_with(layer(own.server(name)), |mut peer| {
            while peer.request().is_some() {
                peer.send(answer(200, &[], "x"));
            }
        })
    };
    let unknown = |error: UpstreamError| match error {
        UpstreamError::Tls {
            reason: TlsFailure::Session(reason),
            ..
        } => reason,
        error => panic!("{error}"),
    };
    let origin = start("127.0.0.1");
    for config in [
        upstream(&https(&origin)),
        other.trusted_by(upstream(&https(&origin))),
    ] {
        let error = refused(config);
        assert_eq!(error.class(), FailureClass::Unreachable);
        let reason = unknown(error);
        assert_eq!(
            reason,
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
        );
    }
    let elsewhere = start("registry.example");
    let reason = unknown(refused(own.trusted_by(upstream(&https(&elsewhere)))));
    let wrong_name = matches!(
        reason,
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
    );
    assert!(wrong_name, "{reason}");
    assert!(
        origin.heads().is_empty() && elsewhere.heads().is_empty(),
        "nothing was sent"
    );

    let mut config = upstream(&https(&elsewhere));
    config.tls_verify = false;
    run(async {
        assert_eq!(Shard::new(&[config]).get("/").await, (200, "x".to_owned()));
    });
}

#[test]
fn a_plain_server_is_not_a_tls_one() {
    let origin = Origin::start(|mut peer| {
        peer.send("HTTP/1.1 400 Bad Request\r\n\r\n");
        peer.until_closed();
    });
    let error = refused(upstream(&https(&origin)));
    assert!(matches!(error, UpstreamError::Tls { .. }), "{error}");
}

#[test]
fn only_close_notify_ends_a_body_without_a_length() {
    let authority = Authority::new();
    let server = authority.server("127.0.0.1");
    // StreamOwned closes without close_notify unless it is told.
    struct Polite(StreamOwned<ServerConnection, TcpStream>, bool);
    impl std::io::Read for Polite {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Polite {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 = bytes.ends_with(b"polite");
            self.0.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }
    impl Drop for Polite {
        fn drop(&mut self) {
            if self.1 {
                self.0.conn.send_close_notify();
                self.0.flush().expect("sent");
            }
        }
    }
    let layer = move |stream: TcpStream| -> Box<dyn Wire> {
        let session = ServerConnection::new(server.clone()).expect("a session");
        Box::new(Polite(StreamOwned::new(session, stream), false))
    };
    let origin = Origin::start_with(layer, |mut peer| {
        let head = peer.request().expect("a request");
        peer.send(match head.split(' ').nth(1) {
            Some("/length") => answer(200, &[], "cut"),
            Some("/polite") => "HTTP/1.1 200 OK\r\n\r\npolite".to_owned(),
            _ => "HTTP/1.1 200 OK\r\n\r\ncut".to_owned(),
        });
    });
    run(async {
        let shard = Shard::new(&[authority.trusted_by(upstream(&https(&origin)))]);
        for (path, body) in [
            ("/length", Ok(b"cut".to_vec())),
            ("/polite", Ok(b"polite".to_vec())),
            ("/cut", Err(BodyError::Truncated)),
        ] {
            let mut response = shard.send(get(path)).await.expect("an answer");
            assert_eq!(response.body.collect(100).await, body, "{path}");
        }
    });
}

#[test]
fn authorities_that_cannot_be_used() {
    let with = |path: PathBuf| {
        let mut config = upstream("https://registry.example");
        config.ca_file = Some(path);
        Upstream::new(&config, &TrustRoots::none())
            .err()
            .expect("an error")
    };
    let missing = with(PathBuf::from("/nonexistent/ca.pem"));
    assert!(matches!(missing, SetupError::CaFile { .. }), "{missing}");
    let empty = TempFile::new("no certificate\n");
    let error = with(empty.0.clone());
    assert!(matches!(error, SetupError::CaFileEmpty { .. }), "{error}");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = TempFile::new(broken);
    let error = with(broken.0.clone());
    assert!(
        matches!(error, SetupError::Certificate { index: 0, .. }),
        "{error}"
    );
}

#[test]
fn a_client_certificate_is_shown_to_its_origin_and_nowhere_else() {
    let authority = Authority::new();
    let elsewhere = Origin::start_with(layer(authority.strict_server("127.0.0.1")), |mut peer| {
        while peer.request().is_some() {
            peer.send(answer(200, &[], "never"));
        }
    });
    let location = format!("Location: {}/x", https(&elsewhere));
    let origin = Origin::start_with(
        layer(authority.strict_server("127.0.0.1")),
        move |mut peer| {
            while let Some(head) = peer.request() {
                peer.send(match head.starts_with("GET /away ") {
                    true => answer(307, &[&location], ""),
                    false => answer(200, &[], "in"),
                });
            }
        },
    );
    let (certificate, key) = authority.issue("client");
    let cert = TempFile::new(&certificate.pem());
    let key = TempFile::new(&key.serialize_pem());
    let mut config = authority.trusted_by(upstream(&https(&origin)));
    run(async {
        let unknown = Shard::new(std::slice::from_ref(&config));
        assert!(unknown.send(get("/")).await.is_err());
        assert!(origin.heads().is_empty());

        config.identity = Some(config::IdentityFiles {
            cert: cert.0.clone(),
            key: key.0.clone(),
        });
        let known = Shard::new(std::slice::from_ref(&config));
        assert_eq!(known.get("/").await, (200, "in".to_owned()));
        assert!(known.send(get("/away")).await.is_err());
    });
    assert!(elsewhere.heads().is_empty(), "it was told who we are");
}

#[test]
fn a_client_certificate_is_read_again() {
    let authority = Authority::new();
    let pair = || authority.issue("client");
    let ((first, first_key), (second, second_key)) = (pair(), pair());
    let cert = TempFile::new(&first.pem());
    let key = TempFile::new(&first_key.serialize_pem());
    let files = config::IdentityFiles {
        cert: cert.0.clone(),
        key: key.0.clone(),
    };
    let identity = Identity::load(files).expect("a pair");
    assert!(!identity.refresh().expect("unchanged"));
    std::fs::write(&cert.0, second.pem()).expect("the certificate");
    assert!(identity.refresh().is_err(), "half a change is none");
    std::fs::write(&key.0, second_key.serialize_pem()).expect("the key");
    assert!(identity.refresh().expect("a pair"));
    assert!(!identity.refresh().expect("unchanged"));
}

/// Files keep their names when they are given to somebody else.
#[test]
fn a_client_certificate_counts_by_whom_it_is_for() {
    let authority = Authority::new();
    let (cert, key) = (TempFile::new(""), TempFile::new(""));
    let mut config = upstream("https://r.example");
    config.identity = Some(config::IdentityFiles {
        cert: cert.0.clone(),
        key: key.0.clone(),
    });
    let named = |name: &str| {
        let (certificate, its_key) = authority.issue(name);
        std::fs::write(&cert.0, certificate.pem()).expect("the certificate");
        std::fs::write(&key.0, its_key.serialize_pem()).expect("the key");
        let upstream = Upstream::new(&config, &TrustRoots::none()).expect("a usable upstream");
        upstream.record_origin().to_owned()
    };
    let (first, renewed, other) = (named("one"), named("one"), named("two"));
    assert_eq!(first, renewed);
    assert_ne!(first, other);
}
