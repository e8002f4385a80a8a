//! Asks the agent, and shows on a terminal how far long work is.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;

use super::{Failure, exit};
use crate::admin::{AskError, Client, Done, Filter, News, Progress, Request};
use crate::config::Config;

/// Ids named in one request; more are asked for in several, since a request has a limit.
const REQUEST_IDS_MAX: usize = 2000;

/// Why the agent did not answer, or why what it said could not be printed.
#[derive(Debug)]
pub enum Trouble {
    /// The agent.
    Ask(AskError),
    /// The printing.
    Print(Failure),
}

impl From<AskError> for Trouble {
    fn from(error: AskError) -> Trouble {
        Trouble::Ask(error)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Print(failure)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Print(failure) => failure,
            Trouble::Ask(error) => match &error {
                AskError::Down(_) => Failure::new(exit::TRY_LATER, error.to_string())
                    .with_remedy("start it, or name its configuration with --config"),
                AskError::Refused(failure) => match failure.remedy.as_str() {
                    "" => Failure::new(exit::FAILED, failure.message.clone()),
                    remedy => Failure::new(exit::FAILED, failure.message.clone()).with_remedy(remedy),
                },
                _ => Failure::new(exit::FAILED, error.to_string()),
            },
        }
    }
}

/// Asks the agent of `config` and hands each item to `each` as it comes.
///
/// # Errors
/// [`AskError::Down`] when no agent runs, before anything was handed out.
pub fn ask<T: DeserializeOwned>(
    config: &Config,
    request: &Request,
    mut each: impl FnMut(T) -> Result<(), Failure>,
) -> Result<Done, Trouble> {
    let mut line = ProgressLine::messages();
    Client::connect(&config.control.socket)?.ask(request, |news| match news {
        News::Item(item) => each(item).map_err(Trouble::Print),
        News::Progress(progress) => {
            line.show(progress);
            Ok(())
        }
    })
}

/// Whose queue is meant.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The configuration of the agent that is asked.
    pub config: &'a Config,
    /// Another member of the mesh, which that agent asks.
    pub peer: Option<&'a str>,
}

impl At<'_> {
    /// Asks as [`ask`] does.
    ///
    /// # Errors
    /// As [`ask`].
    pub fn ask<T: DeserializeOwned>(
        &self,
        request: Request,
        each: impl FnMut(T) -> Result<(), Failure>,
    ) -> Result<Done, Trouble> {
        match self.peer {
            None => ask(self.config, &request, each),
            Some(node) => ask(self.config, &Request::Peer { node: node.to_owned(), request: Box::new(request) }, each),
        }
    }
}

/// Splits a filter with very many ids into several that fit a request.
pub fn split(filter: Filter) -> Vec<Filter> {
    if filter.ids.len() <= REQUEST_IDS_MAX {
        return vec![filter];
    }
    let with = |ids: &[_]| Filter { ids: ids.to_vec(), ..filter.clone() };
    filter.ids.chunks(REQUEST_IDS_MAX).map(with).collect()
}

/// Adds what a further request did.
pub fn add(sum: &mut Done, more: Done) {
    sum.matched += more.matched;
    sum.changed += more.changed;
    sum.failed += more.failed;
    sum.missing.extend(more.missing);
    sum.next = more.next;
}

/// How far long work is: a line on standard error, only on a terminal, gone with the value.
pub struct ProgressLine {
    template: &'static str,
    bar: Option<ProgressBar>,
}

impl ProgressLine {
    /// Counts messages.
    pub fn messages() -> ProgressLine {
        ProgressLine { template: "{spinner} {pos} of {len} messages looked at ({elapsed})", bar: None }
    }

    /// Counts octets.
    pub fn octets() -> ProgressLine {
        ProgressLine { template: "{spinner} {bytes} of {total_bytes} read ({elapsed}, {eta} to go)", bar: None }
    }

    /// Shows how far the work is.
    pub fn show(&mut self, progress: Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(self.template).expect("the templates are constants");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_length(progress.total);
        bar.set_position(progress.seen);
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
