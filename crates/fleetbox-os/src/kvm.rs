//! Does `/dev/kvm` really run guest code?
//!
//! A device node that opens proves nothing: under some hosts (nested para-virtual KVM) it opens, makes
//! VMs and then emulates every guest instruction, a thousand times slower than it should be; stock
//! kernels never boot there. So the probe runs guest code, a counting loop in long mode, and judges by
//! the time it takes.
//!
//! Nothing of the probe outlives it: no process, no thread, no signal handler, no memory, no descriptor. It
//! needs none of the first three because the guest leaves to user space every few thousand iterations, so
//! the deadline is looked at between two slices of the loop.

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
#[path = "kvm/guest_aarch64.rs"]
mod guest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kvm/guest_x86_64.rs"]
mod guest;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod probe;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Iterations of the probe's counting loop: about 1 ms on hardware, seconds under emulation.
pub const LOOP_ITERATIONS: u64 = 1_000_000;

/// The most the probe may take before the verdict is that KVM is unusable.
///
/// CPU time of the probing thread (guest time is part of it), so that a busy host is not mistaken for an
/// emulated one.
pub const LIMIT: Duration = Duration::from_millis(250);

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KvmVerdict {
    /// Guest code runs at hardware speed.
    Usable {
        /// What the counting loop took, in microseconds.
        micros: u64,
    },
    /// The device works, but guest code runs under emulation or not at all.
    Unusable {
        /// What the probe took until it gave up, in microseconds.
        micros: u64,
        /// What was seen.
        why: String,
    },
    /// There is no device, or it cannot be opened.
    Absent {
        /// What opening it answered.
        why: String,
    },
}

impl KvmVerdict {
    /// Whether machines can run under KVM.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Usable { .. })
    }
}

/// Runs guest code and judges by the time it takes.
///
/// Takes some milliseconds where KVM works, [`LIMIT`] and the rest of one slice of the loop where it does not,
/// and on a host that is busy besides at most 0.6 s. Never fails: what goes wrong is the verdict.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[must_use]
pub fn probe() -> KvmVerdict {
    probe::probe()
}

/// There is no KVM on this system or architecture.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[must_use]
pub fn probe() -> KvmVerdict {
    KvmVerdict::Absent { why: "there is no KVM probe for this system and architecture".into() }
}
