//! TLS for tests: a self-signed certificate, and a client that takes any certificate but checks
//! that its holder has the key.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

/// A certificate and its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    certificate_pem: String,
    key_pem: String,
}

/// The identity of every test server, for the names that tests use.
pub static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let names = ["localhost", "mx.test", "sink.test", "127.0.0.1"].map(String::from);
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
    Identity {
        certificate: made.cert.der().clone(),
        key: made.signing_key.serialize_der(),
        certificate_pem: made.cert.pem(),
        key_pem: made.signing_key.serialize_pem(),
    }
});

impl Identity {
    /// Writes `cert.pem` and `key.pem` into a directory.
    pub fn write_to(&self, directory: &Path) {
        std::fs::write(directory.join("cert.pem"), &self.certificate_pem).expect("writable");
        std::fs::write(directory.join("key.pem"), &self.key_pem).expect("writable");
    }

    /// Returns the settings of a server with this identity.
    pub fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .expect("the key belongs to the certificate");
        Arc::new(config)
    }
}

/// Returns the settings of a client that takes any certificate.
pub fn client() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
        .with_no_client_auth();
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

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
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
