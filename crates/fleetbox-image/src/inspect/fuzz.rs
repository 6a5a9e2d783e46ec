//! Each reader of foreign bytes as a function of bytes, for fuzz targets.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::disk::Window;
use super::fs::{self, Holds};
use super::loader::pure;
use super::tree::Tree;
use super::{kernel as kernels, loader, partition};

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// grub.cfg; what stands before a NUL is its environment block.
pub fn grub_cfg(bytes: &[u8]) {
    let (env, cfg) = match bytes.iter().position(|&b| b == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&b""[..], bytes),
    };
    for entry in pure::grub(&lossy(cfg), &pure::grubenv(&lossy(env))).entries {
        let _ = loader::Args::parse(&entry.args);
    }
}

/// Entries of the Boot Loader Specification, separated by NUL.
pub fn bls(bytes: &[u8]) {
    let text = lossy(bytes);
    let files: Vec<pure::BlsFile> = text
        .split('\0')
        .take(64)
        .map(|t| pure::BlsFile { name: t.chars().take(8).collect(), text: t.to_owned() })
        .collect();
    let _ = pure::bls(&files, Some("a*b"), &BTreeMap::from([("kernelopts".to_owned(), "root=x".to_owned())]));
}

/// extlinux.conf.
pub fn extlinux(bytes: &[u8]) {
    let _ = pure::extlinux(&lossy(bytes), "/boot/extlinux");
}

/// A disk's partition table.
pub fn gpt_mbr(bytes: &[u8]) {
    let disk = bytes.to_vec();
    if let Ok(Ok(table)) = partition::read(&disk) {
        for p in table.partitions {
            assert!(p.start + p.len <= bytes.len() as u64, "a partition beyond the disk");
        }
    }
}

/// Walks a file system: all folders down to the fourth, the beginning of each file, each link.
fn walk(holds: Holds, bytes: &[u8]) {
    let window = Window::new(Rc::new(bytes.to_vec()), 0, bytes.len() as u64);
    let Some(Ok(fs)) = fs::open(holds, &window) else { return };
    let _ = (fs.uuid(), fs.label(), fs.unreplayed());
    let tree = Tree::new(fs);
    let mut folders = vec![String::new()];
    for _ in 0..4 {
        let mut below = Vec::new();
        for folder in folders.iter().take(16) {
            for name in tree.list(&format!("{folder}/")).into_iter().take(64) {
                let path = format!("{folder}/{name}");
                let _ = tree.head(&path, 300 << 10);
                below.push(path);
            }
        }
        folders = below;
    }
}

/// An ext4 file system.
pub fn ext4(bytes: &[u8]) {
    walk(Holds::Ext4, bytes);
}

/// An XFS file system.
pub fn xfs(bytes: &[u8]) {
    walk(Holds::Xfs, bytes);
}

/// A btrfs file system; it begins at 64 KiB, so with that much that does not matter left out.
pub fn btrfs(bytes: &[u8]) {
    let mut disk = vec![0u8; 64 << 10];
    disk.extend_from_slice(bytes);
    walk(Holds::Btrfs, &disk);
}

/// A FAT file system.
pub fn fat(bytes: &[u8]) {
    walk(Holds::Fat, bytes);
}

/// The head of a kernel.
pub fn kernel(bytes: &[u8]) {
    let _ = kernels::recognize(bytes, bytes.len() as u64);
    let _ = kernels::elf_arch(bytes);
}

/// A unified kernel image.
pub fn uki(bytes: &[u8]) {
    let mut file = b"MZ".to_vec();
    file.resize(0x3c, 0);
    file.extend(0x40u32.to_le_bytes());
    file.extend(b"PE\0\0");
    file.extend_from_slice(bytes);
    let len = file.len() as u64;
    if let kernels::Form::Unified(u) = kernels::recognize(&file, len) {
        for r in [Some(u.linux), u.initrd, u.cmdline, u.uname].into_iter().flatten() {
            assert!(r.at + r.len <= len, "a section beyond the file");
        }
    }
}
