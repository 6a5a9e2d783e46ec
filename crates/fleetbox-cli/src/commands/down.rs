//! `fleetbox down`

use fleetbox::Members;
use tokio::task::JoinSet;

use super::target::{Target, resolve};
use crate::args::Down;
use crate::commands::Outcomes;
use crate::error::Result;
use crate::progress::Spinner;

pub(crate) async fn run(args: Down) -> Result {
    let spinner = Spinner::new(format!("stopping {}", args.names.join(", ")));
    // All at once: three guests that shut down side by side take as long as one.
    let mut stops = JoinSet::new();
    for name in args.names {
        stops.spawn(async move { stop(&name, args.now).await });
    }
    let mut outcomes = Outcomes::default();
    while let Some(ended) = stops.join_next().await {
        // A panic in there has printed itself.
        let Ok(stopped) = ended else { continue };
        match stopped {
            Ok(said) => spinner.note(&said),
            Err(e) => spinner.suspend(outcomes.failed(e)).await,
        }
    }
    spinner.finish();
    Ok(outcomes.exit())
}

/// Stops what a name stands for, and says what that was.
async fn stop(name: &str, now: bool) -> fleetbox::Result<String> {
    match resolve(name).await? {
        Target::Machine(info) => {
            fleetbox::stop(name, now).await?;
            // The last one down takes its network with it before it is told.
            fleetbox::released(info.cluster.as_str()).await?;
            Ok(format!("{name} is stopped"))
        }
        Target::Cluster(members) => {
            for member in members.iter().filter(|m| now && m.state.is_live()) {
                fleetbox::stop(member.name.as_str(), true).await?;
            }
            match fleetbox::close_cluster(name, Some(Members::Stop)).await {
                // The last member took the cluster's network with it.
                Err(e) if e.kind() == fleetbox::ErrorKind::NotFound => {}
                closed => closed?,
            }
            let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
            Ok(match names.is_empty() {
                true => format!("cluster {name} is closed"),
                false => format!("cluster {name} is closed: {} stopped", names.join(", ")),
            })
        }
    }
}
