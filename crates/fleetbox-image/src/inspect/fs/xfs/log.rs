//! Whether the log of an XFS has anything that a mount would replay.
//!
//! The log is a ring of 512-byte blocks, each stamped with the number of the round that it was written in. Its head is
//! where the round before begins. A clean unmount leaves, as the last record before the head, one that says so.
//! Linux: fs/xfs/xfs_log_recover.c, xlog_find_head and xlog_check_unmount_rec.

use super::{FsError, Geometry};
use crate::inspect::bytes::be32;
use crate::inspect::disk::Window;

const BLOCK: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// A record has at most 256 KiB and a header of at most 8 blocks.
const LONGEST_RECORD: u64 = 512 + 8;
const UNMOUNT: u8 = 0x20;

pub(super) fn is_clean(window: &Window, g: &Geometry) -> Result<bool, FsError> {
    if g.log_start == 0 {
        // On another device, which is not here: nothing can be said, so nothing is promised.
        return Ok(false);
    }
    let start = g.block(g.log_start)?;
    let blocks = g.log_blocks.saturating_mul(g.block_size) / BLOCK;
    if blocks < 2 || start.saturating_add(blocks * BLOCK) > window.len() {
        return Err(FsError::Damaged("its log is beyond its end"));
    }
    let log = Log { window, start, blocks };
    let head = log.head()?;
    // From the block before the head backwards, around the ring, to the last record's header.
    for back in 1..=LONGEST_RECORD.min(blocks) {
        let at = (head + blocks - back) % blocks;
        let block = log.block(at)?;
        if be32(&block, 0) != MAGIC {
            continue;
        }
        let header_blocks = match be32(&block, 8) & 2 {
            // Version 2 of the log: one header block for each 32 KiB of the size it was set up with.
            2 => u64::from(be32(&block, 320)).div_ceil(32 << 10).clamp(1, 8),
            _ => 1,
        };
        // One operation, and its header (12 bytes: transaction, length, client, flags) says "unmount".
        let first = log.block((at + header_blocks) % blocks)?;
        return Ok(be32(&block, 40) == 1 && first[9] & UNMOUNT != 0);
    }
    // Nothing was ever written: made, and never mounted, by a tool that writes no record.
    Ok(log.round(0)? == 0)
}

struct Log<'a> {
    window: &'a Window,
    start: u64,
    blocks: u64,
}

impl Log<'_> {
    fn block(&self, at: u64) -> Result<[u8; BLOCK as usize], FsError> {
        let mut block = [0; BLOCK as usize];
        self.window.read(self.start + at * BLOCK, &mut block)?;
        Ok(block)
    }

    fn round(&self, at: u64) -> Result<u32, FsError> {
        let block = self.block(at)?;
        Ok(if be32(&block, 0) == MAGIC { be32(&block, 4) } else { be32(&block, 0) })
    }

    /// The first block of the round before, else the beginning.
    fn head(&self) -> Result<u64, FsError> {
        let (first, last) = (self.round(0)?, self.round(self.blocks - 1)?);
        if first == last {
            return Ok(0);
        }
        let (mut low, mut high) = (0, self.blocks - 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.round(middle)? == last { high = middle } else { low = middle }
        }
        Ok(high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn geometry(blocks: u64) -> Geometry {
        let mut sb = vec![0u8; 512];
        sb[..4].copy_from_slice(b"XFSB");
        sb[4..8].copy_from_slice(&512u32.to_be_bytes());
        sb[8..16].copy_from_slice(&blocks.to_be_bytes());
        sb[48..56].copy_from_slice(&1u64.to_be_bytes());
        sb[84..88].copy_from_slice(&(blocks as u32).to_be_bytes());
        sb[88..92].copy_from_slice(&1u32.to_be_bytes());
        sb[96..100].copy_from_slice(&(blocks as u32 - 1).to_be_bytes());
        sb[100..102].copy_from_slice(&4u16.to_be_bytes());
        sb[104..106].copy_from_slice(&256u16.to_be_bytes());
        (sb[120], sb[122], sb[124]) = (9, 8, 10);
        Geometry::parse(&sb).unwrap()
    }

    /// A log of 16 blocks in round `round` up to `head`, the round before from there on; the last record is two blocks.
    fn log(round: u32, head: usize, ops: u32, flags: u8) -> bool {
        let mut disk = vec![0u8; 17 * 512];
        for i in 0..16usize {
            let r = if i < head { round } else { round - 1 };
            disk[(1 + i) * 512..][..4].copy_from_slice(&r.to_be_bytes());
        }
        let at = (1 + (head + 14) % 16) * 512;
        let r = if head >= 2 { round } else { round - 1 };
        disk[at..at + 4].copy_from_slice(&MAGIC.to_be_bytes());
        disk[at + 4..at + 8].copy_from_slice(&r.to_be_bytes());
        disk[at + 8..at + 12].copy_from_slice(&2u32.to_be_bytes());
        disk[at + 40..at + 44].copy_from_slice(&ops.to_be_bytes());
        disk[at + 320..at + 324].copy_from_slice(&(32u32 << 10).to_be_bytes());
        let body = (1 + (head + 15) % 16) * 512;
        disk[body + 9] = flags;
        is_clean(&Window::new(Rc::new(disk), 0, 17 * 512), &geometry(17)).unwrap()
    }

    #[test]
    fn the_last_record_decides() {
        for head in [2, 3, 9, 15] {
            assert!(log(5, head, 1, UNMOUNT), "{head}");
            assert!(!log(5, head, 7, UNMOUNT), "{head}");
            assert!(!log(5, head, 1, 0), "{head}");
        }
    }
}
