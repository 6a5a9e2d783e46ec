//! `fleetbox completion`

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::error::Result;
use crate::exit::Exit;
use crate::output;

pub(crate) fn run(shell: Shell) -> Result {
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fleetbox", &mut script);
    output::print_bytes(&script)?;
    Ok(Exit::Ok)
}
