//! TLS on both sides, version 1.2 and later, with aws-lc-rs as the one crypto provider.
//!
//! The provider is always named explicitly, never the process default. [`server`] answers with the
//! certificate of this host, [`client`] checks that of the next hop as far as its policy says, and
//! [`node`] is for members of the mesh, who know each other by key.

pub mod client;
pub mod node;
pub mod server;

use std::sync::{Arc, LazyLock};

use postroad_smtp::server::TlsFacts;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use client::ClientTls;
pub use node::NodeTls;
pub use server::{Identity, ServerTls, TlsError};

/// Returns what a finished handshake came to, on either side of a connection: `TLSv1.2` or
/// `TLSv1.3`, and the suite as IANA registers it.
pub fn facts(connection: &rustls::CommonState) -> TlsFacts {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "unknown",
    };
    let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    TlsFacts { version: version.into(), cipher: suite.map_or("unknown", registered_name).into() }
}

/// rustls prefixes the suites of TLS 1.3 with `TLS13_`; IANA has `TLS_`.
fn registered_name(suite: &'static str) -> &'static str {
    match suite {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        other => other,
    }
}

/// Returns octets that nobody can guess.
///
/// # Errors
/// The operating system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N], rustls::Error> {
    let mut octets = [0; N];
    provider().secure_random.fill(&mut octets).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
    Ok(octets)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

#[cfg(test)]
mod tests;
