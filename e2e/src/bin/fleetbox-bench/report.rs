//! What was measured. It is the JSON, too: fields are only ever added.

use std::fmt;

use fleetbox::PhaseTiming;
use serde::Serialize;

use crate::Bench;
use crate::stats::Summary;

/// SSH-ready time against the recipe's.
pub(crate) const BOOT_RATIO_TARGET: f64 = 0.6;
/// CPU time of client and holder per start.
pub(crate) const CPU_MS_TARGET: f64 = 100.0;
/// A command over a kept connection against OpenSSH's.
pub(crate) const LATER_EXEC_RATIO_TARGET: f64 = 1.0;
/// Resident memory of a holder.
pub(crate) const HOLDER_MIB_TARGET: f64 = 25.0;
/// CPU time of a holder that nobody asks for anything.
pub(crate) const IDLE_CPU_MS_TARGET: f64 = 0.0;

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Fleetbox,
    Recipe,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Fleetbox => Self::Recipe,
            Self::Recipe => Self::Fleetbox,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fleetbox => "fleetbox",
            Self::Recipe => "recipe",
        })
    }
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct HostReport {
    pub(crate) date: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) accel: String,
    pub(crate) qemu: String,
    pub(crate) openssh: String,
    /// Load of the last minute before the first measurement: what else the host was doing.
    pub(crate) load_before: Option<f64>,
}

/// What both sides booted.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MachineReport {
    pub(crate) image: String,
    pub(crate) image_digest: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) disk_gib: u64,
}

/// One start by fleetbox.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FleetboxRun {
    /// From nothing to the first command's output.
    pub(crate) seconds: f64,
    /// CPU time of this process meanwhile.
    pub(crate) client_cpu_ms: f64,
    /// CPU time of the holder since it was started.
    pub(crate) holder_cpu_ms: f64,
    /// CPU time of the programs that the holder ran and that have ended (nft, qemu-img); the VMM is none of them.
    pub(crate) programs_cpu_ms: f64,
    pub(crate) phases: Vec<PhaseTiming>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct BootPair {
    pub(crate) first: Side,
    pub(crate) fleetbox: FleetboxRun,
    pub(crate) recipe_s: f64,
    pub(crate) ratio: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ExecReport {
    pub(crate) first_exec_ms: Summary,
    pub(crate) openssh_first_exec_ms: Summary,
    /// Of the pairs.
    pub(crate) first_exec_ratio: Summary,
    pub(crate) later_exec_ms: Summary,
    pub(crate) openssh_later_exec_ms: Summary,
    /// Of the pairs.
    pub(crate) later_exec_ratio: Summary,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct HolderReport {
    pub(crate) rss_kib: u64,
    pub(crate) pss_kib: u64,
    pub(crate) anonymous_kib: u64,
    /// How long it was watched.
    pub(crate) idle_s: u64,
    pub(crate) idle_cpu_ms: f64,
    /// How often one of its threads was woken meanwhile.
    pub(crate) idle_wakeups: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct LsReport {
    pub(crate) ls_ms: Summary,
    /// The same for a program that does nothing.
    pub(crate) true_ms: Summary,
}

/// A number that is to stay below another.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
    pub(crate) at_most: f64,
    pub(crate) met: bool,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// SSH-ready time of fleetbox against the recipe's: the median of the pairs' ratios.
    pub(crate) ratio: f64,
    pub(crate) ratio_spread: Option<Summary>,
    pub(crate) fleetbox_s: Option<Summary>,
    pub(crate) recipe_s: Option<Summary>,
    /// CPU time of client and holder per start.
    pub(crate) cpu_ms_per_start: Option<Summary>,
    /// As in `exec`: the median of the pairs' ratios.
    pub(crate) later_exec_ratio: f64,
    pub(crate) exec: Option<ExecReport>,
    pub(crate) holder: Option<HolderReport>,
    /// `fleetbox ls` while no machine runs, and while one does.
    pub(crate) ls_none: Option<LsReport>,
    pub(crate) ls_one: Option<LsReport>,
    pub(crate) targets: Vec<Target>,
    pub(crate) pairs: Vec<BootPair>,
    pub(crate) machine: MachineReport,
    pub(crate) host: HostReport,
}

impl MachineReport {
    pub(crate) fn of(bench: &Bench) -> Self {
        Self {
            image: bench.image.reference.to_string(),
            image_digest: bench.image.digest.clone(),
            cpus: bench.cpus,
            memory_mib: bench.memory_mib,
            disk_gib: bench.disk_gib,
        }
    }
}

impl Report {
    pub(crate) fn new(host: HostReport, bench: &Bench) -> Self {
        let machine = MachineReport::of(bench);
        Self {
            ratio: f64::NAN,
            ratio_spread: None,
            fleetbox_s: None,
            recipe_s: None,
            cpu_ms_per_start: None,
            later_exec_ratio: f64::NAN,
            exec: None,
            holder: None,
            ls_none: None,
            ls_one: None,
            targets: Vec::new(),
            pairs: Vec::new(),
            machine,
            host,
        }
    }

    /// Works out what follows from the single measurements.
    pub(crate) fn finish(&mut self) {
        let of = |f: &dyn Fn(&BootPair) -> f64| Summary::of(&self.pairs.iter().map(f).collect::<Vec<_>>());
        let ratio = of(&|p| p.ratio);
        let cpu = of(&|p| p.fleetbox.client_cpu_ms + p.fleetbox.holder_cpu_ms);
        self.fleetbox_s = of(&|p| p.fleetbox.seconds);
        self.recipe_s = of(&|p| p.recipe_s);
        let median = |s: &Option<Summary>| s.map_or(f64::NAN, |s| s.median);
        self.ratio = median(&ratio);
        self.later_exec_ratio = self.exec.as_ref().map_or(f64::NAN, |e| e.later_exec_ratio.median);
        let mut targets = vec![
            target("ratio", self.ratio, BOOT_RATIO_TARGET),
            target("cpu_ms_per_start", median(&cpu), CPU_MS_TARGET),
            target("later_exec_ratio", self.later_exec_ratio, LATER_EXEC_RATIO_TARGET),
        ];
        if let Some(holder) = &self.holder {
            targets.push(target("holder_rss_mib", mib(holder.rss_kib), HOLDER_MIB_TARGET));
            targets.push(target("holder_idle_cpu_ms", holder.idle_cpu_ms, IDLE_CPU_MS_TARGET));
        }
        (self.ratio_spread, self.cpu_ms_per_start, self.targets) = (ratio, cpu, targets);
    }
}

fn target(what: &'static str, value: f64, at_most: f64) -> Target {
    Target { what, value, at_most, met: value <= at_most }
}

#[expect(clippy::cast_precision_loss, reason = "no memory has 2^52 KiB")]
pub(crate) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
