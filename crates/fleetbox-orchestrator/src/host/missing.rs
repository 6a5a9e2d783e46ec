//! What is lacking on a host, what that costs, and how to get it.

use fleetbox_os::kvm::KvmVerdict;
use fleetbox_spec::Arch;
use serde::{Deserialize, Serialize};

use super::{HostReport, Packaging};

/// Space that building an image takes, with the finished image: below it, builds fail half way.
const IMAGE_BUILD_BYTES: u64 = 3 << 30;

/// Something that is lacking here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What.
    pub what: String,
    /// What cannot be done without it.
    pub costs: String,
    /// How to get it.
    pub how: String,
    /// No machine can be run without it.
    pub blocks: bool,
}

/// The judgement on the facts of a report; what blocks comes first.
pub(super) fn missing(host: &HostReport) -> Vec<Missing> {
    let mut all = Vec::new();
    let mut add = |what: &str, blocks: bool, costs: &str, how: String| {
        all.push(Missing { what: what.into(), costs: costs.into(), how, blocks });
    };
    if host.arch.is_none() {
        add(
            "supported processor",
            true,
            "no machine can be run",
            "use a host with an x86-64 or AArch64 processor".into(),
        );
    }
    privileges(host, &mut add);
    programs(host, &mut add);
    if !host.tun {
        add(
            "/dev/net/tun",
            true,
            "no machine can have a network",
            "load the kernel module with `modprobe tun`; in a container, pass the device in (`--device /dev/net/tun`)"
                .into(),
        );
    }
    efi(host, &mut add);
    kvm(host, &mut add);
    if host.disk_free_bytes.is_some_and(|free| free < IMAGE_BUILD_BYTES) {
        add(
            "disk space",
            false,
            "building an image may fail half way (it leaves nothing then)",
            format!(
                "free some space, or set FLEETBOX_HOME to a folder on a file system with {} GiB free",
                IMAGE_BUILD_BYTES >> 30
            ),
        );
    }
    if !host.ipv6 {
        add(
            "IPv6",
            false,
            "machines have IPv4 addresses only",
            "boot without `ipv6.disable=1` and set the sysctl net.ipv6.conf.default.disable_ipv6 to 0".into(),
        );
    }
    all.sort_by_key(|m| !m.blocks);
    all
}

fn privileges(host: &HostReport, add: &mut impl FnMut(&str, bool, &str, String)) {
    let lacking = host.lacking_capabilities.as_deref().unwrap_or_default();
    if !host.root {
        let runner = match host.arch {
            Some(Arch::Arm64) => "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            _ => "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
        };
        add(
            "root",
            true,
            "bridges and taps cannot be made, so no machine can be started",
            format!("run the same command with `sudo -E`; for tests: `{runner}='sudo -E' cargo test`"),
        );
    } else if !lacking.is_empty() {
        add(
            &lacking.join(", "),
            true,
            "root may not do here what machines and their networks need",
            "give the container these capabilities (`--cap-add`, or `--privileged`), or run outside of it"
                .into(),
        );
    }
}

fn programs(host: &HostReport, add: &mut impl FnMut(&str, bool, &str, String)) {
    if !host.vmms.iter().any(|v| v.name == "qemu" && v.usable) {
        let package = if host.arch == Some(Arch::Arm64) { "qemu-system-arm" } else { "qemu-system-x86" };
        let mut how = install(host, package);
        if let Packaging::Apt { codename: Some(codename), backports: true } = &host.packaging {
            // The two packages come from one source and conflict when their versions differ.
            how.push_str(&format!(
                " (if apt would remove the qemu-utils installed here, that one came from backports: \
                 add `-t {codename}-backports`)"
            ));
        }
        add("QEMU", true, "there is nothing to run machines with", how);
    }
    if host.nft.is_none() {
        add("nftables", true, "machines' networks cannot be set up", install(host, "nftables"));
    }
    for (tool, package, blocks, costs) in [
        ("qemu-img", "qemu-utils", true, "machines' disks cannot be made"),
        (
            "mmdebstrap",
            "mmdebstrap",
            false,
            "`bootstrap:` images cannot be built; finished images still work",
        ),
        ("mke2fs", "e2fsprogs", false, "`bootstrap:` images cannot be built; finished images still work"),
        (
            "ssh",
            "openssh-client",
            false,
            "`fleetbox ssh` cannot open an interactive session; exec still works",
        ),
    ] {
        if !host.has_tool(tool) {
            add(tool, blocks, costs, install(host, package));
        }
    }
}

fn efi(host: &HostReport, add: &mut impl FnMut(&str, bool, &str, String)) {
    if !host.efi {
        let package = if host.arch == Some(Arch::Arm64) { "qemu-efi-aarch64" } else { "ovmf" };
        let costs = "images that boot only through UEFI cannot be started; most boot without it";
        add("UEFI firmware", false, costs, install(host, package));
    }
}

fn kvm(host: &HostReport, add: &mut impl FnMut(&str, bool, &str, String)) {
    const COSTS: &str = "machines are emulated in software: right, but about ten times slower";
    match &host.kvm.verdict {
        KvmVerdict::Usable { .. } => {}
        KvmVerdict::Absent { .. } if host.kvm.device => add(
            "access to /dev/kvm",
            false,
            COSTS,
            "run as root, or add your user to the group that owns the device (`usermod -aG kvm USER`)".into(),
        ),
        KvmVerdict::Absent { .. } => add(
            "KVM",
            false,
            COSTS,
            "switch virtualization on in the firmware and load kvm_intel or kvm_amd; on a virtual machine, ask its \
             host for nested virtualization"
                .into(),
        ),
        _ => add(
            "KVM that runs guest code",
            false,
            COSTS,
            "use a host with hardware virtualization, or nested virtualization that its own host supports".into(),
        ),
    }
}

/// The line that installs a Debian package, or its name where packages are called otherwise.
fn install(host: &HostReport, package: &str) -> String {
    match host.packaging {
        Packaging::Apt { .. } => {
            let sudo = if host.root { "" } else { "sudo " };
            format!("{sudo}apt-get install --no-install-recommends {package}")
        }
        Packaging::Other => format!("install what Debian calls {package} with this system's package manager"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::good_host;
    use super::*;

    fn only(change: impl FnOnce(&mut HostReport)) -> Missing {
        let mut host = good_host();
        change(&mut host);
        let mut found = missing(&host);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn a_good_host_lacks_nothing() {
        assert_eq!(missing(&good_host()), vec![]);
    }

    #[test]
    fn each_lack_is_named_with_its_cost_and_its_cure() {
        let m = only(|h| h.vmms.clear());
        assert!(m.blocks && m.how.starts_with("apt-get install"), "{m:?}");
        assert!(m.how.contains("qemu-system-x86") && m.how.contains("-t bookworm-backports"), "{m:?}");
        let m = only(|h| h.nft = None);
        assert!(m.blocks && m.how.contains("nftables"), "{m:?}");
        let m = only(|h| h.tools.retain(|t| t.name != "mmdebstrap"));
        assert!(!m.blocks && m.costs.contains("bootstrap:"), "{m:?}");
        let m = only(|h| h.root = false);
        assert!(m.blocks && m.how.contains("RUNNER='sudo -E' cargo test"), "{m:?}");
        let m = only(|h| h.lacking_capabilities = Some(vec!["CAP_NET_ADMIN".into()]));
        assert!(m.blocks && m.what.contains("CAP_NET_ADMIN"), "{m:?}");
        let m = only(|h| h.efi = false);
        assert!(!m.blocks && m.how.ends_with(" ovmf"), "{m:?}");
        let m = only(|h| h.tun = false);
        assert!(m.blocks && m.how.contains("modprobe tun"), "{m:?}");
        let m = only(|h| h.ipv6 = false);
        assert!(!m.blocks, "{m:?}");
        let m = only(|h| h.disk_free_bytes = Some(1 << 30));
        assert!(!m.blocks && m.how.contains("3 GiB"), "{m:?}");
        let absent = || KvmVerdict::Absent { why: "x".into() };
        let m = only(|h| h.kvm.verdict = KvmVerdict::Unusable { micros: 1, why: "emulated".into() });
        assert!(!m.blocks && m.costs.contains("emulated"), "{m:?}");
        let m = only(|h| h.kvm.verdict = absent());
        assert!(m.how.contains("usermod"), "{m:?}");
        let m = only(|h| (h.kvm.verdict, h.kvm.device) = (absent(), false));
        assert!(m.how.contains("nested virtualization"), "{m:?}");
    }

    #[test]
    fn advice_fits_the_system() {
        let m = only(|h| {
            h.packaging = Packaging::Other;
            h.vmms.clear();
        });
        assert!(!m.how.contains("apt"), "{m:?}");
        let m = only(|h| {
            h.packaging = Packaging::Apt { codename: Some("noble".into()), backports: false };
            h.vmms.clear();
        });
        assert!(m.how.contains("apt-get") && !m.how.contains("backports"), "{m:?}");
    }

    #[test]
    fn what_blocks_comes_first() {
        let mut host = good_host();
        host.ipv6 = false;
        host.tools.clear();
        host.vmms.clear();
        let blocks: Vec<bool> = missing(&host).iter().map(|m| m.blocks).collect();
        let mut sorted = blocks.clone();
        sorted.sort_by_key(|b| !b);
        assert_eq!(blocks, sorted);
        assert!(blocks[0] && !blocks[blocks.len() - 1]);
    }
}
