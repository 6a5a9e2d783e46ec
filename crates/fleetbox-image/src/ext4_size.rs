//! Whether what an ext4 superblock says of its size can be true. Pure.
//!
//! ext4-view takes memory for as many block groups as the superblock names before it has read one of them; a few
//! damaged bytes make that gigabytes. Found by fuzzing.

/// Bytes of the superblock, which is at 1024 of the file system. Fields: kernel documentation, filesystems/ext4/super.
pub(crate) const SUPERBLOCK: usize = 1024;

/// 2 TiB in the smallest groups that mke2fs makes by itself have a fourth of it.
const MAX_GROUPS: u64 = 1 << 20;
const INCOMPAT_64BIT: u32 = 0x80;

/// Whether a file system of this superblock fits into `len` bytes.
///
/// # Errors
/// Why not, in words.
pub(crate) fn check(superblock: &[u8], len: u64) -> Result<(), &'static str> {
    let le32 = |at: usize| {
        let bytes = superblock.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or("its superblock is cut short")
    };
    let log_block_size = le32(0x18)?;
    if log_block_size > 6 {
        return Err("its superblock names an impossible block size");
    }
    let high = if le32(0x60)? & INCOMPAT_64BIT != 0 { le32(0x150)? } else { 0 };
    let blocks = (u64::from(high) << 32) | u64::from(le32(0x4)?);
    if blocks.checked_mul(1024 << log_block_size).is_none_or(|bytes| bytes > len) {
        return Err("its superblock names more blocks than there are: is it cut short?");
    }
    match u64::from(le32(0x20)?) {
        0 => Err("its superblock names empty block groups"),
        // mke2fs makes groups of at least 256 blocks.
        1..256 => Err("its superblock names block groups that are too small"),
        per_group if blocks / per_group > MAX_GROUPS => Err("its superblock names too many block groups"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock(changes: &[(usize, u32)]) -> Vec<u8> {
        let mut block = vec![0; SUPERBLOCK];
        // 1 GiB in blocks of 4 KiB, 32768 to a group.
        for (at, value) in [(0x4, 1 << 18), (0x18, 2), (0x20, 32768)].iter().chain(changes) {
            block[*at..*at + 4].copy_from_slice(&value.to_le_bytes());
        }
        block
    }

    #[test]
    fn sizes_that_can_and_cannot_be() {
        assert_eq!(check(&superblock(&[]), 1 << 30), Ok(()));
        assert!(check(&superblock(&[]), (1 << 30) - 1).unwrap_err().contains("cut short"));
        assert!(check(&superblock(&[(0x18, 7)]), 1 << 60).unwrap_err().contains("block size"));
        assert!(check(&superblock(&[(0x20, 0)]), 1 << 60).unwrap_err().contains("empty"));
        let many = superblock(&[(0x4, u32::MAX), (0x20, 256)]);
        assert!(check(&many, 1 << 60).unwrap_err().contains("too many"));
        // The high half counts only where the feature says so.
        assert_eq!(check(&superblock(&[(0x150, 1)]), 1 << 30), Ok(()));
        assert!(check(&superblock(&[(0x150, u32::MAX), (0x60, INCOMPAT_64BIT)]), 1 << 60).is_err());
        assert!(check(&[0; 20], 1 << 30).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100), len: u64) {
            let _ = check(&bytes, len);
        }
    }
}
