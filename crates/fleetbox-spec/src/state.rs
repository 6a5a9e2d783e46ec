//! The states of a machine and the stages of a boot.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a machine is in its life.
///
/// ```text
///            start                 ready                pause
///  Stopped ---------> Starting ----------> Running <-----------> Paused
///     ^                  |                    |       resume       |
///     |                  | deadline, panic,   | stop               | stop
///     |                  v VMM gone           v                    v
///     |               Failed <----------- Stopping <---------------+
///     +------------------+--------------------+
/// ```
///
/// A machine that was destroyed has no state: it is not found any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Not running; its disk is kept.
    Stopped,
    /// Being prepared or booting; no login has succeeded yet.
    Starting,
    /// A verified SSH login has succeeded on this boot.
    Running,
    /// Its virtual CPUs are halted by the host.
    Paused,
    /// Asked to stop; its VMM still lives.
    Stopping,
    /// The guest panicked, did not come up, or its VMM died unasked. The disk is kept.
    Failed,
}

impl State {
    /// Whether a VMM process exists, or is about to, in this state.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        })
    }
}

/// How far a boot has come, as read off the console. Later stages compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BootStage {
    /// The VMM runs; the console has shown nothing yet.
    PowerOn,
    /// SeaBIOS, OVMF or another firmware.
    Firmware,
    /// GRUB, systemd-boot or another boot loader.
    BootLoader,
    /// The kernel.
    Kernel,
    /// The initial RAM file system: waiting for and checking the root device.
    Initramfs,
    /// The root file system is mounted.
    RootMounted,
    /// systemd or another init runs from the root file system.
    Init,
    /// The network is up.
    Network,
    /// sshd was started.
    Sshd,
    /// cloud-init is at its last module stage, or done.
    CloudInit,
}

impl fmt::Display for BootStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerOn => "power-on",
            Self::Firmware => "firmware",
            Self::BootLoader => "boot loader",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::RootMounted => "root mounted",
            Self::Init => "init",
            Self::Network => "network",
            Self::Sshd => "sshd",
            Self::CloudInit => "cloud-init",
        })
    }
}
