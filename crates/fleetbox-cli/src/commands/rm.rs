//! `fleetbox rm`

use fleetbox::ErrorKind;

use crate::args::Rm;
use crate::commands::Outcomes;
use crate::error::Result;
use crate::output;

pub(crate) async fn run(args: &Rm) -> Result {
    let mut outcomes = Outcomes::default();
    // One after another: two of one cluster would wait for the same holder.
    for name in &args.names {
        match remove(name, args.force).await {
            Ok(true) => output::note(&format!("{name} is removed")),
            Ok(false) => {}
            Err(e) => outcomes.failed(e).await,
        }
    }
    Ok(outcomes.exit())
}

/// Whether there was one to remove. That there was none is an error only without `force`.
async fn remove(name: &str, force: bool) -> fleetbox::Result<bool> {
    let none = |e: &fleetbox::Error| force && e.kind() == ErrorKind::NotFound;
    let info = match fleetbox::inspect(name).await {
        Ok(info) => info,
        Err(e) if none(&e) => return Ok(false),
        // Its record cannot be read. Who insists gets rid of it all the same.
        Err(e) if force => match fleetbox::remove(name, force).await {
            Ok(()) => return Ok(true),
            Err(again) => return Err(if none(&again) { e } else { again }),
        },
        Err(e) => return Err(e),
    };
    match fleetbox::remove(name, force).await {
        Ok(()) => {}
        Err(e) if none(&e) => return Ok(false),
        Err(e) => return Err(e),
    }
    // The last one takes its network with it before it is told.
    fleetbox::released(info.cluster.as_str()).await?;
    Ok(true)
}
