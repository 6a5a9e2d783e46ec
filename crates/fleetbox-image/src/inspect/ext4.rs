//! A root file system in ext4, read without mounting it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use fleetbox_spec::Arch;

use crate::ImageError;
use crate::model::os_name;
use crate::task::Task;

use super::partition::Extent;

/// The largest kernel or initramfs taken out of an image: real ones are a tenth of it.
const MAX_BOOT_FILE: u64 = 512 << 20;
/// The most entries of /boot that are looked at.
const MAX_BOOT_ENTRIES: usize = 4096;
const MAX_OS_RELEASE: u64 = 64 << 10;

/// The part of a disk that a file system is in.
struct Window {
    disk: File,
    extent: Extent,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        // A damaged file system may name any block: none outside of its own part of the disk is read.
        let inside = start.checked_add(to.len() as u64).is_some_and(|end| end <= self.extent.len);
        if !inside {
            return Err(Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        Ok(self.disk.read_exact_at(to, self.extent.start + start)?)
    }
}

/// What is in a part of a disk.
pub(super) enum Opened {
    /// An operating system.
    Root(Root),
    /// ext4 without an operating system.
    NoSystem,
    /// Not ext4.
    OtherFs,
    /// ext4, but unreadable; why.
    Bad(String),
}

/// A root file system.
pub(super) struct Root {
    fs: Ext4,
}

/// Looks for a root file system in a part of a disk.
pub(super) fn open(disk: &File, extent: Extent) -> io::Result<Opened> {
    // Superblock at 1024, magic at 0x38 in it. Kernel documentation, filesystems/ext4/super.
    let mut magic = [0u8; 2];
    if extent.len < 2048 {
        return Ok(Opened::OtherFs);
    }
    disk.read_exact_at(&mut magic, extent.start + 0x438)?;
    if magic != [0x53, 0xef] {
        return Ok(Opened::OtherFs);
    }
    // Loading replays the journal in memory: an image of a disk that was not unmounted is read as it would be mounted.
    let fs = match Ext4::load(Box::new(Window { disk: disk.try_clone()?, extent })) {
        Ok(fs) => fs,
        Err(e) => return Ok(Opened::Bad(e.to_string())),
    };
    let root = Root { fs };
    Ok(if root.os_release().is_some() { Opened::Root(root) } else { Opened::NoSystem })
}

impl Root {
    pub(super) fn uuid(&self) -> String {
        self.fs.uuid().to_string()
    }

    fn os_release(&self) -> Option<String> {
        ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| self.small_file(p, MAX_OS_RELEASE))
    }

    pub(super) fn os(&self) -> Option<String> {
        os_name(&self.os_release()?)
    }

    /// By a program that every system has.
    pub(super) fn arch(&self) -> Option<Arch> {
        [
            "/usr/lib/systemd/systemd",
            "/lib/systemd/systemd",
            "/usr/bin/bash",
            "/bin/bash",
            "/bin/busybox",
            "/bin/sh",
        ]
        .iter()
        .find_map(|p| {
            let mut head = [0u8; 20];
            let mut file = self.fs.open(*p).ok()?;
            let n = file.read_bytes(&mut head).ok()?;
            elf_arch(&head[..n])
        })
    }

    pub(super) fn has_cloud_init(&self) -> bool {
        self.fs.exists("/usr/bin/cloud-init").unwrap_or(false)
    }

    /// Names of the plain files in /boot.
    pub(super) fn boot_files(&self) -> Vec<String> {
        let Ok(dir) = self.fs.read_dir("/boot") else { return Vec::new() };
        dir.take(MAX_BOOT_ENTRIES)
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().as_str().ok()?.to_owned();
                entry.file_type().ok()?.is_regular_file().then_some(name)
            })
            .collect()
    }

    fn small_file(&self, path: &str, max: u64) -> Option<String> {
        // The size first: a damaged inode may claim any.
        (self.fs.metadata(path).ok()?.len() <= max).then(|| self.fs.read_to_string(path).ok())?
    }

    /// Copies a file out. The inner error says why the file system does not yield it.
    pub(super) fn extract(
        &self,
        from: &str,
        image: &Path,
        to: &Path,
        task: &Task,
    ) -> Result<Result<(), String>, ImageError> {
        let why = |e: &Ext4Error| Ok(Err(e.to_string()));
        let mut file = match self.fs.open(from) {
            Ok(file) => file,
            Err(e) => return why(&e),
        };
        let len = file.metadata().len();
        if len == 0 || len > MAX_BOOT_FILE {
            return Ok(Err(format!("it has {len} bytes")));
        }
        let mut out = File::create(to).map_err(ImageError::io("create", to))?;
        let mut buffer = vec![0u8; 256 << 10];
        let mut done = 0;
        loop {
            task.check()?;
            let n = match file.read_bytes(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return why(&e),
            };
            out.write_all(&buffer[..n]).map_err(ImageError::io("write", to))?;
            done += n as u64;
        }
        tracing::debug!(image = %image.display(), from, bytes = done, "extracted");
        Ok(Ok(()))
    }
}

/// `e_machine` of a 64-bit little-endian ELF header (elf(5)).
fn elf_arch(head: &[u8]) -> Option<Arch> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    match u16::from_le_bytes([*head.get(18)?, *head.get(19)?]) {
        0x3e => Some(Arch::Amd64),
        0xb7 => Some(Arch::Arm64),
        _ => None,
    }
}
