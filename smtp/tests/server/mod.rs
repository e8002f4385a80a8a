//! A client, and a test that plays the server.
#![allow(dead_code, reason = "not every test that includes this uses all of it")]

use std::time::Instant;

use postroad_smtp::client::{Action, Answer, Config, Failure, Session, Transaction};
use postroad_smtp::{Input, MailParams, Recipient};

pub const EHLO_ALL: &str = "250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-SIZE 1000\r\n250-DSN\r\n250 8BITMIME\r\n";
pub const EHLO_PIPELINING: &str = "250-mx\r\n250 PIPELINING\r\n";

/// A client, and a test that plays the server.
pub struct Server {
    pub client: Session,
    pub input: Input,
    pub now: Instant,
}

impl Server {
    pub fn new(config: Config) -> Server {
        let now = Instant::now();
        Server { client: Session::new(config, false, now), input: Input::new(), now }
    }

    /// A session that is ready behind this reply to EHLO.
    pub fn ready(ehlo: &str) -> Server {
        let mut server = Server::new(config());
        server.says("220 mx\r\n");
        assert_eq!(server.hears(), "EHLO client.example\r\n");
        server.says(ehlo);
        assert!(matches!(server.poll(), Action::Ready));
        server
    }

    pub fn poll(&mut self) -> Action {
        self.client.poll(&mut self.input, self.now)
    }

    pub fn says(&mut self, text: &str) {
        assert!(matches!(self.poll(), Action::Read { .. } | Action::Ready | Action::WantContent));
        self.input.extend(text.as_bytes());
    }

    /// Returns what the client says up to its next wait.
    pub fn hears(&mut self) -> String {
        let action = self.poll();
        assert!(matches!(action, Action::Read { .. } | Action::WantContent | Action::StartTls), "{action:?}");
        String::from_utf8(std::mem::take(self.client.output())).expect("text")
    }

    pub fn begin(&mut self, recipients: &[&str], content: &str) {
        self.client.begin(transaction(recipients, content), self.now);
    }

    pub fn gives(&mut self, content: &str) {
        assert!(matches!(self.poll(), Action::WantContent));
        self.client.content(content.as_bytes());
        self.client.content_end(self.now);
    }

    pub fn done(&mut self) -> Vec<Answer> {
        match self.poll() {
            Action::Done(answers) => answers,
            other => panic!("{other:?}"),
        }
    }

    pub fn failed(&mut self) -> Failure {
        match self.poll() {
            Action::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }
}

pub fn config() -> Config {
    Config::new("client.example")
}

pub fn transaction(recipients: &[&str], content: &str) -> Transaction {
    Transaction {
        reverse_path: "a@example.org".parse().expect("valid"),
        params: MailParams::default(),
        recipients: recipients.iter().map(|text| Recipient::new(text.parse().expect("valid"))).collect(),
        content_octets: content.len() as u64,
        needs_smtputf8: false,
    }
}

/// Shows answers as a letter and a code.
pub fn shown(answers: &[Answer]) -> String {
    let one = |answer: &Answer| {
        let letter = match answer {
            Answer::Accepted(_) => 'A',
            Answer::Transient(_) => 'T',
            Answer::Permanent(_) => 'P',
            Answer::Unknown(_) => 'U',
        };
        format!("{letter}{}", answer.reply().code)
    };
    answers.iter().map(one).collect::<Vec<_>>().join(" ")
}
