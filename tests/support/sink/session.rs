//! One session of the sink.

use std::io;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::{Behaviour, Message, Phase, Shared, dropped, lock};
use crate::support::client::unstuffed;
use crate::support::tls::IDENTITY;
use crate::support::wire::Wire;

pub(super) struct Session<'a> {
    wire: Wire,
    number: usize,
    shared: &'a Shared,
    helo: String,
    user: Option<String>,
    transaction: Option<Transaction>,
    /// Replies that wait to be written with the next flush, as servers do under pipelining.
    output: Vec<u8>,
}

#[derive(Default)]
struct Transaction {
    reverse_path: String,
    parameters: String,
    recipients: Vec<(String, String)>,
    bdat: bool,
    content: Vec<u8>,
}

impl<'a> Session<'a> {
    pub(super) fn new(wire: Wire, number: usize, shared: &'a Shared) -> Session<'a> {
        wire.set_timeout(Duration::from_secs(60));
        let output = Vec::new();
        Session { wire, number, shared, helo: String::new(), user: None, transaction: None, output }
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        let greeting = self.shared.behaviour().greeting;
        self.pass(Phase::Greeting)?;
        self.reply(&greeting)?;
        if !greeting.starts_with('2') {
            return Ok(());
        }
        while let Some(line) = self.next_line()? {
            let line = String::from_utf8_lossy(&line).into_owned();
            lock(&self.shared.commands).push(line.clone());
            let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            if !self.command(&verb, &line)? {
                break;
            }
        }
        self.flush()
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let behaviour = self.shared.behaviour();
        if self.wire.buffered() == 0 {
            self.flush()?;
        } else if !behaviour.pipelining {
            self.shared.complain("pipelining that was not offered");
        }
        self.wire.line()
    }

    /// Returns whether the session goes on.
    fn command(&mut self, verb: &str, line: &str) -> io::Result<bool> {
        match verb {
            "EHLO" | "HELO" | "LHLO" => self.hello(verb, line)?,
            "STARTTLS" => return self.starttls(),
            "AUTH" => self.auth(line)?,
            "MAIL" => self.mail(line)?,
            "RCPT" => self.rcpt(line)?,
            "DATA" => self.data()?,
            "BDAT" => self.bdat(line)?,
            "RSET" => {
                self.transaction = None;
                self.reply("250 2.0.0 Reset")?;
            }
            "NOOP" => self.reply("250 2.0.0 OK")?,
            "QUIT" => {
                self.pass(Phase::Quit)?;
                self.reply("221 2.0.0 Bye")?;
                return Ok(false);
            }
            _ => {
                self.shared.complain(format!("unknown command {line:?}"));
                self.reply("500 5.5.1 What?")?;
            }
        }
        Ok(true)
    }

    fn hello(&mut self, verb: &str, line: &str) -> io::Result<()> {
        let behaviour = self.shared.behaviour();
        self.pass(Phase::Hello)?;
        if (verb == "LHLO") != behaviour.lmtp {
            self.shared.complain(format!("{verb} to the wrong protocol"));
        }
        self.helo = line.split(' ').nth(1).unwrap_or_default().to_owned();
        self.transaction = None;
        let mut lines = vec!["sink.test".to_owned()];
        let mut offer = |on: bool, keyword: &str| on.then(|| lines.push(keyword.to_owned()));
        offer(behaviour.starttls && !self.wire.is_tls(), "STARTTLS");
        offer(behaviour.pipelining, "PIPELINING");
        offer(behaviour.chunking, "CHUNKING");
        offer(behaviour.eight_bit, "8BITMIME");
        offer(behaviour.smtputf8, "SMTPUTF8");
        offer(behaviour.dsn, "DSN");
        offer(behaviour.mt_priority, "MT-PRIORITY");
        offer(behaviour.mesh, "XMESH 1");
        offer(behaviour.auth.is_some() && self.wire.is_tls(), "AUTH PLAIN LOGIN");
        offer(true, "ENHANCEDSTATUSCODES");
        if let Some(seconds) = behaviour.deliver_by {
            lines.push(format!("DELIVERBY {seconds}"));
        }
        if let Some(size) = behaviour.size {
            lines.push(format!("SIZE {size}"));
        }
        let last = lines.len() - 1;
        for (index, line) in lines.iter().enumerate() {
            self.reply(&format!("250{}{line}", if index == last { ' ' } else { '-' }))?;
        }
        Ok(())
    }

    fn starttls(&mut self) -> io::Result<bool> {
        self.reply("220 2.0.0 Go ahead")?;
        self.flush()?;
        if self.wire.buffered() > 0 {
            self.shared.complain("octets behind STARTTLS");
        }
        if self.shared.behaviour().break_tls {
            // Behind the ClientHello, so that it is no answer to something else.
            self.wire.exactly(5)?;
            self.wire.send(b"this is no TLS\r\n")?;
            return Ok(false);
        }
        self.wire.accept_tls(IDENTITY.server())?;
        self.helo.clear();
        Ok(true)
    }

    fn auth(&mut self, line: &str) -> io::Result<()> {
        let behaviour = self.shared.behaviour();
        let words: Vec<&str> = line.split(' ').collect();
        let mut exchange = Vec::new();
        match words.get(1).map(|word| word.to_ascii_uppercase()).as_deref() {
            Some("PLAIN") if words.len() == 3 => exchange.push(words[2].to_owned()),
            Some("PLAIN") => exchange.push(self.challenge("334 ")?),
            _ => {
                exchange.push(self.challenge("334 VXNlcm5hbWU6")?);
                exchange.push(self.challenge("334 UGFzc3dvcmQ6")?);
            }
        }
        let decoded: Vec<u8> = exchange
            .iter()
            .flat_map(|text| [&[0], &*BASE64_STANDARD.decode(text).unwrap_or_default()].concat())
            .collect();
        let said = String::from_utf8_lossy(&decoded).into_owned();
        let mut parts = said.trim_start_matches('\0').split('\0').map(str::to_owned);
        let credentials = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if !self.wire.is_tls() {
            self.shared.complain("a password in the clear");
        }
        if behaviour.auth.as_ref() == Some(&credentials) {
            self.user = Some(credentials.0);
            self.reply("235 2.7.0 Welcome")
        } else {
            self.reply("535 5.7.8 Who?")
        }
    }

    fn challenge(&mut self, text: &str) -> io::Result<String> {
        self.reply(text)?;
        self.flush()?;
        let line = self.wire.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn mail(&mut self, line: &str) -> io::Result<()> {
        self.pass(Phase::Mail)?;
        let behaviour = self.shared.behaviour();
        let (path, parameters) = argument(line, "MAIL FROM:");
        self.check_parameters(&behaviour, &path, &parameters);
        if behaviour.auth.is_some() && self.user.is_none() {
            return self.reply("530 5.7.0 Log in first");
        }
        let reply = (behaviour.mail)(&path, self.shared.count(&format!("mail {path}")));
        if reply.starts_with('2') {
            let transaction = Transaction { reverse_path: path, parameters, ..Transaction::default() };
            self.transaction = Some(transaction);
        }
        self.reply(&reply)
    }

    fn check_parameters(&self, behaviour: &Behaviour, path: &str, parameters: &str) {
        for parameter in parameters.split(' ').filter(|word| !word.is_empty()) {
            let offered = match parameter.split('=').next().unwrap_or_default() {
                "BODY" => behaviour.eight_bit,
                "SMTPUTF8" => behaviour.smtputf8,
                "SIZE" => behaviour.size.is_some(),
                "BY" => behaviour.deliver_by.is_some(),
                "MT-PRIORITY" => behaviour.mt_priority,
                "RET" | "ENVID" | "NOTIFY" | "ORCPT" => behaviour.dsn,
                _ => false,
            };
            if !offered {
                self.shared.complain(format!("parameter {parameter:?} for <{path}> was not offered"));
            }
        }
    }

    fn rcpt(&mut self, line: &str) -> io::Result<()> {
        self.pass(Phase::Rcpt)?;
        let behaviour = self.shared.behaviour();
        let (path, parameters) = argument(line, "RCPT TO:");
        self.check_parameters(&behaviour, &path, &parameters);
        let Some(transaction) = &mut self.transaction else { return self.reply("503 5.5.1 MAIL first") };
        let reply = (behaviour.rcpt)(&path, self.shared.count(&format!("rcpt {path}")));
        if reply.starts_with('2') {
            transaction.recipients.push((path, parameters));
        }
        self.reply(&reply)
    }

    fn data(&mut self) -> io::Result<()> {
        self.pass(Phase::Data)?;
        let behaviour = self.shared.behaviour();
        if self.transaction.as_ref().is_none_or(|transaction| transaction.recipients.is_empty()) {
            return self.reply("554 5.5.1 No valid recipients");
        }
        if let Some(reply) = &behaviour.data {
            self.transaction = None;
            return self.reply(reply);
        }
        if self.wire.buffered() > 0 {
            self.shared.complain("content before 354");
        }
        self.reply("354 Go on")?;
        self.flush()?;
        let content = self.wire.up_to_dot()?;
        let transaction = self.transaction.as_mut().expect("checked above");
        transaction.content = unstuffed(&content);
        self.finish(&behaviour)
    }

    fn bdat(&mut self, line: &str) -> io::Result<()> {
        let behaviour = self.shared.behaviour();
        if !behaviour.chunking {
            self.shared.complain("BDAT was not offered");
        }
        let mut words = line.split(' ').skip(1);
        let octets = words.next().and_then(|word| word.parse().ok()).ok_or_else(dropped)?;
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        let chunk = self.wire.exactly(octets)?;
        let Some(transaction) = &mut self.transaction else { return self.reply("503 5.5.1 MAIL first") };
        if transaction.recipients.is_empty() {
            return self.reply("554 5.5.1 No valid recipients");
        }
        transaction.bdat = true;
        transaction.content.extend_from_slice(&chunk);
        if last { self.finish(&behaviour) } else { self.reply("250 2.0.0 Chunk") }
    }

    /// Records the message, then answers.
    fn finish(&mut self, behaviour: &Behaviour) -> io::Result<()> {
        let transaction = self.transaction.take().expect("only a transaction is finished");
        self.check_content(&transaction.content);
        let recipients: Vec<String> = transaction.recipients.iter().map(|(path, _)| path.clone()).collect();
        let asked: Vec<&str> =
            if behaviour.lmtp { recipients.iter().map(String::as_str).collect() } else { vec![&recipients[0]] };
        let replies: Vec<String> =
            asked.iter().map(|path| (behaviour.content)(path, self.shared.count(&format!("content {path}")))).collect();
        lock(&self.shared.messages).push(Message {
            session: self.number,
            helo: self.helo.clone(),
            tls: self.wire.is_tls(),
            user: self.user.clone(),
            bdat: transaction.bdat,
            reverse_path: transaction.reverse_path,
            mail_parameters: transaction.parameters,
            recipients,
            rcpt_parameters: transaction.recipients.into_iter().map(|(_, parameters)| parameters).collect(),
            content: transaction.content,
            reply: replies[0].clone(),
        });
        self.pass(Phase::Content)?;
        replies.iter().try_for_each(|reply| self.reply(reply))
    }

    fn check_content(&self, content: &[u8]) {
        let mut before = 0;
        for (at, octet) in content.iter().enumerate() {
            let next = content.get(at + 1).copied().unwrap_or(0);
            match octet {
                b'\n' if before != b'\r' => return self.shared.complain("a bare LF in content"),
                b'\r' if next != b'\n' => return self.shared.complain("a bare CR in content"),
                0 => return self.shared.complain("a NUL in content"),
                _ => before = *octet,
            }
        }
    }

    /// Pauses or drops the session where it is told to.
    fn pass(&mut self, phase: Phase) -> io::Result<()> {
        let behaviour = self.shared.behaviour();
        if let Some((at, pause)) = behaviour.slow_at
            && at == phase
        {
            self.flush()?;
            std::thread::sleep(pause);
        }
        if self.shared.drops(&behaviour, phase) { Err(dropped()) } else { Ok(()) }
    }

    fn reply(&mut self, line: &str) -> io::Result<()> {
        self.output.extend_from_slice(line.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        if self.wire.buffered() == 0 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        if output.is_empty() { Ok(()) } else { self.wire.send(&output) }
    }
}

/// Splits `VERB FROM:<path> PARAMETERS` into path and parameters.
fn argument(line: &str, prefix: &str) -> (String, String) {
    let rest = line.get(prefix.len()..).unwrap_or_default();
    let end = rest.rfind('>').unwrap_or(rest.len());
    // A quoted local-part may hold a bracket; parameters hold none but xtext.
    let (path, parameters) = rest.split_at((end + 1).min(rest.len()));
    let path = path.trim_start_matches('<').trim_end_matches('>');
    (path.to_owned(), parameters.trim().to_owned())
}
