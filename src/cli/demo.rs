//! `postroad demo`: shows on this machine what Postroad does, and says how to try it by hand.
//!
//! Bars on a terminal, plain lines in a pipe, one JSON object with `--json`. Exits with 0 only when
//! everything that was accepted was delivered unchanged, and ends what it started in every case.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::{Context, Failure, exit};
use crate::admin::trace::TraceView;
use crate::demo::letters::LETTERS_MIN;
use crate::demo::site::Host;
use crate::demo::{Demo, DemoError, LETTERS_DEFAULT, LETTERS_MAX, Outcome, process};

mod screen;
mod summary;

use screen::Screen;

/// The longest that a demo may take until its ledger balances, and what each letter adds to it.
const PLAY_MAX: Duration = Duration::from_secs(120);
const PLAY_MAX_EACH: Duration = Duration::from_millis(50);
/// How long the last letter is followed until all hosts have told of it.
const FOLLOW_MAX: Duration = Duration::from_secs(5);

/// See three agents become a mesh and relay real mail on this machine, one of them killed in the middle
///
/// Everything runs on loopback and in one directory, on ports above 1024; no configuration is read
/// and no privilege needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad demo                      Watch, then try it by hand until Ctrl-C
  postroad demo --once               Exit with 0 when accepted = delivered
  postroad demo --keep ./demo        Keep spools, mailboxes and logs in ./demo
  postroad demo --once --messages 2000 --json")]
pub(super) struct Args {
    /// Exit when the ledger is made up, instead of staying until Ctrl-C
    #[arg(long)]
    once: bool,
    /// How many letters are submitted
    #[arg(long, value_name = "N", default_value_t = LETTERS_DEFAULT as u64,
          value_parser = clap::value_parser!(u64).range(LETTERS_MIN as u64..=LETTERS_MAX as u64))]
    messages: u64,
    /// Use this directory, which must be empty or missing, and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Become the agent of this configuration for as long as the process --parent lives
    #[arg(long, hide = true, value_name = "FILE", requires = "parent")]
    agent: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<i32>,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    if let (Some(file), Some(parent)) = (&args.agent, args.parent) {
        let error = process::become_agent(file, parent);
        return Err(Failure::new(exit::FAILED, format!("the agent of {} does not start: {error}", file.display())));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::new(exit::FAILED, format!("the runtime does not start: {error}")))?;
    // On the main thread, which lives as long as the process: the kernel ends the agents with the
    // thread that started them.
    runtime.block_on(show(args, context))
}

async fn show(args: Args, context: &mut Context) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let letters = usize::try_from(args.messages).expect("the range of --messages fits");
    let mut demo = Demo::prepare(letters, args.keep).await.map_err(failure)?;
    let screen = Screen::start(letters, demo.numbers(), context.is_json());
    let tell = |line| screen.tell(&line);
    let limit = PLAY_MAX + PLAY_MAX_EACH * u32::try_from(letters).unwrap_or(u32::MAX);
    let played = tokio::select! {
        played = timeout(limit, demo.play(&tell)) => played,
        () = signals.next() => {
            screen.finish();
            demo.stop().await;
            return Err(Failure::new(exit::FAILED, "interrupted before the ledger was made up"));
        }
    };
    screen.finish();
    let result = match played {
        Ok(Ok(outcome)) => report(&demo, &outcome, args.once, &mut signals, context).await,
        Ok(Err(error)) => Err(failure(error)),
        Err(_) => Err(Failure::new(exit::FAILED, format!("the demo did not end in {} s", limit.as_secs()))),
    };
    if result.is_err() {
        demo.keep();
        context.out().flush()?;
        context.warn(format_args!("spools, mailboxes and logs are kept in {}", demo.site.dir.display()));
    }
    demo.stop().await;
    result
}

async fn report(
    demo: &Demo,
    outcome: &Outcome,
    once: bool,
    signals: &mut Signals,
    context: &mut Context,
) -> Result<(), Failure> {
    let views = outcome.farthest.as_deref().map(|id| followed(demo, id)).unwrap_or_default();
    if context.is_json() {
        context.json(&as_json(outcome, &views))?;
    } else {
        summary::ledger(outcome, context)?;
        summary::trace(outcome.farthest.as_deref().unwrap_or_default(), &views, context)?;
    }
    if !outcome.is_balanced {
        return Err(Failure::new(exit::FAILED, "the ledger does not balance"));
    }
    if once {
        return Ok(());
    }
    if !context.is_json() {
        summary::what_next(demo, context)?;
    }
    context.out().flush()?;
    signals.next().await;
    Ok(())
}

/// Returns what all hosts tell of a letter, waiting a little for those that have not written it down yet.
fn followed(demo: &Demo, id: &str) -> Vec<TraceView> {
    let begun = Instant::now();
    loop {
        // Who cannot be asked is missing in what is shown.
        let views = process::trace(&demo.site.control(Host::A), id).unwrap_or_default();
        let has_left = |view: &TraceView| view.events.iter().any(|event| event.what == "retired");
        let is_whole = views.len() >= Host::ALL.len() && views.iter().all(has_left);
        if is_whole || begun.elapsed() > FOLLOW_MAX {
            return views;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn as_json(outcome: &Outcome, views: &[TraceView]) -> serde_json::Value {
    let missing = outcome.missing.iter().map(|(id, to)| json!({ "message_id": id, "mailbox": to }));
    json!({
        "balanced": outcome.is_balanced,
        "letters_accepted": outcome.tally.letters,
        "copies_owed": outcome.tally.owed,
        "copies_delivered": outcome.tally.delivered,
        "duplicates": outcome.tally.duplicates,
        "altered": outcome.tally.altered,
        "lost": missing.collect::<Vec<_>>(),
        "went_around_b": outcome.tally.around,
        "trace": views,
        "on_disk_of_b_when_killed": outcome.held_by_the_dead,
        "seconds": outcome.took.as_secs_f64(),
    })
}

fn failure(error: DemoError) -> Failure {
    let failure = Failure::new(exit::FAILED, error.to_string());
    match error {
        DemoError::NotEmpty(_) => failure.with_remedy("name a directory that is empty or does not exist yet"),
        DemoError::NoPorts => failure.with_remedy("end what uses them; another demo perhaps"),
        _ => failure,
    }
}

/// Whatever asks the demo to end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let hear = |kind| signal(kind).map_err(|error| Failure::new(exit::FAILED, format!("no signals: {error}")));
        Ok(Signals([hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?, hear(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
