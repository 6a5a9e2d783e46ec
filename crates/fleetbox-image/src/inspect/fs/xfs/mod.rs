//! XFS, versions 4 and 5, read only.
//!
//! Layout: "XFS Algorithms & Data Structures", 3rd edition, and Linux' fs/xfs/libxfs/xfs_format.h and xfs_da_format.h.
//! The log is not replayed; [`log::is_clean`] tells whether that leaves something out.
//!
//! Own code, because the reader must stream large files, take any feature that Linux 6.12's mkfs sets, and never
//! allocate by a number on the disk; the crates that exist read whole files into memory.

mod dir;
mod log;

use super::{FileSystem, FsError, Held, Kind, Piece, Pieces, ReadFile, Stat, components};
use crate::inspect::bytes::{be16, be32, be64, field, uuid};
use crate::inspect::disk::Window;

/// Incompatible features whose on-disk changes are understood: ftype, sparse inodes, meta_uuid, bigtime, needs-repair,
/// nrext64, exchange-range, parent pointers, metadata directories. Unknown: zoned devices and what is to come.
const KNOWN_INCOMPAT: u32 = 0x1ff;
/// Extents of one file: real kernels have a handful.
const MAX_EXTENTS: usize = 1 << 18;
const MAX_LEVELS: u16 = 9;

#[derive(Debug, Clone)]
pub(super) struct Geometry {
    block_size: u64,
    block_log: u32,
    blocks: u64,
    ag_blocks: u64,
    ag_count: u64,
    ag_block_log: u32,
    inode_size: usize,
    inodes_per_block_log: u32,
    root_inode: u64,
    dir_block_log: u32,
    log_start: u64,
    log_blocks: u64,
    /// Entries of folders have a byte that tells the kind.
    ftype: bool,
    v5: bool,
    uuid: Option<String>,
    label: Option<String>,
}

impl Geometry {
    fn parse(sb: &[u8]) -> Result<Self, FsError> {
        let damaged = |what| Err(FsError::Damaged(what));
        if !sb.starts_with(b"XFSB") {
            return damaged("it has no XFS magic");
        }
        let (block_size, block_log) = (u64::from(be32(sb, 4)), u32::from(sb[120]));
        if !(9..=16).contains(&block_log) || block_size != 1 << block_log {
            return damaged("its block size is impossible");
        }
        let version = be16(sb, 100);
        let v5 = match version & 0xf {
            4 => false,
            5 => true,
            v => return Err(FsError::Unsupported(format!("version {v} of XFS"))),
        };
        let incompat = if v5 { be32(sb, 216) } else { 0 };
        if incompat & !KNOWN_INCOMPAT != 0 {
            let unknown = incompat & !KNOWN_INCOMPAT;
            return Err(FsError::Unsupported(format!("XFS with the incompatible features {unknown:#x}")));
        }
        let (inode_size, inode_log) = (be16(sb, 104), u32::from(sb[122]));
        if !(8..=11).contains(&inode_log) || inode_size != 1 << inode_log || inode_log > block_log {
            return damaged("its inode size is impossible");
        }
        let (ag_blocks, ag_block_log) = (u64::from(be32(sb, 84)), u32::from(sb[124]));
        if ag_blocks == 0 || ag_block_log > 32 || ag_blocks > 1 << ag_block_log {
            return damaged("its allocation groups are impossible");
        }
        let dir_block_log = u32::from(sb[192]);
        if dir_block_log + block_log > 16 {
            return damaged("its folders' block size is impossible");
        }
        Ok(Self {
            block_size,
            block_log,
            blocks: be64(sb, 8),
            ag_blocks,
            ag_count: u64::from(be32(sb, 88)),
            ag_block_log,
            inode_size: usize::from(inode_size),
            inodes_per_block_log: block_log - inode_log,
            root_inode: be64(sb, 56),
            dir_block_log,
            log_start: be64(sb, 48),
            log_blocks: u64::from(be32(sb, 96)),
            ftype: if v5 { incompat & 1 != 0 } else { be32(sb, 200) & 0x200 != 0 },
            v5,
            uuid: uuid(&sb[32..48]),
            label: field(&sb[108..120]),
        })
    }

    /// Byte position of a file system block, which is numbered by allocation group.
    fn block(&self, fsb: u64) -> Result<u64, FsError> {
        let (ag, block) = (fsb >> self.ag_block_log, fsb & ((1 << self.ag_block_log) - 1));
        let linear = ag.checked_mul(self.ag_blocks).and_then(|b| b.checked_add(block));
        linear
            .filter(|&b| ag < self.ag_count && block < self.ag_blocks && b < self.blocks)
            .and_then(|b| b.checked_mul(self.block_size))
            .ok_or(FsError::Damaged("a block number is beyond its end"))
    }

    fn inode(&self, number: u64) -> Result<u64, FsError> {
        let fsb = number >> self.inodes_per_block_log;
        let slot = number & ((1 << self.inodes_per_block_log) - 1);
        Ok(self.block(fsb)? + slot * self.inode_size as u64)
    }
}

pub(super) struct Xfs {
    window: Window,
    geometry: Geometry,
    clean: bool,
}

/// An inode and its data fork.
struct Inode {
    stat: Stat,
    format: u8,
    extents: u64,
    fork: Vec<u8>,
}

impl Xfs {
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let geometry = Geometry::parse(&window.bytes(0, 512)?)?;
        let clean = log::is_clean(&window, &geometry)?;
        Ok(Self { window, geometry, clean })
    }

    fn read_inode(&self, number: u64) -> Result<Inode, FsError> {
        let raw = self.window.bytes(self.geometry.inode(number)?, self.geometry.inode_size)?;
        if !raw.starts_with(b"IN") {
            return Err(FsError::Damaged("an inode has no magic"));
        }
        let core = match raw[4] {
            3 => 176,
            1 | 2 => 100,
            _ => return Err(FsError::Damaged("an inode is of an unknown version")),
        };
        let flags2 = if raw[4] == 3 { be64(&raw, 120) } else { 0 };
        let extents = if flags2 & (1 << 4) != 0 { be64(&raw, 24) } else { u64::from(be32(&raw, 76)) };
        let mtime = if flags2 & (1 << 3) != 0 {
            // Nanoseconds since -2^31 s.
            let t = be64(&raw, 40);
            ((t / 1_000_000_000).cast_signed() - (1 << 31), (t % 1_000_000_000) as u32)
        } else {
            (i64::from(be32(&raw, 40).cast_signed()), be32(&raw, 44))
        };
        let kind = match be16(&raw, 2) & 0xf000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Folder,
            0xa000 => Kind::Link,
            _ => Kind::Other,
        };
        let end = match usize::from(raw[82]) * 8 {
            0 => raw.len(),
            fork => core + fork,
        };
        let fork = raw.get(core..end).ok_or(FsError::Damaged("an inode's fork is beyond its end"))?.to_vec();
        Ok(Inode { stat: Stat { kind, len: be64(&raw, 56), mtime }, format: raw[5], extents, fork })
    }

    fn find(&self, path: &str) -> Result<Inode, FsError> {
        let mut inode = self.read_inode(self.geometry.root_inode)?;
        for name in components(path) {
            let mut found = None;
            self.each_entry(&inode, &mut |entry, number| {
                if entry == name.as_bytes() {
                    found = Some(number);
                }
                found.is_none()
            })?;
            inode = self.read_inode(found.ok_or(FsError::NotFound)?)?;
        }
        Ok(inode)
    }

    /// The extents of a file in its own order. Those that are allocated and not written read as zeros.
    fn extents(&self, inode: &Inode) -> Result<Vec<Piece>, FsError> {
        let mut pieces = Vec::new();
        match inode.format {
            2 => {
                let count = usize::try_from(inode.extents).unwrap_or(usize::MAX);
                for record in inode.fork.chunks_exact(16).take(count) {
                    pieces.push(self.extent(record)?);
                }
                if pieces.len() != count {
                    return Err(FsError::Damaged("an inode claims more extents than it has"));
                }
            }
            3 => {
                let (level, count) = (be16(&inode.fork, 0), usize::from(be16(&inode.fork, 2)));
                let most = inode.fork.len().saturating_sub(4) / 16;
                if count > most || level == 0 || level > MAX_LEVELS {
                    return Err(FsError::Damaged("an inode's tree of extents is impossible"));
                }
                for i in 0..count {
                    self.walk(be64(&inode.fork, 4 + most * 8 + i * 8), level - 1, &mut pieces)?;
                }
            }
            _ => return Err(FsError::Damaged("a file has no extents")),
        }
        Ok(pieces)
    }

    fn extent(&self, record: &[u8]) -> Result<Piece, FsError> {
        let (high, low) = (be64(record, 0), be64(record, 8));
        let unwritten = high >> 63 != 0;
        let from = ((high & 0x1ff) << 43) | (low >> 21);
        let piece = Piece {
            at: ((high & !(1 << 63)) >> 9) << self.geometry.block_log,
            len: (low & 0x1f_ffff) << self.geometry.block_log,
            disk: if unwritten { None } else { Some(self.geometry.block(from)?) },
        };
        if piece.at >> self.geometry.block_log != (high & !(1 << 63)) >> 9 {
            return Err(FsError::Damaged("an extent is too far into its file"));
        }
        Ok(piece)
    }

    fn walk(&self, fsb: u64, level: u16, pieces: &mut Vec<Piece>) -> Result<(), FsError> {
        let g = &self.geometry;
        let block = self.window.bytes(g.block(fsb)?, g.block_size as usize)?;
        let (magic, header): (&[u8], _) = if g.v5 { (b"BMA3", 72) } else { (b"BMAP", 24) };
        // The level must go down by one each time, so the walk ends whatever the blocks say.
        if !block.starts_with(magic) || be16(&block, 4) != level {
            return Err(FsError::Damaged("a block of a tree of extents is not what it should be"));
        }
        let (count, most) = (usize::from(be16(&block, 6)), (block.len() - header) / 16);
        if count > most {
            return Err(FsError::Damaged("a block of a tree of extents has too many records"));
        }
        for i in 0..count {
            if level == 0 {
                pieces.push(self.extent(&block[header + i * 16..][..16])?);
            } else {
                self.walk(be64(&block, header + most * 8 + i * 8), level - 1, pieces)?;
            }
            // Also the bound of a tree whose branches meet again.
            if pieces.len() > MAX_EXTENTS {
                return Err(FsError::Unsupported(format!("a file of more than {MAX_EXTENTS} extents")));
            }
        }
        Ok(())
    }

    fn data(&self, inode: &Inode, len: u64) -> Result<Pieces, FsError> {
        Pieces::new(self.window.clone(), self.extents(inode)?, len)
    }
}

impl FileSystem for Xfs {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn uuid(&self) -> Option<String> {
        self.geometry.uuid.clone()
    }

    fn label(&self) -> Option<String> {
        self.geometry.label.clone()
    }

    fn unreplayed(&self) -> Option<&'static str> {
        (!self.clean)
            .then_some("the log of its XFS was not replayed: the last changes before a crash are not seen")
    }

    fn stat(&self, path: &str) -> Result<Stat, FsError> {
        Ok(self.find(path)?.stat)
    }

    fn read_link(&self, path: &str) -> Result<String, FsError> {
        let inode = self.find(path)?;
        let Stat { kind: Kind::Link, len, .. } = inode.stat else { return Err(FsError::NotAFile) };
        if len == 0 || len > 1024 {
            return Err(FsError::Damaged("a link has an impossible length"));
        }
        let len = len as usize;
        let target = match inode.format {
            1 => inode.fork.get(..len).ok_or(FsError::Damaged("a link is cut short"))?.to_vec(),
            _ => {
                // In version 5, each block of it begins with a header of 56 bytes; all fit into one block of 1 KiB,
                // and with blocks of 512 bytes there may be three.
                let (skip, per_block) = match self.geometry.v5 {
                    true => (56, self.geometry.block_size as usize - 56),
                    false => (0, self.geometry.block_size as usize),
                };
                let mut file = self.data(&inode, u64::MAX)?;
                let mut target = Vec::new();
                while target.len() < len {
                    let block = (target.len() / per_block) as u64;
                    file.seek(block * self.geometry.block_size + skip as u64);
                    let mut part = vec![0; per_block.min(len - target.len())];
                    fill(&mut file, &mut part)?;
                    target.append(&mut part);
                }
                target
            }
        };
        String::from_utf8(target).map_err(|_| FsError::Damaged("a link is not text"))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let inode = self.find(path)?;
        let mut names = Vec::new();
        self.each_entry(&inode, &mut |name, _| {
            if let Ok(name) = std::str::from_utf8(name)
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
            names.len() < super::MAX_ENTRIES
        })?;
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadFile>, FsError> {
        let inode = self.find(path)?;
        if inode.stat.kind != Kind::File {
            return Err(FsError::NotAFile);
        }
        if inode.format == 1 {
            let len = usize::try_from(inode.stat.len).unwrap_or(usize::MAX);
            let bytes = inode.fork.get(..len).ok_or(FsError::Damaged("a file is cut short"))?.to_vec();
            return Ok(Box::new(Held { bytes, at: 0 }));
        }
        Ok(Box::new(self.data(&inode, inode.stat.len)?))
    }
}

fn fill(file: &mut Pieces, to: &mut [u8]) -> Result<(), FsError> {
    let mut done = 0;
    while done < to.len() {
        match file.read(&mut to[done..])? {
            0 => return Err(FsError::Damaged("a file is cut short")),
            n => done += n,
        }
    }
    Ok(())
}
