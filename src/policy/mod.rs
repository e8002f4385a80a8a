//! Question -> verdict: who may relay, which recipients exist, whose password is right, and how much
//! one address may take. The rules are pure functions over [`Config`] and the facts of a session;
//! [`Policy`] holds what they need. Never reads a socket.

pub mod aliases;
pub mod limits;
pub mod mailboxes;
pub mod replies;
pub mod rules;
mod secret;
pub mod users;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use postroad_mesh::NodeId;
use postroad_queue::UnixMillis;
use postroad_smtp::sasl::CramResponse;
use postroad_smtp::{Domain, Envelope, ForwardPath, MailParams, Priority, Reply, ReversePath};
use tokio::sync::Semaphore;

use crate::config::{Config, Turn};
use crate::route::{Members, Router};
use limits::{AuthFailures, SessionPermit, Sessions};
use mailboxes::{Directories, OsDirectories};
pub use rules::{Accepted, Client, RelayGrant};
pub use secret::challenge_seed;
use users::UserStore;

/// How many passwords are checked at a time: each takes one core and 19 MiB for a good while.
const VERIFICATIONS_MAX: usize = 4;

/// How long a login waits for its turn before it is told to come back.
const VERIFICATION_WAIT_MAX: Duration = Duration::from_secs(10);

/// Everything that verdicts are made from. Cheap to share behind an `Arc`.
pub struct Policy {
    rules: ArcSwap<Rules>,
    users: UserStore,
    directories: Box<dyn Directories>,
    sessions: Arc<Sessions>,
    auth_failures: AuthFailures,
    verifications: Arc<Semaphore>,
}

/// A configuration and what follows from it.
struct Rules {
    config: Arc<Config>,
    members: Option<Arc<Members>>,
    router: Router,
}

impl Rules {
    fn new(config: Arc<Config>, members: Option<Arc<Members>>) -> Rules {
        Rules { router: Router::with_members(&config, members.clone()), members, config }
    }
}

/// Proof that a password was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated(Box<str>);

impl Authenticated {
    /// Returns the user's name as the users file has it.
    pub fn user(&self) -> &str {
        &self.0
    }
}

impl Policy {
    /// Builds the policy of a configuration.
    pub fn new(config: Arc<Config>) -> Policy {
        Policy::with_directories(config, Box::new(OsDirectories))
    }

    /// The same with another view of the file system.
    pub fn with_directories(config: Arc<Config>, directories: Box<dyn Directories>) -> Policy {
        Policy {
            users: UserStore::new(config.users.file.clone()),
            rules: ArcSwap::from_pointee(Rules::new(config, None)),
            directories,
            sessions: Arc::default(),
            auth_failures: AuthFailures::default(),
            verifications: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
        }
    }

    /// Takes another configuration from the next question on.
    pub fn reload(&self, config: Arc<Config>) {
        self.users.set_path(config.users.file.clone());
        let members = self.rules.load().members.clone();
        self.rules.store(Arc::new(Rules::new(config, members)));
    }

    /// Takes what is known of the mesh from the next question on; none: this host is in none.
    pub fn set_members(&self, members: Option<Arc<Members>>) {
        let config = self.rules.load().config.clone();
        self.rules.store(Arc::new(Rules::new(config, members)));
    }

    /// Decides about a connection. The permit counts as the session for as long as it is kept.
    ///
    /// # Errors
    /// 421 when there are too many sessions, of this address or altogether.
    pub fn connect(&self, peer: IpAddr) -> Result<SessionPermit, Reply> {
        let limits = &self.rules.load().config.limits;
        self.sessions.enter(peer, limits.sessions_max, limits.sessions_per_address_max)
    }

    /// Returns how many sessions are open.
    pub fn session_count(&self) -> u32 {
        self.sessions.count()
    }

    /// Decides about MAIL.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn mail(
        &self,
        client: &Client<'_>,
        reverse_path: &ReversePath,
        params: &MailParams,
        now: UnixMillis,
    ) -> Result<(), Reply> {
        // Mail of other hosts does not wait for a look at the users file.
        let users = client.user.map(|_| self.users.current()).unwrap_or_default();
        rules::mail(&users, client, reverse_path).and_then(|()| rules::times(params, now))
    }

    /// Returns the priority of a message whose client asks for this one.
    pub fn priority(&self, client: &Client<'_>, asked: Option<Priority>) -> Option<Priority> {
        rules::priority(&self.rules.load().config, client, asked)
    }

    /// Decides about RCPT; `accepted` recipients came before it. May look at a directory.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn rcpt(
        &self,
        client: &Client<'_>,
        reverse_path: &ReversePath,
        forward_path: &ForwardPath,
        accepted: usize,
    ) -> Result<Accepted, Reply> {
        let Rules { config, router, .. } = &**self.rules.load();
        rules::rcpt((config, router), &*self.directories, client, reverse_path, forward_path, accepted)
    }

    /// Decides about a recipient whose mail ends here, or whose domain passes through with a list of those that it has,
    /// whoever asks; `None`: that is not for this host to say. May look at a directory.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn ending(&self, forward_path: &ForwardPath) -> Option<Result<Accepted, Reply>> {
        let Rules { config, router, .. } = &**self.rules.load();
        let ending = rules::ending((config, router), &*self.directories, forward_path);
        ending.or_else(|| rules::listed(router, forward_path))
    }

    /// Returns the envelope that a message goes on with: with the addresses that its recipients stand for.
    ///
    /// # Errors
    /// The reply that refuses the message.
    pub fn expand(&self, envelope: Envelope) -> Result<Envelope, Reply> {
        let Rules { config, router, .. } = &**self.rules.load();
        aliases::expand(config, router, envelope)
    }

    /// Returns whether mail for a forward-path that does not end here leaves the mesh.
    pub fn leaves_mesh(&self, forward_path: &ForwardPath) -> bool {
        let Rules { config, router, .. } = &**self.rules.load();
        let is_kept = |domain: &Domain| config.turns.iter().any(|turn| turn.domains.contains(domain));
        !forward_path.domain().is_some_and(|domain| router.has_home(domain) || is_kept(domain))
    }

    /// Returns the other members of the mesh that mail for a forward-path ends at, where it goes there by
    /// the mesh.
    pub fn homes(&self, forward_path: &ForwardPath) -> Vec<NodeId> {
        forward_path.domain().map(|domain| self.rules.load().router.homes_by_mesh(domain)).unwrap_or_default()
    }

    /// Decides about ATRN of the user who logged in. Returns what it may fetch: of the domains that it
    /// names, or all that are its own.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn turn(&self, user: Option<&str>, domains: &[Domain]) -> Result<Turn, Reply> {
        let rules = self.rules.load();
        let turn = rules::turn(&rules.config, user, domains)?;
        let domains = if domains.is_empty() { &turn.domains } else { domains };
        Ok(Turn { domains: domains.to_vec(), ..turn.clone() })
    }

    /// Decides about ATRN of a client that proved to be this node.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn turn_member(&self, node: &NodeId, domains: &[Domain]) -> Result<(), Reply> {
        rules::turn_member(self.rules.load().members.as_deref(), node, domains)
    }

    /// Decides about ETRN.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn start(&self, client: &Client<'_>) -> Result<(), Reply> {
        rules::start(&self.rules.load().config, client)
    }

    /// Checks a password, on a thread of its own. Unknown users take as long as known ones.
    ///
    /// # Errors
    /// 535 for wrong credentials; 454 after too many of them from this address, or when too many
    /// logins wait.
    pub async fn authenticate(&self, peer: IpAddr, user: &str, password: &str) -> Result<Authenticated, Reply> {
        let failures_max = self.rules.load().config.limits.auth_failures_max;
        // Counted as failed until it succeeds: parallel sessions get no extra guesses.
        if !self.auth_failures.add(peer, failures_max, Instant::now()) {
            return Err(replies::TOO_MANY_LOGIN_FAILURES);
        }
        let result = self.verify(user, password).await;
        self.judged(peer, result)
    }

    /// Checks an answer to our challenge (CRAM-MD5, RFC 2195): the secrets are those of `[[turn]]`.
    ///
    /// # Errors
    /// As [`Policy::authenticate`].
    pub async fn authenticate_cram(&self, peer: IpAddr, response: &CramResponse) -> Result<Authenticated, Reply> {
        let config = self.rules.load().config.clone();
        if !self.auth_failures.add(peer, config.limits.auth_failures_max, Instant::now()) {
            return Err(replies::TOO_MANY_LOGIN_FAILURES);
        }
        let user = response.user.to_lowercase();
        let (file, response) = (config.turn(&user).and_then(|turn| turn.secret_file.clone()), response.clone());
        let verified = tokio::task::spawn_blocking(move || secret::is_right(file.as_deref(), &response)).await;
        let result = match verified {
            Ok(true) => Ok(Authenticated(user.into())),
            Ok(false) => Err(replies::WRONG_CREDENTIALS),
            Err(_) => Err(replies::TOO_BUSY_FOR_LOGIN),
        };
        self.judged(peer, result)
    }

    fn judged(&self, peer: IpAddr, result: Result<Authenticated, Reply>) -> Result<Authenticated, Reply> {
        if !matches!(&result, Err(refusal) if *refusal == replies::WRONG_CREDENTIALS) {
            self.auth_failures.take_back(peer);
        }
        result
    }

    async fn verify(&self, user: &str, password: &str) -> Result<Authenticated, Reply> {
        let turn = tokio::time::timeout(VERIFICATION_WAIT_MAX, self.verifications.clone().acquire_owned());
        let Ok(Ok(turn)) = turn.await else { return Err(replies::TOO_BUSY_FOR_LOGIN) };
        let list = self.users.current();
        let (user, password) = (user.to_owned(), password.to_owned());
        let verified = tokio::task::spawn_blocking(move || {
            let verified = list.verify(&user, &password).map(|user| Authenticated(user.name.as_str().into()));
            drop(turn);
            verified
        });
        match verified.await {
            Ok(Some(authenticated)) => Ok(authenticated),
            Ok(None) => Err(replies::WRONG_CREDENTIALS),
            Err(_) => Err(replies::TOO_BUSY_FOR_LOGIN),
        }
    }
}

#[cfg(test)]
mod accept_tests;
#[cfg(test)]
mod tests;
