//! `fleetbox up`

use std::sync::Arc;
use std::time::Duration;

use fleetbox::{Vm, VmBuilder};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Up;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output;
use crate::progress::Progress;

/// How long the remains of a cancelled start may take to go. Two seconds are promised; a loaded host is slower.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: Up) -> Result {
    // From here on Ctrl-C ends nothing by itself.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(CliError::Signal)?;
    let progress = Arc::new(Progress::new());
    let on_event = Arc::clone(&progress);
    let start = builder(&args).on_event(move |event| on_event.event(&event)).start();
    let started = tokio::select! {
        // A start that has succeeded is not thrown away for a key pressed in the same moment.
        biased;
        started = Box::pin(start) => Some(started),
        _ = interrupts.recv() => None,
    };
    // Not started: dropping its future was the order to cancel it.
    let Some(started) = started else { return cancelled(&args, &progress, &mut interrupts).await };
    progress.finish();
    let vm = match started {
        Ok(vm) => vm,
        Err(e) => {
            // The holder that was started for it is ending: the next command shall not run into it. What was found wrong is
            // told in any case.
            let _ =
                tokio::time::timeout(SETTLE_LIMIT, fleetbox::settled(&args.name, args.cluster.as_deref()))
                    .await;
            return Err(e.into());
        }
    };
    progress.summary(&format!("{} is up", vm.name()));
    output::print(&format!("{name} {ip} (fleetbox ssh {name})\n", name = vm.name(), ip = vm.ip()))?;
    Ok(Exit::Ok)
}

fn builder(args: &Up) -> VmBuilder {
    let mut builder = Vm::builder(&args.name).detached();
    if let Some(image) = &args.image {
        builder = builder.image(image);
    }
    if let Some(cpus) = args.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(mib) = args.memory {
        builder = builder.memory_mib(mib);
    }
    if let Some(gib) = args.disk {
        builder = builder.disk_gib(gib);
    }
    if let Some(cluster) = &args.cluster {
        builder = builder.cluster(cluster);
    }
    if args.wait {
        builder = builder.wait_cloud_init();
    }
    if let Some(limit) = args.timeout {
        builder = builder.boot_timeout(limit);
    }
    builder
}

/// Sees the start's remains off, until a second Ctrl-C.
async fn cancelled(args: &Up, progress: &Progress, interrupts: &mut Signal) -> Result {
    let name = &args.name;
    progress.interrupted(&format!(
        "clearing away what the start of {name} had made; Ctrl-C again leaves at once"
    ));
    let settled = tokio::time::timeout(SETTLE_LIMIT, fleetbox::settled(name, args.cluster.as_deref()));
    let settled = tokio::select! {
        biased;
        settled = settled => settled,
        _ = interrupts.recv() => leave_at_once(name, progress),
    };
    progress.finish();
    let Ok(settled) = settled else {
        return Err(CliError::InterruptedUnfinished { name: name.clone(), seconds: SETTLE_LIMIT.as_secs() });
    };
    match settled? {
        None => output::note(&format!("nothing is left of machine {name}")),
        Some(info) if info.state.is_live() => {
            output::note(&format!(
                "machine {name} had come up already and is {}; `fleetbox down {name}` stops it",
                info.state
            ));
        }
        Some(info) => output::note(&format!(
            "machine {name} is {} and keeps its disk; `fleetbox rm {name}` deletes it",
            info.state
        )),
    }
    Err(CliError::Interrupted)
}

fn leave_at_once(name: &str, progress: &Progress) -> ! {
    progress.finish();
    output::note(&format!(
        "left at once: the holder process of {name} may still be clearing away a process, a network link, rules and files; \
         what it does not get to, `fleetbox prune` clears"
    ));
    #[expect(clippy::disallowed_methods, reason = "a second Ctrl-C waits for nothing, destructors included")]
    std::process::exit(i32::from(Exit::Interrupted.code()))
}
