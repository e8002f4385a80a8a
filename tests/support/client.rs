//! A client that says exactly what it is told, and knows how to deliver a message in each way that
//! SMTP has.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use socket2::{Domain, Socket, Type};

use super::wire::Wire;

/// How long a reply may take.
const REPLY_LIMIT: Duration = Duration::from_secs(60);

/// How content travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// DATA, with dots stuffed.
    Data,
    /// BDAT, in chunks of so many octets.
    Bdat(usize),
}

/// A server's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The code.
    pub code: u16,
    /// The lines without codes.
    pub lines: Vec<String>,
}

/// A session with a server.
pub struct Client {
    wire: Wire,
}

impl Reply {
    /// Returns the reply on one line.
    pub fn text(&self) -> String {
        format!("{} {}", self.code, self.lines.join(" "))
    }

    /// Returns whether an EHLO reply offers this keyword.
    pub fn offers(&self, keyword: &str) -> bool {
        self.lines.iter().any(|line| line.split(' ').next() == Some(keyword))
    }

    /// Returns the queue id that the agent names in its 250.
    pub fn queue_id(&self) -> String {
        self.lines[0].rsplit(' ').next().expect("a reply has words").to_owned()
    }
}

impl Client {
    /// Connects and expects 220.
    pub fn connect(to: SocketAddr) -> Client {
        Client::dial(None, to).unwrap_or_else(|error| panic!("cannot connect to {to}: {error}")).greeted()
    }

    /// Connects from this address and expects 220.
    pub fn connect_from(from: IpAddr, to: SocketAddr) -> Client {
        Client::dial(Some(from), to).unwrap_or_else(|error| panic!("{from} to {to}: {error}")).greeted()
    }

    /// Connects with TLS from the first octet and expects 220.
    pub fn connect_tls(to: SocketAddr) -> Client {
        let mut client = Client::dial(None, to).unwrap_or_else(|error| panic!("cannot connect to {to}: {error}"));
        client.wire.connect_tls().expect("the TLS handshake succeeds");
        client.greeted()
    }

    /// Connects to a socket in the file system and expects 220.
    pub fn connect_unix(path: &Path) -> Client {
        let stream = std::os::unix::net::UnixStream::connect(path).expect("somebody listens");
        let client = Client { wire: stream.into() };
        client.wire.set_timeout(REPLY_LIMIT);
        client.greeted()
    }

    /// Connects and leaves the greeting to be read.
    pub fn dial(from: Option<IpAddr>, to: SocketAddr) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect(&to.into())?;
        let client = Client { wire: TcpStream::from(socket).into() };
        client.wire.set_timeout(REPLY_LIMIT);
        Ok(client)
    }

    fn greeted(mut self) -> Client {
        let greeting = self.reply();
        assert_eq!(greeting.code, 220, "{}", greeting.text());
        self
    }

    /// Bounds how long a reply may take.
    pub fn set_timeout(&self, limit: Duration) {
        self.wire.set_timeout(limit);
    }

    /// Returns the connection itself.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Sends these octets.
    pub fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.try_send(octets).expect("the server reads");
    }

    /// Sends these octets to a server that may be gone.
    pub fn try_send(&mut self, octets: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.send(octets.as_ref())
    }

    /// Reads one reply.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("the server answers")
    }

    /// Reads one reply of a server that may be gone.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let line = self.wire.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let line = String::from_utf8(line).map_err(io::Error::other)?;
            let code = line.get(..3).and_then(|code| code.parse().ok());
            let code = code.ok_or_else(|| io::Error::other(format!("no reply: {line:?}")))?;
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, lines });
            }
        }
    }

    /// Says a line and reads the reply.
    pub fn say(&mut self, line: &str) -> Reply {
        self.send(format!("{line}\r\n"));
        self.reply()
    }

    /// Says a line and expects this code.
    #[track_caller]
    pub fn expect(&mut self, line: &str, code: u16) -> Reply {
        let reply = self.say(line);
        assert_eq!(reply.code, code, "after {line:?}: {}", reply.text());
        reply
    }

    /// Says EHLO.
    pub fn ehlo(&mut self) -> Reply {
        self.expect("EHLO client.test", 250)
    }

    /// Starts TLS and says EHLO again.
    pub fn starttls(&mut self) -> Reply {
        self.expect("STARTTLS", 220);
        self.wire.connect_tls().expect("the TLS handshake succeeds");
        self.ehlo()
    }

    /// Logs in with PLAIN and returns the reply.
    pub fn auth_plain(&mut self, user: &str, password: &str) -> Reply {
        let exchange = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
        self.say(&format!("AUTH PLAIN {exchange}"))
    }

    /// Logs in with LOGIN and returns the last reply.
    pub fn auth_login(&mut self, user: &str, password: &str) -> Reply {
        self.expect("AUTH LOGIN", 334);
        self.expect(&BASE64_STANDARD.encode(user), 334);
        self.say(&BASE64_STANDARD.encode(password))
    }

    /// Hands over one message in a session of its own; it must be taken.
    #[track_caller]
    pub fn hand_over(smtp: SocketAddr, from: &str, to: &[&str], content: &[u8], way: Way) {
        let mut client = Client::connect(smtp);
        client.ehlo();
        let reply = client.deliver(from, to, content, way);
        assert_eq!(reply.code, 250, "{}", reply.text());
        client.quit();
    }

    /// Runs a transaction whose sender and recipients must be accepted; returns the reply to the content.
    #[track_caller]
    pub fn deliver(&mut self, from: &str, to: &[&str], content: &[u8], way: Way) -> Reply {
        self.envelope(&format!("MAIL FROM:<{from}>"), to);
        self.content(content, way)
    }

    /// Says a MAIL command and RCPT for each recipient; all must be accepted.
    #[track_caller]
    pub fn envelope(&mut self, mail: &str, to: &[&str]) {
        self.expect(mail, 250);
        for recipient in to {
            self.expect(&format!("RCPT TO:<{recipient}>"), 250);
        }
    }

    /// Sends content and returns the reply behind it.
    #[track_caller]
    pub fn content(&mut self, content: &[u8], way: Way) -> Reply {
        match way {
            Way::Data => {
                self.expect("DATA", 354);
                self.send(stuffed(content));
                self.reply()
            }
            Way::Bdat(octets) => {
                let mut chunks = content.chunks(octets).peekable();
                if chunks.peek().is_none() {
                    return self.say("BDAT 0 LAST");
                }
                while let Some(chunk) = chunks.next() {
                    let last = if chunks.peek().is_none() { " LAST" } else { "" };
                    let mut command = format!("BDAT {}{last}\r\n", chunk.len()).into_bytes();
                    command.extend_from_slice(chunk);
                    self.send(command);
                    if last.is_empty() {
                        let reply = self.reply();
                        if reply.code != 250 {
                            return reply;
                        }
                    }
                }
                self.reply()
            }
        }
    }

    /// Says QUIT and expects 221 and the end.
    pub fn quit(mut self) {
        self.expect("QUIT", 221);
        assert_eq!(self.wire.rest(), b"", "nothing follows 221");
    }
}

/// Returns content as DATA carries it: a dot before each line that begins with one, a final CRLF,
/// and the terminating line.
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / 64 + 5);
    for line in content.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// Undoes [`stuffed`]; the terminating line is gone, the final CRLF stays.
pub fn unstuffed(wire: &[u8]) -> Vec<u8> {
    let body = wire.strip_suffix(b".\r\n").expect("content ends with its terminating line");
    let mut out = Vec::with_capacity(body.len());
    for line in body.split_inclusive(|octet| *octet == b'\n') {
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    out
}
