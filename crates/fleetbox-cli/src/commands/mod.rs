//! The commands, one a file.

mod completion;
mod doctor;
mod down;
mod image;
mod logs;
mod ls;
mod power;
mod prune;
mod reference;
mod rm;
mod ssh;
mod ssh_config;
mod target;
mod up;
mod version;

use crate::args::Command;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::{hint, output};

/// Carries out a command.
pub(crate) async fn run(command: Command) -> Result {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Ls(args) => ls::run(&args).await,
        Command::Ssh(args) => ssh::run(&args).await,
        Command::SshConfig(args) => ssh_config::run(args.name.as_deref()).await,
        Command::Logs(args) => logs::run(&args).await,
        Command::Down(args) => down::run(args).await,
        Command::Rm(args) => rm::run(&args).await,
        Command::Pause(args) => power::pause(&args.name).await,
        Command::Resume(args) => power::resume(&args.name).await,
        Command::Reset(args) => power::reset(&args.name).await,
        Command::Image(args) => image::run(args.command).await,
        Command::Prune => prune::run().await,
        Command::Doctor(args) => doctor::run(args.json),
        Command::Version(args) => version::run(args.json),
        Command::Completion(args) => completion::run(args.shell),
        Command::CliReference => reference::run(),
    }
}

/// What several machines came to: each failure is reported, and the first one's code is the command's.
#[derive(Debug, Default)]
struct Outcomes {
    first: Option<Exit>,
}

impl Outcomes {
    async fn failed(&mut self, error: impl Into<CliError>) {
        let error = error.into();
        output::report(&error, hint::hint(&error).await.as_deref());
        self.first.get_or_insert(error.exit());
    }

    fn exit(self) -> Exit {
        self.first.unwrap_or(Exit::Ok)
    }
}
