use fleetbox_spec::{Arch, Packages};
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
    pub(crate) fn new(suite: &str, extra: &Packages, arch: Arch, script: &str) -> Self {
        let mut packages: Vec<String> = PACKAGES.iter().map(|&p| p.to_owned()).collect();
        packages.push(format!("linux-image-cloud-{}", arch.debian()));
        if !RESOLVED_IN_SYSTEMD.contains(&suite) {
            packages.push("systemd-resolved".to_owned());
        }
        // Sorted and each once already. What every image has makes no other image.
        let extra: Vec<String> =
            extra.iter().filter(|e| !packages.iter().any(|p| p == e)).map(str::to_owned).collect();
        packages.extend(extra);
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
            "fleetbox bootstrap 2\nsuite {}\narch {}\nscript {}\npackages {}\n",
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

    fn recipe(suite: &str, extra: &str, arch: Arch, script: &str) -> Recipe {
        let extra = if extra.is_empty() { Packages::default() } else { extra.parse().unwrap() };
        Recipe::new(suite, &extra, arch, script)
    }

    #[test]
    fn every_part_of_the_recipe_counts() {
        let base = recipe("bookworm", "", Arch::Amd64, "x");
        assert_eq!(base.digest(), recipe("bookworm", "", Arch::Amd64, "x").digest());
        assert!(crate::model::is_digest(&base.digest()));
        for other in [
            recipe("trixie", "", Arch::Amd64, "x"),
            recipe("bookworm", "", Arch::Arm64, "x"),
            recipe("bookworm", "", Arch::Amd64, "y"),
            recipe("bookworm", "jq", Arch::Amd64, "x"),
        ] {
            assert_ne!(base.digest(), other.digest());
        }
    }

    #[test]
    fn extra_packages_count_as_a_set_without_what_every_image_has() {
        let of = |extra| recipe("bookworm", extra, Arch::Amd64, "x");
        assert_eq!(of("tmux,jq"), of("jq,tmux,curl,systemd-resolved,jq"));
        assert_eq!(of("curl").digest(), of("").digest());
        assert_ne!(of("jq").digest(), of("jq,tmux").digest());
        assert!(of("tmux,jq").packages().ends_with(&["jq".to_owned(), "tmux".to_owned()]));
    }

    #[test]
    fn resolved_is_a_package_of_its_own_from_debian_12() {
        let has =
            |suite| recipe(suite, "", Arch::Amd64, "").packages().iter().any(|p| p == "systemd-resolved");
        assert!(has("bookworm") && has("trixie") && has("sid") && !has("bullseye"));
    }
}
