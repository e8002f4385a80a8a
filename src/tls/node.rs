//! TLS between members of the mesh: both sides show the key that they are known by, as a raw public
//! key (RFC 7250), and nothing else.
//!
//! No certificate, no name in one and no date: nothing can run out, whatever the clock says. The
//! client asks for the node it wants by its id (`<id>.mesh.alt`) and takes no other key than that
//! node's; the server takes any Ed25519 key whose holder proves to have it. What that one may do is for
//! the roster to say. TLS 1.3 only, and no session is resumed: who was revoked has nothing to come back with.

use std::fmt;
use std::sync::Arc;

use postroad_mesh::{NodeId, NodeKey, SecretKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use tokio_rustls::TlsConnector;

use super::provider;

/// Both sides of TLS for a node that is known by its key.
#[derive(Clone)]
pub struct NodeTls {
    id: NodeId,
    server: Arc<ServerConfig>,
    connector: TlsConnector,
}

impl NodeTls {
    /// Sets up both sides.
    ///
    /// # Errors
    /// What the library has against the key.
    pub fn new(key: &SecretKey) -> Result<NodeTls, Error> {
        let pkcs8 = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_pkcs8()));
        let signing = provider().key_provider.load_private_key(pkcs8)?;
        let shown = vec![CertificateDer::from(key.public().spki().to_vec())];
        let shown = Arc::new(CertifiedKey::new(shown, signing));
        let verifier = Arc::new(RawKey(provider()));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown.clone())));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(shown)));
        client.resumption = Resumption::disabled();
        Ok(NodeTls { id: key.public().id(), server: Arc::new(server), connector: TlsConnector::from(Arc::new(client)) })
    }

    /// Returns the node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Returns what answers those who ask for this node.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Returns what connects as this node; with whom, the server name says ([`server_name`]).
    pub fn connector(&self) -> &TlsConnector {
        &self.connector
    }
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeTls").field(&self.id).finish()
    }
}

/// Returns the name to ask for to reach a node.
pub fn server_name(node: &NodeId) -> ServerName<'static> {
    ServerName::try_from(node.server_name()).expect("base32 below mesh.alt is a host name")
}

/// Returns the key that the other side of a finished handshake has proved to hold, where that side
/// is a node of a mesh.
pub fn peer_key(connection: &CommonState) -> Option<NodeKey> {
    NodeKey::from_spki(connection.peer_certificates()?.first()?)
}

/// Takes a raw Ed25519 key whose holder signed the handshake with it; as a client, only that of the
/// node it asked for.
#[derive(Debug)]
struct RawKey(Arc<CryptoProvider>);

impl RawKey {
    fn key(shown: &CertificateDer<'_>) -> Result<NodeKey, Error> {
        NodeKey::from_spki(shown).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signature, &self.0.signature_verification_algorithms)
    }
}

/// Said where TLS 1.2 would be spoken: neither side offers it.
const ONLY_TLS13: Error = Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered);

impl ServerCertVerifier for RawKey {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let wanted = NodeId::from_server_name(&name.to_str());
        if wanted == Some(RawKey::key(shown)?.id()) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(ONLY_TLS13)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        RawKey::key(shown).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(ONLY_TLS13)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
