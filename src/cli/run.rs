//! `postroad run`: the agent in the foreground.

use tokio::runtime;

use super::{Context, Failure, exit};
use crate::agent;
use crate::telemetry;

/// Serve mail in the foreground until SIGTERM or SIGINT
///
/// SIGHUP (or `postroad reload`) reads the configuration again. Logs go to standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad run
  postroad --config ./postroad.toml run")]
pub(super) struct Args {}

pub(super) fn run(_: Args, context: &mut Context) -> Result<(), Failure> {
    let config = context.config()?;
    let runtime = runtime::Builder::new_multi_thread()
        .thread_name("postroad")
        .on_thread_park(telemetry::flush)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::FAILED, format!("cannot start the runtime: {error}")))?;
    let path = context.config_file().map(std::path::Path::to_owned);
    let ended = runtime.block_on(agent::run(config, path));
    // What still runs (a blocked look-up, a slow disk) must not delay the end.
    runtime.shutdown_background();
    telemetry::flush();
    ended.map_err(|error| Failure::new(exit::FAILED, error.to_string()))
}
