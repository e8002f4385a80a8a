//! Where programs of this host hand in mail: a socket that everybody on it may connect to, and the drop
//! directory, for what came while no agent ran (docs/decisions/0022-local-mail.md).
//!
//! Over the socket a session begins like any other, with the user that the kernel names. Who has put a file
//! into the drop directory connects afterwards, which is why it is looked through at the start and when
//! somebody connects, and at no other time: nothing wakes an agent that has nothing to do. What stands there
//! goes through a session of its own. It is removed once it is in the queue: a crash in between repeats it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postroad_smtp::client::Answer;
use postroad_smtp::server;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::connection::{self, Arrival, Owner};
use super::{ACCEPT_PAUSE, Context, Drain, drained};
use crate::config::Service;
use crate::local::drop::{DropError, Dropped, Drops};
use crate::local::hand_over::{HandOverError, hand_over};
use crate::local::{Place, RECIPIENTS_MAX};
use crate::net::Stream;

/// Everybody may pass through, and see nothing.
const PLACE_MODE: u32 = 0o711;
/// Everybody may put files there; what others have put there nobody sees or removes.
const DROP_MODE: u32 = 0o1733;
const ASIDE_MODE: u32 = 0o700;
const SOCKET_MODE: u32 = 0o666;
/// How long what was put off waits until it is tried again.
const PAUSE: Duration = Duration::from_secs(60);
/// Names read at a time.
const NAMES_MAX: usize = 1000;
/// Files that are kept to be looked at by people.
const SET_ASIDE_MAX: usize = 100;

/// The socket and the directory, open.
pub struct Door {
    socket: UnixListener,
    drops: Arc<Drops>,
    /// Something came while no agent ran.
    has_mail: bool,
}

/// What becomes of a file.
enum Verdict {
    /// It is in the queue.
    Taken,
    /// It may be later.
    PutOff,
    /// It never will be.
    Refused(String),
}

impl Door {
    /// Makes what is missing in the state directory, on stable storage, and listens. The queue's lock is to be
    /// held: a socket that is there belongs to an agent that is dead. Needs a runtime.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(state_dir: &Path) -> io::Result<Door> {
        let place = Place::of(state_dir);
        let made = [
            make(place.path(), PLACE_MODE)?,
            make(&place.drop_directory(), DROP_MODE)?,
            make(&place.set_aside(), ASIDE_MODE)?,
        ];
        if made.contains(&true) {
            std::fs::File::open(place.path())?.sync_all()?;
            std::fs::File::open(state_dir)?.sync_all()?;
        }
        if std::fs::metadata(state_dir)?.mode() & 0o011 != 0o011 {
            let remedy = format!("chmod go+x {}", state_dir.display());
            warn!(remedy, "users of this host cannot hand in mail by the sendmail command: they may not pass");
        }
        let drops = Drops::open(&place.drop_directory(), &place.set_aside())?;
        // Bound under another name and moved: at its name it is always one to connect to.
        let draft = place.path().join("socket.new");
        let _ = std::fs::remove_file(&draft);
        let socket = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, PermissionsExt::from_mode(SOCKET_MODE))?;
        std::fs::rename(&draft, place.socket())?;
        // Behind the socket: who comes too late for this look connects. Nothing starts for an empty directory.
        let has_mail = !drops.names(1, SystemTime::now())?.is_empty();
        Ok(Door { socket, drops: Arc::new(drops), has_mail })
    }

    /// Serves until the agent drains; returns when the last session has ended. Dropping the future ends them
    /// all at once.
    pub async fn serve(self, context: Arc<Context>) {
        let Door { socket, drops, has_mail } = self;
        let (mut drain, mut sessions) = (context.drain.subscribe(), JoinSet::new());
        let look = Arc::new(Notify::new());
        if has_mail {
            look.notify_one();
        }
        sessions.spawn(Collector { context: context.clone(), drops }.run(look.clone()));
        loop {
            tokio::select! {
                accepted = socket.accept() => match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
                    Ok((uid, stream)) => {
                        let arrival = arrival(stream, Owner { uid, is_gone: false }, &context);
                        sessions.spawn(connection::serve(arrival, context.clone(), context.drain.subscribe()));
                        look.notify_one();
                    }
                    Err(error) => {
                        error!(%error, "cannot accept a connection of a local program; pausing");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
                () = drained(&mut drain) => break,
            }
        }
        drop(socket);
        while sessions.join_next().await.is_some() {}
    }
}

/// Makes a directory with this mode, whatever the umask says; returns whether it was missing.
fn make(path: &Path, mode: u32) -> io::Result<bool> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// A session of a user of this host.
fn arrival(stream: UnixStream, owner: Owner, context: &Context) -> Box<Arrival> {
    // What is said of it nobody sees: there is no address.
    let peer = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let settings = Context::session_config(&context.config.load(), Service::Local);
    let settings = match owner.is_gone {
        // Nobody is there to send the rest again.
        true => Arc::new(server::Config {
            limits: server::Limits { recipients_max: RECIPIENTS_MAX, ..settings.limits.clone() },
            ..(*settings).clone()
        }),
        false => settings,
    };
    let (permit, name) = (context.admit(peer), context.names.next());
    let stream = Stream::Unix(stream);
    Box::new(Arrival { stream, peer, service: Service::Local, settings, permit, name, owner: Some(owner) })
}

/// Takes what lies in the drop directory, one message after the other.
struct Collector {
    context: Arc<Context>,
    drops: Arc<Drops>,
}

impl Collector {
    async fn run(self, look: Arc<Notify>) {
        let mut drain = self.context.drain.subscribe();
        let mut put_off = false;
        loop {
            tokio::select! {
                () = look.notified() => {}
                () = sleep(PAUSE), if put_off => {}
                () = drained(&mut drain) => return,
            }
            put_off = self.collect(&drain).await;
        }
    }

    /// Takes what is there; returns whether something was put off. When the agent drains, the message that is being
    /// taken is the last.
    async fn collect(&self, drain: &Drain) -> bool {
        let drops = self.drops.clone();
        let names = match blocking(move || drops.names(NAMES_MAX, SystemTime::now())).await {
            Ok(names) => names,
            Err(error) => {
                error!(%error, "the drop directory cannot be read");
                return true;
            }
        };
        // As many as were asked for: there are more.
        let mut put_off = names.len() >= NAMES_MAX;
        for name in names {
            if *drain.borrow() {
                break;
            }
            let verdict = self.take(&name).await;
            let (drops, file) = (self.drops.clone(), name.clone());
            let done = match verdict {
                Verdict::Taken => blocking(move || drops.remove(&file)).await,
                Verdict::PutOff => {
                    put_off = true;
                    continue;
                }
                Verdict::Refused(why) => {
                    warn!(file = name, why, "what lies in the drop directory is not taken; it is set aside");
                    blocking(move || drops.set_aside(&file, SET_ASIDE_MAX)).await
                }
            };
            if let Err(error) = done {
                error!(%error, file = name, "a file stays in the drop directory");
            }
        }
        put_off
    }

    async fn take(&self, name: &str) -> Verdict {
        let (drops, file) = (self.drops.clone(), name.to_owned());
        let taken = spawn_blocking(move || drops.take(&file)).await;
        let Dropped { uid, slip, mut content } = match taken {
            Ok(Ok(dropped)) => dropped,
            Ok(Err(DropError::Bad(why))) => return Verdict::Refused(why),
            Ok(Err(error @ DropError::NotNow(_))) => {
                warn!(%error, file = name, "what lies in the drop directory is not taken now");
                return Verdict::PutOff;
            }
            Err(_) => return Verdict::Refused("the agent failed at it".to_owned()),
        };
        let pair = UnixStream::pair().and_then(|(ours, theirs)| {
            let theirs = theirs.into_std()?;
            theirs.set_nonblocking(false)?;
            Ok((ours, theirs))
        });
        let (ours, theirs) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                error!(%error, "no session for what lies in the drop directory");
                return Verdict::PutOff;
            }
        };
        let arrival = arrival(ours, Owner { uid, is_gone: true }, &self.context);
        let session = connection::serve(arrival, self.context.clone(), self.context.drain.subscribe());
        let handed = spawn_blocking(move || hand_over(theirs, &slip, &mut content));
        let ((), handed) = tokio::join!(session, handed);
        match handed {
            Ok(handed) => verdict(name, uid, handed),
            Err(_) => Verdict::Refused("the agent failed at it".to_owned()),
        }
    }
}

fn verdict(name: &str, uid: u32, handed: Result<Vec<Answer>, HandOverError>) -> Verdict {
    let answers = match handed {
        Ok(answers) => answers,
        Err(HandOverError::Session(failure)) => {
            info!(file = name, uid, %failure, "mail in the drop directory waits");
            return Verdict::PutOff;
        }
        Err(error) => return Verdict::Refused(error.to_string()),
    };
    if answers.iter().any(|answer| matches!(answer, Answer::Accepted(_))) {
        return Verdict::Taken;
    }
    match answers.iter().find(|answer| !matches!(answer, Answer::Permanent(_))) {
        Some(answer) => {
            info!(file = name, uid, reply = %answer.reply(), "mail in the drop directory waits");
            Verdict::PutOff
        }
        None => Verdict::Refused(answers.first().map_or(String::new(), |answer| answer.reply().to_string())),
    }
}

/// Does on a thread of its own what may wait for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|fault| Err(io::Error::other(fault)))
}
