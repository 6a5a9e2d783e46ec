//! The kernel that a machine's disk would boot now, which after an upgrade in the guest is not its image's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, DiskFormat};
use fleetbox_store::{BootDir, Store, Versioned};
use serde::{Deserialize, Serialize};

use crate::inspection::BootFileStamp;
use crate::task::Task;
use crate::{Image, ImageError, inspect, model, overlay, part};

/// What a disk boots.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BootFiles {
    /// The kernel; `None`: boot through firmware, `notes` says why. It may lie in the image's own folder.
    pub kernel: Option<PathBuf>,
    /// The initramfs that belongs to it.
    pub initrd: Option<PathBuf>,
    /// Kernel arguments that name the root file system, as in [`Image::root_args`].
    pub root_args: String,
    /// Further kernel arguments that the disk's boot loader has, as in [`Image::extra_args`].
    pub extra_args: String,
    /// The kernel's release, where that is known.
    pub version: Option<String>,
    /// The kernel and initramfs on the disk were those taken out before (or the image's): nothing was copied.
    pub unchanged: bool,
    /// What a person should know, such as that a log was not replayed.
    pub notes: Vec<String>,
}

/// What was taken out of a disk last, beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    files: Vec<BootFileStamp>,
    initrd: bool,
    /// Not `version`, which is that of the record.
    release: Option<String>,
}

impl Versioned for Record {
    const VERSION: u32 = 1;
}

pub(crate) fn of_disk(
    store: &Store,
    disk: &Path,
    format: DiskFormat,
    out: &Path,
    arch: Arch,
    task: &Task,
) -> Result<BootFiles, ImageError> {
    let opened = overlay::open(disk, format)?;
    let image = opened.backing.last().and_then(|path| image_of(store, path));
    let looked = inspect::look(opened.disk, disk, task)?;
    if let Some((stamps, root_args, extra_args)) = looked.first() {
        let reused = |kernel: PathBuf, initrd: Option<PathBuf>, version: Option<String>| BootFiles {
            kernel: Some(kernel),
            initrd,
            root_args: root_args.clone(),
            extra_args: extra_args.clone(),
            version,
            unchanged: true,
            notes: looked.notes().to_vec(),
        };
        if let Some(Image { kernel: Some(kernel), initrd, inspection, .. }) = image
            && let Some(info) = inspection.kernel
            && info.files == stamps
        {
            return Ok(reused(kernel, initrd, info.version));
        }
        let own = BootDir::at(out);
        let (kernel, initrd) = (own.kernel(), own.initrd());
        // Whatever is wrong with it: it is only a short cut.
        if let Ok(record) = fleetbox_store::read_json::<Record>(&own.record())
            && record.files == stamps
            && kernel.is_file()
            && (!record.initrd || initrd.is_file())
        {
            return Ok(reused(kernel, record.initrd.then_some(initrd), record.release));
        }
    }
    extract(store, looked, disk, out, arch, task)
}

/// The image that a backing file belongs to, if it is one of the store.
fn image_of(store: &Store, backing: &Path) -> Option<Image> {
    let digest = backing.parent()?.file_name()?.to_str()?;
    let image = model::load(store, digest).ok()??;
    (image.path == backing).then_some(image)
}

fn extract(
    store: &Store,
    looked: inspect::Looked,
    disk: &Path,
    out: &Path,
    arch: Arch,
    task: &Task,
) -> Result<BootFiles, ImageError> {
    let out = BootDir::at(out);
    let (kernel, initrd) = (out.kernel(), out.initrd());
    let (kernel_part, initrd_part) =
        (Temporary(part::temporary(&kernel)), Temporary(part::temporary(&initrd)));
    let found = looked.take(disk, &kernel_part.0, &initrd_part.0, task)?;
    if let Some(found) = found.arch.filter(|&a| a != arch) {
        return Err(ImageError::WrongArch { path: disk.to_owned(), found, host: arch });
    }
    // It goes first and comes last: a crash in between leaves files that nobody trusts.
    fleetbox_store::remove_if_there(&out.record())?;
    let info = found.inspection.kernel;
    for (made, part, to) in [(found.kernel, &kernel_part.0, &kernel), (found.initrd, &initrd_part.0, &initrd)]
    {
        if !made {
            fleetbox_store::remove_if_there(to)?;
            continue;
        }
        // The VMM reads it under another uid.
        fs::set_permissions(part, fs::Permissions::from_mode(0o644))
            .map_err(ImageError::io("set mode of", part))?;
        store.give_to_owner(part)?;
        fs::rename(part, to).map_err(ImageError::io("rename into place", to))?;
    }
    let version = info.as_ref().and_then(|i| i.version.clone());
    if let Some(info) = info {
        let record = Record { files: info.files, initrd: found.initrd, release: version.clone() };
        fleetbox_store::write_json(&out.record(), &record, 0o644)?;
        store.give_to_owner(&out.record())?;
    }
    Ok(BootFiles {
        kernel: found.kernel.then_some(kernel),
        initrd: found.initrd.then_some(initrd),
        root_args: found.root_args,
        extra_args: found.extra_args,
        version,
        unchanged: false,
        notes: found.notes,
    })
}

/// Removes its file unless it has been renamed away.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use fleetbox_spec::ImageRef;

    use super::*;
    use crate::{Images, create_disk};

    fn run(command: &mut Command) -> bool {
        match command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
        {
            Ok(status) => {
                assert!(status.success(), "{command:?}");
                true
            }
            Err(_) => {
                eprintln!("skipped: {:?} is not installed", command.get_program());
                false
            }
        }
    }

    /// A bare ext4 with a system whose kernels have these versions.
    fn image(dir: &Path, name: &str, versions: &[&str]) -> Option<PathBuf> {
        let (tree, path) = (dir.join("tree"), dir.join(name));
        for d in ["etc", "boot"] {
            fs::create_dir_all(tree.join(d)).unwrap();
        }
        fs::write(tree.join("etc/os-release"), "ID=x\n").unwrap();
        for version in versions {
            let mut kernel = vec![0u8; 1024];
            kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            kernel[0x202..0x206].copy_from_slice(b"HdrS");
            kernel.extend(version.as_bytes());
            fs::write(tree.join(format!("boot/vmlinuz-{version}")), kernel).unwrap();
            fs::write(tree.join(format!("boot/initrd.img-{version}")), version).unwrap();
        }
        let made = run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-U", "396ca75d-d410-49b2-9d76-4edb3e353a5d", "-d"])
            .args([&tree, &path])
            .arg("8M"));
        fs::remove_dir_all(&tree).unwrap();
        made.then_some(path)
    }

    #[test]
    fn an_upgrade_in_the_guest_is_what_boots() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let store = Store::open(&dir.join("home")).unwrap();
        let images = Images::new(store);
        let (Some(first), Some(upgraded)) =
            (image(dir, "first", &["6.1"]), image(dir, "upgraded", &["6.1", "6.2"]))
        else {
            return;
        };
        if Arch::host() != Some(Arch::Amd64) || !run(Command::new("qemu-img").arg("--version")) {
            return;
        }
        rt.block_on(async {
            let image = images.resolve(&ImageRef::File(first), &|_| {}).await.unwrap();
            let (disk, out) = (dir.join("disk.qcow2"), dir.join("out"));
            fs::create_dir(&out).unwrap();
            create_disk(&image, &disk, DiskFormat::Qcow2, 16 << 20).await.unwrap();
            let look = || images.boot_files_of_disk(&disk, DiskFormat::Qcow2, &out, Arch::Amd64);
            // Nothing was written: the image's own files.
            let fresh = look().await.unwrap();
            assert!(fresh.unchanged);
            assert_eq!((&fresh.kernel, &fresh.initrd), (&image.kernel, &image.initrd));
            assert_eq!(fresh.root_args, image.root_args);
            assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
            // What an upgrade leaves on the disk.
            assert!(run(Command::new("qemu-img")
                .args(["convert", "-n", "-f", "raw", "-O", "qcow2"])
                .args([&upgraded, &disk])));
            let new = look().await.unwrap();
            assert!(!new.unchanged);
            assert_eq!(new.kernel.as_deref(), Some(out.join("kernel").as_path()));
            assert!(fs::read(out.join("kernel")).unwrap().ends_with(b"6.2"));
            assert_eq!(fs::read(out.join("initrd")).unwrap(), b"6.2");
            assert_eq!(new.version.as_deref(), Some("6.2"));
            // Again: known by its stamp. With a file gone: taken out anew.
            assert_eq!(look().await.unwrap(), BootFiles { unchanged: true, ..new.clone() });
            fs::remove_file(out.join("initrd")).unwrap();
            assert_eq!(look().await.unwrap(), new);
            let mut left: Vec<_> =
                fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            left.sort();
            assert_eq!(left, ["boot.json", "initrd", "kernel"]);
            // A raw disk, and one for which another architecture is wanted.
            let raw = images.boot_files_of_disk(&upgraded, DiskFormat::Raw, &out, Arch::Amd64).await.unwrap();
            assert_eq!(raw.version.as_deref(), Some("6.2"));
        });
    }

    #[test]
    fn a_disk_without_a_system_boots_through_firmware() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tmp = tempfile::tempdir().unwrap();
        let images = Images::new(Store::open(&tmp.path().join("home")).unwrap());
        let disk = tmp.path().join("disk");
        fs::write(&disk, vec![0u8; 2 << 20]).unwrap();
        let files =
            rt.block_on(images.boot_files_of_disk(&disk, DiskFormat::Raw, tmp.path(), Arch::Amd64)).unwrap();
        assert_eq!((files.kernel, files.initrd), (None, None));
        assert!(files.notes[0].contains("boots through firmware"), "{:?}", files.notes);
    }
}
