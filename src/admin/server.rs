//! The server's half of the control socket: who may connect, how much is read, and the lines back.
//!
//! Whoever is neither root nor the agent's own user is turned away by the credentials of the peer,
//! so that the mode of the file is not the only guard.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::backend::AdminBackend;
use super::request::{Failure, Line, REQUEST_OCTETS_MAX, Request};
use super::work::{Stop, perform};

/// Clients at a time; more wait.
const CLIENTS_MAX: usize = 16;
const REQUEST_SECONDS_MAX: u64 = 10;
/// How long a client may leave its lines unread: a pager waits for its reader.
const WRITE_SECONDS_MAX: u64 = 3600;
/// Lines made ahead of a slow client.
const LINES_AHEAD_MAX: usize = 64;

/// The control socket, bound; removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("another agent already runs: it answers on {path}", path = .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{path} is no socket: remove it, or set [control] socket", path = .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot make the control socket {path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl ControlSocket {
    /// Binds the socket at `path` with mode 0600; one that a dead agent left is replaced. Needs a
    /// runtime.
    ///
    /// # Errors
    /// When another agent answers there, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<ControlSocket, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        clear_the_way(path)?;
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&draft);
        // Bound under another name and moved: at its name it never has another mode than 0600.
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        let placed = std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o600))
            .and_then(|()| std::fs::rename(&draft, path))
            .and_then(|()| std::fs::symlink_metadata(path));
        match placed {
            Ok(metadata) => Ok(ControlSocket { listener, path: path.to_owned(), inode: metadata.ino() }),
            Err(error) => {
                let _ = std::fs::remove_file(&draft);
                Err(failed(error))
            }
        }
    }

    /// Answers clients until it is dropped.
    pub async fn serve<B: AdminBackend>(self, backend: Arc<B>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let backend = backend.clone();
                    tokio::spawn(async move {
                        let _held_while_it_runs = place;
                        // A client that breaks off is its own trouble.
                        let _ = converse(stream, backend).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin's connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Only our own: the next agent may have bound its socket here already.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn clear_the_way(path: &Path) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(BindError::NotASocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => Err(BindError::InUse(path.to_owned())),
        _ => Ok(()),
    }
}

async fn converse<B: AdminBackend>(mut stream: UnixStream, backend: Arc<B>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let own = rustix::process::geteuid().as_raw();
    let (reader, writer) = stream.split();
    let mut writer = BufWriter::new(writer);
    if peer.uid() != 0 && peer.uid() != own {
        tracing::warn!(uid = peer.uid(), "turned away from the control socket");
        let failure = Failure::new("only root and the agent's own user may use the control socket", "use sudo");
        return write_line(&mut writer, &Line::Error(failure)).await;
    }
    match read_request(reader).await {
        Ok(request) => answer(request, backend, format!("uid {}", peer.uid()).into(), &mut writer).await,
        Err(failure) => write_line(&mut writer, &Line::Error(failure)).await,
    }
}

async fn read_request(reader: impl AsyncRead + Unpin) -> Result<Request, Failure> {
    let remedy = "use the `postroad` command";
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_OCTETS_MAX as u64));
    let read = timeout(Duration::from_secs(REQUEST_SECONDS_MAX), reader.read_until(b'\n', &mut line)).await;
    match read {
        Err(_) => Err(Failure::new(format!("no request came within {REQUEST_SECONDS_MAX} seconds"), remedy)),
        Ok(Err(error)) => Err(Failure::new(format!("the request cannot be read: {error}"), remedy)),
        Ok(Ok(_)) if line.ends_with(b"\n") => Request::parse(&line),
        Ok(Ok(_)) if line.len() >= REQUEST_OCTETS_MAX => Err(Failure::new(
            format!("the request is longer than {REQUEST_OCTETS_MAX} octets"),
            "name fewer ids at a time",
        )),
        Ok(Ok(_)) => Err(Failure::new("the request is cut off: it ends with a line end", remedy)),
    }
}

async fn answer<B, W>(request: Request, backend: Arc<B>, by: Arc<str>, writer: &mut BufWriter<W>) -> io::Result<()>
where
    B: AdminBackend,
    W: AsyncWrite + Unpin,
{
    let (sender, mut lines) = mpsc::channel(LINES_AHEAD_MAX);
    // A task of its own: a client that goes away ends the work between two messages, when the next
    // line finds nobody, and never in the middle of changing one.
    let work = tokio::spawn(perform(backend, request, by, sender));
    while let Some(line) = lines.recv().await {
        push_line(writer, &line).await?;
        if lines.is_empty() {
            flush(writer).await?;
        }
    }
    match work.await {
        Ok(Ok(done)) => write_line(writer, &Line::Done(done)).await,
        Ok(Err(Stop::Failed(failure))) => write_line(writer, &Line::Error(failure)).await,
        Ok(Err(Stop::Gone)) => Ok(()),
        Err(_) => write_line(writer, &Line::Error(Failure::new("the agent failed at it", "its log says why"))).await,
    }
}

async fn write_line<W: AsyncWrite + Unpin>(writer: &mut BufWriter<W>, line: &Line) -> io::Result<()> {
    push_line(writer, line).await?;
    flush(writer).await
}

async fn push_line<W: AsyncWrite + Unpin>(writer: &mut BufWriter<W>, line: &Line) -> io::Result<()> {
    let mut octets = serde_json::to_vec(line)?;
    octets.push(b'\n');
    timeout(Duration::from_secs(WRITE_SECONDS_MAX), writer.write_all(&octets)).await?
}

async fn flush<W: AsyncWrite + Unpin>(writer: &mut BufWriter<W>) -> io::Result<()> {
    timeout(Duration::from_secs(WRITE_SECONDS_MAX), writer.flush()).await?
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
