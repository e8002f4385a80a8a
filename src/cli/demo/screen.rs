//! How the demo looks while it plays: three bars below the lines on a terminal, plain lines in a
//! pipe, nothing with `--json`. Colours only where they are wanted (NO_COLOR, pipes).

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anstream::{AutoStream, ColorChoice};
use clap::builder::styling::{AnsiColor, Color, Style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

use crate::demo::letters::copies;
use crate::demo::site::Host;
use crate::demo::watch::Numbers;
use crate::demo::{Line, Tone};

/// What the demo is shown on.
pub(super) struct Screen {
    look: Look,
    coloured: bool,
    finished: AtomicBool,
}

enum Look {
    /// Lines above bars.
    Terminal { bars: MultiProgress, drawing: JoinHandle<()> },
    /// Lines.
    Pipe,
    /// Nothing.
    Quiet,
}

impl Screen {
    /// Begins to show `numbers` where there is a terminal. Needs a runtime.
    pub(super) fn start(letters: usize, numbers: Receiver<Numbers>, json: bool) -> Screen {
        let coloured = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        let look = match (json, io::stdout().is_terminal()) {
            (true, _) => Look::Quiet,
            (false, false) => Look::Pipe,
            (false, true) => {
                let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
                let drawing = tokio::spawn(draw(Bars::new(&bars, letters, coloured), numbers));
                Look::Terminal { bars, drawing }
            }
        };
        Screen { look, coloured, finished: AtomicBool::new(false) }
    }

    /// Shows a line.
    pub(super) fn tell(&self, line: &Line) {
        let text = self.text(line);
        // Whoever closed standard output does not want to see it.
        let _ = match &self.look {
            Look::Terminal { bars, .. } => bars.println(text),
            Look::Pipe => writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()),
            Look::Quiet => Ok(()),
        };
    }

    fn text(&self, line: &Line) -> String {
        let host = line.host.map_or("-", Host::letter);
        let (mark, text) = match self.coloured {
            true => (host_style(line.host), tone_style(line.tone)),
            false => (Style::new(), Style::new()),
        };
        let seconds = line.at.as_secs_f64();
        format!("{seconds:>6.2} s  {mark}{host}{mark:#}  {text}{}{text:#}", line.text)
    }

    /// Takes the bars away; what was said stays.
    pub(super) fn finish(&self) {
        if let (Look::Terminal { bars, drawing }, false) = (&self.look, self.finished.swap(true, Ordering::Relaxed)) {
            drawing.abort();
            // A terminal that is gone has no bars.
            let _ = bars.clear();
        }
    }
}

fn host_style(host: Option<Host>) -> Style {
    let colour = match host {
        Some(Host::A) => AnsiColor::Cyan,
        Some(Host::B) => AnsiColor::Magenta,
        Some(Host::C) => AnsiColor::Blue,
        None => return Style::new().dimmed(),
    };
    Style::new().bold().fg_color(Some(Color::Ansi(colour)))
}

fn tone_style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Broken => Style::new().bold().fg_color(Some(AnsiColor::Red.into())),
        Tone::Mended => Style::new().fg_color(Some(AnsiColor::Green.into())),
    }
}

/// One bar a host.
struct Bars {
    letters: usize,
    accepted: ProgressBar,
    relaying: ProgressBar,
    delivered: ProgressBar,
}

impl Bars {
    fn new(bars: &MultiProgress, letters: usize, coloured: bool) -> Bars {
        let bar = |host: Host, what: &str, colour: &str, length: usize| {
            let colour = if coloured { format!(".{colour}/dim") } else { String::new() };
            let template = format!("  {{prefix}}  {what:<9} {{bar:36{colour}}} {{msg}}");
            let style = ProgressStyle::with_template(&template).expect("a constant template").progress_chars("━╸─");
            bars.add(ProgressBar::new(length as u64).with_style(style).with_prefix(host.letter()))
        };
        Bars {
            letters,
            accepted: bar(Host::A, "accepted", "cyan", letters),
            relaying: bar(Host::B, "waiting", "magenta", letters),
            delivered: bar(Host::C, "delivered", "blue", copies(letters)),
        }
    }

    fn show(&self, now: &Numbers) {
        let [a, b, c] = now.queued;
        let queue = |queued: Option<u64>| queued.map_or("down".to_owned(), |queued| format!("queue {queued}"));
        self.accepted.set_position(now.letters);
        self.accepted.set_message(format!("{} of {} letters, {}", now.letters, self.letters, queue(a)));
        self.relaying.set_position(b.unwrap_or(0));
        self.relaying.set_message(queue(b));
        self.delivered.set_position(now.delivered);
        self.delivered.set_message(format!("{} of {} copies, {}", now.delivered, copies(self.letters), queue(c)));
    }
}

async fn draw(bars: Bars, mut numbers: Receiver<Numbers>) {
    loop {
        let now = *numbers.borrow_and_update();
        bars.show(&now);
        if numbers.changed().await.is_err() {
            return;
        }
    }
}
