//! `cargo xtask ci`: the static checks, then the tests. Both run whatever the other says.

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{check, test};

pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    let checked = check::run(workspace)?;
    if !checked {
        eprintln!("static checks failed (see above); going on with the tests");
    }
    let tested = test::run(workspace, &test::Options::default())?;
    Ok(checked && tested)
}
