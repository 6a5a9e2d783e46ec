//! Folders of XFS in all their forms: in the inode, one block, or many.

use super::{FsError, Inode, Kind, Xfs, fill};
use crate::inspect::bytes::{be16, be32, be64};

/// Where the blocks with entries end and those with hashes begin (XFS_DIR2_LEAF_OFFSET).
const LEAF_OFFSET: u64 = 32 << 30;

/// Of a folder's blocks, so many bytes are looked at: a hundred thousand entries.
const MAX_FOLDER: u64 = 16 << 20;

impl Xfs {
    /// Calls `each` with names and inode numbers until it answers false.
    pub(super) fn each_entry(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<(), FsError> {
        if inode.stat.kind != Kind::Folder {
            return Err(FsError::NotAFolder);
        }
        if inode.format == 1 {
            return short(&inode.fork, self.geometry.ftype, each);
        }
        let size = self.geometry.block_size << self.geometry.dir_block_log;
        let mut pieces = self.extents(inode)?;
        pieces.retain(|p| p.at < LEAF_OFFSET);
        pieces.sort_by_key(|p| p.at);
        // An extent has many blocks of entries, and with larger ones many extents a block.
        let blocks: Vec<(u64, u64)> =
            pieces.iter().map(|p| (p.at / size, p.at.saturating_add(p.len).div_ceil(size))).collect();
        let mut file = self.data(inode, LEAF_OFFSET)?;
        let mut next = 0;
        let mut left = MAX_FOLDER / size;
        for (from, to) in blocks {
            for number in from.max(next)..to {
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                file.seek(number * size);
                let mut block = vec![0; size as usize];
                fill(&mut file, &mut block)?;
                if !self.block_entries(&block, each)? {
                    return Ok(());
                }
                next = number + 1;
            }
        }
        Ok(())
    }

    /// False when the caller has enough.
    fn block_entries(&self, block: &[u8], each: &mut dyn FnMut(&[u8], u64) -> bool) -> Result<bool, FsError> {
        let ftype = usize::from(self.geometry.ftype);
        let (mut at, end) = match block.get(..4) {
            Some(b"XD2D") => (16, block.len()),
            Some(b"XDD3") => (64, block.len()),
            Some(b"XD2B") => (16, tail(block)?),
            Some(b"XDB3") => (64, tail(block)?),
            _ => return Err(FsError::Damaged("a block of a folder is not what it should be")),
        };
        while at < end {
            if be16(block, at) == 0xffff {
                match usize::from(be16(block, at + 2)) {
                    free if free >= 8 && free % 8 == 0 => at += free,
                    _ => return Err(FsError::Damaged("a gap in a folder is impossible")),
                }
                continue;
            }
            let name_len = usize::from(block.get(at + 8).copied().unwrap_or(0));
            let size = (8 + 1 + name_len + ftype + 2).next_multiple_of(8);
            let name = block.get(at + 9..at + 9 + name_len).filter(|_| name_len > 0 && at + size <= end);
            let name = name.ok_or(FsError::Damaged("an entry of a folder is impossible"))?;
            if !each(name, be64(block, at)) {
                return Ok(false);
            }
            at += size;
        }
        Ok(true)
    }
}

/// Where the entries end in a folder of one block: its hashes follow, then their number.
fn tail(block: &[u8]) -> Result<usize, FsError> {
    let count = be32(block, block.len() - 8) as usize;
    count
        .checked_mul(8)
        .and_then(|hashes| (block.len() - 8).checked_sub(hashes))
        .ok_or(FsError::Damaged("a folder has an impossible number of entries"))
}

fn short(fork: &[u8], ftype: bool, each: &mut dyn FnMut(&[u8], u64) -> bool) -> Result<(), FsError> {
    let bad = FsError::Damaged("an entry of a folder is impossible");
    let (Some(&count), Some(&wide)) = (fork.first(), fork.get(1)) else { return Err(bad) };
    let number_len = if wide > 0 { 8 } else { 4 };
    let mut at = 2 + number_len;
    // With wide numbers, `wide` counts them all on some versions, and `count` holds the rest.
    for _ in 0..count.max(wide) {
        let Some(&name_len) = fork.get(at) else { return Err(bad) };
        let name_len = usize::from(name_len);
        let number_at = at + 3 + name_len + usize::from(ftype);
        let Some(name) = fork.get(at + 3..at + 3 + name_len).filter(|_| number_at + number_len <= fork.len())
        else {
            return Err(bad);
        };
        let number = if number_len == 8 { be64(fork, number_at) } else { u64::from(be32(fork, number_at)) };
        if !each(name, number) {
            return Ok(());
        }
        at = number_at + number_len;
    }
    Ok(())
}
