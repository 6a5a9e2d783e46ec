//! Files that are disk images and hold nothing that a machine of ours could run: each is refused, or told of, by what
//! it is. Needs no privilege; what needs a program that is not installed is counted as ignored, with its name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use fleetbox_image::{Image, ImageError, Images};
use fleetbox_spec::{Arch, ImageRef};
use fleetbox_store::Store;
use libtest_mimic::{Arguments, Failed, Trial};

type Result<T = ()> = std::result::Result<T, Failed>;

/// A name, the programs it needs, and the test.
type Test = (&'static str, &'static [&'static str], fn() -> Result);

const MIB: u64 = 1 << 20;
/// ELF machine numbers (elf(5)).
const EM_X86_64: u8 = 0x3e;
const EM_AARCH64: u8 = 0xb7;

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let tests: [Test; 5] = [
        ("a_system_for_another_processor_is_refused", &["mke2fs"], other_processor),
        ("a_system_without_cloud_init_is_taken_with_a_warning", &["mke2fs"], no_cloud_init),
        ("an_encrypted_disk_is_called_so", &[], encrypted_disk),
        ("an_encrypted_root_beside_a_readable_boot_is_called_so", &["mke2fs"], encrypted_root),
        ("a_windows_disk_is_called_so", &[], windows),
    ];
    let missing = |tools: &[&'static str]| {
        let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];
        tools.iter().copied().find(|tool| !dirs.iter().any(|dir| Path::new(dir).join(tool).exists()))
    };
    let trials = tests
        .into_iter()
        .map(|(name, tools, test)| match missing(tools) {
            Some(tool) => Trial::test(name, test)
                .with_kind(format!("ignored: {tool} is not installed"))
                .with_ignored_flag(true),
            None => Trial::test(name, test),
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

struct Lab {
    tmp: tempfile::TempDir,
    store: Store,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Result<Self> {
        let tmp = tempfile::tempdir()?;
        let store = Store::open(&tmp.path().join("home"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { tmp, store, runtime })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn resolve(&self, path: &Path) -> std::result::Result<Image, ImageError> {
        let images = Images::new(self.store.clone());
        let reference = ImageRef::File(path.to_owned());
        self.runtime.block_on(images.resolve(&reference, &|_| {}))
    }

    /// What is said of an image that cannot be booted: its error, and then nothing of it is in the store, or its notes,
    /// and then no kernel was taken from it.
    fn told(&self, path: &Path) -> Result<String> {
        match self.resolve(path) {
            Ok(image) => {
                assert!(image.kernel.is_none(), "{image:?}");
                Ok(image.notes.join("\n"))
            }
            Err(e) => {
                let folders = std::fs::read_dir(self.store.images_dir())?.flatten();
                let left: Vec<_> = folders.filter(|f| f.path().is_dir()).map(|f| f.path()).collect();
                assert!(left.is_empty(), "{e} left {left:?}");
                Ok(e.to_string())
            }
        }
    }

    /// ext4 with a system in it.
    fn system(&self, name: &str, machine: u8, files: &[&str]) -> Result<PathBuf> {
        let (tree, path) = (self.path("tree"), self.path(name));
        for dir in ["etc", "boot", "usr/bin", "usr/sbin", "usr/lib/systemd"] {
            std::fs::create_dir_all(tree.join(dir))?;
        }
        std::fs::write(tree.join("etc/os-release"), "PRETTY_NAME=\"Test Linux 1\"\n")?;
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = machine;
        std::fs::write(tree.join("usr/bin/bash"), &elf)?;
        std::fs::write(tree.join("usr/lib/systemd/systemd"), &elf)?;
        for file in files {
            let kernel = file.contains("vmlinuz").then(|| kernel(machine));
            std::fs::write(tree.join(file), kernel.unwrap_or_else(|| b"x".to_vec()))?;
        }
        self.ext4(&tree, &path)?;
        Ok(path)
    }

    fn ext4(&self, tree: &Path, path: &Path) -> Result {
        let mut command = Command::new("mke2fs");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let out = command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree).arg(path).arg("8M").output()?;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::remove_dir_all(tree)?;
        Ok(())
    }

    /// A disk with an MBR and these partitions of 8 MiB, each with its type and its first bytes.
    fn mbr(&self, name: &str, partitions: &[(u8, &[u8])]) -> Result<PathBuf> {
        let path = self.path(name);
        let disk = File::create_new(&path)?;
        disk.set_len(MIB + 8 * MIB * partitions.len() as u64)?;
        for (i, (kind, bytes)) in (0u32..).zip(partitions) {
            let start = 2048 + i * 16384;
            let mut entry = [0u8; 16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&16384u32.to_le_bytes());
            disk.write_all_at(&entry, 446 + 16 * u64::from(i))?;
            disk.write_all_at(bytes, u64::from(start) * 512)?;
        }
        disk.write_all_at(&[0x55, 0xaa], 510)?;
        Ok(path)
    }
}

/// What is told from the start of a kernel: the setup header of a bzImage (Documentation/arch/x86/boot.rst), or the
/// header of an arm64 Image (Documentation/arch/arm64/booting.rst).
fn kernel(machine: u8) -> Vec<u8> {
    let mut kernel = vec![0u8; 8192];
    if machine == EM_AARCH64 {
        kernel[0x38..0x3c].copy_from_slice(b"ARM\x64");
    } else {
        kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
    }
    kernel
}

/// The start of a LUKS2 header (LUKS2 On-Disk Format Specification, 2.1).
fn luks() -> Vec<u8> {
    let mut header = vec![0u8; 4096];
    header[..6].copy_from_slice(b"LUKS\xba\xbe");
    header[6..8].copy_from_slice(&2u16.to_be_bytes());
    header[8..16].copy_from_slice(&16384u64.to_be_bytes());
    header
}

/// A boot sector of NTFS, which has the signature of a partition table, too.
fn ntfs() -> Vec<u8> {
    let mut sector = vec![0u8; 512];
    sector[..11].copy_from_slice(b"\xeb\x52\x90NTFS    ");
    sector[11..13].copy_from_slice(&512u16.to_le_bytes());
    sector[13] = 8;
    sector[21] = 0xf8;
    sector[40..48].copy_from_slice(&16383u64.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn says(told: &str, words: &[&str]) -> Result {
    let lower = told.to_lowercase();
    match words.iter().any(|w| lower.contains(w)) {
        true => Ok(()),
        false => Err(format!("none of {words:?} is in: {told}").into()),
    }
}

const COMPLETE: [&str; 4] =
    ["boot/vmlinuz-6.1", "boot/initrd.img-6.1", "usr/sbin/sshd", "usr/bin/cloud-init"];

fn other_processor() -> Result {
    let lab = Lab::new()?;
    let (machine, name) = match Arch::host() {
        Some(Arch::Arm64) => (EM_X86_64, "amd64"),
        _ => (EM_AARCH64, "arm64"),
    };
    let told = lab.told(&lab.system("other.raw", machine, &COMPLETE)?)?;
    says(&told, &[name])
}

fn no_cloud_init() -> Result {
    let lab = Lab::new()?;
    let machine = if Arch::host() == Some(Arch::Arm64) { EM_AARCH64 } else { EM_X86_64 };
    let image = lab.resolve(&lab.system("bare.raw", machine, &COMPLETE[..3])?)?;
    assert!(image.kernel.is_some(), "{image:?}");
    says(&image.notes.join("\n"), &["no cloud-init"])?;
    let image = lab.resolve(&lab.system("with.raw", machine, &COMPLETE)?)?;
    assert_eq!(image.notes, Vec::<String>::new());
    Ok(())
}

fn encrypted_disk() -> Result {
    let lab = Lab::new()?;
    let path = lab.path("luks.raw");
    let disk = File::create_new(&path)?;
    disk.write_all_at(&luks(), 0)?;
    disk.set_len(16 * MIB)?;
    says(&lab.told(&path)?, &["luks", "encrypted"])?;
    says(&lab.told(&lab.mbr("parts.raw", &[(0x83, &luks())])?)?, &["luks", "encrypted"])
}

fn encrypted_root() -> Result {
    let lab = Lab::new()?;
    let tree = lab.path("boot-tree");
    std::fs::create_dir_all(&tree)?;
    std::fs::write(tree.join("vmlinuz-6.1"), kernel(EM_X86_64))?;
    std::fs::write(tree.join("initrd.img-6.1"), "x")?;
    let boot = lab.path("boot.fs");
    lab.ext4(&tree, &boot)?;
    let disk = lab.mbr("luks-root.raw", &[(0x83, &std::fs::read(&boot)?), (0x83, &luks())])?;
    says(&lab.told(&disk)?, &["luks", "encrypted"])
}

fn windows() -> Result {
    let lab = Lab::new()?;
    let path = lab.path("ntfs.raw");
    let disk = File::create_new(&path)?;
    disk.write_all_at(&ntfs(), 0)?;
    disk.set_len(16 * MIB)?;
    says(&lab.told(&path)?, &["windows", "ntfs"])?;
    says(&lab.told(&lab.mbr("windows.raw", &[(7, &ntfs()), (7, &ntfs())])?)?, &["windows", "ntfs"])
}
