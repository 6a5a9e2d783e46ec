//! The `fleetbox` command: arguments in, a façade call, and the answer in words.
//!
//! Everything it can do is in the `fleetbox` library; here are only parsing, rendering, hints and exit codes.
//! What a script may read goes to stdout, everything else (progress, warnings, errors) to stderr.

mod args;
mod commands;
mod duration;
mod error;
mod exit;
mod hint;
mod output;
mod progress;
mod quote;
mod size;

use clap::Parser as _;

use crate::args::Cli;
use crate::error::CliError;
use crate::exit::Exit;

fn main() -> std::process::ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli).into(),
        Err(e) => {
            // Help and version asked for are no error; clap knows which stream each goes to.
            let code = if e.use_stderr() { Exit::Usage } else { Exit::Ok };
            // A reader that has gone away wants nothing any more.
            let _ = e.print();
            code.into()
        }
    }
}

fn run(cli: Cli) -> Exit {
    // One thread is enough for one command, and quicker to start than several.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return fail(&CliError::Runtime(source), None),
    };
    let exit = runtime.block_on(async {
        match commands::run(cli.command).await {
            Ok(exit) => exit,
            Err(CliError::ReaderGone) => Exit::Ok,
            Err(e) => {
                let hint = hint::hint(&e).await;
                fail(&e, hint)
            }
        }
    });
    // A thread that still waits for a file or a pipe must not hold up the end.
    runtime.shutdown_background();
    exit
}

fn fail(error: &CliError, hint: Option<String>) -> Exit {
    output::report(error, hint.as_deref());
    error.exit()
}
