//! `postroad run`: the agent in the foreground.

use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy};
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
    be_batch();
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

/// What the crate calls this is a niceness of 0.
const NOT_NICE: u8 = 47;

/// Has the kernel schedule this thread, and all that it starts, as a batch (sched(7)): one that wakes up takes the
/// processor from nobody. A thread that receives a message goes on until it has it, and what syncs or sends finds more to
/// do when its turn comes. Whoever chose a policy or a niceness for the agent is left to it, and a kernel that refuses
/// costs some processor time and nothing else.
fn be_batch() {
    use NormalThreadSchedulePolicy::{Batch, Other};
    let is_chosen = thread_priority::thread_schedule_policy() != Ok(ThreadSchedulePolicy::Normal(Other))
        || rustix::process::getpriority_process(None) != Ok(0);
    if is_chosen {
        return;
    }
    let Ok(not_nice) = ThreadPriorityValue::try_from(NOT_NICE) else { return };
    let (thread, priority) = (thread_priority::thread_native_id(), ThreadPriority::Crossplatform(not_nice));
    let _ = thread_priority::set_thread_priority_and_policy(thread, priority, ThreadSchedulePolicy::Normal(Batch));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_scheduled_as_a_batch_unless_somebody_chose_otherwise() {
        let scheduled = || (thread_priority::thread_schedule_policy(), rustix::process::getpriority_process(None));
        let policy = |policy| Ok(ThreadSchedulePolicy::Normal(policy));
        let before = scheduled();
        let is_chosen = before != (policy(NormalThreadSchedulePolicy::Other), Ok(0));
        let after = if is_chosen { before } else { (policy(NormalThreadSchedulePolicy::Batch), Ok(0)) };
        let started = std::thread::spawn(move || {
            be_batch();
            std::thread::spawn(scheduled).join()
        });
        assert_eq!(started.join().expect("no panic").expect("no panic"), after);
    }
}
