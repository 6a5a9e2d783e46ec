//! `fleetbox rm`

use fleetbox::{ErrorKind, MachineInfo, Members};

use super::target::{Target, resolve};
use crate::args::Rm;
use crate::commands::Outcomes;
use crate::error::Result;
use crate::output;

pub(crate) async fn run(args: &Rm) -> Result {
    let mut outcomes = Outcomes::default();
    // One after another: two of one cluster would wait for the same holder.
    for name in &args.names {
        match remove(name, args.force).await {
            Ok(Some(said)) => output::note(&said),
            Ok(None) => {}
            Err(e) => outcomes.failed(e).await,
        }
    }
    Ok(outcomes.exit())
}

/// What was removed, in words; `None` when there was nothing, which is an error only without `force`.
async fn remove(name: &str, force: bool) -> fleetbox::Result<Option<String>> {
    let none = |e: &fleetbox::Error| force && e.kind() == ErrorKind::NotFound;
    let removed = || Some(format!("{name} is removed"));
    let info = match resolve(name).await {
        Ok(Target::Machine(info)) => info,
        Ok(Target::Cluster(members)) => return remove_cluster(name, &members, force).await.map(Some),
        Err(e) if none(&e) => return Ok(None),
        // Its record cannot be read. Who insists gets rid of it all the same.
        Err(e) if force => match fleetbox::remove(name, force).await {
            Ok(()) => return Ok(removed()),
            Err(again) => return Err(if none(&again) { e } else { again }),
        },
        Err(e) => return Err(e),
    };
    match fleetbox::remove(name, force).await {
        Ok(()) => {}
        Err(e) if none(&e) => return Ok(None),
        Err(e) => return Err(e),
    }
    // The last one takes its network with it before it is told.
    fleetbox::released(info.cluster.as_str()).await?;
    Ok(removed())
}

async fn remove_cluster(name: &str, members: &[MachineInfo], force: bool) -> fleetbox::Result<String> {
    if !force && members.iter().any(|m| m.state.is_live()) {
        // Refused, with the names of those that run; unless they have ended in this moment.
        fleetbox::close_cluster(name, None).await?;
    }
    match fleetbox::close_cluster(name, Some(Members::Destroy)).await {
        Err(e) if force && e.kind() == ErrorKind::NotFound => {}
        closed => closed?,
    }
    let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
    Ok(match names.is_empty() {
        true => format!("cluster {name} is removed"),
        false => format!("cluster {name} is removed, and {} with it", names.join(", ")),
    })
}
