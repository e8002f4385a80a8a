//! What anybody may put into the drop directory, and what becomes of it.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Scratch {
    directory: tempfile::TempDir,
    drops: Drops,
}

fn scratch() -> Scratch {
    let directory = tempfile::tempdir().expect("scratch");
    let make = |name: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).expect("made");
        path
    };
    let drops = Drops::open(&make("drop"), &make("aside")).expect("they are there");
    Scratch { directory, drops }
}

impl Scratch {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("drop").join(name)
    }

    fn names(&self) -> Vec<String> {
        self.drops.names(100, SystemTime::now()).expect("readable")
    }
}

fn letter() -> Letter {
    let content = b"Subject: x\r\n\r\nbody\r\n".to_vec();
    let slip = Slip {
        user: "u".into(),
        from: Some("u".into()),
        to: vec!["a".into()],
        header_octets: 14,
        octets: content.len() as u64,
        ..Slip::default()
    };
    Letter { slip, content }
}

#[test]
fn what_was_put_there_is_read_as_it_was() {
    let scratch = scratch();
    let letter = letter();
    put(&scratch.directory.path().join("drop"), &letter).expect("put");
    let names = scratch.names();
    assert_eq!(names.len(), 1);
    let mut dropped = scratch.drops.take(&names[0]).expect("it is one");
    let mut content = Vec::new();
    dropped.content.read_to_end(&mut content).expect("readable");
    assert_eq!((dropped.slip, content), (letter.slip, letter.content));
    assert_eq!(dropped.uid, rustix::process::geteuid().as_raw());
    let mode = std::fs::metadata(scratch.path(&names[0])).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    scratch.drops.remove(&names[0]).expect("removed");
    assert!(scratch.names().is_empty());
}

#[test]
fn a_file_of_version_1_is_read_as_it_was_written() {
    let scratch = scratch();
    let text = "postroad-drop 1\n{\"user\":\"u\",\"from\":null,\"name\":null,\"to\":[\"root\"],\"notify\":{\"success\":true,\
                \"failure\":false,\"delay\":false},\"headers_only\":true,\"envid\":\"x\",\"eight_bit\":false,\
                \"header_octets\":2,\"octets\":5}\n\r\na\r\n";
    std::fs::write(scratch.path("mail.1"), text).expect("written");
    let slip = scratch.drops.take("mail.1").expect("it is one").slip;
    assert_eq!((slip.to, slip.envid, slip.octets), (vec!["root".to_owned()], Some("x".to_owned()), 5));
}

#[test]
fn what_is_none_is_refused_and_set_aside() {
    let scratch = scratch();
    let slip = serde_json::to_string(&letter().slip).expect("JSON");
    for (name, text) in [
        ("mail.empty", String::new()),
        ("mail.garbage", "\0\u{1}garbage".repeat(1000)),
        ("mail.later", "postroad-drop 2\n{}\n".to_owned()),
        ("mail.torn", format!("postroad-drop 1\n{slip}\nSubject: x\r\n")),
        ("mail.more", format!("postroad-drop 1\n{}\n", slip.replace("\"user\"", "\"other\":1,\"user\""))),
        (
            "mail.huge",
            format!("postroad-drop 1\n{}\n", slip.replace("\"octets\":20", &format!("\"octets\":{}", u64::MAX))),
        ),
        ("mail.endless", format!("postroad-drop 1\n{}", "[".repeat(100_000))),
    ] {
        std::fs::write(scratch.path(name), text).expect("written");
    }
    let fifo = scratch.path("mail.fifo");
    sys::mknodat(sys::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).expect("made");
    symlink("/etc/passwd", scratch.path("mail.link")).expect("made");
    put(&scratch.directory.path().join("drop"), &letter()).expect("put");
    let good = scratch.names().into_iter().find(|name| name.len() > 20).expect("it is there");
    std::fs::hard_link(scratch.path(&good), scratch.path("mail.hard")).expect("linked");
    std::fs::create_dir(scratch.path("mail.directory")).expect("made");
    let sparse = File::create(scratch.path("mail.sparse")).expect("made");
    sparse.set_len(1 << 40).expect("it takes no room");
    assert_eq!(scratch.names().len(), 13);
    for name in scratch.names() {
        match scratch.drops.take(&name) {
            Err(DropError::Bad(_)) => scratch.drops.set_aside(&name, 100).expect("moved"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(scratch.names().is_empty());
    assert_eq!(std::fs::read_dir(scratch.directory.path().join("aside")).expect("readable").count(), 13);
    std::fs::write(scratch.path("mail.last"), "x").expect("written");
    scratch.drops.set_aside("mail.last", 13).expect("removed");
    assert!(scratch.names().is_empty());
    assert_eq!(std::fs::read_dir(scratch.directory.path().join("aside")).expect("readable").count(), 13);
}

#[test]
fn what_was_never_finished_goes_after_a_day() {
    let scratch = scratch();
    std::fs::write(scratch.path("new.1"), "postroad").expect("written");
    assert!(scratch.names().is_empty() && scratch.path("new.1").exists());
    let later = SystemTime::now() + INCOMPLETE_AGE_MAX + Duration::from_secs(60);
    assert!(scratch.drops.names(100, later).expect("readable").is_empty());
    assert!(!scratch.path("new.1").exists());
}
