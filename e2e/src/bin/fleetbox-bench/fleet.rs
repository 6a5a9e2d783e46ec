//! Our side: a machine of fleetbox's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fleetbox::{Event, Vm};

use crate::report::FleetboxRun;
use crate::{Bench, process, recipe};

/// From nothing to the first command's output on a new machine.
pub(crate) async fn boot(bench: &Bench) -> Result<(FleetboxRun, Vm)> {
    let name = {
        let mut machines = bench.machines.lock().unwrap_or_else(PoisonError::into_inner);
        // Each in a cluster of its own, so that each starts a holder and makes a network.
        let name = format!("bench-p{:x}n{}", std::process::id(), machines.len());
        machines.push(name.clone());
        name
    };
    let phases = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&phases);
    let cpu_before = process::own_cpu();
    let began = Instant::now();
    let vm = Vm::builder(&name)
        .image(bench.image.reference.to_string())
        .cpus(bench.cpus)
        .memory_mib(bench.memory_mib)
        .disk_gib(bench.disk_gib)
        .ephemeral()
        .on_event(move |event| {
            if let Event::PhaseFinished { timing, .. } = event {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(timing);
            }
        })
        .start()
        .await?;
    let output = vm.ssh(recipe::COMMAND).await?;
    let took = began.elapsed();
    let client = process::own_cpu() - cpu_before;
    if output != recipe::ANSWER {
        bail!("machine {name} answered {output:?} to {:?}", recipe::COMMAND);
    }
    let info = vm.info().await?;
    let holder_pid = info.holder_pid.context("the machine has no holder")?;
    let holder = process::cpu(holder_pid).context("could not read the holder's CPU time")?;
    same_vmm(info.vmm_pid.context("the machine has no VMM")?)?;
    let phases = phases.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let run = FleetboxRun {
        seconds: took.as_secs_f64(),
        client_cpu_ms: client.as_secs_f64() * 1e3,
        holder_cpu_ms: holder.own.as_secs_f64() * 1e3,
        programs_cpu_ms: holder.children.as_secs_f64() * 1e3,
        phases,
    };
    Ok((run, vm))
}

/// The comparison is of what surrounds the VMM, so it must be the same on both sides.
fn same_vmm(pid: u32) -> Result<()> {
    let ours =
        std::fs::read_link(format!("/proc/{pid}/exe")).context("could not look up the VMM's program")?;
    let theirs = recipe::qemu()?.canonicalize()?;
    if ours != theirs {
        bail!("fleetbox runs {}, the recipe {}: nothing to compare", ours.display(), theirs.display());
    }
    Ok(())
}

/// Deletes the machine and waits until all of it is gone: none of that work shall fall into the next measurement.
pub(crate) async fn end(bench: &Bench, vm: Vm) -> Result<()> {
    vm.destroy().await?;
    drop(vm);
    crate::all_gone(bench).await
}
