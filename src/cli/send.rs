//! `postroad send`: composes a message, or takes one as it is, and submits it to any SMTP server.
//!
//! A tool to try a server with: it says which command was refused and with which words. It keeps
//! no queue; what is not taken is not sent. Exit code 75 means that the server may take it later.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use lettre::Address;
use postroad_smtp::{DeliverBy, Priority};
use serde_json::json;

use super::user::prompt;
use super::{Context, Failure, exit};
use crate::submit::{CONTENT, GREETING, Login, Security, Server, Session, SubmitError, Submitted, Trust};

mod compose;

/// Messages below this size go without a progress bar, in octets.
const PROGRESS_OCTETS_MIN: usize = 256 * 1024;
/// The longest message taken from standard input, in octets.
const STDIN_OCTETS_MAX: u64 = 1 << 30;

/// Send a message through any SMTP server
///
/// The text is read from standard input unless --body gives it; with --raw, standard input is
/// the whole message, header and all, and is sent as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo 'It works' | postroad send --to postmaster@example.org --subject Test
  postroad send --to bob@example.org --body 'See attached' --attach report.pdf
  postroad send --to bob@example.org --server mail.example.org:587 --user alice@example.org
  postroad send --to bob@example.org --raw < message.eml

The password is asked for, or taken from POSTROAD_PASSWORD or --password-file.")]
pub(super) struct Args {
    /// Who gets it; may stand several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<Address>,
    /// Who sends it [default: the --user when that is an address, else user@hostname]
    #[arg(long, value_name = "ADDRESS")]
    from: Option<Address>,
    /// The subject
    #[arg(long, default_value = "Test message")]
    subject: String,
    /// The text, instead of standard input
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    body: Option<String>,
    /// A file to attach; may stand several times
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    attach: Vec<PathBuf>,
    /// Standard input is a whole message, sent as it is but for line ends
    #[arg(long)]
    raw: bool,
    /// Host or address, with port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:25", value_parser = authority)]
    server: (String, u16),
    /// When TLS starts
    #[arg(long, value_enum, default_value_t = Tls::Auto)]
    tls: Tls,
    /// The PEM file that vouches for the server, instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// The name in the server's certificate [default: the host of --server]
    #[arg(long, value_name = "NAME", requires = "ca")]
    tls_name: Option<String>,
    /// Take any certificate; a login is then safe from listeners only
    #[arg(long)]
    insecure: bool,
    /// Log in as this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The file with the password in its first line
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// How urgent it is, from -9 to 9; needs a server with MT-PRIORITY (RFC 6710)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<Priority>,
    /// Seconds it may take, and what becomes of it then: R to have it back, N to hear that it is
    /// late, as in '3600;R'; needs a server with DELIVERBY (RFC 2852)
    #[arg(long, value_name = "SECONDS;MODE", allow_hyphen_values = true)]
    deliver_by: Option<DeliverBy>,
    /// Have the server keep it for so many seconds; needs one with FUTURERELEASE (RFC 4865)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..1_000_000_000))]
    hold_for: Option<u32>,
    /// Have the server keep it until then, as in 2027-01-15T08:00:00Z
    #[arg(long, value_name = "DATE-TIME", conflicts_with = "hold_for")]
    hold_until: Option<Timestamp>,
    /// The name said in EHLO
    #[arg(long, value_name = "NAME")]
    helo: Option<String>,
    /// Send it so many times, in one session
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tls {
    /// implicit on port 465, else starttls when it is offered or there is a login
    Auto,
    /// STARTTLS or nothing
    Starttls,
    /// TLS from the first octet
    Implicit,
    /// No TLS, no login
    Never,
}

/// What is sent, and on which envelope.
struct Letter {
    reverse_path: Address,
    recipients: Vec<Address>,
    content: Vec<u8>,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    let server = server(&args);
    let login = login(&args)?;
    let helo = args.helo.clone().unwrap_or_else(hostname);
    let letter = letter(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|fault| Failure::new(exit::FAILED, format!("the runtime does not start: {fault}")))?;
    runtime.block_on(send(&args, &server, login.as_ref(), &helo, &letter, context))
}

async fn send(
    args: &Args,
    server: &Server,
    login: Option<&Login>,
    helo: &str,
    letter: &Letter,
    context: &mut Context,
) -> Result<(), Failure> {
    let started = Instant::now();
    let sent = Arc::new(AtomicU64::new(0));
    let mut session = Session::open(server, login, helo, sent.clone()).await.map_err(|error| failure(&error))?;
    wishes(args).into_iter().for_each(|(keyword, value)| session.wish(keyword, value));
    let total = letter.content.len() as u64 * u64::from(args.count);
    let bar = bar(letter.content.len(), total, context.is_json());
    let watch = tokio::spawn(show(bar.clone(), sent));
    let mut result = Ok(());
    for _ in 0..args.count {
        match session.submit(Some(&letter.reverse_path), &letter.recipients, &letter.content).await {
            Ok(submitted) => result = report(&submitted, letter, context).and(result),
            Err(error) => {
                result = Err(failure(&error));
                break;
            }
        }
    }
    watch.abort();
    bar.finish_and_clear();
    session.close().await;
    if args.count > 1 && result.is_ok() && !context.is_json() {
        let seconds = started.elapsed().as_secs_f64();
        context.line(format_args!("{} messages in {seconds:.1} s", args.count))?;
    }
    result
}

/// Returns the parameters of MAIL that the options ask for.
fn wishes(args: &Args) -> Vec<(&'static str, String)> {
    // In UTC to the second: what every server reads.
    let until = args.hold_until.map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let wishes = [
        ("MT-PRIORITY", args.priority.map(|priority| priority.to_string())),
        ("BY", args.deliver_by.map(|by| by.to_string())),
        ("HOLDFOR", args.hold_for.map(|seconds| seconds.to_string())),
        ("HOLDUNTIL", until),
    ];
    wishes.into_iter().filter_map(|(keyword, value)| Some((keyword, value?))).collect()
}

/// Prints what became of one message; refused recipients make it a failure.
fn report(submitted: &Submitted, letter: &Letter, context: &mut Context) -> Result<(), Failure> {
    if context.is_json() {
        let refused = submitted.refused.iter().map(|(to, reply)| json!({ "to": to.to_string(), "reply": reply }));
        context.json(&json!({ "reply": submitted.reply, "refused": refused.collect::<Vec<_>>() }))?;
    } else {
        context.line(&submitted.reply)?;
        for (to, reply) in &submitted.refused {
            context.warn(format_args!("not sent to {to}: {reply}"));
        }
    }
    match submitted.refused.len() {
        0 => Ok(()),
        refused => {
            Err(Failure::new(exit::FAILED, format!("{refused} of {} recipients refused", letter.recipients.len())))
        }
    }
}

fn bar(octets: usize, total: u64, json: bool) -> ProgressBar {
    if octets < PROGRESS_OCTETS_MIN || json {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left");
    // indicatif draws on standard error, and only on a terminal.
    ProgressBar::new(total).with_style(style.expect("a constant template"))
}

async fn show(bar: ProgressBar, sent: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bar.set_position(sent.load(Ordering::Relaxed).min(bar.length().unwrap_or(u64::MAX)));
    }
}

fn server(args: &Args) -> Server {
    let (host, port) = args.server.clone();
    let security = match args.tls {
        Tls::Never => Security::None,
        Tls::Implicit => Security::Implicit,
        Tls::Starttls => Security::StartTls,
        Tls::Auto if port == 465 => Security::Implicit,
        Tls::Auto if args.user.is_some() => Security::StartTls,
        Tls::Auto => Security::Offered,
    };
    let trust = match (&args.ca, is_loopback(&host)) {
        (Some(file), _) => Trust::Only { file: file.clone(), name: args.tls_name.clone().unwrap_or(host.clone()) },
        // Nobody stands between this host and itself, and it mostly has a self-signed certificate.
        (None, true) => Trust::Any,
        (None, false) if args.insecure || security == Security::Offered => Trust::Any,
        (None, false) => Trust::System,
    };
    Server { host, port, security, trust }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// `host:port`, `[::1]:port`, or a host alone for port 25.
fn authority(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("\"{text}\" is no host with port; write mail.example.org:587 or [::1]:587");
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok((text.to_owned(), 25));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
        None => (text, 25),
    };
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(char::is_whitespace) || port == 0 {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

fn login(args: &Args) -> Result<Option<Login>, Failure> {
    let Some(user) = args.user.clone() else { return Ok(None) };
    let password = match (&args.password_file, std::env::var("POSTROAD_PASSWORD")) {
        (Some(file), _) => first_line(file)?,
        (None, Ok(password)) => password,
        (None, Err(_)) => prompt(&format!("Password of {user}: ")).map_err(|fault| {
            Failure::new(exit::FAILED, format!("the password cannot be read: {fault}"))
                .with_remedy("give it in POSTROAD_PASSWORD or with --password-file")
        })?,
    };
    Ok(Some(Login { user, password }))
}

fn first_line(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|fault| unreadable(file, &fault))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn letter(args: &Args) -> Result<Letter, Failure> {
    let own = args.user.as_deref().and_then(|user| user.parse().ok());
    let reverse_path = match args.from.clone().or(own) {
        Some(address) => address,
        None => default_sender()?,
    };
    let content = if args.raw {
        compose::wire_form(&stdin()?)
    } else {
        let body = match &args.body {
            Some(text) => text.clone(),
            None => String::from_utf8(stdin()?).map_err(|_| {
                Failure::new(exit::FAILED, "the text is no UTF-8")
                    .with_remedy("attach it with --attach, or send a whole message with --raw")
            })?,
        };
        let draft =
            compose::Draft { from: &reverse_path, to: &args.to, subject: &args.subject, body, attach: &args.attach };
        compose::compose(draft)?
    };
    Ok(Letter { reverse_path, recipients: args.to.clone(), content })
}

fn stdin() -> Result<Vec<u8>, Failure> {
    if std::io::stdin().is_terminal() {
        anstream::eprintln!("Type the message; end it with Ctrl-D.");
    }
    let mut octets = Vec::new();
    std::io::stdin()
        .take(STDIN_OCTETS_MAX)
        .read_to_end(&mut octets)
        .map_err(|fault| Failure::new(exit::FAILED, format!("standard input: {fault}")))?;
    Ok(octets)
}

fn default_sender() -> Result<Address, Failure> {
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    Address::new(&user, hostname()).map_err(|_| {
        Failure::new(exit::FAILED, format!("there is no sender: {user}@{} is no address", hostname()))
            .with_remedy("say who sends it: --from me@example.org")
    })
}

fn hostname() -> String {
    crate::config::Config::default().hostname.to_string()
}

fn unreadable(file: &Path, fault: &std::io::Error) -> Failure {
    Failure::new(exit::FAILED, format!("{}: {fault}", file.display()))
}

fn failure(error: &SubmitError) -> Failure {
    let code = match error {
        SubmitError::Refused { transient: false, .. } => exit::FAILED,
        SubmitError::Refused { .. } | SubmitError::TimedOut { .. } | SubmitError::Broken { .. } => exit::TRY_LATER,
        SubmitError::Connect { .. } => exit::UNAVAILABLE,
        _ => exit::FAILED,
    };
    let failure = Failure::new(code, error.to_string());
    match error {
        SubmitError::Connect { .. } => failure.with_remedy("check --server, and that the server runs"),
        SubmitError::Handshake { .. } => failure
            .with_remedy("name the certificate that vouches for the server with --ca, or take any with --insecure"),
        SubmitError::NoTls { .. } => {
            failure.with_remedy("use --tls implicit on port 465, or --tls never without a login")
        }
        SubmitError::LoginInTheClear { .. } => failure.with_remedy("take out --tls never"),
        SubmitError::Refused { at, .. } if at == "AUTH" => failure.with_remedy("check --user and the password"),
        SubmitError::TimedOut { at, .. } | SubmitError::Broken { at, .. } if at == GREETING => {
            failure.with_remedy("if that port begins with TLS at once, add --tls implicit")
        }
        SubmitError::TimedOut { at, .. } | SubmitError::Broken { at, .. } if at == CONTENT => {
            failure.with_remedy("the server may have taken it all the same: look before you send it again")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_people_write_them() {
        let host = |name: &str, port| Ok((name.to_owned(), port));
        assert_eq!(authority("mail.example.org:587"), host("mail.example.org", 587));
        assert_eq!(authority("mail.example.org"), host("mail.example.org", 25));
        assert_eq!(authority("[::1]:2525"), host("::1", 2525));
        assert_eq!(authority("::1"), host("::1", 25));
        for wrong in ["", ":25", "host:", "host:0", "host:99999", "a b:25"] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }
}
