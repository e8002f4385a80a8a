//! `postroad demo`: three agents on loopback that become a mesh, real mail through them, a host
//! killed in the middle, and a ledger that must balance.
//!
//! Nobody asks DNS where mail goes: a invites b and c, and what they say of themselves leads the letters
//! a -> b -> c; while b is dead, a -> c. A name server is there only so that nothing leaves this machine.
//! What the story says goes to whoever plays it ([`Demo::play`]); this room prints nothing. Nothing it
//! starts outlives it.

pub mod ledger;
pub mod letters;
pub mod process;
mod scratch;
pub mod site;
mod submitters;
pub mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::watch::{self as channel, Receiver, Sender};
use tokio::time::{Instant, sleep, timeout};

use crate::admin::mesh::{InviteView, MapView, MeshRequest, MeshView, PlaceView};
use crate::dns_zone::{NameServer, Zone};
use crate::policy::users::{EditError, SenderRule, User, UsersFile, password};
use crate::submit::{Login, Security, Server, SubmitError, Trust};
use ledger::{Ledger, Tally};
use letters::{DESTINATION, SENDER};
use process::Agent;
use scratch::Scratch;
use site::{Claim, Host, LONG_WAY_COST, SENDER_DOMAIN, Site};
use watch::{Numbers, Watcher};

/// How many letters are submitted when nobody says otherwise.
pub const LETTERS_DEFAULT: usize = 200;
/// How many at most: they are all kept in memory for the comparison.
pub const LETTERS_MAX: usize = 10_000;

/// The longest that any step may take before the demo counts as failed.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How long b stays dead at least, so that people can see it.
const DEAD_MIN: Duration = Duration::from_millis(1500);

/// What the story says as it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Since the start.
    pub at: Duration,
    /// Whom it is about; nobody in particular when `None`.
    pub host: Option<Host>,
    /// How it is meant.
    pub tone: Tone,
    /// The words.
    pub text: String,
}

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// It went as it should.
    Plain,
    /// Something was broken on purpose.
    Broken,
    /// Something is whole again.
    Mended,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or directory.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory to keep is in use.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// No ports.
    #[error("found no free ports between 2465 and 4600 on loopback")]
    NoPorts,
    /// The system refuses a thread or a random number.
    #[error("the system refuses {what}: {why}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// A name server does not start.
    #[error("the name server does not start: {0}")]
    Dns(#[source] io::Error),
    /// The user cannot be added.
    #[error("the user cannot be added: {0}")]
    User(#[from] EditError),
    /// An agent does not start.
    #[error("agent {} does not start: {source}", host.letter())]
    Spawn {
        /// Which.
        host: Host,
        /// Why.
        source: io::Error,
    },
    /// An agent ended at once or does not answer.
    #[error("agent {} does not serve; the end of {}:\n{log}", host.letter(), file.display())]
    NotServing {
        /// Which.
        host: Host,
        /// Its log.
        file: PathBuf,
        /// The last lines of it.
        log: String,
    },
    /// An agent cannot be killed.
    #[error("agent {} cannot be killed: {source}", host.letter())]
    Kill {
        /// Which.
        host: Host,
        /// Why.
        source: io::Error,
    },
    /// An agent does not become a member of the mesh.
    #[error("agent {} does not join the mesh: {why}", host.letter())]
    Join {
        /// Which.
        host: Host,
        /// Why.
        why: String,
    },
    /// A letter was not taken.
    #[error("agent a did not take letter {number}: {source}")]
    Submit {
        /// Which.
        number: usize,
        /// Why.
        source: SubmitError,
    },
    /// Nothing moves any more.
    #[error("{what} did not come in {} s; the logs are in {}", STEP_MAX.as_secs(), dir.display())]
    Stuck {
        /// What was waited for.
        what: &'static str,
        /// Where the logs are.
        dir: PathBuf,
    },
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The books.
    pub tally: Tally,
    /// Copies that are owed and were not found, as Message-ID and mailbox.
    pub missing: Vec<(String, &'static str)>,
    /// Whether everything accepted was delivered as it was, and nothing else.
    pub is_balanced: bool,
    /// The Message-ID of a letter that went over all three.
    pub farthest: Option<String>,
    /// Messages on b's disk when it was killed, where they could be counted.
    pub held_by_the_dead: Option<u64>,
    /// Since the start.
    pub took: Duration,
}

/// A demo that is set up.
pub struct Demo {
    /// Where everything is.
    pub site: Site,
    /// Who may submit at a.
    pub login: Login,
    agents: [Agent; 3],
    ledger: Arc<Mutex<Ledger>>,
    watcher: Watcher,
    letters: usize,
    _dns: NameServer,
    scratch: Scratch,
    _claim: Claim,
}

impl Demo {
    /// Finds a place for `letters` letters' demo and writes every file of it. With `keep` it is in
    /// that directory, which must be empty or missing, and stays; else in a new one that is removed.
    ///
    /// # Errors
    /// What is missing.
    pub async fn prepare(letters: usize, keep: Option<PathBuf>) -> Result<Demo, DemoError> {
        let scratch = Scratch::take(keep)?;
        let (site, claim) = Site::find(scratch.path().to_owned()).ok_or(DemoError::NoPorts)?;
        let dns = NameServer::start(([127, 0, 0, 1], 0).into(), zone()).await.map_err(DemoError::Dns)?;
        for host in Host::ALL {
            let path = site.host_dir(host);
            site.write(host, dns.addr()).map_err(|source| DemoError::File { path, source })?;
        }
        let login = add_user(&site)?;
        let ledger = Arc::default();
        let watcher = Watcher::start(&site, Arc::clone(&ledger))
            .map_err(|error| DemoError::System { what: "a thread", why: error.to_string() })?;
        let agents = Host::ALL.map(|host| Agent::new(&site, host));
        Ok(Demo { site, login, agents, ledger, watcher, letters, _dns: dns, scratch, _claim: claim })
    }

    /// Returns what can be seen from outside, now and as it changes.
    pub fn numbers(&self) -> Receiver<Numbers> {
        self.watcher.numbers()
    }

    /// Plays the story and returns its outcome; afterwards all three agents serve. To be awaited on
    /// the main thread, see [`Agent::start`].
    ///
    /// # Errors
    /// The story could not be played to its end; an unbalanced ledger is an outcome.
    pub async fn play(&mut self, tell: &(dyn Fn(Line) + Sync)) -> Result<Outcome, DemoError> {
        let begun = Instant::now();
        let (letters, site) = (self.letters as u64, self.site.clone());
        let story = Story { begun, tell, numbers: self.numbers(), ledger: Arc::clone(&self.ledger), letters, site };
        story.introduce();
        for agent in &mut self.agents {
            story.start(agent).await?;
        }
        story.become_a_mesh().await?;
        self.agents[Host::C as usize].stop().await;
        story.say(Some(Host::C), Tone::Plain, "is switched off for a moment");
        let (go, go_on) = channel::channel(None);
        let (server, login) = (self.server(), self.login.clone());
        let submit = submitters::submit_all(self.letters, server, login, self.ledger.clone(), go_on);
        let acts = story.acts(&mut self.agents, go);
        let ((), held_by_the_dead) = tokio::try_join!(submit, acts)?;
        story.settle().await?;
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Outcome {
            tally: ledger.tally().clone(),
            missing: ledger.missing().into_iter().map(|(id, name)| (id.to_owned(), name)).collect(),
            is_balanced: ledger.is_balanced(),
            farthest: ledger.farthest().map(str::to_owned),
            held_by_the_dead,
            took: begun.elapsed(),
        })
    }

    /// Lets the directory stay when the demo ends.
    pub fn keep(&mut self) {
        self.scratch.keep();
    }

    /// Returns whether the directory stays.
    pub fn is_kept(&self) -> bool {
        self.scratch.is_kept()
    }

    /// Ends the agents in the order of the mail's way, and removes what is not kept.
    pub async fn stop(mut self) {
        for agent in &mut self.agents {
            agent.stop().await;
        }
    }

    /// Where the demo's letters go in: a's submission port, its certificate known beforehand.
    fn server(&self) -> Server {
        let address = self.site.submission();
        let file = self.site.state_dir(Host::A).join("tls/certificate.pem");
        let trust = Trust::Only { file, name: Host::A.hostname().to_owned() };
        Server { host: address.ip().to_string(), port: address.port(), security: Security::StartTls, trust }
    }
}

/// The acts, with what they need to speak and to look.
struct Story<'a> {
    begun: Instant,
    tell: &'a (dyn Fn(Line) + Sync),
    numbers: Receiver<Numbers>,
    ledger: Arc<Mutex<Ledger>>,
    letters: u64,
    site: Site,
}

impl Story<'_> {
    fn say(&self, host: Option<Host>, tone: Tone, text: impl Into<String>) {
        (self.tell)(Line { at: self.begun.elapsed(), host, tone, text: text.into() });
    }

    fn introduce(&self) {
        let text = format!(
            "mail for {DESTINATION} is submitted at a, relayed by b, delivered by c; all in {}",
            self.site.dir.display()
        );
        self.say(None, Tone::Plain, text);
    }

    async fn start(&self, agent: &mut Agent) -> Result<(), DemoError> {
        let took = agent.start().await?;
        let host = agent.host();
        let submission =
            if host == Host::A { format!(", submission {}", self.site.submission()) } else { String::new() };
        let pid = agent.pid().unwrap_or_default();
        let text =
            format!("serves after {} ms (pid {pid}): smtp {}{submission}", took.as_millis(), self.site.smtp(host));
        self.say(Some(host), Tone::Plain, text);
        Ok(())
    }

    /// a invites the others, and waits until the letters' way is known.
    async fn become_a_mesh(&self) -> Result<(), DemoError> {
        for (host, serves) in [(Host::B, None), (Host::C, Some(DESTINATION))] {
            let begun = Instant::now();
            let serves: Vec<String> = serves.into_iter().map(str::to_owned).collect();
            let granted: Vec<String> = serves.iter().map(|domain| format!(" --serves {domain}")).collect();
            let invite = MeshRequest::Invite { ttl_ms: 3_600_000, uses: 1, caps: "relay".into(), serves };
            let invitation: InviteView = self.mesh(Host::A, invite).await?;
            self.say(Some(Host::A), Tone::Plain, format!("postroad mesh invite{}", granted.concat()));
            let _: MeshView = self.mesh(host, MeshRequest::Join { token: invitation.token }).await?;
            let took = begun.elapsed().as_millis();
            let text = format!("postroad mesh join mesh1:{}:…  is a member after {took} ms", self.site.smtp(Host::A));
            self.say(Some(host), Tone::Mended, text);
        }
        let begun = Instant::now();
        while !(self.knows_the_way(Host::A, 2).await? && self.knows_the_way(Host::B, 1).await?) {
            if begun.elapsed() > STEP_MAX {
                return Err(DemoError::Stuck { what: "the mesh", dir: self.site.dir.clone() });
            }
            sleep(Duration::from_millis(20)).await;
        }
        let text = format!(
            "knows the way to {DESTINATION} by the directory: over b for 11, straight to c for {LONG_WAY_COST}"
        );
        self.say(Some(Host::A), Tone::Plain, text);
        Ok(())
    }

    /// Returns whether a host knows that the letters go over so many links.
    async fn knows_the_way(&self, host: Host, links: usize) -> Result<bool, DemoError> {
        let map: MapView = self.mesh(host, MeshRequest::Map {}).await?;
        let is_home = |place: &&PlaceView| place.serves.iter().any(|domain| domain == DESTINATION);
        Ok(map.nodes.iter().find(is_home).is_some_and(|place| place.path.len() == links))
    }

    async fn mesh<T: DeserializeOwned + Send + 'static>(
        &self,
        host: Host,
        request: MeshRequest,
    ) -> Result<T, DemoError> {
        let control = self.site.control(host);
        let asked = tokio::task::spawn_blocking(move || process::mesh(&control, request)).await;
        let failed = |why: String| DemoError::Join { host, why };
        asked.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// From the first letter to the last restart; returns how many messages b held when it died.
    async fn acts(&self, [_, b, c]: &mut [Agent; 3], go_on: Sender<Option<Instant>>) -> Result<Option<u64>, DemoError> {
        let text = format!(
            "{} letters of {} kinds, TLS and login, one every {} ms",
            self.letters,
            letters::KINDS,
            submitters::pace(self.letters as usize).as_millis()
        );
        self.say(Some(Host::A), Tone::Plain, text);
        let share = |percent: u64| (self.letters * percent / 100).max(1);
        let first = submitters::first_part(self.letters as usize) as u64;

        let arrived = |n: &Numbers| n.letters >= first && n.queued[0] == Some(0) && n.queued[1] > Some(0);
        let seen = self.until("the first letters at b", arrived).await?;
        let waiting = seen.queued[1].unwrap_or_default();
        self.say(Some(Host::B), Tone::Plain, format!("holds {waiting} messages for c, which does not answer"));
        self.start(c).await?;

        self.until("deliveries by c", |n| n.delivered >= share(5)).await?;
        b.kill().await?;
        let died = Instant::now();
        let held = process::count_on_disk(&self.site, Host::B).await;
        let found = held.map(|held| format!(", {held} messages on its disk")).unwrap_or_default();
        self.say(Some(Host::B), Tone::Broken, format!("killed (SIGKILL) in the middle of its work{found}"));
        // Nobody waits for it any more only when the letters were given up.
        let _ = go_on.send(Some(died));
        self.say(Some(Host::A), Tone::Plain, "goes on: submissions are accepted as before, and go around b");

        let around = |n: &Numbers| n.around >= share(20) && died.elapsed() >= DEAD_MIN;
        let seen = self.until("letters around b", around).await?;
        self.say(Some(Host::C), Tone::Plain, format!("has {} copies that came straight from a", seen.around));
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).forget_ways();
        let took = b.start().await?;
        let text = format!(
            "is back on the same disk, {} ms after its restart (pid {})",
            took.as_millis(),
            b.pid().unwrap_or_default()
        );
        self.say(Some(Host::B), Tone::Mended, text);
        Ok(held)
    }

    /// Waits until nothing is on its way any more.
    async fn settle(&self) -> Result<(), DemoError> {
        let seen = self.until("the last deliveries", |n| n.is_settled(self.letters)).await?;
        self.say(Some(Host::C), Tone::Mended, format!("has all {} copies; every queue is empty", seen.delivered));
        Ok(())
    }

    /// Waits until `reached` holds of what is seen, but not for ever.
    async fn until(&self, what: &'static str, reached: impl Fn(&Numbers) -> bool) -> Result<Numbers, DemoError> {
        let wait = async {
            loop {
                let seen = *self.numbers.borrow();
                if reached(&seen) {
                    return seen;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(STEP_MAX, wait).await.map_err(|_| DemoError::Stuck { what, dir: self.site.dir.clone() })
    }
}

/// Of the demo's own domains it cannot say anything: where their mail goes the mesh knows, and what comes
/// too early waits. Other domains do not exist.
fn zone() -> Zone {
    Zone::new().servfail(DESTINATION).servfail(SENDER_DOMAIN)
}

fn add_user(site: &Site) -> Result<Login, DemoError> {
    let path = site.state_dir(Host::A);
    std::fs::create_dir_all(&path).map_err(|source| DemoError::File { path: path.clone(), source })?;
    let login = Login { user: SENDER.to_owned(), password: random_password()? };
    let hash = password::hash(&login.password).map_err(|why| DemoError::System { what: "a password hash", why })?;
    let senders = vec![SenderRule::Address(SENDER.parse().expect("a constant address"))];
    UsersFile::new(path.join("users")).put(&User { name: login.user.clone(), hash, senders })?;
    Ok(login)
}

/// Sixteen letters and digits that nobody mistakes for each other: 77 bits.
fn random_password() -> Result<String, DemoError> {
    const ALPHABET: &[u8; 28] = b"abcdefghjkmnpqrstuvwxyz23456";
    let mut octets = [0; 64];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random
        .fill(&mut octets)
        .map_err(|_| DemoError::System { what: "a random number", why: "no reason given".into() })?;
    // 252 is the largest multiple of 28 in an octet; the rest would favour the first letters.
    let fair = octets.iter().filter(|octet| **octet < 252);
    Ok(fair.take(16).map(|octet| char::from(ALPHABET[usize::from(*octet) % ALPHABET.len()])).collect())
}
