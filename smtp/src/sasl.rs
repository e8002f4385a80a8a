//! AUTH exchanges as small machines (RFC 4954; PLAIN: RFC 4616; LOGIN as deployed; the server's half of
//! CRAM-MD5: RFC 2195).
//!
//! They turn lines into [`Credentials`] and credentials into lines; whether a password is right is
//! never decided here. Passwords are not shown by `Debug`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// User name and password, each on request.
    Login,
    /// RFC 2195: the one that every customer of RFC 2645 knows. We only take it; our own logins go over
    /// TLS and need no more.
    CramMd5,
}

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who the client says it is: no NUL, never empty.
    pub user: Box<str>,
    /// The proof: no NUL, never empty.
    pub password: Box<str>,
}

/// What a client makes of our challenge and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct CramResponse {
    /// Who the client says it is: never empty.
    pub user: Box<str>,
    /// What it was asked, brackets included.
    pub challenge: Box<str>,
    /// HMAC-MD5 of the challenge, keyed with the secret.
    pub digest: [u8; 16],
}

/// Why an exchange failed before anybody looked at the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// The client sent `*`.
    #[error("authentication cancelled")]
    Cancelled,
    /// No base64, or not what the mechanism says.
    #[error("malformed authentication response")]
    Malformed,
    /// PLAIN asks to act as somebody else, which nobody may.
    #[error("acting for another user is not allowed")]
    ForeignIdentity,
}

/// The server's half of one exchange.
#[derive(Debug)]
pub struct Exchange(Step);

/// Which response is expected.
#[derive(Debug)]
enum Step {
    Plain,
    User,
    Password { user: Box<str> },
    Cram { challenge: Box<str> },
}

/// What comes next in an exchange.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Send `334 ` and [`Exchange::challenge`], then give the next line to [`Exchange::respond`].
    Challenge,
    /// The client said who it is.
    Credentials(Credentials),
    /// The client said who it is and answered the challenge.
    Cram(CramResponse),
}

impl Mechanism {
    /// Returns the mechanism of this name, if we speak it.
    pub fn named(name: &str) -> Option<Mechanism> {
        let all = [Mechanism::Plain, Mechanism::Login, Mechanism::CramMd5];
        all.into_iter().find(|m| name.eq_ignore_ascii_case(m.name()))
    }

    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
            Mechanism::CramMd5 => "CRAM-MD5",
        }
    }
}

impl Exchange {
    /// Begins an exchange; one of CRAM-MD5 without a challenge accepts nobody.
    pub fn new(mechanism: Mechanism) -> Exchange {
        Exchange(match mechanism {
            Mechanism::Plain => Step::Plain,
            Mechanism::Login => Step::User,
            Mechanism::CramMd5 => Step::Cram { challenge: "".into() },
        })
    }

    /// Begins one of CRAM-MD5 with this challenge, which nobody has seen before.
    pub fn cram(challenge: &str) -> Exchange {
        Exchange(Step::Cram { challenge: challenge.into() })
    }

    /// Returns whether the server speaks first.
    pub fn is_cram(&self) -> bool {
        matches!(self.0, Step::Cram { .. })
    }

    /// Returns the challenge to send when the client gave no initial response, in base64.
    pub fn challenge(&self) -> Cow<'static, str> {
        match &self.0 {
            Step::Plain => "".into(),
            Step::User => "VXNlcm5hbWU6".into(),
            Step::Password { .. } => "UGFzc3dvcmQ6".into(),
            Step::Cram { challenge } => STANDARD.encode(challenge.as_bytes()).into(),
        }
    }

    /// Reads the client's next response, in base64; `=` is the empty one.
    ///
    /// # Errors
    /// Why the exchange has failed; it is over then.
    pub fn respond(&mut self, line: &[u8]) -> Result<Progress, SaslError> {
        let text = match line {
            b"*" => return Err(SaslError::Cancelled),
            b"=" => String::new(),
            line => decode(line).ok_or(SaslError::Malformed)?,
        };
        match std::mem::replace(&mut self.0, Step::Plain) {
            Step::Plain => read_plain(&text).map(Progress::Credentials),
            Step::User => {
                self.0 = Step::Password { user: text.into() };
                Ok(Progress::Challenge)
            }
            Step::Password { user } => Credentials::new(&user, &text).map(Progress::Credentials),
            Step::Cram { challenge } => read_cram(&text, challenge).map(Progress::Cram),
        }
    }
}

fn decode(line: &[u8]) -> Option<String> {
    String::from_utf8(STANDARD.decode(line).ok()?).ok()
}

/// `[authzid] NUL authcid NUL passwd`.
fn read_plain(text: &str) -> Result<Credentials, SaslError> {
    let (authzid, rest) = text.split_once('\0').ok_or(SaslError::Malformed)?;
    let (user, password) = rest.split_once('\0').ok_or(SaslError::Malformed)?;
    if !authzid.is_empty() && authzid != user {
        return Err(SaslError::ForeignIdentity);
    }
    Credentials::new(user, password)
}

/// `user SP digest`; the digest is 32 lower-case hexadecimal digits (RFC 2195 §2). A name may have spaces.
fn read_cram(text: &str, challenge: Box<str>) -> Result<CramResponse, SaslError> {
    let (user, hex) = text.rsplit_once(' ').filter(|(user, _)| !user.is_empty()).ok_or(SaslError::Malformed)?;
    let mut digest = [0; 16];
    if challenge.is_empty() || hex.len() != 2 * digest.len() {
        return Err(SaslError::Malformed);
    }
    for (octet, digits) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Err(SaslError::Malformed) };
        *octet = u8::try_from(high * 16 + low).map_err(|_| SaslError::Malformed)?;
    }
    Ok(CramResponse { user: user.into(), challenge, digest })
}

impl fmt::Debug for CramResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CramResponse({:?}, ***)", self.user)
    }
}

impl Credentials {
    /// Checks that both are there and carry no NUL.
    ///
    /// # Errors
    /// [`SaslError::Malformed`] when one does not.
    pub fn new(user: &str, password: &str) -> Result<Credentials, SaslError> {
        let good = |text: &str| !text.is_empty() && !text.contains('\0');
        if good(user) && good(password) {
            Ok(Credentials { user: user.into(), password: password.into() })
        } else {
            Err(SaslError::Malformed)
        }
    }

    /// Returns the one response of PLAIN, in base64.
    pub fn plain(&self) -> String {
        STANDARD.encode(format!("\0{}\0{}", self.user, self.password))
    }

    /// Returns the two responses of LOGIN, in base64.
    pub fn login(&self) -> [String; 2] {
        [STANDARD.encode(self.user.as_bytes()), STANDARD.encode(self.password.as_bytes())]
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?}, ***)", self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn respond(exchange: &mut Exchange, text: &str) -> Result<Progress, SaslError> {
        exchange.respond(STANDARD.encode(text).as_bytes())
    }

    #[test]
    fn each_mechanism_reads_what_the_client_half_writes() {
        let credentials = Credentials::new("alice", "a secret").expect("valid");
        let want = Ok(Progress::Credentials(credentials.clone()));
        assert_eq!(Exchange::new(Mechanism::Plain).respond(credentials.plain().as_bytes()), want);

        let mut login = Exchange::new(Mechanism::Login);
        let [user, password] = credentials.login();
        assert_eq!(login.respond(user.as_bytes()), Ok(Progress::Challenge));
        assert_eq!(login.respond(password.as_bytes()), want);
    }

    #[test]
    fn a_challenge_is_answered_with_a_name_and_a_digest() {
        let challenge = "<1896.697170952@postoffice.reston.mci.net>";
        let respond = |line: &str| respond(&mut Exchange::cram(challenge), line);
        // RFC 2195 §2.
        let Ok(Progress::Cram(response)) = respond("tim b913a602c7eda7a495b4e6e7334d3890") else { panic!("refused") };
        assert_eq!(
            (&*response.user, &*response.challenge, response.digest[..2].to_vec()),
            ("tim", challenge, vec![0xb9, 0x13])
        );
        assert!(respond("a b b913a602c7eda7a495b4e6e7334d3890").is_ok());
        for text in
            ["", "tim", "tim ", " b913a602c7eda7a495b4e6e7334d3890", "tim b913", "tim b913a602c7eda7a495b4e6e7334d389g"]
        {
            assert_eq!(respond(text), Err(SaslError::Malformed), "{text:?}");
        }
        let unasked =
            super::tests::respond(&mut Exchange::new(Mechanism::CramMd5), "tim b913a602c7eda7a495b4e6e7334d3890");
        assert_eq!(unasked, Err(SaslError::Malformed));
    }

    #[test]
    fn nobody_acts_for_another() {
        let plain = || Exchange::new(Mechanism::Plain);
        assert_eq!(respond(&mut plain(), "root\0alice\0secret"), Err(SaslError::ForeignIdentity));
        assert!(respond(&mut plain(), "alice\0alice\0secret").is_ok());
    }

    #[test]
    fn malformed_responses_fail() {
        for text in ["", "alice", "\0alice", "\0\0secret", "\0alice\0", "\0alice\0sec\0ret"] {
            assert_eq!(respond(&mut Exchange::new(Mechanism::Plain), text), Err(SaslError::Malformed), "{text:?}");
        }
        for line in [&b"!"[..], b"AGFsaWNl\xff", b"AGFsaWNlAHNlY3JldA", b"/////w=="] {
            assert_eq!(Exchange::new(Mechanism::Plain).respond(line), Err(SaslError::Malformed), "{line:?}");
        }
        assert_eq!(Exchange::new(Mechanism::Login).respond(b"*"), Err(SaslError::Cancelled));
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", Credentials::new("alice", "a secret"));
        assert!(shown.contains("alice") && !shown.contains("secret"), "{shown}");
    }
}
