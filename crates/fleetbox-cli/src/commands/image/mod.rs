//! `fleetbox image`

mod inspect;
mod ls;

use std::future::Future;

use fleetbox::{ErrorKind, Event, ImageInfo, ImageWork, MachineName, Phase};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{ImageCommand, ImageLs, ImageRm};
use crate::commands::Outcomes;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::progress::Progress;
use crate::{output, size};

pub(crate) async fn run(command: Option<ImageCommand>) -> Result {
    match command {
        None => ls::run(&ImageLs::default()).await,
        Some(ImageCommand::Ls(args)) => ls::run(&args).await,
        Some(ImageCommand::Inspect(args)) => inspect::run(&args).await,
        Some(ImageCommand::Pull(args)) => {
            let images = fleetbox::images()?;
            get(&args.reference, |work| images.pull(&args.reference, work)).await
        }
        Some(ImageCommand::Import(args)) => {
            let images = fleetbox::images()?;
            let what = args.file.display().to_string();
            match args.allow_backing {
                true => get(&what, |work| images.import_with_backing(&args.file, work)).await,
                false => get(&what, |work| images.import(&args.file, work)).await,
            }
        }
        Some(ImageCommand::Build(args)) => {
            let images = fleetbox::images()?;
            let build = fleetbox::ImageBuild::new(&args.suite).packages(&args.packages);
            let reference = build.reference()?.to_string();
            get(&reference, |work| images.build(&build, work)).await
        }
        Some(ImageCommand::Rm(args)) => remove(&args).await,
        Some(ImageCommand::Prune(args)) => prune(args.dry_run).await,
    }
}

/// Gets an image, and shows how far that has come. Ctrl-C gives it up, which leaves nothing half-made.
async fn get<F>(what: &str, start: impl FnOnce(Box<dyn Fn(ImageWork) + Send + Sync>) -> F) -> Result
where
    F: Future<Output = fleetbox::Result<ImageInfo>>,
{
    let mut interrupts = signal(SignalKind::interrupt()).map_err(CliError::Signal)?;
    // What shows the starts of machines shows this, too: as the image's phase of a start.
    let name = MachineName::new("image").map_err(fleetbox::Error::from)?;
    let progress = std::sync::Arc::new(Progress::new(&[name.to_string()]));
    let (phase, detail) = (Phase::Image, what.to_owned());
    progress.event(&Event::PhaseStarted { machine: name.clone(), phase, detail });
    let shown = std::sync::Arc::clone(&progress);
    let tell = Box::new(move |work: ImageWork| {
        let ImageWork { detail, progress, .. } = work;
        shown.event(&Event::PhaseProgress { machine: name.clone(), phase, detail, progress });
    });
    let got = tokio::select! {
        // One that is there is not thrown away for a key pressed in the same moment.
        biased;
        got = start(tell) => Some(got),
        _ = interrupts.recv() => None,
    };
    progress.finish();
    let Some(got) = got else { return Err(CliError::Interrupted) };
    let image = got?;
    progress.summary(&format!("{what} is image {} ({})", image.short_digest(), image.os));
    for note in &image.notes {
        output::note(&format!("note: {note}"));
    }
    output::print(&format!("{}\n", image.digest))?;
    Ok(Exit::Ok)
}

async fn remove(args: &ImageRm) -> Result {
    let images = fleetbox::images()?;
    let mut outcomes = Outcomes::default();
    for name in &args.names {
        match images.remove(name).await {
            Ok((image, freed)) => {
                output::note(&format!("{} is removed; {} freed", called(&image), size::short_bytes(freed)))
            }
            Err(e) if args.force && e.kind() == ErrorKind::NotFound => {}
            Err(e) => outcomes.failed(e).await,
        }
    }
    Ok(outcomes.exit())
}

async fn prune(dry_run: bool) -> Result {
    let pruned = fleetbox::images()?.prune(dry_run).await?;
    let said = if dry_run { "would be removed" } else { "removed" };
    let mut text = String::new();
    for image in &pruned.removed {
        text += &format!("{said}: {}, {}\n", called(image), size::short_bytes(image.disk_bytes));
    }
    for path in &pruned.swept {
        text += &format!("{said}: {}, half made\n", path.display());
    }
    output::print(&text)?;
    let mut outcomes = Outcomes::default();
    for (_, error) in pruned.kept {
        match error.kind() {
            // What is needed, or being made, is kept as it should be.
            ErrorKind::Conflict | ErrorKind::Held => output::note(&format!("kept: {error}")),
            _ => outcomes.failed(error).await,
        }
    }
    let freed = size::short_bytes(pruned.freed_bytes);
    output::note(&match (pruned.removed.len(), dry_run) {
        (0, _) => "there is no image that no disk needs".to_owned(),
        (n, true) => format!("{n} would be removed and {freed} freed"),
        (n, false) => format!("{n} removed and {freed} freed"),
    });
    Ok(outcomes.exit())
}

/// What a person calls an image.
fn called(image: &ImageInfo) -> String {
    match image.references.first() {
        Some(reference) => format!("{reference} ({})", image.short_digest()),
        None => image.short_digest().to_owned(),
    }
}
