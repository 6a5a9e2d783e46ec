//! Which images there are, and what each is made of. Pure.

use sha2::{Digest, Sha256};

/// Debian 12 with the tools that make file systems, boot loaders and packages: the images made from it have them, too.
#[cfg(target_arch = "x86_64")]
const BOOKWORM: &str = "bootstrap:bookworm?packages=dosfstools,fdisk,grub-efi-amd64-bin,grub-pc-bin,grub2-common,\
    mtools,xfsprogs";
#[cfg(not(target_arch = "x86_64"))]
const BOOKWORM: &str = "bootstrap:bookworm?packages=fdisk,grub2-common,xfsprogs";

/// Debian 13, likewise.
const TRIXIE: &str = "bootstrap:trixie?packages=btrfs-progs,fdisk,grub2-common";

const PRELUDE: &str = include_str!("scripts/prelude.sh");

/// What the tests boot beside what the product builds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TestImage {
    /// `disk.raw`: Debian 12 on GPT, a separate ext4 `/boot`, an xfs root.
    XfsRoot,
    /// `disk.raw`: Debian 13 on GPT, a btrfs root in the subvolume `@`.
    BtrfsRoot,
    /// `disk.raw`: Debian 12 on GPT with GRUB for BIOS and UEFI, its kernel where only GRUB finds it.
    OnlyGrub,
    /// `disk.qcow2`: `bootstrap:bookworm` as qcow2 in clusters compressed with zstd.
    ZstdQcow2,
    /// `linux.deb`, `whole.deb`: Debian 13's kernel, as packages for a machine with Debian 12.
    Kernel,
}

impl TestImage {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::XfsRoot, Self::BtrfsRoot, Self::OnlyGrub, Self::ZstdQcow2, Self::Kernel];

    /// A short name, of its folder too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::XfsRoot => "xfs",
            Self::BtrfsRoot => "btrfs",
            Self::OnlyGrub => "grub",
            Self::ZstdQcow2 => "qcow2",
            Self::Kernel => "kernel",
        }
    }

    /// References of the images of the systems that it is made from.
    #[must_use]
    pub fn systems(self) -> &'static [&'static str] {
        match self {
            Self::XfsRoot | Self::OnlyGrub => &[BOOKWORM],
            Self::BtrfsRoot => &[TRIXIE],
            Self::ZstdQcow2 => &["bootstrap:bookworm"],
            Self::Kernel => &[BOOKWORM, TRIXIE],
        }
    }

    /// Why it cannot be made or used on this host, if so.
    #[must_use]
    pub fn lacking(self) -> Option<String> {
        let file_system = match self {
            Self::OnlyGrub if cfg!(not(target_arch = "x86_64")) => {
                return Some("GRUB for BIOS is for x86 machines".to_owned());
            }
            Self::XfsRoot => "xfs",
            Self::BtrfsRoot => "btrfs",
            Self::OnlyGrub | Self::ZstdQcow2 | Self::Kernel => return None,
        };
        let lacks = !kernel_has(file_system);
        lacks.then(|| format!("this host's kernel cannot mount {file_system}, to fill a test image"))
    }

    /// What makes it: for sh, with what prelude.sh says as its environment.
    pub(super) fn script(self) -> String {
        let own = match self {
            Self::XfsRoot => include_str!("scripts/xfs.sh"),
            Self::BtrfsRoot => include_str!("scripts/btrfs.sh"),
            Self::OnlyGrub => include_str!("scripts/grub.sh"),
            Self::ZstdQcow2 => include_str!("scripts/qcow2.sh"),
            Self::Kernel => include_str!("scripts/kernel.sh"),
        };
        format!("{PRELUDE}\n{own}")
    }
}

/// Whether the running kernel can mount a file system, now or with a module that is there.
fn kernel_has(file_system: &str) -> bool {
    let listed = || {
        let all = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        all.lines().any(|l| l.split_whitespace().next_back() == Some(file_system))
    };
    let load = || std::process::Command::new("modprobe").arg("-q").arg(file_system).status();
    listed() || (load().is_ok_and(|s| s.success()) && listed())
}

/// 16 hex digits: another script or another system is another image.
pub(super) fn recipe_hash(image: TestImage, digests: &[&str]) -> String {
    let text = format!("test image 1\n{}\n{}", digests.join("\n"), image.script());
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_recipes_differ() {
        let all = TestImage::ALL;
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a.name(), b.name());
                assert_ne!(a.script(), b.script());
            }
        }
        let hash = |digests: &[&str]| recipe_hash(TestImage::Kernel, digests);
        assert_eq!(hash(&["a", "b"]), hash(&["a", "b"]));
        assert_ne!(hash(&["a", "b"]), hash(&["b", "a"]));
        assert_ne!(recipe_hash(TestImage::XfsRoot, &["a"]), recipe_hash(TestImage::OnlyGrub, &["a"]));
    }

    #[test]
    fn systems_are_images_that_can_be_named() {
        for image in TestImage::ALL {
            for system in image.systems() {
                let parsed: fleetbox_spec::ImageRef = system.parse().unwrap();
                assert!(matches!(parsed, fleetbox_spec::ImageRef::Bootstrap { .. }), "{system}");
            }
        }
    }
}
