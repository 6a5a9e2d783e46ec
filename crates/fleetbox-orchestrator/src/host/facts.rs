//! Reading the facts.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use fleetbox_os::host;
use fleetbox_os::kvm::KvmVerdict;
use fleetbox_spec::Arch;
use fleetbox_store::Store;
use fleetbox_vmm_qemu::FindError;

use super::{HostReport, KvmFact, NEEDED_CAPABILITIES, Packaging, Tool, VmmFound, kvm, leftovers, program};

/// The programs of [`HostReport::tools`].
const TOOLS: [&str; 4] = ["qemu-img", "mmdebstrap", "mke2fs", "ssh"];

/// Reads all facts; the conclusions are not drawn yet.
pub(super) fn gather(store: Option<&Store>) -> HostReport {
    // What takes time runs side by side: the probe, and each program that is asked for its version.
    let (kvm, vmms, nft, left) = thread::scope(|scope| {
        let kvm = scope.spawn(|| kvm::kvm_verdict(store));
        let vmms = scope.spawn(vmms);
        let nft = scope.spawn(|| program::version(&program::find("nft")?));
        let left = scope.spawn(|| store.map(leftovers::leftovers).unwrap_or_default());
        let failed = |_| KvmFact {
            verdict: KvmVerdict::Absent { why: "the probe ended unexpectedly".into() },
            device: Path::new(kvm::DEVICE).exists(),
            cached: false,
        };
        (
            kvm.join().unwrap_or_else(failed),
            vmms.join().unwrap_or_default(),
            nft.join().unwrap_or_default(),
            left.join().unwrap_or_default(),
        )
    });
    let os_release =
        fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let os_release = os_release.unwrap_or_default();
    let memory = host::memory().ok();
    let home = store.map(|s| s.root().to_owned()).or_else(|| Store::default_root().ok());
    HostReport {
        os: os_field(&os_release, "PRETTY_NAME"),
        packaging: packaging(&os_release),
        kernel: rustix::system::uname().release().to_str().ok().map(str::to_owned),
        arch: Arch::host(),
        cpus: thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok()),
        memory_mib: memory.map(|m| m.total_mib),
        memory_available_mib: memory.map(|m| m.available_mib),
        kvm,
        vmms,
        root: host::is_root(),
        lacking_capabilities: fs::read_to_string("/proc/self/status").ok().and_then(|s| lacking(&s)),
        nft,
        tools: TOOLS.map(|name| Tool { name: name.into(), path: program::find(name) }).into(),
        efi: Arch::host().is_some_and(fleetbox_vmm_qemu::has_efi),
        tun: tun(),
        ipv6: ipv6(),
        disk_free_bytes: home.as_deref().and_then(free_bytes),
        reflink: store.and_then(|s| reflink(&s.images_dir())),
        home,
        left,
        missing: Vec::new(),
        would_use: None,
    }
}

fn vmms() -> Vec<VmmFound> {
    let mut found = Vec::new();
    found.extend(Arch::host().and_then(qemu));
    if let Some(path) = program::find("cloud-hypervisor") {
        found.push(VmmFound {
            name: "cloud-hypervisor".into(),
            version: program::version(&path),
            usable: false,
            why_not: Some("this fleetbox has no backend for it".into()),
            path,
        });
    }
    found
}

/// The QEMU that the backend would take, or the one that it would refuse and why. Not to be called on a thread of
/// an async runtime.
fn qemu(arch: Arch) -> Option<VmmFound> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    // It has a deadline of its own, long enough for a cold start on a loaded host: to call a good QEMU unusable
    // would be worse than to wait.
    let answer = runtime.block_on(fleetbox_vmm_qemu::find(arch));
    let refused = |path: PathBuf, version: Option<String>, why: String| VmmFound {
        name: "qemu".into(),
        path,
        version,
        usable: false,
        why_not: Some(why),
    };
    match answer {
        Ok(qemu) => Some(VmmFound {
            name: "qemu".into(),
            path: qemu.program,
            version: Some(qemu.version.to_string()),
            usable: true,
            why_not: None,
        }),
        Err(error) => {
            let why = error.to_string();
            match error {
                FindError::TooOld { program, version } => {
                    Some(refused(program, Some(version.to_string()), why))
                }
                FindError::OverrideMissing { program }
                | FindError::Run { program, .. }
                | FindError::NoAnswer { program, .. }
                | FindError::Unreadable { program, .. } => Some(refused(program, None, why)),
                // Not installed.
                _ => None,
            }
        }
    }
}

/// A field of os-release(5), unquoted.
fn os_field(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|v| !v.is_empty())
}

fn packaging(os_release: &str) -> Packaging {
    let id = os_field(os_release, "ID").unwrap_or_default();
    let like = os_field(os_release, "ID_LIKE").unwrap_or_default();
    let apt = |id: &str| matches!(id, "debian" | "ubuntu");
    if apt(&id) || like.split_whitespace().any(apt) {
        Packaging::Apt { codename: os_field(os_release, "VERSION_CODENAME"), backports: id == "debian" }
    } else {
        Packaging::Other
    }
}

/// Which of the needed capabilities are not in the effective set of `/proc/<pid>/status` (proc(5)).
fn lacking(status: &str) -> Option<Vec<String>> {
    let hex = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    let held = u64::from_str_radix(hex.trim(), 16).ok()?;
    let lacking = NEEDED_CAPABILITIES.iter().filter(|(_, bit)| held & (1 << bit) == 0);
    Some(lacking.map(|(name, _)| (*name).to_owned()).collect())
}

/// Opening it makes nothing; a tap appears only with an ioctl. Whoever may not open it still learns that it is there.
fn tun() -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// The node answers even when a new interface would get no IPv6 (`disable_ipv6`).
fn ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6").is_ok_and(|v| v.trim() == "0")
}

/// Free bytes of the file system that a path is on or will be on.
fn free_bytes(path: &Path) -> Option<u64> {
    path.ancestors().find(|p| p.exists()).and_then(|p| host::free_bytes(p).ok())
}

/// Clones one file onto another. Neither ever has a name, so that nothing is left whatever happens.
fn reflink(dir: &Path) -> Option<bool> {
    let unnamed = || {
        let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
        OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(dir)
    };
    let mut from = unnamed().ok()?;
    from.write_all(&[1; 4096]).ok()?;
    let to = unnamed().ok()?;
    Some(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaging_by_family() {
        let bookworm =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(
            packaging(bookworm),
            Packaging::Apt { codename: Some("bookworm".into()), backports: true }
        );
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=wilma\n";
        assert_eq!(packaging(mint), Packaging::Apt { codename: Some("wilma".into()), backports: false });
        assert_eq!(packaging("ID=fedora\n"), Packaging::Other);
        assert_eq!(packaging(""), Packaging::Other);
        assert_eq!(os_field(bookworm, "PRETTY_NAME").as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    }

    #[test]
    fn capabilities_by_bit() {
        assert_eq!(lacking("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(vec![]));
        // What a container engine gives root by default (Docker's list).
        assert_eq!(
            lacking("CapEff:\t00000000a80425fb\n"),
            Some(vec!["CAP_NET_ADMIN".into(), "CAP_SYS_ADMIN".into()])
        );
        assert_eq!(lacking("CapEff:\t0000000000000000\n").map(|l| l.len()), Some(NEEDED_CAPABILITIES.len()));
        assert_eq!(lacking("nothing"), None);
    }
}
