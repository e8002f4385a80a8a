//! The certificate this host answers with: from files, or made by itself at first start.
//!
//! A reload swaps the certificate under the running listeners: sessions go on with the one they
//! began with, new handshakes see the new one, and one that cannot be read leaves the old in place.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use postroad_mesh::NodeId;
use postroad_smtp::Domain;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError as Bad, RootCertStore, ServerConfig};

use super::{NodeTls, provider};

/// Sessions kept for clients that resume TLS 1.2 without tickets.
const SESSIONS_MAX: usize = 1024;

/// Where certificate and key come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// PEM files: the chain, end-entity first, and the key.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
        key: PathBuf,
    },
    /// A self-signed certificate in this directory, made when there is none.
    SelfSigned {
        /// `tls` in the state directory.
        dir: PathBuf,
        /// The name it carries.
        hostname: Domain,
    },
}

/// The server side of TLS. Clones share the certificate and the keys.
#[derive(Clone)]
pub struct ServerTls {
    current: Arc<Current>,
    ordinary: Arc<ServerConfig>,
    /// The keys that this host is known by in a mesh: none, one, or two while it goes over to the next.
    nodes: Arc<ArcSwap<Vec<NodeTls>>>,
}

/// Why there is no certificate to answer with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; let the user that runs postroad read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is broken PEM.
    #[error("{} is not valid PEM ({why}); export it again as PEM", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        why: String,
    },
    /// The certificate file has none.
    #[error("{} contains no certificate; it needs the chain as -----BEGIN CERTIFICATE----- sections", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The key file has none.
    #[error("{} contains no private key that can be used; it needs one unencrypted PRIVATE KEY section", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate or key are of a kind that TLS cannot use.
    #[error("certificate {} with key {} cannot be used: {why}", certificate.display(), key.display())]
    Unusable {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        why: rustls::Error,
    },
    /// They do not belong together.
    #[error("the key in {} does not belong to the first certificate in {}; put the host's own certificate first, \
             or name the key it was issued for", key.display(), certificate.display())]
    Mismatch {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The self-signed certificate cannot be kept.
    #[error("cannot write {}: {source}; check that the state directory exists and can be written", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The self-signed certificate cannot be made.
    #[error("cannot make a self-signed certificate for {hostname}: {why}; set [tls] certificate and key")]
    Generate {
        /// The name it should carry.
        hostname: Domain,
        /// Why.
        why: String,
    },
    /// The library refuses.
    #[error("cannot set up TLS: {0}")]
    Library(#[from] rustls::Error),
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ServerTls {
    /// Loads certificate and key, making them first where the identity says so.
    ///
    /// # Errors
    /// Names the file and the remedy.
    pub fn load(identity: &Identity) -> Result<ServerTls, TlsError> {
        let current = Arc::new(Current(ArcSwap::from_pointee(identity.load()?)));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS_MAX);
        Ok(ServerTls { current, ordinary: Arc::new(config), nodes: Arc::default() })
    }

    /// Loads again; handshakes from now on see the new certificate, running sessions go on.
    ///
    /// # Errors
    /// As [`ServerTls::load`]; the old certificate stays in use.
    pub fn reload(&self, identity: &Identity) -> Result<(), TlsError> {
        self.current.0.store(Arc::new(identity.load()?));
        Ok(())
    }

    /// Returns what keeps those who verify certificates from taking this one, with the remedy. Whether they
    /// trust its issuer is theirs to know.
    pub fn complaints(&self, hostname: &Domain) -> Vec<String> {
        let certified = self.current.0.load();
        let Some(first) = certified.cert.first() else { return Vec::new() };
        let Ok(parsed) = ParsedCertificate::try_from(first) else { return Vec::new() };
        let algorithms = provider().signature_verification_algorithms.all;
        // Without trust anchors nothing is left to find but what is wrong with the certificate itself.
        let anchors = RootCertStore::empty();
        let verified = verify_server_cert_signed_by_trust_anchor(&parsed, &anchors, &[], UnixTime::now(), algorithms);
        let name = ServerName::try_from(hostname.as_str());
        let is_named = name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok());
        let time = match verified {
            Err(rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
                Some("its time is over: renew it, then `postroad reload`".to_owned())
            }
            Err(rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) => {
                Some("its time has not begun: look at the clock of this host".to_owned())
            }
            _ => None,
        };
        let unnamed = || format!("it does not name {hostname}: mail clients will refuse it for that name");
        time.into_iter().chain((!is_named).then(unnamed)).collect()
    }

    /// Answers those who ask for one of these nodes with its key, from now on.
    pub fn set_nodes(&self, nodes: Vec<NodeTls>) {
        self.nodes.store(Arc::new(nodes));
    }

    /// Returns how to answer a client: as the node it asks for, when this is it, and with the
    /// certificate of this host otherwise.
    pub fn answer(&self, asked: Option<&str>) -> Arc<ServerConfig> {
        let asked = asked.and_then(NodeId::from_server_name);
        let nodes = self.nodes.load();
        let node = asked.and_then(|asked| nodes.iter().find(|node| node.id() == asked));
        node.map_or(&self.ordinary, NodeTls::server).clone()
    }

    /// Returns the certificate in use, DER.
    #[cfg(test)]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.current.0.load().cert.first().cloned().expect("a chain is never empty: load refuses it")
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl Identity {
    fn load(&self) -> Result<CertifiedKey, TlsError> {
        match self {
            Identity::Files { certificate, key } => load_files(certificate, key),
            Identity::SelfSigned { dir, hostname } => {
                let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
                if !certificate.exists() || !key.exists() {
                    generate(dir, &certificate, &key, hostname)?;
                }
                load_files(&certificate, &key)
            }
        }
    }
}

fn load_files(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let not_pem = |path: &Path| {
        let path = path.to_owned();
        move |error: pem::Error| TlsError::NotPem { path, why: error.to_string() }
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<_, _>>().map_err(not_pem(certificate))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: certificate.to_owned() });
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey { path: key.to_owned() },
        error => not_pem(key)(error),
    })?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|why| match why {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        why => TlsError::Unusable { certificate: certificate.to_owned(), key: key.to_owned(), why },
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

/// Makes key and certificate. The certificate is put in place last: while it is missing, the pair
/// is not there, and a start that was interrupted begins anew.
fn generate(dir: &Path, certificate: &Path, key: &Path, hostname: &Domain) -> Result<(), TlsError> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Unwritable { path, source }
    };
    let (certificate_pem, key_pem) =
        self_signed(hostname).map_err(|why| TlsError::Generate { hostname: hostname.clone(), why: why.to_string() })?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unwritable(dir))?;
    match fs::remove_file(certificate) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(certificate)(error)),
        _ => {}
    }
    put(key, &key_pem).map_err(unwritable(key))?;
    put(certificate, &certificate_pem).map_err(unwritable(certificate))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(unwritable(dir))
}

fn self_signed(hostname: &Domain) -> Result<(String, String), rcgen::Error> {
    let mut params = rcgen::CertificateParams::new(vec![hostname.to_string()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Postroad");
    let key = rcgen::KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Writes a file that only its owner reads, all of it or nothing. What lies at the temporary name,
/// a planted link included, is removed and never followed.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
