//! What happens to machines, told as it happens.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{BootStage, MachineName, State};

/// A step of bringing a machine up; the phases follow one another in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// Starting or finding the holder process.
    Holder,
    /// Probing the host and choosing a backend.
    Probe,
    /// Finding, building or importing the image.
    Image,
    /// Making the bridge, the tap and the address.
    Network,
    /// Making the disk.
    Disk,
    /// Making the NoCloud seed.
    Seed,
    /// Looking for the kernel that an existing disk boots.
    Kernel,
    /// Starting the VMM.
    Vmm,
    /// The guest's boot, until its sshd answers.
    Boot,
    /// The first verified login.
    Login,
    /// cloud-init's own end, where it is waited for.
    CloudInit,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Holder => "holder",
            Self::Probe => "probe",
            Self::Image => "image",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Seed => "seed",
            Self::Kernel => "kernel",
            Self::Vmm => "vmm",
            Self::Boot => "boot",
            Self::Login => "login",
            Self::CloudInit => "cloud-init",
        })
    }
}

/// How much of a phase is done, where that can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Units done so far.
    pub done: u64,
    /// Units in all, where known.
    pub total: Option<u64>,
    /// What the units are, such as `bytes` or `packages`.
    pub unit: String,
    /// Units done in a second, lately; where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Seconds until all is done at that rate; where rate and total are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
}

impl Progress {
    /// So much of so much, at a rate that nobody measured.
    #[must_use]
    pub fn new(done: u64, total: Option<u64>, unit: impl Into<String>) -> Self {
        Self { done, total, unit: unit.into(), rate: None, left_s: None }
    }

    /// The same, with the rate it goes at and what follows from it.
    #[must_use]
    pub fn at_rate(self, rate: Option<u64>) -> Self {
        let left_s = match (self.total, rate) {
            (Some(total), Some(rate)) if rate > 0 => Some(total.saturating_sub(self.done).div_ceil(rate)),
            _ => None,
        };
        Self { rate, left_s, ..self }
    }
}

/// How long a phase took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PhaseTiming {
    /// The phase.
    pub phase: Phase,
    /// Its wall-clock time in milliseconds.
    pub ms: u64,
}

/// One thing that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A phase of bring-up began.
    PhaseStarted {
        /// The machine.
        machine: MachineName,
        /// The phase.
        phase: Phase,
        /// What exactly is being done, for a person.
        detail: String,
    },
    /// A phase has come further.
    PhaseProgress {
        /// The machine.
        machine: MachineName,
        /// The phase.
        phase: Phase,
        /// What it is at.
        detail: String,
        /// How much is done, where that can be told.
        progress: Option<Progress>,
    },
    /// A phase of bring-up ended well.
    PhaseFinished {
        /// The machine.
        machine: MachineName,
        /// The phase and its time.
        timing: PhaseTiming,
    },
    /// The console showed that the boot reached a stage.
    BootStageReached {
        /// The machine.
        machine: MachineName,
        /// The stage.
        stage: BootStage,
        /// Milliseconds since the VMM was started.
        ms: u64,
    },
    /// The machine's state changed.
    StateChanged {
        /// The machine.
        machine: MachineName,
        /// The new state.
        state: State,
    },
    /// Something a person should know, such as a fall back to emulation.
    Warning {
        /// The machine.
        machine: MachineName,
        /// What.
        message: String,
    },
}

impl Event {
    /// The machine this is about.
    #[must_use]
    pub fn machine(&self) -> &MachineName {
        match self {
            Self::PhaseStarted { machine, .. }
            | Self::PhaseProgress { machine, .. }
            | Self::PhaseFinished { machine, .. }
            | Self::BootStageReached { machine, .. }
            | Self::StateChanged { machine, .. }
            | Self::Warning { machine, .. } => machine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_the_rate() {
        let progress = Progress::new(30, Some(100), "bytes");
        assert_eq!(progress.clone().at_rate(Some(20)).left_s, Some(4));
        assert_eq!(progress.clone().at_rate(Some(0)).left_s, None);
        assert_eq!(Progress::new(30, None, "bytes").at_rate(Some(20)).left_s, None);
        assert_eq!(Progress::new(130, Some(100), "bytes").at_rate(Some(20)).left_s, Some(0));
        // Older peers neither send nor expect what was not measured.
        let json = serde_json::to_string(&progress).unwrap();
        assert!(!json.contains("rate") && !json.contains("left_s"), "{json}");
        assert_eq!(serde_json::from_str::<Progress>(&json).unwrap(), progress);
    }
}
