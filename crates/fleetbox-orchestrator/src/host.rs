//! What this host can do: found out, judged, and put into words.
//!
//! [`HostReport::gather`] reads facts and changes nothing: it starts a few programs with `--version`, runs the
//! KVM probe (or takes its verdict from earlier in this boot) and asks the store's file system for a reflink
//! between two files that never had a name. A fact that cannot be read is `None`, never an error.
//!
//! What follows from the facts is pure: [`choose()`] says how machines are run here (hardware virtualization
//! where it really works, else emulation, said loudly), `missing` what is lacking, what that costs and how to
//! get it, and [`HostReport::lines`] puts all of it into lines to print.

mod choose;
mod facts;
mod kvm;
mod leftovers;
mod lines;
mod missing;
mod program;

use std::path::PathBuf;

use fleetbox_os::kvm::KvmVerdict;
use fleetbox_spec::{Accel, Arch};
use fleetbox_store::Store;
use serde::{Deserialize, Serialize};

pub use choose::{Choice, ChooseError, EMULATION_TIMEOUT_FACTOR, choose};
pub use kvm::kvm_verdict;
pub use lines::{Mark, ReportLine};
pub use missing::Missing;

/// All that was found out about this host.
///
/// `fleetbox doctor --json` prints it as it is; fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The operating system as it names itself, such as `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<String>,
    /// How software is installed here.
    pub packaging: Packaging,
    /// The running kernel's release.
    pub kernel: Option<String>,
    /// The architecture; `None` on one that fleetbox does not run on.
    pub arch: Option<Arch>,
    /// Processors this process may use.
    pub cpus: Option<u32>,
    /// All memory, in MiB.
    pub memory_mib: Option<u64>,
    /// Memory to be had without swapping, in MiB.
    pub memory_available_mib: Option<u64>,
    /// Whether KVM really runs guest code, judged by running some.
    pub kvm: KvmFact,
    /// The virtual machine monitors found.
    pub vmms: Vec<VmmFound>,
    /// Whether this process runs as root.
    pub root: bool,
    /// Those capabilities(7) of [`NEEDED_CAPABILITIES`] that this process lacks; `None` when that cannot be read.
    pub lacking_capabilities: Option<Vec<String>>,
    /// Version of nftables.
    pub nft: Option<String>,
    /// The other programs that fleetbox runs.
    pub tools: Vec<Tool>,
    /// Whether there is UEFI firmware for guests.
    #[serde(default)]
    pub efi: bool,
    /// Whether taps can be made (`/dev/net/tun`).
    pub tun: bool,
    /// Whether the kernel has IPv6, and has it switched on.
    pub ipv6: bool,
    /// The store's folder.
    pub home: Option<PathBuf>,
    /// Bytes free on the store's file system.
    pub disk_free_bytes: Option<u64>,
    /// Whether that file system clones files in constant time (FICLONE); `None` when that was not tried.
    pub reflink: Option<bool>,
    /// What ended fleetbox processes have left on this host; empty when that could not be looked at.
    #[serde(default)]
    pub left: Vec<Leftover>,
    /// What is lacking here, the most important first.
    pub missing: Vec<Missing>,
    /// How a machine would be run here; `None` when it cannot be.
    pub would_use: Option<Choice>,
}

/// The capabilities without which root is not root enough (as in many containers).
pub const NEEDED_CAPABILITIES: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_SETUID", 7), ("CAP_KILL", 5)];

/// How software is installed on this host, as far as advice goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Packaging {
    /// With apt: Debian, Ubuntu and their like.
    Apt {
        /// The release's code name, such as `bookworm`.
        codename: Option<String>,
        /// Debian itself: it has a backports suite with newer QEMUs.
        backports: bool,
    },
    /// In some other way.
    Other,
}

/// The verdict on KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmFact {
    /// The verdict, with the time it took when it was made.
    #[serde(flatten)]
    pub verdict: KvmVerdict,
    /// Whether there is a device node at all, openable or not.
    pub device: bool,
    /// It was made earlier in this boot.
    pub cached: bool,
}

/// A virtual machine monitor on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmFound {
    /// The backend it belongs to: `qemu` or `cloud-hypervisor`.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Its version; `None` when it did not tell.
    pub version: Option<String>,
    /// Whether machines can be run with it.
    pub usable: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// A program that fleetbox runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Where it is; `None` when it is not installed.
    pub path: Option<PathBuf>,
}

/// Something of fleetbox's on this host that no living process of this namespace owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// What it is, and how it is known.
    pub what: String,
    /// How it is removed.
    pub how: String,
}

impl HostReport {
    /// Finds out about this host. Takes well under a second and never fails.
    ///
    /// With a store, the KVM verdict is kept there for this boot, and its file system is looked at.
    #[must_use]
    pub fn gather(store: Option<&Store>) -> Self {
        let mut report = facts::gather(store);
        report.judge();
        report
    }

    /// Whether a program is installed.
    #[must_use]
    pub fn has_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|t| t.name == name && t.path.is_some())
    }

    /// Whether nothing is lacking that a machine needs.
    #[must_use]
    pub fn can_run_machines(&self) -> bool {
        self.would_use.is_some() && !self.missing.iter().any(|m| m.blocks)
    }

    /// The report as lines to print.
    #[must_use]
    pub fn lines(&self) -> Vec<ReportLine> {
        lines::lines(self)
    }

    /// Draws the conclusions from the facts.
    fn judge(&mut self) {
        self.missing = missing::missing(self);
        self.would_use = choose(&self.kvm.verdict, &self.vmms).ok();
    }

    /// The accelerator that machines would have here.
    #[must_use]
    pub fn accel(&self) -> Option<Accel> {
        self.would_use.as_ref().map(|c| c.accel)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A host that lacks nothing.
    pub(crate) fn good_host() -> HostReport {
        let tool = |name: &str| Tool { name: name.into(), path: Some(format!("/usr/bin/{name}").into()) };
        let mut report = HostReport {
            os: Some("Debian GNU/Linux 12 (bookworm)".into()),
            packaging: Packaging::Apt { codename: Some("bookworm".into()), backports: true },
            kernel: Some("6.1.0-9-amd64".into()),
            arch: Some(Arch::Amd64),
            cpus: Some(8),
            memory_mib: Some(32_768),
            memory_available_mib: Some(30_000),
            kvm: KvmFact { verdict: KvmVerdict::Usable { micros: 1_200 }, device: true, cached: false },
            vmms: vec![VmmFound {
                name: "qemu".into(),
                path: "/usr/bin/qemu-system-x86_64".into(),
                version: Some("10.0.2".into()),
                usable: true,
                why_not: None,
            }],
            root: true,
            lacking_capabilities: Some(Vec::new()),
            nft: Some("1.0.6".into()),
            tools: ["qemu-img", "mmdebstrap", "mke2fs", "ssh"].map(tool).into(),
            efi: true,
            tun: true,
            ipv6: true,
            home: Some("/root/.fleetbox".into()),
            disk_free_bytes: Some(50 << 30),
            reflink: Some(true),
            left: Vec::new(),
            missing: Vec::new(),
            would_use: None,
        };
        report.judge();
        report
    }

    #[test]
    fn gathers_this_host_and_keeps_the_costly_verdict() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let before = std::fs::read_dir(tmp.path().join("images")).unwrap().count();
        let first = HostReport::gather(Some(&store));
        assert!(!first.kvm.cached);
        assert!(first.kernel.is_some() && first.cpus.is_some() && first.memory_mib.is_some());
        assert!(first.disk_free_bytes.is_some() && first.home.as_deref() == Some(tmp.path()));
        let second = HostReport::gather(Some(&store));
        // A device that is not there is looked for each time; what cost time to find out is kept.
        assert_eq!(second.kvm.cached, !matches!(first.kvm.verdict, KvmVerdict::Absent { .. }));
        assert_eq!(std::fs::read_dir(tmp.path().join("images")).unwrap().count(), before);
        // It is what doctor --json prints, so it must survive the way there and back.
        let json = serde_json::to_string(&second).unwrap();
        assert_eq!(serde_json::from_str::<HostReport>(&json).unwrap(), second);
    }
}
