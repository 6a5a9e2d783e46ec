//! `fleetbox pause`, `fleetbox resume`, `fleetbox reset`

use fleetbox::Vm;

use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output;
use crate::progress::Spinner;

pub(crate) async fn pause(name: &str) -> Result {
    find(name).await?.pause().await?;
    output::note(&format!("{name} is paused"));
    Ok(Exit::Ok)
}

pub(crate) async fn resume(name: &str) -> Result {
    find(name).await?.resume().await?;
    output::note(&format!("{name} runs on"));
    Ok(Exit::Ok)
}

pub(crate) async fn reset(name: &str) -> Result {
    let vm = find(name).await?;
    let spinner = Spinner::new(format!("resetting {name}"));
    vm.reset().await?;
    spinner.note(&format!("{name} is up again"));
    spinner.finish();
    Ok(Exit::Ok)
}

/// A machine that runs. One that exists and does not run is another error than one that does not exist.
async fn find(name: &str) -> Result<Vm> {
    let info = fleetbox::inspect(name).await?;
    if !info.state.is_live() {
        return Err(CliError::NotRunning { name: name.to_owned(), state: info.state });
    }
    Ok(Vm::find(name).await?)
}
