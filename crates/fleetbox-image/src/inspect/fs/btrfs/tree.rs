//! Chunks (logical to physical addresses) and B-trees.

use std::cell::Cell;
use std::ops::ControlFlow;

use crate::inspect::bytes::{le16, le32, le64};
use crate::inspect::disk::Window;
use crate::inspect::fs::FsError;

const MAX_LEVEL: u8 = 7;
/// Chunks are 256 MiB and more on real disks.
const MAX_CHUNKS: usize = 1 << 16;
/// Nodes read for one inspection. Branches that meet again could otherwise be walked for ever.
const MAX_NODES: u32 = 200_000;
const NODE_HEADER: usize = 101;
const CHUNK_ITEM: u8 = 228;

/// Object, type, offset: the order of every tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) u64, pub(super) u8, pub(super) u64);

impl Key {
    const SIZE: usize = 17;

    fn parse(bytes: &[u8]) -> Self {
        Self(le64(bytes, 0), bytes.get(8).copied().unwrap_or(0), le64(bytes, 9))
    }
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub(super) at: u64,
    pub(super) level: u8,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    logical: u64,
    len: u64,
    physical: u64,
}

type Each<'a> = &'a mut dyn FnMut(Key, &[u8]) -> Result<ControlFlow<()>, FsError>;

/// The trees of a file system.
pub(super) struct Trees {
    window: Window,
    node_size: usize,
    chunks: Vec<Chunk>,
    nodes_left: Cell<u32>,
    pub(super) sector_size: usize,
    pub(super) root_tree: Root,
}

impl Trees {
    pub(super) fn open(window: Window, sb: &[u8]) -> Result<Self, FsError> {
        let (sector_size, node_size) = (le32(sb, 144) as usize, le32(sb, 148) as usize);
        if !node_size.is_power_of_two() || !(4096..=65536).contains(&node_size) {
            return Err(FsError::Damaged("its node size is impossible"));
        }
        if !sector_size.is_power_of_two() || !(512..=65536).contains(&sector_size) {
            return Err(FsError::Damaged("its sector size is impossible"));
        }
        let mut trees = Self {
            window,
            node_size,
            chunks: Vec::new(),
            nodes_left: Cell::new(MAX_NODES),
            sector_size,
            root_tree: Root { at: le64(sb, 80), level: sb[198] },
        };
        // The few chunks that hold the tree of chunks.
        let mut system = sb
            .get(811..811 + le32(sb, 160) as usize)
            .filter(|s| s.len() <= 2048)
            .ok_or(FsError::Damaged("its system chunks do not fit"))?;
        while system.len() > Key::SIZE {
            let (key, item) = (Key::parse(system), &system[Key::SIZE..]);
            let size = 48 + 32 * usize::from(le16(item, 44));
            trees.add_chunk(key, item)?;
            system = item.get(size..).ok_or(FsError::Damaged("its system chunks are cut short"))?;
        }
        let chunk_root = Root { at: le64(sb, 88), level: sb[199] };
        let mut chunks = Vec::new();
        trees.range(chunk_root, Key(0, 0, 0), Key(u64::MAX, u8::MAX, u64::MAX), &mut |key, item| {
            if key.1 == CHUNK_ITEM {
                chunks.push((key, item.to_vec()));
            }
            if chunks.len() > MAX_CHUNKS {
                return Err(FsError::Unsupported(format!("btrfs of more than {MAX_CHUNKS} chunks")));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        trees.chunks.clear();
        for (key, item) in chunks {
            trees.add_chunk(key, &item)?;
        }
        trees.chunks.sort_by_key(|c| c.logical);
        Ok(trees)
    }

    fn add_chunk(&mut self, key: Key, item: &[u8]) -> Result<(), FsError> {
        // RAID0, RAID10, RAID5 and RAID6 spread a chunk; in all others the first copy is the whole of it.
        const SPREAD: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8;
        if le64(item, 24) & SPREAD != 0 {
            return Err(FsError::Unsupported("striped btrfs".to_owned()));
        }
        if key.1 != CHUNK_ITEM || item.len() < 80 || le16(item, 44) == 0 {
            return Err(FsError::Damaged("a chunk is impossible"));
        }
        self.chunks.push(Chunk { logical: key.2, len: le64(item, 0), physical: le64(item, 56) });
        Ok(())
    }

    /// Reads `len` bytes, which the caller has bounded, at a logical address.
    pub(super) fn read(&self, logical: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let mut bytes = vec![0; len];
        self.read_into(logical, &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn read_into(&self, mut logical: u64, mut to: &mut [u8]) -> Result<(), FsError> {
        // An extent may go on in the next chunk.
        while !to.is_empty() {
            let chunk = self
                .chunks
                .iter()
                .find(|c| logical >= c.logical && logical - c.logical < c.len)
                .ok_or(FsError::Damaged("an address is in no chunk"))?;
            let inside = logical - chunk.logical;
            let n = usize::try_from(chunk.len - inside).unwrap_or(usize::MAX).min(to.len());
            let (now, later) = to.split_at_mut(n);
            let at = chunk.physical.checked_add(inside);
            self.window.read(at.ok_or(FsError::Damaged("a chunk has no end"))?, now)?;
            to = later;
            logical = logical.wrapping_add(n as u64);
        }
        Ok(())
    }

    /// Calls `each` with the items whose keys lie between two, both included, in order.
    pub(super) fn range(&self, root: Root, from: Key, to: Key, each: Each<'_>) -> Result<(), FsError> {
        if root.level > MAX_LEVEL {
            return Err(FsError::Damaged("a tree is too high"));
        }
        self.walk(root, from, to, each).map(drop)
    }

    fn walk(&self, node: Root, from: Key, to: Key, each: Each<'_>) -> Result<ControlFlow<()>, FsError> {
        let damaged = || FsError::Damaged("a node of a tree is not what it should be");
        let left = self.nodes_left.get().checked_sub(1);
        self.nodes_left.set(left.ok_or(FsError::Damaged("its trees have no end"))?);
        let bytes = self.read(node.at, self.node_size)?;
        // Its own address and its level: neither a stale node nor a ring passes.
        if le64(&bytes, 48) != node.at || bytes[100] != node.level {
            return Err(damaged());
        }
        let count = le32(&bytes, 96) as usize;
        let size = if node.level == 0 { 25 } else { 33 };
        let table = count
            .checked_mul(size)
            .and_then(|n| bytes.get(NODE_HEADER..NODE_HEADER.checked_add(n)?))
            .ok_or_else(damaged)?;
        let keys: Vec<Key> = table.chunks_exact(size).map(Key::parse).collect();
        for (i, entry) in table.chunks_exact(size).enumerate() {
            if keys[i] > to {
                break;
            }
            let flow = if node.level == 0 {
                if keys[i] < from {
                    continue;
                }
                let at = NODE_HEADER + le32(entry, 17) as usize;
                let item = bytes.get(at..at + le32(entry, 21) as usize).ok_or_else(damaged)?;
                each(keys[i], item)?
            } else {
                // A branch holds the keys up to the next one's first.
                if keys.get(i + 1).is_some_and(|&next| next <= from) {
                    continue;
                }
                self.walk(Root { at: le64(entry, 17), level: node.level - 1 }, from, to, each)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
