//! `fleetbox up`

use std::sync::Arc;
use std::time::Duration;

use fleetbox::{StartOptions, Vm, VmBuilder};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Up;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output;
use crate::progress::Progress;

/// How long the remains of a cancelled start may take to go. Two seconds are promised; a loaded host is slower.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: Up) -> Result {
    let names = names(&args)?;
    let cluster = match (&args.cluster, &names[..]) {
        // One machine's is looked for by itself.
        (Some(_), _) | (None, [_]) => args.cluster.clone(),
        (None, all) => Some(fleetbox::cluster_for(all)?),
    };
    // From here on Ctrl-C ends nothing by itself.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(CliError::Signal)?;
    let progress = Arc::new(Progress::new(&names));
    let start = start(&args, &names, &progress);
    let started = tokio::select! {
        // A start that has succeeded is not thrown away for a key pressed in the same moment.
        biased;
        started = Box::pin(start) => Some(started),
        _ = interrupts.recv() => None,
    };
    let of = Remains { names: &names, cluster: cluster.as_deref() };
    // Not started: dropping its future was the order to cancel it.
    let Some(started) = started else { return of.cancelled(&progress, &mut interrupts).await };
    progress.finish();
    let vms = match started {
        Ok(vms) => vms,
        Err(e) => {
            // The holder that was started for it is ending: the next command shall not run into it. What was found wrong is
            // told in any case.
            let _ = tokio::time::timeout(SETTLE_LIMIT, of.settled()).await;
            return Err(e.into());
        }
    };
    match &vms[..] {
        [vm] => progress.summary(&format!("{} is up", vm.name())),
        all => progress.summary(&format!("{} machines are up", all.len())),
    }
    let line = |vm: &Vm| format!("{name} {ip} (fleetbox ssh {name})\n", name = vm.name(), ip = vm.ip());
    output::print(&vms.iter().map(line).collect::<String>())?;
    Ok(Exit::Ok)
}

/// The machines to start: those named, or as many of one name as are asked for.
fn names(args: &Up) -> Result<Vec<String>> {
    match (args.count, &args.names[..]) {
        (None, names) => Ok(names.to_vec()),
        (Some(count), [base]) => Ok((1..=count).map(|n| format!("{base}-{n}")).collect()),
        (Some(_), _) => Err(CliError::CountOfSeveral),
    }
}

/// What the arguments set, on either kind of builder.
macro_rules! with_settings {
    ($builder:expr, $args:expr, $of:ty) => {{
        let (mut builder, args): ($of, &Up) = ($builder, $args);
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
        if let Some(choice) = args.firmware {
            builder = builder.firmware(choice);
        }
        if args.wait {
            builder = builder.wait_cloud_init();
        }
        if let Some(limit) = args.timeout {
            builder = builder.boot_timeout(limit);
        }
        builder
    }};
}
async fn start(args: &Up, names: &[String], progress: &Arc<Progress>) -> fleetbox::Result<Vec<Vm>> {
    let on_event = Arc::clone(progress);
    let on_event = move |event| on_event.event(&event);
    match names {
        // One that fails is kept as it is, to be looked into.
        [name] => {
            let mut builder = Vm::builder(name).detached().on_event(on_event);
            if let Some(cluster) = &args.cluster {
                builder = builder.cluster(cluster);
            }
            Ok(vec![with_settings!(builder, args, VmBuilder).start().await?])
        }
        all => {
            let mut options = StartOptions::new().detached().on_event(on_event);
            if let Some(cluster) = &args.cluster {
                options = options.cluster(cluster);
            }
            fleetbox::start_cluster(all, with_settings!(options, args, StartOptions)).await
        }
    }
}

/// What a start that was given up has left.
struct Remains<'a> {
    names: &'a [String],
    cluster: Option<&'a str>,
}

impl Remains<'_> {
    /// Waits until all of it has settled; the machines as they are then.
    async fn settled(&self) -> fleetbox::Result<Vec<(&str, Option<fleetbox::MachineInfo>)>> {
        let mut all = Vec::new();
        for name in self.names {
            all.push((name.as_str(), fleetbox::settled(name, self.cluster).await?));
        }
        Ok(all)
    }

    /// Sees the start's remains off, until a second Ctrl-C.
    async fn cancelled(&self, progress: &Progress, interrupts: &mut Signal) -> Result {
        let names = self.names.join(", ");
        progress.interrupted(&format!(
            "clearing away what the start of {names} had made; Ctrl-C again leaves at once"
        ));
        let settled = tokio::select! {
            biased;
            settled = tokio::time::timeout(SETTLE_LIMIT, self.settled()) => settled,
            _ = interrupts.recv() => leave_at_once(&names, progress),
        };
        progress.finish();
        let Ok(settled) = settled else {
            return Err(CliError::InterruptedUnfinished { name: names, seconds: SETTLE_LIMIT.as_secs() });
        };
        for (name, left) in settled? {
            output::note(&match left {
                None => format!("nothing is left of machine {name}"),
                Some(info) if info.state.is_live() => format!(
                    "machine {name} had come up already and is {}; `fleetbox down {name}` stops it",
                    info.state
                ),
                Some(info) => format!(
                    "machine {name} is {} and keeps its disk; `fleetbox rm {name}` deletes it",
                    info.state
                ),
            });
        }
        Err(CliError::Interrupted)
    }
}

fn leave_at_once(names: &str, progress: &Progress) -> ! {
    progress.finish();
    output::note(&format!(
        "left at once: the holder process of {names} may still be clearing away processes, network links, rules and files; \
         what it does not get to, `fleetbox prune` clears"
    ));
    #[expect(clippy::disallowed_methods, reason = "a second Ctrl-C waits for nothing, destructors included")]
    std::process::exit(i32::from(Exit::Interrupted.code()))
}
