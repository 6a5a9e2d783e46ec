//! `fleetbox down`

use tokio::task::JoinSet;

use crate::args::Down;
use crate::commands::Outcomes;
use crate::error::Result;
use crate::progress::Spinner;

pub(crate) async fn run(args: Down) -> Result {
    let spinner = Spinner::new(format!("stopping {}", args.names.join(", ")));
    // All at once: three guests that shut down side by side take as long as one.
    let mut stops = JoinSet::new();
    for name in args.names {
        stops.spawn(async move {
            let stopped = stop(&name, args.now).await;
            (name, stopped)
        });
    }
    let mut outcomes = Outcomes::default();
    while let Some(ended) = stops.join_next().await {
        // A panic in there has printed itself.
        let Ok((name, stopped)) = ended else { continue };
        match stopped {
            Ok(()) => spinner.note(&format!("{name} is stopped")),
            Err(e) => spinner.suspend(outcomes.failed(e)).await,
        }
    }
    spinner.finish();
    Ok(outcomes.exit())
}

async fn stop(name: &str, now: bool) -> fleetbox::Result<()> {
    let cluster = fleetbox::inspect(name).await?.cluster;
    fleetbox::stop(name, now).await?;
    // The last one down takes its network with it before it is told.
    fleetbox::released(cluster.as_str()).await
}
