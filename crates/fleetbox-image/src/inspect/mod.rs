//! A look into a raw disk image, once: partition table, root file system, kernel and initramfs.
//!
//! No mount and no privilege is needed. What this version cannot read (xfs, btrfs, a separate /boot) is no error: the
//! image then boots through firmware, and the notes say why.

mod ext4;
mod partition;
mod version;

use std::fs::File;
use std::path::Path;

use fleetbox_spec::Arch;

use crate::ImageError;
use crate::task::Task;

use ext4::Root;
use partition::{Extent, Table};

/// What was found in an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    /// A kernel was written to where the caller said.
    pub(crate) kernel: bool,
    /// An initramfs, too.
    pub(crate) initrd: bool,
    pub(crate) root_args: String,
    pub(crate) os: Option<String>,
    pub(crate) arch: Option<Arch>,
    pub(crate) notes: Vec<String>,
}

impl Found {
    fn firmware(mut self, why: impl Into<String>) -> Self {
        self.notes.push(format!("boots through firmware: {}", why.into()));
        self
    }
}

/// Inspects `disk`, known to the user as `path`; kernel and initramfs are written to the files named.
pub(crate) fn inspect(
    disk: File,
    path: &Path,
    kernel_to: &Path,
    initrd_to: &Path,
    task: &Task,
) -> Result<Found, ImageError> {
    let size = disk.metadata().map_err(ImageError::io("look at", path))?.len();
    let table = partition::read(&disk, size)
        .map_err(ImageError::io("read image", path))?
        .map_err(|reason| ImageError::BadPartitionTable { path: path.to_owned(), reason })?;
    let extents = match table {
        Table::None => vec![Extent { number: 0, start: 0, len: size }],
        Table::Partitions(all) => all,
    };
    let mut found = Found::default();
    let mut unreadable = Vec::new();
    let mut root = None;
    for extent in &extents {
        task.check()?;
        let place =
            if extent.number == 0 { "the disk".to_owned() } else { format!("partition {}", extent.number) };
        match ext4::open(&disk, *extent).map_err(ImageError::io("read image", path))? {
            ext4::Opened::Root(r) if root.is_none() => root = Some(r),
            ext4::Opened::Root(_) => {
                found.notes.push(format!("{place} holds another system; the first one is booted"));
            }
            ext4::Opened::NoSystem | ext4::Opened::OtherFs => {}
            ext4::Opened::Bad(why) => {
                unreadable.push(format!("the ext4 file system of {place} is damaged ({why})"))
            }
        }
    }
    let Some(root) = root else {
        let why = match unreadable.is_empty() {
            true => "no ext4 file system with an operating system was found".to_owned(),
            false => unreadable.join("; "),
        };
        return Ok(found.firmware(why));
    };
    found.notes.append(&mut unreadable);
    found.os = root.os();
    found.arch = root.arch();
    if !root.has_cloud_init() {
        found
            .notes
            .push("no cloud-init in it: it will not take the user, key and address that it is given".into());
    }
    extract(root, found, path, kernel_to, initrd_to, task)
}

fn extract(
    root: Root,
    mut found: Found,
    path: &Path,
    kernel_to: &Path,
    initrd_to: &Path,
    task: &Task,
) -> Result<Found, ImageError> {
    let Some(choice) = version::choose(&root.boot_files()) else {
        return Ok(found.firmware("no kernel is in /boot of the root file system"));
    };
    let Some(initrd) = choice.initrd else {
        // Without one, nothing would load the driver of the disk or understand root=UUID.
        return Ok(found.firmware(format!("kernel {} has no initramfs", choice.kernel)));
    };
    for (name, to) in [(&choice.kernel, kernel_to), (&initrd, initrd_to)] {
        if let Err(why) = root.extract(&format!("/boot/{name}"), path, to, task)? {
            for made in [kernel_to, initrd_to] {
                fleetbox_store::remove_if_there(made)?;
            }
            return Ok(found.firmware(format!("/boot/{name} cannot be read ({why})")));
        }
    }
    (found.kernel, found.initrd) = (true, true);
    found.root_args = format!("root=UUID={} ro", root.uuid());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    /// A small ext4 file system with a system in it; `None` where mke2fs is not installed.
    fn file_system(dir: &Path, cloud_init: bool, options: &str) -> Option<Vec<u8>> {
        let tree = dir.join("tree");
        for d in ["etc", "boot", "usr/bin"] {
            std::fs::create_dir_all(tree.join(d)).unwrap();
        }
        std::fs::write(tree.join("etc/os-release"), "PRETTY_NAME=\"Test Linux 1\"\n").unwrap();
        std::fs::write(tree.join("boot/vmlinuz-6.1.0-9-amd64"), b"old kernel").unwrap();
        std::fs::write(tree.join("boot/initrd.img-6.1.0-9-amd64"), b"old initrd").unwrap();
        std::fs::write(tree.join("boot/vmlinuz-6.1.0-10-amd64"), vec![7u8; 100_000]).unwrap();
        std::fs::write(tree.join("boot/initrd.img-6.1.0-10-amd64"), b"new initrd").unwrap();
        std::os::unix::fs::symlink("../boot/..//./vmlinuz", tree.join("boot/vmlinuz")).unwrap();
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 0x3e;
        std::fs::write(tree.join("usr/bin/bash"), elf).unwrap();
        if cloud_init {
            std::fs::write(tree.join("usr/bin/cloud-init"), "").unwrap();
        }
        let image = dir.join("fs");
        let made = Command::new("/sbin/mke2fs")
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-U",
                "396ca75d-d410-49b2-9d76-4edb3e353a5d",
                "-O",
                options,
                "-d",
            ])
            .args([&tree, &image])
            .arg("4M")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        std::fs::remove_dir_all(&tree).unwrap();
        made.is_ok_and(|s| s.success()).then(|| std::fs::read(&image).unwrap())
    }

    fn look(dir: &Path, bytes: &[u8]) -> Result<Found, ImageError> {
        let disk = dir.join("disk");
        std::fs::write(&disk, bytes).unwrap();
        let (task, _hang_up) = crate::task::for_tests();
        inspect(File::open(&disk).unwrap(), &disk, &dir.join("kernel"), &dir.join("initrd"), &task)
    }

    /// mke2fs is in a Debian package that nothing can boot without; still, say it where it lacks.
    macro_rules! fs_or_return {
        ($dir:expr, $ci:expr) => {
            match file_system($dir, $ci, "metadata_csum") {
                Some(fs) => fs,
                None => {
                    eprintln!("skipped: mke2fs is not installed (Debian package e2fsprogs)");
                    return;
                }
            }
        };
    }

    #[test]
    fn a_bare_file_system() {
        let tmp = tempfile::tempdir().unwrap();
        let fs = fs_or_return!(tmp.path(), true);
        let found = look(tmp.path(), &fs).unwrap();
        assert_eq!(
            found,
            Found {
                kernel: true,
                initrd: true,
                root_args: "root=UUID=396ca75d-d410-49b2-9d76-4edb3e353a5d ro".into(),
                os: Some("Test Linux 1".into()),
                arch: Some(Arch::Amd64),
                notes: vec![],
            }
        );
        // The newest by version order, which is not the last by the alphabet.
        assert_eq!(std::fs::read(tmp.path().join("kernel")).unwrap(), vec![7u8; 100_000]);
        assert_eq!(std::fs::read(tmp.path().join("initrd")).unwrap(), b"new initrd");
    }

    #[test]
    fn in_a_partition_of_either_table() {
        let tmp = tempfile::tempdir().unwrap();
        let fs = fs_or_return!(tmp.path(), false);
        for disk in [partition::tests::gpt_disk(&[&[0u8; 4096], &fs]), partition::tests::mbr_disk(&[&fs])] {
            let found = look(tmp.path(), &disk).unwrap();
            assert!(found.kernel && found.initrd, "{found:?}");
            assert!(found.notes[0].contains("no cloud-init"), "{found:?}");
        }
    }

    #[test]
    fn nothing_found_is_firmware_and_says_why() {
        let tmp = tempfile::tempdir().unwrap();
        let found = look(tmp.path(), &vec![0u8; 2 << 20]).unwrap();
        assert!(!found.kernel && found.root_args.is_empty());
        assert!(found.notes[0].contains("no ext4 file system"), "{found:?}");
        let mut fs = fs_or_return!(tmp.path(), true);
        // The superblock's own checksum field.
        fs[1024 + 0x3fc] ^= 0xff;
        let found = look(tmp.path(), &fs).unwrap();
        assert!(!found.kernel);
        assert!(found.notes[0].contains("damaged"), "{found:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_file_systems_never_panic(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200),
            range in prop_oneof![Just(2048usize), Just(64 << 10), Just(4 << 20)],
        ) {
            // Without checksums, which would refuse nearly all of it at the door.
            static GOOD: std::sync::LazyLock<Option<Vec<u8>>> = std::sync::LazyLock::new(|| {
                let tmp = tempfile::tempdir().unwrap();
                file_system(tmp.path(), true, "^metadata_csum")
            });
            let tmp = tempfile::tempdir().unwrap();
            if let Some(mut fs) = GOOD.clone() {
                // Most at the start, where the metadata is; the superblock's first fields are hit more rarely.
                for (at, byte) in damage {
                    let at = at.index(range.min(fs.len()));
                    if !(0x400..0x440).contains(&at) || byte < 8 {
                        fs[at] = byte;
                    }
                }
                let _ = look(tmp.path(), &fs);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..8192), ext4 in any::<bool>()) {
            let tmp = tempfile::tempdir().unwrap();
            let mut bytes = bytes;
            if ext4 && bytes.len() > 0x43a {
                bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
            }
            let _ = look(tmp.path(), &bytes);
        }
    }
}
