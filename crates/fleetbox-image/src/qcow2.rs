//! The header of a qcow2 file, as far as it decides whether to touch the file at all.
//!
//! Field offsets and feature bits: QEMU's `docs/interop/qcow2.rst`.

/// The first bytes of any qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// What of a header matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Size in bytes that a guest sees.
    pub(crate) virtual_size: u64,
    has_backing_file: bool,
    encrypted: bool,
    incompatible: u64,
}

/// Incompatible features known here: dirty, corrupt, external data file, compression type, extended L2 entries.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const KNOWN: u64 = 0b1_1111;

/// No real disk is larger, and sizes up to here can be added up without overflow.
const MAX_VIRTUAL_SIZE: u64 = 16 << 40;

impl Header {
    /// Reads a header from the first bytes of a file (104 are enough).
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let be32 = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let be64 = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        if bytes.get(..4) != Some(&MAGIC[..]) {
            return Err("it has no qcow2 magic".to_owned());
        }
        let short = || "its header is cut short".to_owned();
        let version = be32(4).ok_or_else(short)?;
        if !(2..=3).contains(&version) {
            return Err(format!("it has version {version}; versions 2 and 3 are known"));
        }
        let cluster_bits = be32(20).ok_or_else(short)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(format!("its cluster size of 2^{cluster_bits} bytes is impossible"));
        }
        let virtual_size = be64(24).ok_or_else(short)?;
        if virtual_size > MAX_VIRTUAL_SIZE {
            return Err(format!("its virtual size of {virtual_size} bytes is more than 16 TiB"));
        }
        // One L2 table, a cluster of 8-byte entries, maps this much; a larger L1 table than that maps nothing.
        let per_l1_entry = (1u64 << cluster_bits) * (1u64 << (cluster_bits - 3));
        let l1_entries = u64::from(be32(36).ok_or_else(short)?);
        if l1_entries > virtual_size.div_ceil(per_l1_entry).saturating_mul(2).max(1024) {
            return Err(format!("its L1 table of {l1_entries} entries does not fit its size"));
        }
        let incompatible = if version == 3 { be64(72).ok_or_else(short)? } else { 0 };
        Ok(Self {
            virtual_size,
            has_backing_file: be64(8).ok_or_else(short)? != 0,
            encrypted: be32(32).ok_or_else(short)? != 0,
            incompatible,
        })
    }

    /// Whether an image that came from elsewhere can be taken as it is.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn check_self_contained(&self) -> Result<(), String> {
        if self.has_backing_file {
            return Err(
                "it has a backing file, which it could name freely: flatten it with qemu-img convert".into(),
            );
        }
        if self.incompatible & EXTERNAL_DATA != 0 {
            return Err("its data is in another file: flatten it with qemu-img convert".into());
        }
        if self.encrypted {
            return Err("it is encrypted".into());
        }
        if self.incompatible & CORRUPT != 0 {
            return Err("it is marked as corrupt: see qemu-img check".into());
        }
        if self.incompatible & DIRTY != 0 {
            return Err("it was not closed properly: repair it with qemu-img check -r all".into());
        }
        if self.incompatible & !KNOWN != 0 {
            return Err(format!("it uses unknown features ({:#x})", self.incompatible & !KNOWN));
        }
        if self.virtual_size == 0 {
            return Err("its virtual size is 0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version: u32, size: u64) -> Vec<u8> {
        let mut h = vec![0u8; 104];
        h[..4].copy_from_slice(&MAGIC);
        h[4..8].copy_from_slice(&version.to_be_bytes());
        h[20..24].copy_from_slice(&16u32.to_be_bytes());
        h[24..32].copy_from_slice(&size.to_be_bytes());
        h[36..40].copy_from_slice(&1u32.to_be_bytes());
        h
    }

    fn why(bytes: &[u8]) -> String {
        Header::parse(bytes).and_then(|h| h.check_self_contained()).unwrap_err()
    }

    #[test]
    fn good_ones_are_taken() {
        for version in [2, 3] {
            let h = Header::parse(&header(version, 1 << 30)).unwrap();
            assert_eq!(h.virtual_size, 1 << 30);
            h.check_self_contained().unwrap();
        }
    }

    #[test]
    fn bad_ones_say_why() {
        let with = |at: usize, bytes: &[u8]| {
            let mut h = header(3, 1 << 30);
            h[at..at + bytes.len()].copy_from_slice(bytes);
            why(&h)
        };
        assert!(with(0, b"XXXX").contains("magic"));
        assert!(with(4, &7u32.to_be_bytes()).contains("version 7"));
        assert!(with(8, &512u64.to_be_bytes()).contains("backing file"));
        assert!(with(20, &63u32.to_be_bytes()).contains("cluster"));
        assert!(with(24, &u64::MAX.to_be_bytes()).contains("16 TiB"));
        assert!(with(24, &0u64.to_be_bytes()).contains("is 0"));
        assert!(with(32, &2u32.to_be_bytes()).contains("encrypted"));
        assert!(with(36, &u32::MAX.to_be_bytes()).contains("L1 table"));
        assert!(with(72, &1u64.to_be_bytes()).contains("closed"));
        assert!(with(72, &2u64.to_be_bytes()).contains("corrupt"));
        assert!(with(72, &4u64.to_be_bytes()).contains("another file"));
        assert!(with(72, &(1u64 << 63).to_be_bytes()).contains("unknown"));
        assert!(why(&header(3, 1)[..70]).contains("cut short"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), real in any::<bool>()) {
            if real {
                for (b, m) in bytes.iter_mut().zip(header(3, 1)) { if *b % 2 == 0 { *b = m } }
            }
            let _ = Header::parse(&bytes).map(|h| h.check_self_contained());
        }
    }
}
