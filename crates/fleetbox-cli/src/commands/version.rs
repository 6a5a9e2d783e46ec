//! `fleetbox version`

use serde::Serialize;

use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output;

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

const VERSION: Version =
    Version { version: env!("CARGO_PKG_VERSION"), os: std::env::consts::OS, arch: std::env::consts::ARCH };

pub(crate) fn run(json: bool) -> Result {
    let text = if json {
        serde_json::to_string_pretty(&VERSION).map_err(CliError::Json)?
    } else {
        format!("fleetbox {} ({}, {})", VERSION.version, VERSION.os, VERSION.arch)
    };
    output::print(&(text + "\n"))?;
    Ok(Exit::Ok)
}
