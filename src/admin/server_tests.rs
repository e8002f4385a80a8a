//! The socket itself: a live server, its client, and clients that know no manners.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;

use tempfile::TempDir;

use super::*;
use crate::admin::testing::Memory;
use crate::admin::view::MessageView;
use crate::admin::{AskError, Client, Done, Filter, News};

struct Live {
    directory: TempDir,
    backend: Arc<Memory>,
}

fn live() -> Live {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let backend = Arc::new(Memory::sample());
    let socket = ControlSocket::bind(&directory.path().join("control.sock")).expect("bound");
    tokio::spawn(socket.serve(backend.clone()));
    Live { directory, backend }
}

impl Live {
    fn path(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// Sends octets as they are and returns the last line of the answer.
    async fn raw(&self, octets: Vec<u8>) -> Line {
        let path = self.path();
        let talk = move || {
            let mut stream = Blocking::connect(path).expect("it listens");
            // A server that has heard enough closes before all is sent.
            let _ = stream.write_all(&octets);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let text = String::from_utf8(answer).expect("UTF-8");
            serde_json::from_str(text.lines().last().expect("an answer")).expect("a line of the protocol")
        };
        tokio::task::spawn_blocking(talk).await.expect("no panic")
    }
}

fn ask(path: &Path, request: &Request) -> Result<(Vec<MessageView>, Done), AskError> {
    let mut items = Vec::new();
    let done = Client::connect(path)?.ask(request, |news| {
        if let News::Item(item) = news {
            items.push(item);
        }
        Ok::<_, AskError>(())
    })?;
    Ok((items, done))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_lists_the_queue() {
    let live = live();
    let path = live.path();
    let request = Request::List { filter: Filter { held: true, ..Filter::default() }, after: None, limit: None };
    let answer = tokio::task::spawn_blocking(move || ask(&path, &request)).await.expect("no panic");
    let (items, done) = answer.expect("an answer");
    assert_eq!((done.matched, items.len(), items[0].from.as_str()), (1, 1, "<>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_refuses_comes_with_a_remedy() {
    let live = live();
    let path = live.path();
    let answer = tokio::task::spawn_blocking(move || ask(&path, &Request::Reload {})).await.expect("no panic");
    let Err(AskError::Refused(failure)) = answer else { panic!("{answer:?}") };
    assert_eq!(failure.remedy, "did you mean `listen`?");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_and_changes_nothing() {
    let live = live();
    for octets in [
        b"".to_vec(),
        b"\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\x00\xff\xfe\n".to_vec(),
        b"{\"v\":1,\"op\":\"ping\"}".to_vec(),
        b"{\"v\":1,\"op\":\"queue.act\",\"action\":\"remove\",\"filter\":{}}\n".to_vec(),
        b"{\"v\":1,\"op\":\"queue.act\",\"action\":\"remove\",\"filter\":{\"older\":1}}\n".to_vec(),
        [b"[".repeat(1000), b"\n".to_vec()].concat(),
    ] {
        let shown = String::from_utf8_lossy(&octets).into_owned();
        let line = live.raw(octets).await;
        assert!(matches!(line, Line::Error(_)), "{shown:?}: {line:?}");
    }
    assert!(live.backend.acts.lock().expect("no panic").is_empty());
    assert_eq!(live.raw(Request::Ping {}.to_line()).await, Line::Done(Done::default()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_request_is_refused_and_not_kept() {
    let live = live();
    let mut request = b"{\"v\":1,\"op\":\"ping\",\"pad\":\"".to_vec();
    request.resize(REQUEST_OCTETS_MAX, b'x');
    let Line::Error(failure) = live.raw(request).await else { panic!("an error") };
    assert!(failure.message.contains("longer than 65536 octets"), "{failure}");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_alone_and_goes_with_the_agent() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("control.sock");
    let socket = ControlSocket::bind(&path).expect("bound");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(matches!(ControlSocket::bind(&path), Err(BindError::InUse(_))));
    drop(socket);
    assert!(!path.exists());
    assert!(matches!(Client::connect(&path), Err(AskError::Down(_))));
}

#[tokio::test]
async fn a_socket_left_by_a_crash_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists() && matches!(Client::connect(&path), Err(AskError::Down(_))));
    let socket = ControlSocket::bind(&path).expect("replaced");
    drop(socket);
    std::fs::write(&path, "precious").expect("written");
    assert!(matches!(ControlSocket::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).expect("there"), b"precious");
}
