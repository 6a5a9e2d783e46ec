//! Content of files: inline, plain, compressed, and holes.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::tree::{Key, Trees};
use super::{EXTENT_DATA, Node};
use crate::inspect::bytes::le64;
use crate::inspect::fs::{FsError, ReadFile, Unpack, unpack};

/// Extents of one file; a kernel of 512 MiB in compressed extents of 128 KiB has 4096.
const MAX_EXTENTS: usize = 1 << 18;
/// A compressed extent holds at most this much (BTRFS_MAX_UNCOMPRESSED).
const MAX_UNPACKED: u64 = 128 << 10;

#[derive(Debug, Clone)]
enum Data {
    Inline(Vec<u8>),
    /// On the disk, at a logical address.
    Plain(u64),
    /// Compressed, at a logical address with a length there; the extent's content begins at an offset in what it
    /// unpacks to.
    Packed {
        how: u8,
        at: u64,
        len: u64,
        unpacked: u64,
        offset: u64,
    },
    PackedInline {
        how: u8,
        bytes: Vec<u8>,
        unpacked: u64,
    },
}

#[derive(Debug, Clone)]
struct Extent {
    at: u64,
    len: u64,
    data: Data,
}

fn extent(key: Key, item: &[u8]) -> Result<Option<Extent>, FsError> {
    let [how, encryption] = [16, 17].map(|i| item.get(i).copied().unwrap_or(0));
    if item.len() < 21 {
        return Err(FsError::Damaged("an extent is cut short"));
    }
    if encryption != 0 {
        return Err(FsError::Unsupported("an encrypted file".to_owned()));
    }
    let (at, unpacked) = (key.2, le64(item, 8));
    if how != 0 && unpacked > MAX_UNPACKED {
        return Err(FsError::Damaged("a compressed extent is too large"));
    }
    let (len, data) = match (item[20], how) {
        (0, 0) => (item.len() as u64 - 21, Data::Inline(item[21..].to_vec())),
        (0, how) => (unpacked, Data::PackedInline { how, bytes: item[21..].to_vec(), unpacked }),
        (1, _) if item.len() < 53 => return Err(FsError::Damaged("an extent is cut short")),
        (1, how) => {
            let (disk, disk_len, offset, len) =
                (le64(item, 21), le64(item, 29), le64(item, 37), le64(item, 45));
            if disk == 0 {
                return Ok(None);
            }
            let start = disk.checked_add(offset).ok_or(FsError::Damaged("an extent has no end"))?;
            let data = match how {
                0 => Data::Plain(start),
                how if disk_len <= MAX_UNPACKED => {
                    Data::Packed { how, at: disk, len: disk_len, unpacked, offset }
                }
                _ => return Err(FsError::Damaged("a compressed extent is too large")),
            };
            (len, data)
        }
        // Allocated and not written.
        (2, _) => return Ok(None),
        _ => return Err(FsError::Damaged("an extent is of an unknown kind")),
    };
    Ok(Some(Extent { at, len, data }))
}

/// A file that is read from its beginning.
pub(super) fn open(trees: &Rc<Trees>, node: Node, len: u64) -> Result<OpenFile, FsError> {
    let mut extents = Vec::new();
    let range = (Key(node.inode, EXTENT_DATA, 0), Key(node.inode, EXTENT_DATA, u64::MAX));
    trees.range(node.root, range.0, range.1, &mut |key, item| {
        extents.extend(extent(key, item)?);
        if extents.len() > MAX_EXTENTS {
            return Err(FsError::Unsupported(format!("a file of more than {MAX_EXTENTS} extents")));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    extents.sort_by_key(|e| e.at);
    if extents.windows(2).any(|w| w[0].at.checked_add(w[0].len).is_none_or(|end| end > w[1].at)) {
        return Err(FsError::Damaged("two extents of a file overlap"));
    }
    Ok(OpenFile { trees: Rc::clone(trees), extents, len, at: 0, next: 0, unpacked: None })
}

pub(super) struct OpenFile {
    trees: Rc<Trees>,
    extents: Vec<Extent>,
    len: u64,
    at: u64,
    next: usize,
    /// What the extent at `next` unpacks to.
    unpacked: Option<Vec<u8>>,
}

impl OpenFile {
    fn content(&self, extent: &Extent) -> Result<Vec<u8>, FsError> {
        let (how, packed, unpacked, offset) = match &extent.data {
            Data::Inline(bytes) => return Ok(bytes.clone()),
            Data::PackedInline { how, bytes, unpacked } => (*how, bytes.clone(), *unpacked, 0),
            Data::Packed { how, at, len, unpacked, offset } => {
                (*how, self.trees.read(*at, *len as usize)?, *unpacked, *offset)
            }
            Data::Plain(_) => return Ok(Vec::new()),
        };
        let how = match how {
            1 => Unpack::Zlib,
            2 => Unpack::BtrfsLzo { sector: self.trees.sector_size },
            3 => Unpack::Zstd,
            _ => return Err(FsError::Unsupported(format!("compression {how} of btrfs"))),
        };
        let mut bytes = unpack(how, &packed, unpacked as usize)?;
        // Shorter than it says: the rest is zeros, as the kernel has it.
        bytes.resize(unpacked as usize, 0);
        let offset = usize::try_from(offset).ok().filter(|&o| o <= bytes.len());
        Ok(bytes.split_off(offset.ok_or(FsError::Damaged("an extent begins beyond its data"))?))
    }
}

impl ReadFile for OpenFile {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, FsError> {
        let want = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX).min(to.len());
        if want == 0 {
            return Ok(0);
        }
        while self.extents.get(self.next).is_some_and(|e| e.at.saturating_add(e.len) <= self.at) {
            self.next += 1;
            self.unpacked = None;
        }
        let n = match self.extents.get(self.next) {
            Some(e) if e.at <= self.at => {
                let inside = self.at - e.at;
                let n = usize::try_from(e.len - inside).unwrap_or(usize::MAX).min(want);
                if let Data::Plain(disk) = e.data {
                    let from = disk.checked_add(inside).ok_or(FsError::Damaged("an extent has no end"))?;
                    self.trees.read_into(from, &mut to[..n])?;
                } else {
                    if self.unpacked.is_none() {
                        self.unpacked = Some(self.content(e)?);
                    }
                    let bytes = self.unpacked.as_deref().unwrap_or_default();
                    let inside = usize::try_from(inside).unwrap_or(usize::MAX);
                    let have = bytes.get(inside..).unwrap_or_default();
                    let copied = have.len().min(n);
                    to[..copied].copy_from_slice(&have[..copied]);
                    to[copied..n].fill(0);
                }
                n
            }
            hole => {
                let until = hole.map_or(self.len, |e| e.at);
                let n = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(want);
                to[..n].fill(0);
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_lie_are_refused() {
        let key = Key(257, EXTENT_DATA, 0);
        let mut item = vec![0u8; 53];
        item[20] = 1;
        assert!(extent(key, &item).unwrap().is_none(), "a hole");
        item[21..29].copy_from_slice(&1u64.to_le_bytes());
        assert!(extent(key, &item).unwrap().is_some());
        item[16] = 3;
        item[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(extent(key, &item).unwrap_err().text().contains("too large"));
        item[8..16].copy_from_slice(&4096u64.to_le_bytes());
        item[29..37].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(extent(key, &item).unwrap_err().text().contains("too large"));
        assert!(extent(key, &item[..40]).unwrap_err().text().contains("cut short"));
        item[17] = 1;
        assert!(extent(key, &item).unwrap_err().text().contains("encrypted"));
    }
}
