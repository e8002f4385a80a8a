//! Deliveries into Maildirs: whose mailbox a recipient means, and who waits for the look-up.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::super::scenario::{Agent, Peer, config};
use super::*;

const HOME: &str = "hostname = \"mx.home.example\"\n[[local]]\ndomain = \"home.example\"\nmaildir = \"{dir}/{user}\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_rcpt_takes_for_the_postmaster_is_delivered() {
    for (postmaster, recipient, user) in [
        ("", "Postmaster@home.example", "postmaster"),
        ("", "postmaster", "postmaster"),
        ("postmaster = \"admin@home.example\"\n", "postmaster@home.example", "admin"),
        ("postmaster = \"admin@home.example\"\n", "postmaster@mx.home.example", "admin"),
    ] {
        let agent = Agent::start(&format!("{postmaster}{HOME}"));
        let id = agent.put(&[recipient], b"x\r\n").await;
        agent.wait_delivered(id).await;
        let new = std::fs::read_dir(agent.directory.path().join(user).join("new"));
        assert_eq!(new.expect("the Maildir was made").count(), 1, "{postmaster}{recipient}");
    }
}

/// A file system that does not answer before it is told to.
struct Stuck(std::sync::Mutex<mpsc::Receiver<()>>);

impl Directories for Stuck {
    fn exists(&self, _: &Path) -> io::Result<bool> {
        let told = self.0.lock().expect("no panic").recv_timeout(Duration::from_secs(5));
        told.map(|()| true).map_err(io::Error::other)
    }
}

#[tokio::test]
async fn a_file_system_that_blocks_blocks_nobody_else() {
    let (tell, told) = mpsc::channel();
    let settings = config(HOME, Path::new("/mail"));
    let asked = ("home.example".parse().expect("a domain"), "alice".parse().expect("a local-part"), false);
    // On the one thread of this runtime: only while the look-up leaves it alone is it ever told.
    let tick = async { tell.send(()).expect("somebody waits") };
    let (found, ()) = tokio::join!(look_up(settings, asked, Stuck(told.into())), tick);
    assert_eq!(found.expect("found").as_str(), "alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_store_on_this_host_is_no_plaintext_on_a_network() {
    let lmtp = "hostname = \"mx.home.example\"\n[[local]]\ndomain = \"home.example\"\nlmtp = \"unix:{dir}/lmtp\"\n\
                recipients = \"any\"\n";
    let agent = Agent::start(lmtp);
    let peer = Peer::start_unix(&agent.directory.path().join("lmtp"), |_| None);
    let id = agent.put(&["alice@home.example"], b"x\r\n").await;
    agent.wait_delivered(id).await;
    assert_eq!(peer.heard(".").len(), 1);
    let metrics = agent.metrics.text();
    let count = metrics.lines().find(|line| line.starts_with("postroad_plaintext") && line.contains("\"out\""));
    assert!(count.is_some_and(|line| line.ends_with(" 0")), "{count:?}");
}
