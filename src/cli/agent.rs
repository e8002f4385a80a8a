//! `postroad status` and `postroad reload`: the agent as a whole.

use super::ask::ask;
use super::queue::size;
use super::{Context, Failure};
use crate::admin::Request;
use crate::admin::view::{DiskView, MemoryView, StatusView};
use crate::telemetry::escaped;

/// Say how the agent is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad status
  postroad status --json | jq -r .state")]
pub(super) struct Status {}

/// Make the agent read its configuration again
///
/// No session is dropped. A configuration with a fault is refused and the old one stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  postroad check && postroad reload")]
pub(super) struct Reload {}

pub(super) fn status(_: Status, context: &mut Context) -> Result<(), Failure> {
    let config = context.config_to_ask()?;
    ask(&config, &Request::Status {}, |status: StatusView| match context.is_json() {
        true => context.json(&status),
        false => lines(&status).into_iter().try_for_each(|line| context.line(line)),
    })?;
    Ok(())
}

pub(super) fn reload(_: Reload, context: &mut Context) -> Result<(), Failure> {
    let config = context.config()?;
    let done = ask(&config, &Request::Reload {}, |_: serde_json::Value| Ok(()))?;
    let text = done.text.unwrap_or_else(|| "reloaded".to_owned());
    match context.is_json() {
        true => context.json(&serde_json::json!({ "text": text })),
        false => context.line(escaped(&text)),
    }
}

fn lines(status: &StatusView) -> Vec<String> {
    let mut lines = vec![format!("{} is {}", escaped(&status.hostname), escaped(&status.state))];
    if let Some(why) = &status.stopped {
        lines.push(format!("{}: mend the disk, then restart the agent", escaped(why)));
    }
    let mut pair = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    pair("version", format!("{}, process {}", escaped(&status.version), status.pid));
    if let Some(since) = status.since {
        pair("since", since.to_string());
    }
    pair("config", escaped(&status.config));
    for listener in &status.listeners {
        pair("listens", escaped(listener));
    }
    pair("sessions", status.sessions.to_string());
    pair("queue", format!("{} messages, {} being delivered", status.queue.messages, status.queue.in_flight));
    pair("memory", memory(&status.memory));
    if let Some(free) = status.disk.free_octets {
        pair("disk", disk(&status.disk, free));
    }
    lines
}

fn disk(disk: &DiskView, free_octets: u64) -> String {
    let (free, reserve) = (size(free_octets), size(disk.reserve_octets));
    match disk.state.as_str() {
        "short" => format!("{free} free; short: new mail is refused below {reserve} (452 4.3.1, queue.reserve)"),
        _ => format!("{free} free"),
    }
}

fn memory(memory: &MemoryView) -> String {
    let text = format!("{} of {} used", size(memory.used_octets), size(memory.limit_octets));
    match memory.state.as_str() {
        "short" => format!("{text}; short: new mail is refused until deliveries make room (451 4.3.1)"),
        "full" => format!("{text}; full: new sessions are refused (421 4.3.1) until something ends"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_on_a_terminal() {
        let status = StatusView {
            version: "0.1.0".into(),
            pid: 42,
            hostname: "mx.example.org".into(),
            state: "serving".into(),
            listeners: vec!["smtp 127.0.0.1:25".into()],
            sessions: 3,
            config: "/etc/postroad/postroad.toml".into(),
            memory: MemoryView {
                state: "short".into(),
                used_octets: 450_000_000,
                limit_octets: 512_000_000,
                draft_octets: 0,
            },
            disk: DiskView { state: "short".into(), free_octets: Some(200_000_000), reserve_octets: 256_000_000 },
            ..StatusView::default()
        };
        let want = "\
mx.example.org is serving
  version    0.1.0, process 42
  config     /etc/postroad/postroad.toml
  listens    smtp 127.0.0.1:25
  sessions   3
  queue      0 messages, 0 being delivered
  memory     450.0 MB of 512.0 MB used; short: new mail is refused until deliveries make room (451 4.3.1)
  disk       200.0 MB free; short: new mail is refused below 256.0 MB (452 4.3.1, queue.reserve)";
        assert_eq!(lines(&status).join("\n"), want);
    }
}
