//! What this host, as a home, says to members that ask whether a recipient exists: what its policy would
//! say to RCPT. Any member may ask, as any host may say RCPT.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use postroad_mesh::NodeId;
use postroad_mesh::question::kind;
use postroad_mesh::recipient::{Asked, Told};
use postroad_smtp::ForwardPath;

use super::Agent;
use crate::peer::Answerer;
use crate::policy::Policy;

struct Doorkeeper(Weak<Agent>);

/// Lets other members ask this host.
pub(super) fn answer(agent: &Arc<Agent>) {
    agent.context.peers.answer(kind::RECIPIENT, Arc::new(Doorkeeper(Arc::downgrade(agent))));
}

impl Answerer for Doorkeeper {
    fn answer(&self, _: NodeId, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send + '_>> {
        Box::pin(async move {
            let Some(agent) = self.0.upgrade() else { return Told::Unclear.to_octets() };
            // It may look at a directory.
            let told = tokio::task::spawn_blocking(move || tell(&agent.context.policy, &octets)).await;
            told.unwrap_or(Told::Unclear).to_octets()
        })
    }
}

fn tell(policy: &Policy, octets: &[u8]) -> Told {
    let forward_path: Option<ForwardPath> =
        Asked::from_octets(octets).ok().and_then(|asked| asked.recipient.parse().ok());
    let Some(forward_path) = forward_path else { return Told::Unclear };
    match policy.ending(&forward_path) {
        Some(Ok(_)) => Told::Exists,
        Some(Err(reply)) if reply.code.get() >= 500 => Told::Unknown,
        // It is looked up in vain now.
        Some(Err(_)) => Told::Unclear,
        None => Told::Onward,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_home_says_what_it_would_say_to_rcpt() {
        let directory = tempfile::tempdir().expect("scratch");
        std::fs::create_dir(directory.path().join("alice")).expect("writable");
        let text =
            format!("[[local]]\ndomain = \"home.example\"\nmaildir = \"{}/{{user}}\"", directory.path().display());
        let route = |domain: &str, accept: &str| {
            format!("\n[[route]]\ndomain = \"{domain}\"\nvia = \"[192.0.2.9]:25\"\naccept = {accept}")
        };
        let text = text + &route("listed.example", "[\"alice\"]") + &route("any.example", "\"any\"");
        let config = Config::from_str(&text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
        let policy = Policy::new(Arc::new(config));
        let told = |recipient: &str| tell(&policy, &Asked { recipient: recipient.into() }.to_octets());
        for (recipient, want) in [
            ("alice@home.example", Told::Exists),
            ("Alice+tag@HOME.example", Told::Exists),
            ("postmaster@home.example", Told::Exists),
            ("bob@home.example", Told::Unknown),
            ("\"../alice\"@home.example", Told::Unknown),
            ("alice@elsewhere.example", Told::Onward),
            ("alice+tag@listed.example", Told::Exists),
            ("bob@listed.example", Told::Unknown),
            ("alice@any.example", Told::Onward),
            ("nonsense", Told::Unclear),
        ] {
            assert_eq!(told(recipient), want, "{recipient}");
        }
        assert_eq!(tell(&policy, b"nonsense"), Told::Unclear);
    }
}
