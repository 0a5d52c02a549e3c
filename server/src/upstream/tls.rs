//! TLS towards upstreams: rustls without I/O of its own, driven over a monoio stream.
//!
//! Called by `connect`. Bytes from the socket are decrypted where they lie and appended to the
//! caller's buffer, so a read of 256 KiB costs one receive. The receive buffer is given up while
//! a connection is idle. Certificates are verified against the system's roots and the upstream's
//! `ca_file`; without verification only where the configuration says so, and loudly.

use std::path::Path;
use std::sync::Arc;

use monoio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config;

use super::connect::{Got, StreamError, receive, send};
use super::error::{SetupError, TlsFailure};
use super::identity::Identity;

/// Certificates and the like come in a few KiB; bodies ask for more by themselves.
const HANDSHAKE_READ_LEN: usize = 16 << 10;
/// Room for records beside their plaintext: 16 records of 16 KiB carry 22 bytes each.
const RECORDS_OVERHEAD: usize = 1 << 10;
/// Sessions kept for resumption by one shard for one upstream: a registry, its realm and CDNs.
const SESSIONS_MAX: usize = 32;

/// The system's trusted roots, read once and shared by all upstreams.
pub struct TrustRoots(Arc<RootCertStore>);

impl TrustRoots {
    /// Blocks on files. Roots that cannot be read or used are logged and left out.
    pub fn native() -> TrustRoots {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a system certificate was not read");
        }
        let mut store = RootCertStore::empty();
        let (usable, refused) = store.add_parsable_certificates(found.certs);
        tracing::debug!(usable, refused, "system certificates");
        if store.is_empty() {
            tracing::warn!("no system certificates found: https upstreams need a ca_file");
        }
        TrustRoots(Arc::new(store))
    }

    /// No roots but those of each upstream's `ca_file`.
    pub fn none() -> TrustRoots {
        TrustRoots(Arc::new(RootCertStore::empty()))
    }

    fn with_file(&self, file: Option<&Path>) -> Result<Arc<RootCertStore>, SetupError> {
        let Some(path) = file else {
            return Ok(self.0.clone());
        };
        let unreadable = |reason: rustls::pki_types::pem::Error| SetupError::CaFile {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let mut store = RootCertStore::clone(&self.0);
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let certificate = certificate.map_err(unreadable)?;
            store
                .add(certificate)
                .map_err(|reason| SetupError::Certificate {
                    path: path.to_owned(),
                    index: count,
                    reason,
                })?;
            count += 1;
        }
        match count {
            0 => Err(SetupError::CaFileEmpty {
                path: path.to_owned(),
            }),
            _ => Ok(Arc::new(store)),
        }
    }
}

/// Settings for the connections made on behalf of one upstream.
#[derive(Clone)]
pub(super) struct Settings {
    /// To its origin and its token service, which get to see our client certificate.
    pub own: Arc<ClientConfig>,
    /// To where redirects lead (R11).
    pub elsewhere: Arc<ClientConfig>,
}

impl Settings {
    pub fn new(
        upstream: &config::Upstream,
        roots: &TrustRoots,
        identity: Option<Arc<Identity>>,
    ) -> Result<Settings, SetupError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier(upstream, roots, provider)?);
        let mut elsewhere = builder.clone().with_no_client_auth();
        elsewhere.alpn_protocols = vec![b"http/1.1".to_vec()];
        let elsewhere = Arc::new(elsewhere);
        let own = match identity {
            None => elsewhere.clone(),
            Some(identity) => {
                let mut own = builder.with_client_cert_resolver(identity);
                own.alpn_protocols.clone_from(&elsewhere.alpn_protocols);
                Arc::new(own)
            }
        };
        Ok(Settings { own, elsewhere })
    }

    /// The same with session caches of its own: shards share no sessions.
    pub fn for_shard(&self) -> Settings {
        let apart = |config: &Arc<ClientConfig>| {
            let mut config = ClientConfig::clone(config);
            config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
            Arc::new(config)
        };
        Settings {
            own: apart(&self.own),
            elsewhere: apart(&self.elsewhere),
        }
    }
}

fn verifier(
    upstream: &config::Upstream,
    roots: &TrustRoots,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, SetupError> {
    let blind = |trust| {
        Arc::new(Blind {
            trust,
            provider: provider.clone(),
        })
    };
    if !upstream.tls_verify {
        tracing::warn!(
            upstream = %upstream.url,
            "tls_verify is off: anyone on the way can read and change what is pulled"
        );
        return Ok(blind(Trust::Anybody));
    }
    let roots = roots.with_file(upstream.ca_file.as_deref())?;
    // rustls refuses to build a verifier without roots; then the first handshake fails.
    if roots.is_empty() {
        return Ok(blind(Trust::Nobody));
    }
    Ok(WebPkiServerVerifier::builder_with_provider(roots, provider).build()?)
}

/// A verdict that no certificate changes; signatures are still checked.
#[derive(Debug)]
struct Blind {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

#[derive(Clone, Copy, Debug)]
enum Trust {
    /// `tls_verify = false`.
    Anybody,
    /// There is no root to trust.
    Nobody,
}

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.trust {
            Trust::Anybody => Ok(ServerCertVerified::assertion()),
            Trust::Nobody => Err(rustls::CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A TLS connection after its handshake.
pub(super) struct TlsStream {
    tcp: TcpStream,
    session: UnbufferedClientConnection,
    /// Received; `start..` is not yet decrypted.
    incoming: Vec<u8>,
    start: usize,
    /// close_notify arrived.
    closed: bool,
}

impl TlsStream {
    pub async fn connect(
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        host: &str,
    ) -> Result<TlsStream, StreamError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsFailure::ServerName)?;
        let session = UnbufferedClientConnection::new(config, name).map_err(TlsFailure::Session)?;
        let mut stream = TlsStream {
            tcp,
            session,
            incoming: Vec::new(),
            start: 0,
            closed: false,
        };
        let mut unasked = Vec::new();
        loop {
            stream.advance_and_send(&mut unasked).await?;
            if !stream.session.is_handshaking() {
                break;
            }
            if stream.closed || stream.receive(HANDSHAKE_READ_LEN).await? == 0 {
                return Err(TlsFailure::Closed.into());
            }
        }
        match unasked.is_empty() {
            true => Ok(stream),
            false => Err(TlsFailure::Unasked.into()),
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Encrypts and sends all of `plain`.
    pub async fn write(&mut self, plain: &[u8]) -> Result<(), StreamError> {
        let mut outgoing = Vec::new();
        self.encrypt(plain, &mut outgoing)?;
        send(&mut self.tcp, outgoing).await
    }

    /// Receives once and appends what that decrypts to, which may be nothing.
    pub async fn read(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Got, StreamError> {
        if self.closed {
            return Ok(Got::End { clean: true });
        }
        let before = out.len();
        if self.receive(room + RECORDS_OVERHEAD).await? == 0 {
            return Ok(Got::End { clean: false });
        }
        self.advance_and_send(out).await?;
        match self.closed && out.len() == before {
            true => Ok(Got::End { clean: true }),
            false => Ok(Got::Bytes),
        }
    }

    /// Gives up the receive buffer until the next read.
    pub fn rest(&mut self) {
        if self.start == self.incoming.len() {
            self.incoming = Vec::new();
            self.start = 0;
        }
    }

    async fn receive(&mut self, room: usize) -> Result<usize, StreamError> {
        // At most one partial record is moved.
        self.incoming.drain(..self.start);
        self.start = 0;
        receive(&mut self.tcp, &mut self.incoming, room).await
    }

    /// Takes the session as far as what was received allows.
    async fn advance_and_send(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let mut outgoing = Vec::new();
        self.advance(out, &mut outgoing)?;
        match outgoing.is_empty() {
            true => Ok(()),
            false => send(&mut self.tcp, outgoing).await,
        }
    }

    /// The same without I/O: plaintext to `out`, and what must be sent now to `outgoing`.
    fn advance(&mut self, out: &mut Vec<u8>, outgoing: &mut Vec<u8>) -> Result<(), TlsFailure> {
        loop {
            let records = &mut self.incoming[self.start..];
            let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(records);
            let mut done = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        out.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let start = outgoing.len();
                    if let Err(EncodeError::InsufficientSize(need)) = data.encode(&mut []) {
                        outgoing.resize(start + need.required_size, 0);
                        data.encode(&mut outgoing[start..])
                            .map_err(|_| TlsFailure::Exhausted)?;
                    }
                }
                // The caller sends `outgoing` before it receives again.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => done = true,
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    self.closed = true;
                    done = true;
                }
                // The enum is open. What is left of it concerns servers.
                _ => return Err(TlsFailure::Exhausted),
            }
            self.start += discard;
            if done {
                return Ok(());
            }
        }
    }

    fn encrypt(&mut self, plain: &[u8], outgoing: &mut Vec<u8>) -> Result<(), TlsFailure> {
        let records = &mut self.incoming[self.start..];
        let UnbufferedStatus { state, .. } = self.session.process_tls_records(records);
        let ConnectionState::WriteTraffic(mut traffic) = state? else {
            return Err(if self.closed {
                TlsFailure::Closed
            } else {
                TlsFailure::Exhausted
            });
        };
        let Err(EncryptError::InsufficientSize(need)) = traffic.encrypt(plain, &mut []) else {
            return Err(TlsFailure::Exhausted);
        };
        outgoing.resize(need.required_size, 0);
        let len = traffic
            .encrypt(plain, outgoing)
            .map_err(|_| TlsFailure::Exhausted)?;
        outgoing.truncate(len);
        Ok(())
    }
}
