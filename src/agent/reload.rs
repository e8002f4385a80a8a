//! Another configuration under running sessions. A bad file changes nothing at all.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::{Agent, identity, log_level, memory_limit, mesh};
use crate::admin::Failure;
use crate::config::Config;
use crate::deliver::Routing;
use crate::memory::Memory;
use crate::route::Resolver;
use crate::systemd;

impl Agent {
    /// Reads the configuration again and uses it if it is valid; says what was done.
    ///
    /// # Errors
    /// What is wrong with the file; the old configuration stays.
    pub async fn reload(&self) -> Result<String, Failure> {
        // Two at a time (SIGHUP and the control socket) could leave the rooms with different ones.
        let _alone = self.reloading.lock().await;
        systemd::reloading();
        let result = self.take_new().await;
        match &result {
            Ok(text) => info!("{text}"),
            Err(failure) => error!(remedy = failure.remedy, "not reloaded, the old configuration stays: {failure}"),
        }
        systemd::ready("serving");
        result
    }

    async fn take_new(&self) -> Result<String, Failure> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || Config::find(path.as_deref())).await;
        let config = match read {
            Ok(Ok(config)) => Arc::new(config),
            Ok(Err(errors)) => return Err(Failure::new(errors.to_string(), "run `postroad check`, mend it, reload")),
            Err(fault) => return Err(Failure::new(fault.to_string(), "")),
        };
        let resolver = Resolver::new(&config).map_err(|error| Failure::new(error.to_string(), ""))?;
        self.context
            .tls
            .reload(&identity(&config))
            .map_err(|error| Failure::new(error.to_string(), "the old certificate stays in use"))?;
        let restart = config.changes_needing_restart(&self.first);
        if !restart.is_empty() {
            warn!(keys = restart.join(", "), "changed, but needs a restart of the agent to take effect");
        }
        if let Err(error) = self.logs.set_level(log_level(config.log.level)) {
            warn!(%error, "the log level stays");
        }
        let limit = memory_limit(&config);
        self.queue.set_draft_octets_max(Memory::draft_share(limit));
        self.context.memory.set_limit(limit);
        self.context.policy.reload(config.clone());
        let members = mesh::members(&self.context.peers.view());
        self.delivery.reload(Routing::new(config.clone(), resolver, members));
        self.config.store(config.clone());
        self.context.peers.reload();
        self.apply_fetches();
        match restart.is_empty() {
            true => Ok("configuration reloaded".to_owned()),
            false => Ok(format!("configuration reloaded; a restart is needed for: {}", restart.join(", "))),
        }
    }
}
