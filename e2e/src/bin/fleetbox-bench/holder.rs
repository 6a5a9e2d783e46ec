//! The holder of one running machine, while nobody asks it for anything and the machine is silent.

use std::time::Duration;

use anyhow::{Context, Result};
use fleetbox::Vm;

use crate::process;
use crate::report::HolderReport;

/// For what the start has set off to come to rest.
const SETTLE: Duration = Duration::from_secs(3);
/// How long it is watched.
const WATCH: Duration = Duration::from_secs(10);

/// While a guest still boots it writes to its console, which the holder reads.
const BOOTED: &str = "systemctl is-system-running --wait";

pub(crate) async fn measure(vm: &Vm) -> Result<HolderReport> {
    // Whether all went well in there is of no interest here.
    vm.exec(BOOTED).await?;
    let pid = vm.info().await?.holder_pid.context("the machine has no holder")?;
    tokio::time::sleep(SETTLE).await;
    let (cpu, sleeps) = (process::cpu(pid)?.own, process::sleeps(pid)?);
    tokio::time::sleep(WATCH).await;
    let idle_cpu = process::cpu(pid)?.own - cpu;
    let idle_wakeups = process::sleeps(pid)? - sleeps;
    let memory = process::memory(pid)?;
    Ok(HolderReport {
        rss_kib: memory.rss_kib,
        pss_kib: memory.pss_kib,
        anonymous_kib: memory.anonymous_kib,
        idle_s: WATCH.as_secs(),
        idle_cpu_ms: idle_cpu.as_secs_f64() * 1e3,
        idle_wakeups,
    })
}
