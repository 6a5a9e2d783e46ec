//! `cargo xtask setup [--bench] [--dry-run]`: the programs that building images, running machines and testing need.
//!
//! What is missing is found by looking for the programs, which takes no time when all is there. As root on a
//! Debian-like host the packages are installed (plan.rs decides what to try, apt.rs does it); elsewhere they are
//! named and the task fails. The host's apt sources are never changed.

mod apt;
mod plan;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::workspace::{Workspace, find_program, is_root};
use plan::Group;

/// A program, the package that has it, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// Its name, or the whole path of a file that is no program.
    program: &'static str,
    package: &'static str,
    why: &'static str,
    group: Group,
    /// Without it some tests are skipped, and that is all.
    optional: bool,
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { program, package, why, group: Group::Plain, optional: false }
}

/// The emulator of this architecture; the packages of one source go together.
const QEMU: Need = Need {
    group: Group::Qemu,
    ..if cfg!(target_arch = "aarch64") {
        need("qemu-system-aarch64", "qemu-system-arm", "runs the machines")
    } else {
        need("qemu-system-x86_64", "qemu-system-x86", "runs the machines")
    }
};

/// For tests only.
const fn test_need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { optional: true, ..need(program, package, why) }
}

const NEEDS: &[Need] = &[
    QEMU,
    Need { group: Group::Qemu, ..need("qemu-img", "qemu-utils", "makes the machines' disks") },
    need("mmdebstrap", "mmdebstrap", "builds the `bootstrap:` images"),
    need("mke2fs", "e2fsprogs", "makes those images' file systems"),
    need("nft", "nftables", "the rules of the machines' networks"),
    need("ip", "iproute2", "looks at links and routes in tests"),
    need("ssh", "openssh-client", "interactive sessions; comparisons in tests"),
    test_need("sshd", "openssh-server", "the SSH client is tested against it"),
    // The images that e2e tests boot are made with the tools of the systems in them; these make small ones, for tests
    // of what reads them.
    test_need("mkfs.xfs", "xfsprogs", "makes xfs, for tests of inspection"),
    test_need("mkfs.btrfs", "btrfs-progs", "makes btrfs, for tests of inspection"),
    test_need("mkfs.vfat", "dosfstools", "makes EFI system partitions, for tests of inspection"),
    test_need("mcopy", "mtools", "fills them"),
    test_need("zstd", "zstd", "compresses images, for tests of unpacking"),
    test_need("xz", "xz-utils", "compresses images, for tests of unpacking"),
    UEFI,
];

/// Not needed where no image boots through it.
const UEFI: Need = if cfg!(target_arch = "aarch64") {
    test_need("/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64", "UEFI firmware, boots an image in tests")
} else {
    test_need("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf", "UEFI firmware, boots an image in tests")
};

/// What only the benchmark needs: the recipe that it compares with.
const BENCH_NEED: Need =
    need("cloud-localds", "cloud-image-utils", "makes the seed of the recipe that is compared with");

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// What the benchmark needs, too.
    bench: bool,
    /// Say what would be done, and do nothing.
    dry_run: bool,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for arg in args {
            match arg.as_str() {
                "--bench" => options.bench = true,
                "--dry-run" => options.dry_run = true,
                _ => bail!("setup takes --bench, --dry-run or nothing"),
            }
        }
        Ok(options)
    }
}

/// Whether all that is needed is there at the end (or would be, in a dry run).
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let started = Instant::now();
    let here = |program: &str| match program.starts_with('/') {
        true => std::path::Path::new(program).exists(),
        false => find_program(program).is_some(),
    };
    let mut needs = NEEDS.to_vec();
    if options.bench {
        needs.push(BENCH_NEED);
    }
    let missing = missing(&needs, here);
    if missing.is_empty() {
        println!("setup: nothing to do, all {} programs needed are here", needs.len());
        return Ok(true);
    }
    println!("setup: missing here:");
    for need in &missing {
        println!("  {:<20} for {:<20} {}", need.package, need.program, need.why);
    }
    let systemd_runs = std::path::Path::new("/run/systemd/system").exists();
    let (wanted, left_out) = choose(&missing, systemd_runs);
    for need in left_out {
        println!(
            "setup: {} is left to you: installing it would start a daemon on this host; its tests are skipped",
            need.package
        );
    }
    if wanted.is_empty() {
        return Ok(true);
    }
    let packages: Vec<&str> = wanted.iter().map(|n| n.package).collect();
    if find_program("apt-get").is_none() {
        println!(
            "setup: install what Debian calls {} with this system's package manager",
            packages.join(", ")
        );
        return Ok(wanted.iter().all(|n| n.optional));
    }
    if !is_root() && !options.dry_run {
        println!("setup: run this, or `cargo xtask setup` as root:");
        println!("  sudo apt-get install --no-install-recommends {}", packages.join(" "));
        return Ok(wanted.iter().all(|n| n.optional));
    }
    for group in [Group::Plain, Group::Qemu] {
        let packages: Vec<&str> = wanted.iter().filter(|n| n.group == group).map(|n| n.package).collect();
        if !packages.is_empty() {
            apt::install(workspace, group, &packages, options.dry_run)?;
        }
    }
    if options.dry_run {
        return Ok(true);
    }
    // Believe the result, not the package manager; and look at what was there before, too.
    let (still, _) = choose(&self::missing(&needs, here), systemd_runs);
    if !still.is_empty() {
        let still: Vec<&str> = still.iter().map(|n| n.program).collect();
        bail!("apt-get reported success, but there is still no {}", still.join(", "));
    }
    println!("setup: done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(true)
}

fn missing(needs: &[Need], there: impl Fn(&str) -> bool) -> Vec<Need> {
    needs.iter().filter(|n| !there(n.program)).copied().collect()
}

/// What to install, and what to leave to the user: a daemon's package starts it where systemd runs, and setting
/// up tests is no reason to open a port on somebody's workstation.
fn choose(missing: &[Need], systemd_runs: bool) -> (Vec<Need>, Vec<Need>) {
    missing.iter().partition(|n| !(systemd_runs && n.program == "sshd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(needs: &[Need]) -> Vec<&str> {
        needs.iter().map(|n| n.package).collect()
    }

    #[test]
    fn only_what_is_missing_is_wanted() {
        assert_eq!(missing(NEEDS, |_| true), vec![]);
        assert_eq!(names(&missing(NEEDS, |p| p != "nft" && p != "qemu-img")), ["qemu-utils", "nftables"]);
        assert_eq!(missing(NEEDS, |_| false).len(), NEEDS.len());
    }

    #[test]
    fn no_daemon_is_started_on_a_workstation() {
        let all = missing(NEEDS, |_| false);
        let (wanted, left_out) = choose(&all, true);
        assert_eq!(names(&left_out), ["openssh-server"]);
        assert_eq!(wanted.len(), NEEDS.len() - 1);
        let (wanted, left_out) = choose(&all, false);
        assert_eq!((wanted.len(), left_out.len()), (NEEDS.len(), 0));
    }

    #[test]
    fn qemus_packages_are_installed_together() {
        let together: Vec<&str> =
            NEEDS.iter().filter(|n| n.group == Group::Qemu).map(|n| n.package).collect();
        assert!(together.iter().all(|p| p.starts_with("qemu-")) && together.len() == 2);
    }
}
