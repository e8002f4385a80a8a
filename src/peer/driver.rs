//! What keeps a host in touch with its mesh: takes turns of the machine when something happened or is due,
//! dials, shows the view, keeps what is known on disk. When it fails it starts again from the disk; mail
//! goes on by the last view meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postroad_mesh::statement::{GRANTED_DOMAINS_MAX, What};
use postroad_mesh::{Caps, Directory, NodeId, SecretKey};
use postroad_queue::UnixMillis;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, error, info, warn};

use super::files::{FileError, Files};
use super::state::{State, Turn};
use super::{Identity, PeerError, Peers, View, own};
use crate::admin::Failure;

/// How long what is known waits for more before it is written.
const KEEP_DELAY: Duration = Duration::from_millis(500);
/// The pause before a fresh start.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

impl Peers {
    /// Keeps in touch until it is dropped.
    pub async fn run(self) {
        self.begin_overlap();
        loop {
            let mut driver = JoinSet::new();
            let peers = self.clone();
            driver.spawn(async move { peers.drive().await });
            let ended = driver.join_next().await;
            let fault = ended.and_then(Result::err).map_or("a link failed".to_owned(), |fault| fault.to_string());
            error!(fault, "the mesh is started anew from disk; mail goes on by what was known last");
            sleep(RESTART_PAUSE).await;
            self.recover();
        }
    }

    /// Ends when somebody panicked who held the state: nobody knows how that was left.
    async fn drive(&self) {
        while !self.0.state.is_poisoned() {
            self.grant_own().await;
            let turn = self.turn();
            self.tend_mdns();
            for node in turn.dial {
                let peers = self.clone();
                tokio::spawn(async move { peers.link_kept(node).await });
            }
            for domain in turn.look_up {
                let peers = self.clone();
                tokio::spawn(async move { peers.look_up(domain).await });
            }
            match turn.wake {
                None => self.0.wake.notified().await,
                Some(at) => tokio::select! {
                    () = sleep_until(self.0.parts.clock.instant(UnixMillis(at)).into()) => {}
                    () = self.0.wake.notified() => {}
                },
            }
        }
    }

    fn turn(&self) -> Turn {
        let (config, now) = (self.config(), self.now());
        let mut turn = match self.state().as_mut() {
            Some(state) => state.turn(&config, now),
            None => return Turn::default(),
        };
        self.show(turn.view.take());
        turn
    }

    /// Shows a view to the other rooms, if there is another one.
    pub(super) fn show(&self, view: Option<Arc<View>>) {
        let Some(view) = view else { return };
        let (before, now) = (self.view(), view.members().count());
        if before.members().count() != now {
            info!(members = now, "the mesh has other members than before");
        }
        // Until it is on disk, a restart would send that member's mail to whatever DNS says.
        let is_new = view.records().keys().any(|node| !before.records().contains_key(node));
        self.0.view.store(view);
        self.0.changed.send_modify(|count| *count += 1);
        let is_waited_for = self.0.keeping.swap(true, Ordering::Relaxed);
        if is_new || !is_waited_for {
            let peers = self.clone();
            tokio::spawn(async move {
                // What is lost before it is on disk is heard again.
                if !is_new {
                    sleep(KEEP_DELAY).await;
                }
                peers.keep_rest().await;
            });
        }
    }

    /// Keeps what of it is not on disk yet: mail that waits goes by it from the next start on. What comes while it is
    /// written is written once after that, however much comes.
    pub async fn keep_rest(&self) {
        let _alone = self.0.deciding.lock().await;
        if self.0.keeping.swap(false, Ordering::Relaxed)
            && let Err(error) = self.put_known().await
        {
            error!(%error, "what is known of the mesh is not on disk");
        }
    }

    /// Keeps what is known on disk, now.
    pub(super) async fn keep(&self) -> Result<(), Failure> {
        let _alone = self.0.deciding.lock().await;
        self.put_known().await
    }

    /// The same. The caller holds `deciding`.
    async fn put_known(&self) -> Result<(), Failure> {
        let known = self.state().as_ref().map(|state| state.known_with(None));
        let Some(known) = known else { return Ok(()) };
        self.on_disk(move |files| files.put_known(&known)).await
    }

    /// Does something with the files, where blocking is allowed.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Failure> {
        let files = self.0.files.clone();
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        let done = done.map_err(|fault| Failure::new(fault.to_string(), "the log says why"))?;
        done.map_err(|error| Failure::new(error.to_string(), ""))
    }

    /// States something: on disk first, then to the others. The caller holds `deciding`.
    pub(super) async fn state_durably(&self, what: What) -> Result<(), Failure> {
        let identity = self.0.identity.load_full().ok_or_else(super::members::in_no_mesh)?;
        self.state_durably_as(&identity, what).await
    }

    /// The same under one of this host's keys.
    pub(super) async fn state_durably_as(&self, by: &Identity, what: What) -> Result<(), Failure> {
        let none = || Failure::new("this host is in no mesh", "make one: postroad mesh invite");
        let now = self.now();
        let (statement, known) = {
            let guard = self.state();
            let state = guard.as_ref().ok_or_else(none)?;
            let statement = state.state(by, what, now)?;
            let known = state.known_with(Some(&statement));
            (statement, known)
        };
        self.on_disk(move |files| files.put_known(&known)).await?;
        let view = {
            let mut guard = self.state();
            let state = guard.as_mut().ok_or_else(none)?;
            state.publish(vec![super::join::item(&statement)], now);
            state.view()
        };
        self.show(view);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Grants this host the domains that it serves, where it has the right to: nobody admitted who founded.
    async fn grant_own(&self) {
        let (view, config) = (self.view(), self.config());
        let Some(me) = view.me() else { return };
        let Some(member) = view.member(&me).filter(|member| member.caps.has(Caps::ADMIT)) else { return };
        let missing = own::not_granted(&config, &me, &view);
        if missing.is_empty() {
            return;
        }
        let serves = missing.into_iter().take(GRANTED_DOMAINS_MAX).collect();
        let what = What::Admit { node: member.key, caps: Caps::NONE, serves, label: own::label(&config).into() };
        let _alone = self.0.deciding.lock().await;
        if let Err(failure) = self.state_durably(what).await {
            error!(%failure, "cannot claim the domains of this host in the mesh");
            // Not again at once.
            sleep(RESTART_PAUSE).await;
        }
    }

    /// Opens a link to be kept, as the machine wants it.
    async fn link_kept(&self, node: NodeId) {
        if let Err(error) = self.link_to(node, false).await {
            debug!(%node, %error, "cannot link");
            let now = self.now();
            if let Some(state) = self.state().as_mut() {
                state.spread.failed(node, now);
            }
            self.0.wake.notify_one();
        }
    }

    /// Takes part in a mesh from here on: on disk first. The caller holds `deciding`.
    pub(super) async fn take_part(&self, directory: Directory) -> Result<(), Failure> {
        let known = postroad_mesh::archive::write(&directory);
        self.on_disk(move |files| files.put_known(&known)).await?;
        self.begin_state(directory)
    }

    fn begin_state(&self, directory: Directory) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(error.to_string(), "");
        let identity = self.0.identity.load_full().ok_or_else(|| failed(&"this host has no key"))?;
        let mut state = self.state_with(identity, directory).map_err(|error| failed(&error))?;
        let view = state.view();
        *self.state() = Some(state);
        self.show(view);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Returns the state of a host that knows this of its mesh, with what it keeps on disk beside that.
    fn state_with(&self, identity: Arc<Identity>, directory: Directory) -> Result<State, PeerError> {
        let seed = u64::from_be_bytes(crate::tls::random()?);
        let kept = (self.0.files.own()?, self.0.files.proofs(seed)?);
        Ok(State::new(identity, directory, kept, self.config().mesh.profile, seed, self.now()))
    }

    /// Reads key and mesh from disk.
    pub(super) fn reopen(&self) -> Result<(), PeerError> {
        let Some(mut key) = self.0.files.key()? else { return Ok(()) };
        let directory = self.0.files.known(self.now())?;
        // It stopped between saying that it goes on under another key and putting that in place.
        if let (Some(next), Some(directory)) = (self.0.files.next_key()?, &directory)
            && directory.roster().member(&next.public().id()).is_some()
        {
            self.0.files.take_next_key()?;
            key = next;
        }
        let is_member = |old: &SecretKey| {
            directory.as_ref().is_some_and(|directory| directory.roster().member(&old.public().id()).is_some())
        };
        // Retired, and then stopped before it was forgotten: it is worth nothing.
        let earlier = self.0.files.old_key()?.filter(is_member).map(Identity::new).transpose()?;
        self.0.earlier.store(earlier.map(Arc::new));
        let identity = self.use_identity(key)?;
        let Some(directory) = directory else { return Ok(()) };
        let mut state = self.state_with(identity, directory)?;
        let view = state.view().unwrap_or_default();
        *self.state() = Some(state);
        self.0.view.store(view);
        self.0.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Begins again from the disk, after somebody panicked.
    fn recover(&self) {
        *self.state() = None;
        self.0.state.clear_poison();
        if let Err(error) = self.reopen() {
            warn!(%error, "the mesh cannot be read from the disk");
        }
    }
}
