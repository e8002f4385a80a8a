//! `postroad completions` and `postroad man`: made from the same description as the arguments, so
//! that they cannot differ from them.

use std::path::PathBuf;

use super::{Context, Failure, exit};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad completions bash > /etc/bash_completion.d/postroad
  postroad completions zsh > ~/.zfunc/_postroad
  postroad completions fish > ~/.config/fish/completions/postroad.fish")]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad man /usr/local/share/man/man1
  postroad man . && man ./postroad.1")]
pub(super) struct Man {
    /// The directory, which is made if need be
    directory: PathBuf,
}

pub(super) fn completions(args: Completions, context: &mut Context, mut command: clap::Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "postroad", &mut text);
    Ok(context.out().write_all(&text)?)
}

pub(super) fn man(args: Man, context: &mut Context, command: clap::Command) -> Result<(), Failure> {
    let directory = &args.directory;
    let made = std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory));
    made.map_err(|fault| {
        Failure::new(exit::FAILED, format!("{}: the pages cannot be written: {fault}", directory.display()))
            .with_remedy("name a directory that you may write to")
    })?;
    let text = format!("manual pages written to {}", directory.display());
    context.say(&serde_json::json!({ "directory": directory }), text)
}
