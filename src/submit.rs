//! A mail client's session with a submission server (RFC 6409), for `postroad send` and the demo.
//!
//! The client is lettre: another implementation than the agent's own, which makes it a test of the
//! agent as well. Content goes out as given; a last line end that is missing is added. A login is
//! only ever said over TLS. What one session holds is the whole message: it is a tool for people,
//! not the way mail is relayed.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use lettre::Address;
use lettre::transport::smtp::Error as LettreError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, AsyncTokioStream, Certificate, CertificateStore, TlsParameters,
};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError as Bad, RootCertStore};
use tokio::net::TcpStream;

use crate::tls::ClientTls;
use crate::tls::client::server_name;

mod wire;

use wire::Wire;

/// Where a session is before its first command, in errors.
pub const GREETING: &str = "greeting and EHLO";
/// Where it is while content travels and is answered, in errors: whether it was taken is unknown.
pub const CONTENT: &str = "the content";

/// For the TCP connection, the handshake, and each reply.
const STEP_SECONDS_MAX: u64 = 60;
/// The slowest that content may travel before the server counts as stalled, octets a second.
const CONTENT_OCTETS_PER_SECOND_MIN: u64 = 10_000;

/// Whom to talk to, and how safely.
#[derive(Clone, Debug)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// When TLS starts.
    pub security: Security,
    /// Which certificates are taken.
    pub trust: Trust,
}

/// When TLS starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Never; no login is possible.
    None,
    /// After STARTTLS when the server offers it.
    Offered,
    /// After STARTTLS, or there is no session (RFC 3207).
    StartTls,
    /// With the first octet (RFC 8314).
    Implicit,
}

/// Which certificates are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Any: keeps out those who only listen.
    Any,
    /// Those that the system trusts and that name the host.
    System,
    /// Those that this PEM file vouches for and that carry this name.
    Only {
        /// The certificates.
        file: PathBuf,
        /// The name that must stand in the server's certificate.
        name: String,
    },
}

/// Who submits.
#[derive(Clone)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A session that is ready for transactions.
pub struct Session {
    connection: AsyncSmtpConnection,
    /// Parameters of every MAIL.
    wishes: Vec<MailParameter>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// What the server said after the content.
    pub reply: String,
    /// Recipients that it did not take, with what it said of each; the others have the message.
    pub refused: Vec<(Address, String)>,
}

/// Why a message was not submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// No TCP connection.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Host and port.
        server: String,
        /// Why.
        source: std::io::Error,
    },
    /// The trusted certificates cannot be read.
    #[error("cannot use the certificates in {}: {why}", file.display())]
    Certificates {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// TLS was wanted and is not to be had.
    #[error("{server} does not offer STARTTLS")]
    NoTls {
        /// Host and port.
        server: String,
    },
    /// The handshake failed.
    #[error("no TLS with {server}: {why}")]
    Handshake {
        /// Host and port.
        server: String,
        /// Why.
        why: String,
    },
    /// A login is never said in the clear.
    #[error("the session with {server} is not encrypted, so the password stays here")]
    LoginInTheClear {
        /// Host and port.
        server: String,
    },
    /// The server said no.
    #[error("{at}: {reply}")]
    Refused {
        /// The command it refused.
        at: String,
        /// Its code and words.
        reply: String,
        /// Whether it may say yes later.
        transient: bool,
    },
    /// Nothing came in time.
    #[error("{at}: no answer in {seconds} s")]
    TimedOut {
        /// The command that was not answered.
        at: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The session broke.
    #[error("{at}: {why}")]
    Broken {
        /// The command it broke at.
        at: String,
        /// Why.
        why: String,
    },
}

impl Server {
    /// Returns host and port as people write them.
    pub fn authority(&self) -> String {
        let is_ipv6 = self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
        if is_ipv6 { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }

    fn certificate_name(&self) -> String {
        match &self.trust {
            Trust::Only { name, .. } => name.clone(),
            _ => self.host.clone(),
        }
    }
}

impl Session {
    /// Connects, secures the session and logs in. Every octet sent is counted in `sent`.
    ///
    /// # Errors
    /// What stood in the way, and where.
    pub async fn open(
        server: &Server,
        login: Option<&Login>,
        helo: &str,
        sent: Arc<AtomicU64>,
    ) -> Result<Session, SubmitError> {
        let hello = client_id(helo);
        let tcp = connect(server).await?;
        let wire = Wire::new(tcp, sent);
        let implicit = server.security == Security::Implicit;
        let stream: Box<dyn AsyncTokioStream> =
            if implicit { Box::new(handshake(server, wire).await?) } else { Box::new(wire) };
        let greeting = AsyncSmtpConnection::connect_with_transport(stream, &hello);
        let mut connection = step(GREETING, STEP_SECONDS_MAX, greeting).await?;
        let offered = connection.server_info().supports_feature(Extension::StartTls);
        match server.security {
            Security::StartTls if !offered => return Err(SubmitError::NoTls { server: server.authority() }),
            Security::StartTls | Security::Offered if offered => {
                let upgrade = connection.starttls(parameters(server)?, &hello);
                step("STARTTLS", STEP_SECONDS_MAX, upgrade).await.map_err(|error| handshake_error(server, error))?;
            }
            _ => {}
        }
        if let Some(login) = login {
            if !implicit && !connection.is_encrypted() {
                return Err(SubmitError::LoginInTheClear { server: server.authority() });
            }
            let credentials = Credentials::new(login.user.clone(), login.password.clone());
            let auth = connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials);
            step("AUTH", STEP_SECONDS_MAX, auth).await?;
        }
        Ok(Session { connection, wishes: Vec::new() })
    }

    /// Says this parameter with every MAIL from now on. Whether the server offers it is not looked
    /// at: lettre knows of the extensions that it uses itself, and one that does not offer it refuses.
    pub fn wish(&mut self, keyword: &str, value: String) {
        self.wishes.push(MailParameter::Other { keyword: keyword.to_owned(), value: Some(value) });
    }

    /// Submits one message. Recipients that are refused do not keep it from the others.
    ///
    /// # Errors
    /// Nobody got it; or, with [`SubmitError::TimedOut`] and [`SubmitError::Broken`] after the
    /// content, nobody knows.
    pub async fn submit(
        &mut self,
        reverse_path: Option<&Address>,
        recipients: &[Address],
        content: &[u8],
    ) -> Result<Submitted, SubmitError> {
        let parameters = self.mail_parameters(reverse_path, recipients, content)?;
        let from = reverse_path.map_or("<>".to_owned(), |address| format!("<{address}>"));
        let mail = self.connection.command(Mail::new(reverse_path.cloned(), parameters));
        step(&format!("MAIL FROM:{from}"), STEP_SECONDS_MAX, mail).await?;
        let (mut refused, mut last) = (Vec::new(), None);
        for address in recipients {
            let at = format!("RCPT TO:<{address}>");
            match step(&at, STEP_SECONDS_MAX, self.connection.command(Rcpt::new(address.clone(), vec![]))).await {
                Ok(_) => {}
                Err(SubmitError::Refused { at, reply, transient }) => {
                    refused.push((address.clone(), reply.clone()));
                    last = Some(SubmitError::Refused { at, reply, transient });
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = last.filter(|_| refused.len() == recipients.len()) {
            let _ = step("RSET", STEP_SECONDS_MAX, self.connection.command(Rset)).await;
            return Err(error);
        }
        step("DATA", STEP_SECONDS_MAX, self.connection.command(Data)).await?;
        // lettre ends the content with a line end of its own.
        let content = content.strip_suffix(b"\r\n").unwrap_or(content);
        let seconds = STEP_SECONDS_MAX + content.len() as u64 / CONTENT_OCTETS_PER_SECOND_MIN;
        let response = step(CONTENT, seconds, self.connection.message(content)).await?;
        Ok(Submitted {
            reply: format!("{} {}", response.code(), response.message().collect::<Vec<_>>().join(" ")),
            refused,
        })
    }

    /// Says goodbye. What the server makes of it no longer matters.
    pub async fn close(mut self) {
        let _ = step("QUIT", STEP_SECONDS_MAX, self.connection.quit()).await;
    }

    fn mail_parameters(
        &self,
        reverse_path: Option<&Address>,
        recipients: &[Address],
        content: &[u8],
    ) -> Result<Vec<MailParameter>, SubmitError> {
        let info = self.connection.server_info();
        let lacking = |what: &str, extension: &str| SubmitError::Refused {
            at: "MAIL".to_owned(),
            reply: format!("the server does not offer {extension}, which {what} needs"),
            transient: false,
        };
        let mut parameters = self.wishes.clone();
        let mut addresses = reverse_path.into_iter().chain(recipients);
        if addresses.any(|address| !AsRef::<str>::as_ref(address).is_ascii()) {
            if !info.supports_feature(Extension::SmtpUtfEight) {
                return Err(lacking("an address beyond ASCII", "SMTPUTF8"));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if !content.is_ascii() {
            if !info.supports_feature(Extension::EightBitMime) {
                return Err(lacking("content beyond ASCII", "8BITMIME"));
            }
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        Ok(parameters)
    }
}

fn client_id(helo: &str) -> ClientId {
    match helo.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ClientId::Ipv4(ip),
        Ok(IpAddr::V6(ip)) => ClientId::Ipv6(ip),
        Err(_) => ClientId::Domain(helo.to_owned()),
    }
}

async fn connect(server: &Server) -> Result<TcpStream, SubmitError> {
    let connecting = TcpStream::connect((server.host.as_str(), server.port));
    let result = tokio::time::timeout(Duration::from_secs(STEP_SECONDS_MAX), connecting).await;
    let result = result.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let tcp = result.map_err(|source| SubmitError::Connect { server: server.authority(), source })?;
    // A fault here costs speed only.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// TLS before anything else is said.
async fn handshake(
    server: &Server,
    wire: Wire<TcpStream>,
) -> Result<Wire<tokio_rustls::client::TlsStream<Wire<TcpStream>>>, SubmitError> {
    let peer = wire.peer();
    let name = server_name(&server.certificate_name(), peer.ip());
    let tls = match &server.trust {
        Trust::Only { file, .. } => ClientTls::with_anchors(anchors(file)?),
        _ => ClientTls::new(),
    };
    let connector = if server.trust == Trust::Any { tls.any_certificate() } else { tls.trusted_certificate() };
    let limit = Duration::from_secs(STEP_SECONDS_MAX);
    let failed = |why: String| SubmitError::Handshake { server: server.authority(), why };
    match tokio::time::timeout(limit, connector.connect(name, wire)).await {
        Ok(Ok(stream)) => Ok(Wire::around(stream, peer)),
        Ok(Err(error)) => Err(failed(tls_words(&error))),
        Err(_) => Err(failed(format!("no answer in {STEP_SECONDS_MAX} s"))),
    }
}

fn anchors(file: &PathBuf) -> Result<RootCertStore, SubmitError> {
    let unusable = |why: String| SubmitError::Certificates { file: file.clone(), why };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        store.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if store.is_empty() { Err(unusable("there is no certificate in it".to_owned())) } else { Ok(store) }
}

/// What lettre needs for STARTTLS.
fn parameters(server: &Server) -> Result<TlsParameters, SubmitError> {
    let mut builder = TlsParameters::builder(server.certificate_name());
    match &server.trust {
        Trust::Any => builder = builder.dangerous_accept_invalid_certs(true).dangerous_accept_invalid_hostnames(true),
        Trust::System => {}
        Trust::Only { file, .. } => {
            let unusable = |why: String| SubmitError::Certificates { file: file.clone(), why };
            let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
            let certificate = Certificate::from_pem(&pem).map_err(|error| unusable(error.to_string()))?;
            builder = builder.certificate_store(CertificateStore::None).add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| SubmitError::Handshake { server: server.authority(), why: error.to_string() })
}

/// Says why a handshake failed; of a certificate in words, since what the library says of it is for programmers.
fn tls_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = std::iter::successors(Some(error), |cause| cause.source());
    let invalid = causes.find_map(|cause| {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match inner.and_then(|inner| inner.downcast_ref()).or_else(|| cause.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(what)) => Some(what),
            _ => None,
        }
    });
    let words = match invalid {
        Some(Bad::UnknownIssuer) => "nobody that is trusted vouches for its certificate",
        Some(Bad::Expired | Bad::ExpiredContext { .. }) => "the time of its certificate is over",
        Some(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => "the time of its certificate has not begun",
        Some(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => "its certificate is for another name",
        // What rustls has no name for: above all a self-signed certificate that is made as one of an authority.
        Some(Bad::Other(_)) => "its certificate is not one for servers",
        _ => return error.to_string(),
    };
    words.to_owned()
}

/// A fault in the middle of STARTTLS is one of TLS unless the server refused the command itself.
fn handshake_error(server: &Server, error: SubmitError) -> SubmitError {
    match error {
        SubmitError::Broken { why, .. } => SubmitError::Handshake { server: server.authority(), why },
        error => error,
    }
}

async fn step<T>(at: &str, seconds: u64, work: impl Future<Output = Result<T, LettreError>>) -> Result<T, SubmitError> {
    match tokio::time::timeout(Duration::from_secs(seconds), work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(explain(at, &error)),
        Err(_) => Err(SubmitError::TimedOut { at: at.to_owned(), seconds }),
    }
}

fn explain(at: &str, error: &LettreError) -> SubmitError {
    let why = std::error::Error::source(error).map_or_else(|| error.to_string(), tls_words);
    let at = at.to_owned();
    match error.status() {
        Some(code) => SubmitError::Refused { at, reply: format!("{code} {why}"), transient: error.is_transient() },
        None => SubmitError::Broken { at, why },
    }
}

#[cfg(test)]
mod tests;
