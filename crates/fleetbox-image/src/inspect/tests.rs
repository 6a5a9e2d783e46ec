//! Whole inspections: of what mke2fs makes, and of the file systems in testdata.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::kernel::tests::{fake_bz_image, fake_uki};
use super::*;

const UUID: &str = "396ca75d-d410-49b2-9d76-4edb3e353a5d";
const BOOT_UUID: &str = "496ca75d-d410-49b2-9d76-4edb3e353a5d";

/// A folder that becomes a file system.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        // Joined to a folder, an absolute path would be one of this host.
        let path = self.0.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    fn link(self, path: &str, to: &str) -> Self {
        let path = self.0.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
        self
    }

    /// A small Debian without a kernel.
    fn system() -> Self {
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = if Arch::host() == Some(Arch::Arm64) { 0xb7 } else { 0x3e };
        Self::new()
            .file("usr/lib/os-release", "ID=test\nVERSION_ID=1\nPRETTY_NAME=\"Test Linux 1\"\n")
            .link("etc/os-release", "../usr/lib/os-release")
            .file("usr/bin/bash", elf)
            .file("usr/sbin/sshd", "")
            .file("usr/lib/systemd/libsystemd-shared-252.so", "")
            .link("sbin/init", "../usr/bin/bash")
            .file("usr/lib/python3/dist-packages/cloudinit/version.py", "__VERSION__ = \"22.4.2\"\n")
    }

    fn kernel(self, folder: &str, version: &str, filler: u8) -> Self {
        self.file(&format!("{folder}/vmlinuz-{version}"), fake_bz_image(version, filler))
            .file(&format!("{folder}/initrd.img-{version}"), format!("initrd {version}"))
    }

    /// `None` where mke2fs is not installed, without which nothing can boot anyway.
    fn ext4(&self, uuid: &str, options: &str) -> Option<Vec<u8>> {
        let image = tempfile::NamedTempFile::new().unwrap();
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", "label", "-U", uuid, "-O", options, "-d"])
            .args([self.0.path(), image.path()])
            .arg("6M")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|s| s.success()) {
            eprintln!("skipped: mke2fs is not installed (Debian package e2fsprogs)");
            return None;
        }
        Some(std::fs::read(image.path()).unwrap())
    }
}

/// What was found, and where the kernel would be.
fn look_at(bytes: Vec<u8>) -> (Result<Found, ImageError>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (task, _hang_up) = crate::task::for_tests();
    let (kernel, initrd) = (dir.path().join("kernel"), dir.path().join("initrd"));
    let path = Path::new("test.img");
    let found = look(Rc::new(bytes), path, &task).and_then(|l| l.take(path, &kernel, &initrd, &task));
    (found, dir)
}

fn found(bytes: Vec<u8>) -> Found {
    look_at(bytes).0.unwrap()
}

macro_rules! some_or_return {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return,
        }
    };
}

#[test]
fn a_bare_file_system_without_a_loader() {
    let files = Files::system().kernel("boot", "6.1.0-9-amd64", 1).kernel("boot", "6.1.0-10-amd64", 2);
    let (found, dir) = look_at(some_or_return!(files.ext4(UUID, "metadata_csum")));
    let found = found.unwrap();
    assert!(found.kernel && found.initrd);
    assert_eq!(found.root_args, format!("root=UUID={UUID} ro"));
    assert_eq!((found.os.as_deref(), found.arch), (Some("Test Linux 1"), Arch::host()));
    assert_eq!(found.notes, Vec::<String>::new());
    // The newest by version order, which is not the last by the alphabet.
    assert_eq!(std::fs::read(dir.path().join("kernel")).unwrap(), fake_bz_image("6.1.0-10-amd64", 2));
    assert_eq!(std::fs::read(dir.path().join("initrd")).unwrap(), b"initrd 6.1.0-10-amd64");
    let i = found.inspection;
    assert_eq!((i.os_id.as_deref(), i.os_version.as_deref()), (Some("test"), Some("1")));
    assert_eq!((i.systemd.as_deref(), i.cloud_init.as_deref()), (Some("252"), Some("22.4.2")));
    assert_eq!((i.table, i.partitions.len(), i.boot_partition, i.firmware), (TableKind::None, 1, None, None));
    assert_eq!(i.root.unwrap().file_system, "ext4");
    let kernel = i.kernel.unwrap();
    assert_eq!((kernel.source, kernel.version.as_deref()), (KernelSource::Files, Some("6.1.0-10-amd64")));
    assert_eq!(kernel.files[0].path, "/boot/vmlinuz-6.1.0-10-amd64");
    assert!(i.warnings.is_empty());
}

fn grub_cfg(root: &str, prefix: &str) -> String {
    format!(
        "set default=0\nmenuentry 'Test' {{\n linux {prefix}/vmlinuz-6.1.0-9-amd64 root={root} ro quiet console=ttyS0 net.ifnames=0\n \
         initrd {prefix}/initrd.img-6.1.0-9-amd64\n}}\n"
    )
}

#[test]
fn a_separate_boot_partition_in_either_table() {
    let boot = Files::new().kernel("", "6.1.0-9-amd64", 1).kernel("", "6.1.0-10-amd64", 2);
    let boot = boot.file("grub/grub.cfg", grub_cfg(&format!("UUID={UUID}"), ""));
    let boot = some_or_return!(boot.ext4(BOOT_UUID, "metadata_csum"));
    for fstab in [format!("UUID={UUID} / ext4\nUUID={BOOT_UUID} /boot ext4\n"), String::new()] {
        let root = Files::system().file("etc/fstab", fstab).file("boot/.keep", "");
        let root = some_or_return!(root.ext4(UUID, "metadata_csum"));
        for disk in [partition::tests::gpt_disk(&[&boot, &root]), partition::tests::mbr_disk(&[&boot, &root])]
        {
            let found = found(disk);
            assert_eq!(found.root_args, format!("root=UUID={UUID} ro"), "{found:?}");
            assert_eq!(found.extra_args, "net.ifnames=0");
            let i = found.inspection;
            assert_eq!((i.boot_partition, i.root.unwrap().partition, i.partitions.len()), (Some(1), 2, 2));
            let kernel = i.kernel.unwrap();
            // The loader's word counts, not the number.
            assert_eq!(
                (kernel.source, kernel.version.as_deref()),
                (KernelSource::Grub, Some("6.1.0-9-amd64"))
            );
            assert_eq!(kernel.config, "/boot/grub/grub.cfg");
        }
    }
}

#[test]
fn the_loaders_root_is_checked() {
    let disk = |root: &str| {
        let files = Files::system()
            .kernel("boot", "6.1.0-9-amd64", 1)
            .file("boot/grub/grub.cfg", grub_cfg(root, "/boot"));
        Some(partition::tests::gpt_disk(&[&[0u8; 4096], &files.ext4(UUID, "metadata_csum")?]))
    };
    for (root, want) in [
        (
            "PARTUUID=02020202-0202-0202-0202-020202020202",
            "root=PARTUUID=02020202-0202-0202-0202-020202020202 ro",
        ),
        ("LABEL=label", "root=LABEL=label ro"),
        ("/dev/sda2", &format!("root=UUID={UUID} ro")),
    ] {
        let found = found(some_or_return!(disk(root)));
        assert_eq!(found.root_args, want);
        assert!(found.notes.is_empty(), "{found:?}");
    }
    let found = found(some_or_return!(disk("UUID=somebody-elses")));
    assert_eq!(found.root_args, format!("root=UUID={UUID} ro"));
    assert!(found.notes[0].contains("root=UUID=somebody-elses is not in the image"), "{found:?}");
}

#[test]
fn the_root_that_the_loader_names_among_two_systems() {
    let other = "596ca75d-d410-49b2-9d76-4edb3e353a5d";
    let one = Files::system().kernel("boot", "6.1.0-9-amd64", 1);
    let one = one.file("boot/grub/grub.cfg", grub_cfg(&format!("UUID={other}"), "/boot"));
    let two = Files::system().kernel("boot", "6.1.0-9-amd64", 2);
    let disk = partition::tests::gpt_disk(&[
        &some_or_return!(one.ext4(UUID, "metadata_csum")),
        &some_or_return!(two.ext4(other, "metadata_csum")),
    ]);
    let found = found(disk);
    assert_eq!(found.root_args, format!("root=UUID={other} ro"));
    assert_eq!(found.inspection.root.unwrap().partition, 2);
    assert!(found.notes[0].contains("holds another system"), "{:?}", found.notes);
}

#[test]
fn bad_boot_folders() {
    let huge = |files: Files| {
        let path = files.0.path().join("boot/vmlinuz-9");
        std::fs::File::create(path).unwrap().set_len(600 << 20).unwrap();
        files
    };
    let base = || Files::system().file("boot/initrd.img-9", "i");
    let cases: [(Files, &str); 6] = [
        (base().link("boot/vmlinuz-9", "a").link("boot/a", "vmlinuz-9"), "no kernel is in /boot"),
        (base().link("boot/vmlinuz-9", "../../../../nowhere"), "no kernel is in /boot"),
        (base().file("boot/vmlinuz-9/x", ""), "no kernel is in /boot"),
        (huge(base()), "at most 536870912 are read"),
        (base().file("boot/vmlinuz-9", "<html>"), "it is no kernel"),
        (Files::system().file("boot/vmlinuz-9", fake_bz_image("9", 0)), "has no initramfs"),
    ];
    for (files, want) in cases {
        let (found, dir) = look_at(some_or_return!(files.ext4(UUID, "metadata_csum")));
        let found = found.unwrap();
        assert!(!found.kernel && found.root_args.is_empty());
        assert!(found.inspection.firmware.as_deref().unwrap().contains(want), "{want}: {found:?}");
        assert!(!dir.path().join("kernel").exists() && !dir.path().join("initrd").exists(), "{want}");
    }
    // A link that leads up and back is a link like others.
    let files =
        base().file("boot/real", fake_bz_image("9", 3)).link("boot/vmlinuz-9", "/../boot/../../boot/real");
    assert!(found(some_or_return!(files.ext4(UUID, "metadata_csum"))).kernel);
}

#[test]
fn what_is_no_linux_root_is_named() {
    let with = |marks: &[(usize, &[u8])]| {
        let mut part = vec![0u8; 256 << 10];
        for (at, mark) in marks {
            part[*at..*at + mark.len()].copy_from_slice(mark);
        }
        found(partition::tests::gpt_disk(&[&part]))
    };
    let luks = with(&[(0, b"LUKS\xba\xbe\0\x02")]);
    assert_eq!(luks.inspection.warnings, [ImageWarning::Encrypted]);
    assert!(luks.inspection.firmware.unwrap().contains("partition 1 is LUKS encryption"));
    let lvm = with(&[(0x218, b"LVM2 001")]);
    assert_eq!(lvm.inspection.warnings, [ImageWarning::VolumeManager]);
    let windows = with(&[(3, b"NTFS    ")]);
    assert_eq!(windows.inspection.warnings, [ImageWarning::Windows]);
    assert!(windows.notes.iter().any(|n| n.contains("Windows")));
    let bit_locker = with(&[(3, b"-FVE-FS-")]);
    assert_eq!(bit_locker.inspection.warnings, [ImageWarning::Encrypted, ImageWarning::Windows]);
    assert!(with(&[]).inspection.firmware.unwrap().contains("no file system with an operating system"));
}

#[test]
fn a_bad_superblock_is_damage() {
    let files = Files::system().kernel("boot", "6.1.0-9-amd64", 1);
    let mut fs = some_or_return!(files.ext4(UUID, "metadata_csum"));
    // Numbers that a reader might allocate by.
    for (at, value, want) in [
        (0x18, 20, "block size"),
        (0x20, 1, "block groups"),
        (0x20, 0, "block groups"),
        (0x04, u32::MAX, "cut short"),
    ] {
        let mut fs = fs.clone();
        fs[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
        let found = found(fs);
        assert!(!found.kernel && found.notes[0].contains(want), "{found:?}");
    }
    // The superblock's own checksum field.
    fs[1024 + 0x3fc] ^= 0xff;
    let found = found(fs);
    assert!(!found.kernel);
    assert!(found.notes[0].contains("damaged"), "{found:?}");
}

#[test]
fn without_cloud_init_and_sshd_it_warns() {
    let files = Files::new().file("etc/os-release", "ID=x\n").kernel("boot", "6.1.0-9-amd64", 1);
    let found = found(some_or_return!(files.ext4(UUID, "metadata_csum")));
    assert!(found.kernel);
    assert_eq!(found.inspection.warnings, [ImageWarning::NoCloudInit, ImageWarning::NoSshServer]);
    assert!(found.notes[0].contains("no cloud-init"), "{found:?}");
}

#[test]
fn a_unified_kernel_image_yields_its_parts() {
    let kernel = fake_bz_image("6.9.1", 5);
    let uki = fake_uki(
        0x8664,
        &[
            (".linux", &kernel),
            (".initrd", b"the initrd"),
            (".cmdline", b"root=LABEL=label rw quiet a=b"),
            (".uname", b"6.9.1"),
        ],
    );
    let files = Files::system().file("boot/EFI/Linux/test-6.9.1.efi", uki);
    let (found, dir) = look_at(some_or_return!(files.ext4(UUID, "metadata_csum")));
    let found = found.unwrap();
    assert_eq!((found.root_args.as_str(), found.extra_args.as_str()), ("root=LABEL=label rw", "a=b"));
    assert_eq!(std::fs::read(dir.path().join("kernel")).unwrap(), kernel);
    assert_eq!(std::fs::read(dir.path().join("initrd")).unwrap(), b"the initrd");
    assert_eq!(found.inspection.kernel.unwrap().source, KernelSource::UnifiedKernelImage);
}

/// The file systems of testdata, which Linux wrote; each on the bare disk.
#[test]
fn roots_on_xfs_and_in_a_subvolume_of_btrfs() {
    use super::fs::fixtures::{BTRFS, XFS, XFS_DIRTY};
    let xfs = found(XFS.clone());
    assert_eq!(xfs.root_args, "root=UUID=11111111-2222-4333-8444-555555555555 ro", "{xfs:?}");
    assert_eq!(xfs.inspection.root.as_ref().unwrap().file_system, "xfs");
    assert!(!xfs.inspection.warnings.contains(&ImageWarning::NotUnmounted));
    let btrfs = found(BTRFS.clone());
    assert_eq!(
        btrfs.root_args, "root=UUID=11111111-2222-4333-8444-666666666666 rootflags=subvol=@ ro",
        "{btrfs:?}"
    );
    assert_eq!(btrfs.inspection.root.unwrap().subvolume.as_deref(), Some("@"));
    let dirty = found(XFS_DIRTY.clone());
    assert!(dirty.inspection.warnings.contains(&ImageWarning::NotUnmounted), "{dirty:?}");
    assert!(dirty.notes.iter().any(|n| n.contains("log of its XFS was not replayed")), "{dirty:?}");
}

mod kinds {
    use std::io::Write;

    use super::super::extract;
    use super::super::kernel::tests::{fake_arm_image, fake_zboot};
    use super::super::tree::tests::Fake;
    use super::*;
    use crate::KernelKind;

    fn taken(kernel: &[u8]) -> Result<(KernelKind, Vec<u8>), String> {
        let tree = Fake::default().file("/k", kernel).tree();
        let dir = tempfile::tempdir().unwrap();
        let (task, _hang_up) = crate::task::for_tests();
        let to = dir.path().join("kernel");
        let kernel = extract::kernel(&tree, &extract::Source::file("/k"), &to, 2 << 20, &task).unwrap()?;
        Ok((kernel.kind, std::fs::read(to).unwrap()))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn each_is_taken_as_a_vmm_takes_it() {
        let image = fake_arm_image(7);
        assert_eq!(taken(&image).unwrap(), (KernelKind::Image, image.clone()));
        assert_eq!(taken(&gzip(&image)).unwrap(), (KernelKind::ImageGzip, image.clone()));
        assert_eq!(taken(&zstd(&image)).unwrap(), (KernelKind::ImageZstd, image.clone()));
        assert_eq!(taken(&fake_zboot("gzip", &gzip(&image))).unwrap(), (KernelKind::EfiZboot, image.clone()));
        assert_eq!(
            taken(&fake_zboot("zstd22", &zstd(&image))).unwrap(),
            (KernelKind::EfiZboot, image.clone())
        );
        let bz = fake_bz_image("6", 1);
        assert_eq!(taken(&bz).unwrap(), (KernelKind::BzImage, bz));
    }

    #[test]
    fn what_unpacks_to_nonsense_is_refused() {
        assert!(taken(&gzip(b"no kernel")).unwrap_err().contains("no arm64 kernel"));
        let mut cut = gzip(&fake_arm_image(7));
        cut.truncate(cut.len() / 2);
        assert!(taken(&cut).is_err());
        assert!(taken(b"\x28\xb5\x2f\xfd").is_err());
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        // 3 MiB of zeros in a few kilobytes.
        assert!(taken(&gzip(&vec![0u8; 3 << 20])).unwrap_err().contains("more than 2 MiB"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn damaged_file_systems_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200),
        range in prop_oneof![Just(2048usize), Just(64 << 10), Just(4 << 20)],
    ) {
        // Without checksums, which would refuse nearly all of it at the door.
        static GOOD: std::sync::LazyLock<Option<Vec<u8>>> = std::sync::LazyLock::new(|| {
            Files::system().kernel("boot", "6.1.0-9-amd64", 1).ext4(UUID, "^metadata_csum")
        });
        if let Some(mut fs) = GOOD.clone() {
            // Most at the start, where the metadata is; the superblock's first fields are hit more rarely.
            for (at, byte) in damage {
                let at = at.index(range.min(fs.len()));
                if !(0x400..0x440).contains(&at) || byte < 8 {
                    fs[at] = byte;
                }
            }
            let _ = look_at(fs);
        }
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..8192), ext4 in any::<bool>()) {
        let mut bytes = bytes;
        if ext4 && bytes.len() > 0x43a {
            bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        }
        let _ = look_at(bytes);
    }
}
