//! How long `fleetbox ls` takes, from its start to its end.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::report::LsReport;
use crate::{Bench, summary};

const RUNS: usize = 25;
const WARM_UP: usize = 3;

/// Beside the time of a program that does nothing, which is the least that can be had.
pub(crate) async fn measure(bench: &Bench) -> Result<Option<LsReport>> {
    let (mut ls, mut nothing) = (Vec::new(), Vec::new());
    for index in 0..WARM_UP + RUNS {
        let mut command = Command::new(&bench.cli);
        let took = time(command.args(["ls", "--json"]).env("FLEETBOX_HOME", &bench.home)).await?;
        let floor = time(&mut Command::new("true")).await?;
        if index >= WARM_UP {
            ls.push(took);
            nothing.push(floor);
        }
    }
    Ok(Some(LsReport { ls_ms: summary("ls", &ls)?, true_ms: summary("true", &nothing)? }))
}

async fn time(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let took = began.elapsed();
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = output.with_context(|| format!("could not run {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(took.as_secs_f64() * 1e3)
}
