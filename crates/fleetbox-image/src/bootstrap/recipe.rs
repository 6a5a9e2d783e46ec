use fleetbox_spec::Arch;
use sha2::{Digest, Sha256};

use crate::model::hex;

/// What a bootstrap image is made of. Equal recipes make equal images, so an image is known by its recipe's hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    suite: String,
    arch: Arch,
    packages: Vec<String>,
    /// Of the script that does it: every change of it is another image.
    script: String,
}

/// What a machine needs to be reached, and what nearly every test of a whole machine calls: nothing else. `zstd` is
/// for the initramfs. No libpam-systemd: it would add a second to each login under emulation.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "openssh-server",
    "cloud-init",
    "cloud-guest-utils",
    "netplan.io",
    "sudo",
    "ca-certificates",
    "curl",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "procps",
    "zstd",
];

/// Suites in which systemd-resolved is a part of the package systemd.
const RESOLVED_IN_SYSTEMD: &[&str] = &["buster", "bullseye", "oldoldstable"];

impl Recipe {
    pub(crate) fn new(suite: &str, arch: Arch, script: &str) -> Self {
        let mut packages: Vec<String> = PACKAGES.iter().map(|&p| p.to_owned()).collect();
        packages.push(format!("linux-image-cloud-{}", arch.debian()));
        if !RESOLVED_IN_SYSTEMD.contains(&suite) {
            packages.push("systemd-resolved".to_owned());
        }
        Self { suite: suite.to_owned(), arch, packages, script: hex(&Sha256::digest(script.as_bytes())) }
    }

    pub(crate) fn suite(&self) -> &str {
        &self.suite
    }

    pub(crate) fn packages(&self) -> &[String] {
        &self.packages
    }

    /// 64 hex digits; the image's folder.
    pub(crate) fn digest(&self) -> String {
        // One field a line, and no field holds a newline: no two recipes have the same text.
        let text = format!(
            "fleetbox bootstrap 1\nsuite {}\narch {}\nscript {}\npackages {}\n",
            self.suite,
            self.arch.debian(),
            self.script,
            self.packages.join(" ")
        );
        hex(&Sha256::digest(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_recipe_counts() {
        let base = Recipe::new("bookworm", Arch::Amd64, "x");
        assert_eq!(base.digest(), Recipe::new("bookworm", Arch::Amd64, "x").digest());
        assert!(crate::model::is_digest(&base.digest()));
        for other in [
            Recipe::new("trixie", Arch::Amd64, "x"),
            Recipe::new("bookworm", Arch::Arm64, "x"),
            Recipe::new("bookworm", Arch::Amd64, "y"),
        ] {
            assert_ne!(base.digest(), other.digest());
        }
    }

    #[test]
    fn resolved_is_a_package_of_its_own_from_debian_12() {
        let has =
            |suite| Recipe::new(suite, Arch::Amd64, "").packages().iter().any(|p| p == "systemd-resolved");
        assert!(has("bookworm") && has("trixie") && has("sid") && !has("bullseye"));
    }
}
