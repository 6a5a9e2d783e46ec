//! A machine's qcow2 disk with its backing files, read as its guest would see it.
//!
//! Own code rather than a qemu-nbd: a read costs microseconds instead of a process start, nothing can be left running,
//! and the files are fleetbox' own, so of the format only what `qemu-img create` and QEMU's writing make is needed.
//! Nobody may write the disk meanwhile. Format: QEMU's docs/interop/qcow2.rst.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fleetbox_spec::DiskFormat;

use crate::ImageError;
use crate::inspect::{Disk, RawDisk, ReadAt};
use crate::qcow2::{Header, Qcow2Problem};

/// Disks have one backing file, the image. More may come of what people do with qemu-img; a ring of them ends here.
const MAX_CHAIN: usize = 8;
/// Tables kept: each maps 512 MiB of a disk with clusters of 64 KiB.
const MAX_TABLES: usize = 64;

/// As in QEMU (QCOW_MAX_L1_SIZE): 32 MiB.
const MAX_L1: usize = (32 << 20) / 8;

const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// A disk and where its image is.
pub(crate) struct Opened {
    pub(crate) disk: Disk,
    /// The files of the chain behind the disk's own, nearest first.
    pub(crate) backing: Vec<PathBuf>,
}

/// Opens a disk.
pub(crate) fn open(path: &Path, format: DiskFormat) -> Result<Opened, ImageError> {
    let mut backing = Vec::new();
    let disk = open_one(path, format, &mut backing)?;
    Ok(Opened { disk, backing })
}

fn open_one(path: &Path, format: DiskFormat, backing: &mut Vec<PathBuf>) -> Result<Disk, ImageError> {
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    if format == DiskFormat::Raw {
        return Ok(Rc::new(RawDisk::new(file).map_err(ImageError::io("look at", path))?));
    }
    let bad = |reason: Qcow2Problem| ImageError::BadQcow2 { path: path.to_owned(), reason };
    // Backing file's name and extensions lie in the first cluster, in practice within the first kilobyte.
    let mut head = Vec::new();
    (&file).take(64 << 10).read_to_end(&mut head).map_err(ImageError::io("read", path))?;
    let header = Layout::parse(&head).map_err(bad)?;
    let mut below = None;
    if let Some((name, format)) = &header.backing {
        if backing.len() >= MAX_CHAIN {
            return Err(bad(Qcow2Problem::BackingDepth(MAX_CHAIN)));
        }
        let name = path.parent().unwrap_or(Path::new("/")).join(name);
        backing.push(name.clone());
        below = Some(open_one(&name, *format, backing)?);
    }
    if header.l1_entries > MAX_L1 {
        return Err(bad(Qcow2Problem::HugeL1(header.l1_entries as u64)));
    }
    let mut l1 = vec![0u8; header.l1_entries * 8];
    file.read_exact_at(&mut l1, header.l1_offset).map_err(ImageError::io("read", path))?;
    Ok(Rc::new(Overlay {
        file,
        size: header.size,
        cluster_bits: header.cluster_bits,
        zstd: header.zstd,
        l1: entries(&l1),
        tables: RefCell::default(),
        below,
    }))
}

fn entries(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|b| u64::from_be_bytes(*b)).collect()
}

/// What of the header says where things are.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    size: u64,
    cluster_bits: u32,
    l1_entries: usize,
    l1_offset: u64,
    zstd: bool,
    backing: Option<(PathBuf, DiskFormat)>,
}

impl Layout {
    fn parse(head: &[u8]) -> Result<Self, Qcow2Problem> {
        let be32 = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let be64 = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let size = Header::parse(head)?.virtual_size;
        let short = || Qcow2Problem::CutShort;
        let version = be32(4).ok_or_else(short)?;
        let incompatible = if version >= 3 { be64(72).ok_or_else(short)? } else { 0 };
        for (bit, what) in [
            (CORRUPT, Qcow2Problem::Corrupt),
            (EXTERNAL_DATA, Qcow2Problem::ExternalData),
            (EXTENDED_L2, Qcow2Problem::ExtendedL2),
        ] {
            if incompatible & bit != 0 {
                return Err(what);
            }
        }
        if be32(32) != Some(0) {
            return Err(Qcow2Problem::Encrypted);
        }
        let header_len = if version >= 3 { be32(100).ok_or_else(short)? as usize } else { 72 };
        let backing = match (be64(8).ok_or_else(short)?, be32(16).ok_or_else(short)?) {
            (0, _) => None,
            (at, len @ 1..=1023) => {
                use std::os::unix::ffi::OsStrExt;
                let at = usize::try_from(at).map_err(|_| short())?;
                let name = head.get(at..at.saturating_add(len as usize)).ok_or_else(short)?;
                // Never by a look at its content: a guest of a raw image can write any header into it.
                let format = backing_format(head, header_len).ok_or(Qcow2Problem::BackingFormatMissing)?;
                Some((PathBuf::from(std::ffi::OsStr::from_bytes(name)), format))
            }
            _ => return Err(Qcow2Problem::BackingName),
        };
        Ok(Self {
            size,
            cluster_bits: be32(20).ok_or_else(short)?,
            l1_entries: be32(36).ok_or_else(short)? as usize,
            l1_offset: be64(40).ok_or_else(short)?,
            zstd: header_len > 104 && head.get(104) == Some(&1),
            backing,
        })
    }
}

/// The header extension that names the backing file's format.
fn backing_format(head: &[u8], mut at: usize) -> Option<DiskFormat> {
    const FORMAT: u32 = 0xe279_2aca;
    for _ in 0..32 {
        let kind = u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?);
        let len = u32::from_be_bytes(head.get(at + 4..at + 8)?.try_into().ok()?) as usize;
        let data = head.get(at + 8..(at + 8).checked_add(len)?)?;
        match (kind, data) {
            (0, _) => return None,
            (FORMAT, b"raw") => return Some(DiskFormat::Raw),
            (FORMAT, b"qcow2") => return Some(DiskFormat::Qcow2),
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
    None
}

struct Overlay {
    file: File,
    size: u64,
    cluster_bits: u32,
    zstd: bool,
    l1: Vec<u64>,
    tables: RefCell<HashMap<u64, Rc<Vec<u64>>>>,
    below: Option<Disk>,
}

impl Overlay {
    fn table(&self, at: u64) -> io::Result<Rc<Vec<u64>>> {
        if let Some(table) = self.tables.borrow().get(&at) {
            return Ok(Rc::clone(table));
        }
        let mut bytes = vec![0u8; 1 << self.cluster_bits];
        self.file.read_exact_at(&mut bytes, at)?;
        let table = Rc::new(entries(&bytes));
        let mut tables = self.tables.borrow_mut();
        if tables.len() >= MAX_TABLES {
            tables.clear();
        }
        tables.insert(at, Rc::clone(&table));
        Ok(table)
    }

    /// Reads within one cluster.
    fn read_cluster(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let per_table = 1u64 << (self.cluster_bits - 3);
        let cluster = at >> self.cluster_bits;
        let l1 = usize::try_from(cluster / per_table).ok().and_then(|i| self.l1.get(i)).copied();
        let entry = match l1.unwrap_or(0) & OFFSET {
            0 => 0,
            table => self.table(table)?[(cluster % per_table) as usize],
        };
        let inside = at & ((1 << self.cluster_bits) - 1);
        if entry & (1 << 62) != 0 {
            return self.read_compressed(entry, inside, to);
        }
        match (entry & OFFSET, entry & 1) {
            (_, 1) => to.fill(0),
            (0, _) => self.read_below(at, to)?,
            (offset, _) => self.file.read_exact_at(to, offset + inside)?,
        }
        Ok(())
    }

    fn read_below(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        // A disk may be larger than its image: zeros follow.
        let have = self.below.as_ref().map_or(0, |b| b.size().saturating_sub(at));
        let n = usize::try_from(have).unwrap_or(usize::MAX).min(to.len());
        if let (Some(below), true) = (&self.below, n > 0) {
            below.read_at(at, &mut to[..n])?;
        }
        to[n..].fill(0);
        Ok(())
    }

    fn read_compressed(&self, entry: u64, inside: u64, to: &mut [u8]) -> io::Result<()> {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & !(3 << 62)) >> offset_bits) + 1;
        let len = sectors * 512 - offset % 512;
        let mut bytes = vec![0u8; usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?];
        // The last sector may be the file's last and cut short.
        let mut have = 0;
        while have < bytes.len() {
            match FileExt::read_at(&self.file, &mut bytes[have..], offset + have as u64)? {
                0 => break,
                n => have += n,
            }
        }
        let from = inside as usize;
        let mut unpacked = Vec::new();
        let limit = 1u64 << self.cluster_bits;
        if self.zstd {
            ruzstd::decoding::StreamingDecoder::new(&bytes[..have])
                .map_err(|_| io::ErrorKind::InvalidData)?
                .take(limit)
                .read_to_end(&mut unpacked)?;
        } else {
            flate2::read::DeflateDecoder::new(&bytes[..have]).take(limit).read_to_end(&mut unpacked)?;
        }
        let have = unpacked.get(from..from + to.len()).ok_or(io::ErrorKind::InvalidData)?;
        to.copy_from_slice(have);
        Ok(())
    }
}

impl ReadAt for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, mut at: u64, mut to: &mut [u8]) -> io::Result<()> {
        if at.checked_add(to.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !to.is_empty() {
            let left = (1 << self.cluster_bits) - (at & ((1 << self.cluster_bits) - 1));
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(to.len());
            let (now, later) = to.split_at_mut(n);
            self.read_cluster(at, now)?;
            to = later;
            at += n as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    /// False where the tool lacks.
    fn run(tool: &str, args: &[&str], dir: &Path) -> bool {
        let status = Command::new(tool).args(args).current_dir(dir).stdout(Stdio::null()).status();
        match status {
            Ok(s) => {
                assert!(s.success(), "{tool} {args:?}");
                true
            }
            Err(_) => {
                eprintln!("skipped: {tool} is not installed (Debian package qemu-utils)");
                false
            }
        }
    }

    fn all(disk: &Disk) -> Vec<u8> {
        let mut bytes = vec![0xee; disk.size() as usize];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn as_qemu_writes_them() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let image: Vec<u8> = (0..300_000u32).map(|i| (i / 512) as u8).collect();
        std::fs::write(dir.join("image.raw"), &image).unwrap();
        if !run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "image.raw", "disk", "1M"],
            dir,
        ) {
            return;
        }
        let mut want = image.clone();
        want.resize(1 << 20, 0);
        let opened = open(&dir.join("disk"), DiskFormat::Qcow2).unwrap();
        assert_eq!(all(&opened.disk), want);
        assert_eq!(opened.backing, [dir.join("image.raw")]);
        if !run(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                "write -P 7 66000 70000",
                "-c",
                "write -z 131072 65536",
                "-c",
                "write -P 9 900k 10k",
                "disk",
            ],
            dir,
        ) {
            return;
        }
        want[66000..136_000].fill(7);
        want[131_072..196_608].fill(0);
        want[900 << 10..910 << 10].fill(9);
        assert_eq!(all(&open(&dir.join("disk"), DiskFormat::Qcow2).unwrap().disk), want);
        for how in ["zlib", "zstd"] {
            let option = format!("compression_type={how}");
            assert!(run(
                "qemu-img",
                &["convert", "-q", "-c", "-O", "qcow2", "-o", &option, "disk", how],
                dir
            ));
            assert_eq!(all(&open(&dir.join(how), DiskFormat::Qcow2).unwrap().disk), want, "{how}");
        }
        // A chain of two; and one whose backing file is gone.
        assert!(run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "disk", "top"], dir));
        assert_eq!(all(&open(&dir.join("top"), DiskFormat::Qcow2).unwrap().disk), want);
        std::fs::remove_file(dir.join("image.raw")).unwrap();
        assert!(matches!(open(&dir.join("top"), DiskFormat::Qcow2), Err(ImageError::Io { .. })));
    }

    #[test]
    fn a_ring_of_backing_files_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        std::fs::write(dir.join("b"), vec![0u8; 1 << 20]).unwrap();
        if !run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "b", "a"], dir) {
            return;
        }
        assert!(run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "a", "c"], dir));
        assert!(run("qemu-img", &["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "c", "a"], dir));
        let Err(ImageError::BadQcow2 { reason, .. }) = open(&dir.join("c"), DiskFormat::Qcow2) else {
            panic!()
        };
        assert!(matches!(reason, Qcow2Problem::BackingDepth(_)), "{reason}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let tmp = tempfile::tempdir().unwrap();
            let mut file = vec![0u8; 512];
            file[..4].copy_from_slice(&crate::qcow2::MAGIC);
            file[7] = 3;
            file[23] = 9;
            file[30] = 16;
            file[39] = 2;
            file[46] = 2;
            file[103] = 104;
            file.extend(bytes);
            file.extend(tail);
            std::fs::write(tmp.path().join("d"), &file).unwrap();
            if let Ok(opened) = open(&tmp.path().join("d"), DiskFormat::Qcow2) {
                let mut to = [0u8; 700];
                let _ = opened.disk.read_at(100, &mut to);
            }
        }
    }
}
