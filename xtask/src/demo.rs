//! `cargo xtask demo`: from a fresh clone to a command in a real machine.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::launch::{self, Program};
use crate::workspace::Workspace;

const DEMO: Program = Program { package: "fleetbox-e2e", name: "fleetbox-demo" };

pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    launch::set_up(workspace, &[])?;
    let built = launch::build(workspace, &[DEMO], false)?;
    let [demo] = built.as_slice() else { bail!("one program was to be built") };
    launch::become_as_root(workspace, demo, &[])
}
