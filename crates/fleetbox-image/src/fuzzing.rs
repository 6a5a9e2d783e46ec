//! The parsers of foreign bytes, for `fuzz/`. Not part of the API.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;

use crate::qcow2::Header;
use crate::unpack::{Limits, unpack};
use crate::{inspect, model, task};

pub use crate::inspect::fuzz::{bls, btrfs, ext4, extlinux, fat, gpt_mbr, grub_cfg, kernel, uki, xfs};

/// A file in memory.
fn file(bytes: &[u8]) -> io::Result<File> {
    let fd: OwnedFd = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

/// A name under which such a file can be opened again.
fn path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The header of a qcow2 file.
pub fn qcow2_header(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        let _ = (header.check_importable(1 << 20), header.check_no_backing(bytes), header.backing(bytes));
    }
}

/// An os-release(5) file.
pub fn os_release(bytes: &[u8]) {
    if let Some(name) = model::os_name(&String::from_utf8_lossy(bytes)) {
        assert!(!name.is_empty() && !name.contains(char::is_control), "{name:?} ends up on terminals");
    }
}

/// The disk image in a file.
///
/// # Errors
/// When there is no memory for the files.
pub fn unpacking(bytes: &[u8]) -> io::Result<()> {
    const MOST: u64 = 1 << 20;
    let (from, to) = (file(bytes)?, file(b"")?);
    let (task, _hang_up) = task::unattended()?;
    let dir = std::env::temp_dir().join("unpacked");
    let limits = Limits::small(bytes.len() as u64, MOST, MOST / 2);
    let result = unpack(&from, Path::new("fuzzed"), &to, &dir, limits, &task);
    let len = to.metadata()?.len();
    assert!(len <= MOST, "{len} bytes written, {result:?}");
    Ok(())
}

/// A disk that begins with these bytes, and has `len` of them, which are zero behind.
///
/// # Errors
/// When there is no memory for the files.
pub fn disk(bytes: &[u8], len: u64) -> io::Result<()> {
    let disk = file(bytes)?;
    disk.set_len(len)?;
    inspect_file(disk)
}

/// A disk of which only the blocks that are not zero are given, so that whole file systems are small: pieces of a
/// number (2 bytes, little-endian), a count (1 byte), and so many blocks of 512 bytes from that number on.
///
/// # Errors
/// When there is no memory for the files.
pub fn sparse_disk(mut bytes: &[u8]) -> io::Result<()> {
    let disk = file(b"")?;
    let mut end = 2 << 20;
    while let [low, high, count, rest @ ..] = bytes {
        let at = u64::from(u16::from_le_bytes([*low, *high])) * 512;
        let (blocks, rest) = rest.split_at(rest.len().min(usize::from(*count) * 512));
        disk.write_all_at(blocks, at)?;
        end = end.max((at + blocks.len() as u64).next_multiple_of(512));
        bytes = rest;
    }
    disk.set_len(end)?;
    inspect_file(disk)
}

fn inspect_file(disk: File) -> io::Result<()> {
    let (kernel, initrd) = (file(b"")?, file(b"")?);
    let (task, _hang_up) = task::unattended()?;
    let name = path(&disk);
    let _ = inspect::inspect(disk, &name, &path(&kernel), &path(&initrd), &task);
    Ok(())
}
