//! Maildir delivery on a real file system: what lands where, what a planted link does,
//! and what a repeat after a crash leaves.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::config::{Config, LocalDelivery};

struct Host {
    root: TempDir,
    maildir: Maildir,
}

fn host() -> Host {
    let root = tempfile::tempdir().expect("a scratch directory");
    Host { maildir: maildir(root.path(), "{user}"), root }
}

/// A Maildir as the configuration gives it.
fn maildir(root: &Path, below: &str) -> Maildir {
    let text = format!("[[local]]\ndomain = \"example.org\"\nmaildir = \"{}/{below}\"\n", root.display());
    let config = Config::from_str(&text, "test.toml", root).expect("valid");
    match &config.locals[0].delivery {
        LocalDelivery::Maildir(template) => Maildir::new(template, "mx.example.org"),
        other => panic!("{other:?}"),
    }
}

fn user_of(path: &ForwardPath) -> UserName {
    UserName::new(&path.mailbox().expect("a mailbox").local_part).expect("a plain name")
}

impl Host {
    fn deliver(&self, to: &str, content: &[u8]) -> Result<Delivered, DeliverError> {
        self.deliver_as(to, content, 0, false)
    }

    fn deliver_as(&self, to: &str, mut content: &[u8], place: usize, repeat: bool) -> Result<Delivered, DeliverError> {
        let reverse_path = "sender@example.net".parse().expect("valid");
        let forward_path = to.parse().expect("valid");
        let user = user_of(&forward_path);
        let deliver = Deliver {
            id: QueueId::from_u64(1_800_000_000_000 << 20 | 7),
            arrived: UnixMillis(1_800_000_000_123),
            reverse_path: &reverse_path,
            user: &user,
            forward_path: &forward_path,
            place,
            maybe_repeat: repeat,
        };
        self.maildir.deliver(&deliver, &mut content)
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.path().join(folder)) else { return Vec::new() };
        let name = |e: io::Result<fs::DirEntry>| e.expect("readable").file_name().into_string().expect("ASCII");
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    fn only_file(&self, folder: &str) -> Vec<u8> {
        let names = self.list(folder);
        assert_eq!(names.len(), 1, "{names:?}");
        fs::read(self.root.path().join(folder).join(&names[0])).expect("readable")
    }
}

const NAME: &str = "1800000000.M123000P1MCC5RM000007Q0.mx.example.org";
const TOP: &[u8] = b"Return-Path: <sender@example.net>\nDelivered-To: Alice@example.org\n";

#[test]
fn content_lands_in_new_with_lf_line_ends_and_nothing_else_changed() {
    let host = host();
    let delivered =
        host.deliver("Alice@example.org", b"Subject: x\r\n\r\n.\r\n..dots\r\n\xff\xfe8-bit\r\n").expect("ok");
    let want = [TOP, b"Subject: x\n\n.\n..dots\n\xff\xfe8-bit\n"].concat();
    assert_eq!(host.only_file("alice/new"), want);
    assert_eq!(delivered.name, format!("{NAME},S={}", want.len()));
    assert!(host.list("alice/tmp").is_empty() && host.list("alice/cur").is_empty());
}

#[test]
fn an_empty_message_and_a_large_one_are_whole() {
    let host = host();
    host.deliver("Alice@example.org", b"").expect("ok");
    assert_eq!(host.only_file("alice/new"), TOP);

    let line = [&[b'~'; 998][..], b"\r\n"].concat();
    host.deliver("big@example.org", &line.repeat(3000)).expect("ok");
    let stored = host.only_file("big/new");
    assert_eq!(stored.iter().filter(|c| **c == b'~').count(), 998 * 3000);
    assert!(stored.ends_with(b"~\n") && !stored.contains(&b'\r'));
}

#[test]
fn nobody_else_can_read_it() {
    let host = host();
    let delivered = host.deliver("alice@example.org", b"x\r\n").expect("ok");
    let mode = |path: &str| fs::metadata(host.root.path().join(path)).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&format!("alice/new/{}", delivered.name)), 0o600);
    for folder in ["alice", "alice/new", "alice/cur", "alice/tmp"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
}

#[test]
fn the_users_part_of_the_path_is_made_and_the_admins_is_not() {
    let root = tempfile::tempdir().expect("a scratch directory");
    let host = Host { maildir: maildir(root.path(), "{user}/Maildir"), root };
    host.deliver("a.b@example.org", b"x\r\n").expect("ok");
    assert!(host.only_file("a.b/Maildir/new").ends_with(b"x\n"));

    let gone = Host { maildir: maildir(&host.root.path().join("not-mounted"), "{user}"), root: host.root };
    let error = gone.deliver("alice@example.org", b"x\r\n").expect_err("missing");
    assert!(Reply::from(&error).to_string().starts_with("451 4.3.5 "), "{error}");
    assert_eq!(gone.list(""), ["a.b"]);
}

#[test]
fn a_planted_link_leads_nowhere() {
    let host = host();
    let outside = tempfile::tempdir().expect("a scratch directory");
    symlink(outside.path(), host.root.path().join("alice")).expect("planted");
    fs::create_dir(host.root.path().join("bob")).expect("made");
    symlink(outside.path(), host.root.path().join("bob/new")).expect("planted");
    for to in ["alice@example.org", "bob@example.org"] {
        let error = host.deliver(to, b"x\r\n").expect_err(to);
        assert!(matches!(error, DeliverError::NotADirectory { .. }), "{error}");
        assert_eq!(Reply::from(&error).status, Some(Status::new(4, 3, 5)));
    }
    assert_eq!(fs::read_dir(outside.path()).expect("readable").count(), 0);
}

#[test]
fn a_link_planted_in_tmp_is_replaced_not_followed() {
    let host = host();
    let victim = host.root.path().join("victim");
    fs::write(&victim, "untouched").expect("written");
    fs::create_dir_all(host.root.path().join("alice/tmp")).expect("made");
    symlink(&victim, host.root.path().join("alice/tmp").join(NAME)).expect("planted");
    host.deliver("alice@example.org", b"x\r\n").expect("ok");
    assert_eq!(fs::read(&victim).expect("readable"), b"untouched");
    assert!(host.only_file("alice/new").ends_with(b"x\n"));
}

#[test]
fn a_repeat_after_a_crash_leaves_one_copy() {
    let host = host();
    let first = host.deliver("Alice@example.org", b"x\r\n").expect("ok");
    // Before the agent restarts, nothing says that this is a repeat: the copy is replaced.
    assert_eq!(host.deliver("Alice@example.org", b"x\r\n").expect("ok"), first);
    // After it, the copy is found, in `new` and where a reader has put it.
    let found = host.deliver_as("Alice@example.org", b"x\r\n", 0, true).expect("ok");
    assert_eq!(found, Delivered { already: true, ..first.clone() });
    let path = |folder: &str, name: &str| host.root.path().join("alice").join(folder).join(name);
    let seen = format!("{}:2,RS", first.name);
    fs::rename(path("new", &first.name), path("cur", &seen)).expect("moved");
    let found = host.deliver_as("Alice@example.org", b"x\r\n", 0, true).expect("ok");
    assert_eq!(found, Delivered { name: seen, already: true });
    assert!(host.list("alice/new").is_empty());
}

#[test]
fn another_recipient_of_the_same_message_is_no_repeat() {
    let host = host();
    host.deliver_as("alice@example.org", b"x\r\n", 1, false).expect("ok");
    host.deliver_as("ALICE@example.org", b"x\r\n", 11, true).expect("ok");
    assert_eq!(host.list("alice/new").len(), 2);
}

#[test]
fn what_a_crash_left_in_tmp_is_overwritten() {
    let host = host();
    fs::create_dir_all(host.root.path().join("alice/tmp")).expect("made");
    let half = host.root.path().join("alice/tmp").join(NAME);
    fs::write(half, "half a mess").expect("written");
    host.deliver("Alice@example.org", b"whole\r\n").expect("ok");
    assert_eq!(host.only_file("alice/new"), [TOP, b"whole\n"].concat());
    assert!(host.list("alice/tmp").is_empty());
}

#[test]
fn content_that_cannot_be_read_leaves_nothing_behind() {
    struct Damaged;
    impl Read for Damaged {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("checksum does not match"))
        }
    }
    let host = host();
    let (reverse_path, forward_path) = (ReversePath::Null, "alice@example.org".parse::<ForwardPath>().expect("valid"));
    let deliver = Deliver {
        id: QueueId::from_u64(1),
        arrived: UnixMillis(1),
        reverse_path: &reverse_path,
        user: &user_of(&forward_path),
        forward_path: &forward_path,
        place: 0,
        maybe_repeat: false,
    };
    let error = host.maildir.deliver(&deliver, &mut Damaged).expect_err("damaged");
    assert_eq!(
        Reply::from(&error).to_string(),
        "451 4.3.0 cannot read the message from the queue: checksum does not match"
    );
    assert!(host.list("alice/tmp").is_empty() && host.list("alice/new").is_empty());
}

/// The one table of what the trouble of a mailbox is on the wire.
#[test]
fn the_table_of_replies() {
    let path = || PathBuf::from("/m/alice");
    let file = |errno| Reply::from(&DeliverError::of(errno, "write", &path())).to_string();
    let table = [
        file(Errno::NOSPC),
        file(Errno::DQUOT),
        file(Errno::ACCESS),
        Reply::from(&DeliverError::Missing { path: path() }).to_string(),
        Reply::from(&DeliverError::NotADirectory { path: path() }).to_string(),
        Reply::from(&DeliverError::Interrupted).to_string(),
    ];
    let want = "\
452 4.3.1 no space left for /m/alice
452 4.2.2 mailbox full: the quota of the owner of /m/alice is used up
451 4.3.0 cannot write /m/alice: Permission denied (os error 13)
451 4.3.5 /m/alice does not exist: make it, or mount the file system it lies on
451 4.3.5 /m/alice is no directory (symbolic links are not followed)
451 4.3.0 the delivery was interrupted";
    assert_eq!(table.join("\n"), want);
}
