//! The mesh as this host takes part in it: its key, whom it knows, and how members reach one another.
//!
//! Other rooms hold a [`Peers`]. It answers from memory at once, and keeps answering from what was known
//! last whatever becomes of the links. Who is a member the crate `postroad-mesh` decides; this room has the
//! files, the sockets and the clock. A host that is in no mesh has no key, and nothing here runs.

mod key;
mod view;

use std::path::Path;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use postroad_mesh::{NodeId, SecretKey};
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use crate::tls::{NodeTls, ServerTls, node};
pub use key::KeyError;
pub use view::{NodeNameError, View};

/// The directory of keys and of what is known, in the state directory.
const DIRECTORY: &str = "mesh";

/// The mesh, as the other rooms see it. Clones are the same.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    key: ArcSwapOption<Identity>,
    view: ArcSwap<View>,
    /// Counts the views.
    changed: watch::Sender<u64>,
}

/// Who this host is.
struct Identity {
    tls: NodeTls,
}

impl Peers {
    /// Reads the key, if there is one, and from then on answers those who ask `tls` for it.
    ///
    /// # Errors
    /// The key cannot be read or used.
    pub fn open(state_dir: &Path, tls: &ServerTls) -> Result<Peers, KeyError> {
        let path = key::path(&state_dir.join(DIRECTORY));
        let identity = key::load(&path)?.map(|key| Identity::new(&key)).transpose();
        let identity = identity.map_err(|why| KeyError::Unusable { path, why: why.to_string() })?;
        tls.set_nodes(identity.iter().map(|identity| identity.tls.clone()).collect());
        Ok(Peers(Arc::new(Shared {
            key: ArcSwapOption::from_pointee(identity),
            view: ArcSwap::default(),
            changed: watch::Sender::new(0),
        })))
    }

    /// Returns which node this host is; `None` while it is in no mesh.
    pub fn me(&self) -> Option<NodeId> {
        self.view().me()
    }

    /// Returns what is known of the mesh now.
    pub fn view(&self) -> Arc<View> {
        self.0.view.load_full()
    }

    /// Returns what tells when there is another view.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Returns what connects with a node as this one, and the name to ask for: a session under it is
    /// with that node and with nobody else. `None`: this host has no key.
    pub fn connector(&self, node: &NodeId) -> Option<(TlsConnector, ServerName<'static>)> {
        let identity = self.0.key.load();
        identity.as_ref().map(|identity| (identity.tls.connector().clone(), node::server_name(node)))
    }
}

impl Identity {
    fn new(key: &SecretKey) -> Result<Identity, rustls::Error> {
        Ok(Identity { tls: NodeTls::new(key)? })
    }
}
