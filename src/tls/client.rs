//! How far a next hop's certificate is checked.
//!
//! Opportunistic and required TLS take any certificate: they keep out those who only listen
//! (RFC 7435). The signature over the handshake is verified even so. `verify` takes only a chain
//! that the system trusts and that names the hop (RFC 8314 §5.3 by way of RFC 6125).
//!
//! Sessions are resumed for speed. A resumed session is not verified again, so the two kinds never
//! share one: each has its own store, and rustls resumes only under the verifier it began with.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::provider;

/// How many hops' sessions are remembered, eight tickets each.
const SESSIONS_MAX: usize = 8 * 512;

/// The client side of TLS, shared by all connections.
#[derive(Clone)]
pub struct ClientTls {
    any: TlsConnector,
    trusted: Arc<OnceLock<TlsConnector>>,
}

impl ClientTls {
    /// Sets up both kinds. The system's trust anchors are read when the first hop needs them.
    pub fn new() -> ClientTls {
        let verifier = Arc::new(AnyCertificate(provider()));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        ClientTls { any: TlsConnector::from(Arc::new(config)), trusted: Arc::default() }
    }

    /// Sets up both kinds with the trust anchors given instead of the system's.
    pub fn with_anchors(anchors: RootCertStore) -> ClientTls {
        let tls = ClientTls::new();
        tls.trusted.get_or_init(|| trusted(anchors));
        tls
    }

    /// Returns what connects with any certificate: for opportunistic and required TLS.
    pub fn any_certificate(&self) -> &TlsConnector {
        &self.any
    }

    /// Returns what connects only when the certificate is trusted and names the hop. The first call
    /// reads the system's trust anchors, some hundred small files.
    pub fn trusted_certificate(&self) -> &TlsConnector {
        self.trusted.get_or_init(|| trusted(system_anchors()))
    }
}

impl Default for ClientTls {
    fn default() -> ClientTls {
        ClientTls::new()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// Returns the name a hop is asked for and verified by: its host name, or its address when it is
/// known by address only.
pub fn server_name(host: &str, ip: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap_or(ServerName::IpAddress(ip.into()))
}

fn trusted(anchors: RootCertStore) -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .with_root_certificates(anchors)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    TlsConnector::from(Arc::new(config))
}

fn system_anchors() -> RootCertStore {
    let mut anchors = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = anchors.add_parsable_certificates(found.certs);
    for error in &found.errors {
        tracing::warn!(%error, "a trust anchor of the system cannot be read");
    }
    if added == 0 {
        tracing::error!("the system has no trust anchors: install ca-certificates, or no hop can be verified");
    }
    anchors
}

/// Takes any certificate, but the peer must hold its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
