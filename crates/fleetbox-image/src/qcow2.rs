//! The header of a qcow2 file, as far as it decides whether to touch the file at all. Pure.
//!
//! Field offsets, feature bits and header extensions: QEMU's `docs/interop/qcow2.rst`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::unpack::MAX_DISK;

/// The first bytes of any qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// As much of a file as its header, the extensions and the backing file's name are in; QEMU puts them into less.
pub(crate) const HEAD: usize = 64 << 10;

/// Why a qcow2 file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Problem {
    /// It does not begin as one.
    #[error("it has no qcow2 magic")]
    NoMagic,
    /// It ends within its header.
    #[error("its header is cut short")]
    CutShort,
    /// Neither version 2 nor 3.
    #[error("it has version {0}; versions 2 and 3 are known")]
    Version(u32),
    /// Clusters are from 512 bytes to 2 MiB large.
    #[error("its cluster size of 2^{0} bytes is impossible")]
    ClusterBits(u32),
    /// The disk in it is too large. Sizes in bytes.
    #[error("its virtual size of {size} bytes is more than {most} bytes, the most that is taken")]
    TooLarge {
        /// What it claims.
        size: u64,
        /// What is taken.
        most: u64,
    },
    /// Its first table has more entries than its size has use for.
    #[error("its L1 table of {0} entries does not fit its size")]
    HugeL1(u64),
    /// Its first table is not within the file.
    #[error("its L1 table is beyond its end: is it cut short?")]
    L1Outside,
    /// It has a backing file, and that was not allowed.
    #[error(
        "it has a backing file ({0:?}), which it could name freely: flatten it with qemu-img convert, or allow its \
         backing files when importing it from a local file (`fleetbox image import --allow-backing`)"
    )]
    BackingFile(String),
    /// The name of its backing file cannot be read.
    #[error("the name of its backing file is damaged")]
    BackingName,
    /// Its backing file is not named as a path.
    #[error("its backing file {0:?} is no local file")]
    BackingNotLocal(String),
    /// It does not say what its backing file is. To guess would let the content of a raw file decide.
    #[error("it does not say the format of its backing file: say it with qemu-img rebase -u -F")]
    BackingFormatMissing,
    /// The backing file's format is neither raw nor qcow2.
    #[error("its backing file has the format {0:?}; raw and qcow2 are known")]
    BackingFormat(String),
    /// Following the backing files leads back to one of them.
    #[error("its backing files go round in a circle, back to {0}")]
    BackingCycle(PathBuf),
    /// The chain of backing files is longer than any real one.
    #[error("it has more than {0} backing files, one behind the other")]
    BackingDepth(usize),
    /// Its data is in a file beside it.
    #[error("its data is in another file: flatten it with qemu-img convert")]
    ExternalData,
    /// It is encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// It is marked as corrupt.
    #[error("it is marked as corrupt: see qemu-img check")]
    Corrupt,
    /// Whoever wrote it last did not finish.
    #[error("it was not closed properly: repair it with qemu-img check -r all")]
    Dirty,
    /// It needs features that are not known.
    #[error("it uses unknown features ({0:#x})")]
    UnknownFeatures(u64),
    /// Its clusters are compressed with something else than zlib and zstd.
    #[error("its clusters are compressed in the unknown way {0}")]
    Compression(u8),
    /// Its tables have entries of the longer kind, which are converted, but not read in place.
    #[error("it has extended L2 entries, which are not read")]
    ExtendedL2,
    /// It is a disk of no size.
    #[error("its virtual size is 0")]
    NoSize,
    /// The disk in it is a packed image itself.
    #[error("there is another packed image in it")]
    Nested,
}

/// What of a header matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Size in bytes that a guest sees.
    pub(crate) virtual_size: u64,
    backing: Option<(u64, u32)>,
    encrypted: bool,
    incompatible: u64,
    compression: u8,
    l1: (u64, u64),
    /// Where the header's extensions begin.
    extensions: usize,
}

/// Incompatible features known here: dirty, corrupt, external data file, compression type, extended L2 entries.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const KNOWN: u64 = 0b1_1111;

/// The extension that names the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// No real disk is larger, and sizes up to here can be added up without overflow.
const MAX_VIRTUAL_SIZE: u64 = 16 << 40;

/// QEMU's own limit.
const MAX_BACKING_NAME: u32 = 1023;

/// A file behind another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    /// As the file in front names it: a relative path begins at that file's folder.
    pub(crate) name: PathBuf,
    /// Raw or qcow2.
    pub(crate) qcow2: bool,
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, Qcow2Problem> {
    let four = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|b| b.try_into().ok());
    four.map(u32::from_be_bytes).ok_or(Qcow2Problem::CutShort)
}

fn be64(bytes: &[u8], at: usize) -> Result<u64, Qcow2Problem> {
    Ok((u64::from(be32(bytes, at)?) << 32) | u64::from(be32(bytes, at + 4)?))
}

impl Header {
    /// Reads a header from the first bytes of a file (112 are enough).
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Qcow2Problem> {
        if bytes.get(..4) != Some(&MAGIC[..]) {
            return Err(Qcow2Problem::NoMagic);
        }
        let version = be32(bytes, 4)?;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Problem::Version(version));
        }
        let cluster_bits = be32(bytes, 20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Problem::ClusterBits(cluster_bits));
        }
        let size = be64(bytes, 24)?;
        if size > MAX_VIRTUAL_SIZE {
            return Err(Qcow2Problem::TooLarge { size, most: MAX_VIRTUAL_SIZE });
        }
        // One L2 table, a cluster of 8-byte entries, maps this much; a larger L1 table than that maps nothing.
        let per_l1_entry = (1u64 << cluster_bits) * (1u64 << (cluster_bits - 3));
        let l1_entries = u64::from(be32(bytes, 36)?);
        if l1_entries > size.div_ceil(per_l1_entry).saturating_mul(2).max(1024) {
            return Err(Qcow2Problem::HugeL1(l1_entries));
        }
        let v3 = version == 3;
        let incompatible = if v3 { be64(bytes, 72)? } else { 0 };
        let header_length = if v3 { be32(bytes, 100)? as usize } else { 72 };
        // The field is there if the header is long enough, and counts if its feature bit says so.
        let compression = match incompatible & COMPRESSION != 0 && header_length > 104 {
            true => *bytes.get(104).ok_or(Qcow2Problem::CutShort)?,
            false => 0,
        };
        let backing = (be64(bytes, 8)?, be32(bytes, 16)?);
        Ok(Self {
            virtual_size: size,
            backing: (backing.0 != 0).then_some(backing),
            encrypted: be32(bytes, 32)? != 0,
            incompatible,
            compression,
            l1: (be64(bytes, 40)?, l1_entries),
            extensions: header_length,
        })
    }

    /// Whether an image that came from elsewhere can be taken, its backing file aside. `len`: the file's, in bytes.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_importable(&self, len: u64) -> Result<(), Qcow2Problem> {
        if self.incompatible & EXTERNAL_DATA != 0 {
            return Err(Qcow2Problem::ExternalData);
        }
        if self.encrypted {
            return Err(Qcow2Problem::Encrypted);
        }
        if self.incompatible & CORRUPT != 0 {
            return Err(Qcow2Problem::Corrupt);
        }
        if self.incompatible & DIRTY != 0 {
            return Err(Qcow2Problem::Dirty);
        }
        if self.incompatible & !KNOWN != 0 {
            return Err(Qcow2Problem::UnknownFeatures(self.incompatible & !KNOWN));
        }
        if self.compression > 1 {
            return Err(Qcow2Problem::Compression(self.compression));
        }
        match self.virtual_size {
            0 => return Err(Qcow2Problem::NoSize),
            size if size > MAX_DISK => return Err(Qcow2Problem::TooLarge { size, most: MAX_DISK }),
            _ => {}
        }
        let (at, entries) = self.l1;
        match at.checked_add(entries * 8) {
            Some(end) if end <= len => Ok(()),
            _ => Err(Qcow2Problem::L1Outside),
        }
    }

    /// Whether the image stands for itself.
    ///
    /// # Errors
    /// [`Qcow2Problem::BackingFile`] where it does not.
    pub(crate) fn check_no_backing(&self, head: &[u8]) -> Result<(), Qcow2Problem> {
        match self.backing {
            None => Ok(()),
            Some(_) => {
                let name = self.backing_name(head).unwrap_or_default();
                Err(Qcow2Problem::BackingFile(String::from_utf8_lossy(name).into_owned()))
            }
        }
    }

    fn backing_name<'b>(&self, head: &'b [u8]) -> Result<&'b [u8], Qcow2Problem> {
        let (at, len) = self.backing.ok_or(Qcow2Problem::BackingName)?;
        if len == 0 || len > MAX_BACKING_NAME {
            return Err(Qcow2Problem::BackingName);
        }
        let from = usize::try_from(at).map_err(|_| Qcow2Problem::BackingName)?;
        let until = from.checked_add(len as usize).ok_or(Qcow2Problem::BackingName)?;
        head.get(from..until).filter(|n| !n.contains(&0)).ok_or(Qcow2Problem::BackingName)
    }

    /// The file behind this one, from the first [`HEAD`] bytes of this one; `None`: there is none.
    ///
    /// # Errors
    /// What is wrong with how it is named.
    pub(crate) fn backing(&self, head: &[u8]) -> Result<Option<Backing>, Qcow2Problem> {
        if self.backing.is_none() {
            return Ok(None);
        }
        let name = self.backing_name(head)?;
        let shown = || String::from_utf8_lossy(name).into_owned();
        // As QEMU tells a protocol from a path: by a ':' before the first '/'.
        let mark = name.iter().position(|b| matches!(b, b':' | b'/'));
        if mark.is_some_and(|at| name.get(at) == Some(&b':')) {
            return Err(Qcow2Problem::BackingNotLocal(shown()));
        }
        let qcow2 = match self.extension(head, BACKING_FORMAT)? {
            Some(b"raw") => false,
            Some(b"qcow2") => true,
            None => return Err(Qcow2Problem::BackingFormatMissing),
            Some(other) => {
                let name = String::from_utf8_lossy(other).chars().take(100).collect();
                return Err(Qcow2Problem::BackingFormat(name));
            }
        };
        Ok(Some(Backing { name: PathBuf::from(OsStr::from_bytes(name)), qcow2 }))
    }

    fn extension<'b>(&self, head: &'b [u8], wanted: u32) -> Result<Option<&'b [u8]>, Qcow2Problem> {
        let mut at = self.extensions;
        // Each takes 8 bytes at least, so this ends.
        loop {
            let (kind, len) = (be32(head, at)?, be32(head, at + 4)? as usize);
            if kind == 0 {
                return Ok(None);
            }
            let from = at + 8;
            let until = from.checked_add(len).ok_or(Qcow2Problem::CutShort)?;
            let data = head.get(from..until).ok_or(Qcow2Problem::CutShort)?;
            if kind == wanted {
                return Ok(Some(data));
            }
            at = until.next_multiple_of(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version: u32, size: u64) -> Vec<u8> {
        let mut h = vec![0u8; 4096];
        h[..4].copy_from_slice(&MAGIC);
        h[4..8].copy_from_slice(&version.to_be_bytes());
        h[20..24].copy_from_slice(&16u32.to_be_bytes());
        h[24..32].copy_from_slice(&size.to_be_bytes());
        h[36..40].copy_from_slice(&1u32.to_be_bytes());
        h[100..104].copy_from_slice(&(if version == 3 { 112u32 } else { 0 }).to_be_bytes());
        h
    }

    fn check(bytes: &[u8]) -> Result<(), Qcow2Problem> {
        let header = Header::parse(bytes)?;
        header.check_importable(bytes.len() as u64)?;
        header.check_no_backing(bytes)
    }

    #[test]
    fn good_ones_are_taken() {
        for version in [2, 3] {
            let bytes = header(version, 1 << 30);
            assert_eq!(Header::parse(&bytes).unwrap().virtual_size, 1 << 30);
            check(&bytes).unwrap();
        }
        let mut zstd = header(3, 1 << 30);
        (zstd[79], zstd[104]) = (COMPRESSION as u8, 1);
        check(&zstd).unwrap();
    }

    #[test]
    fn bad_ones_say_why() {
        let with = |changes: &[(usize, &[u8])]| {
            let mut h = header(3, 1 << 30);
            for (at, bytes) in changes {
                h[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            check(&h).unwrap_err()
        };
        use Qcow2Problem as P;
        assert_eq!(with(&[(0, b"XXXX")]), P::NoMagic);
        assert_eq!(with(&[(4, &7u32.to_be_bytes())]), P::Version(7));
        assert_eq!(with(&[(20, &63u32.to_be_bytes())]), P::ClusterBits(63));
        assert!(matches!(with(&[(24, &u64::MAX.to_be_bytes())]), P::TooLarge { size: u64::MAX, .. }));
        assert!(matches!(with(&[(24, &(3u64 << 40).to_be_bytes())]), P::TooLarge { most: MAX_DISK, .. }));
        assert_eq!(with(&[(24, &0u64.to_be_bytes())]), P::NoSize);
        assert_eq!(with(&[(32, &2u32.to_be_bytes())]), P::Encrypted);
        assert_eq!(with(&[(36, &u32::MAX.to_be_bytes())]), P::HugeL1(u32::MAX.into()));
        assert_eq!(with(&[(40, &4096u64.to_be_bytes())]), P::L1Outside);
        assert_eq!(with(&[(40, &u64::MAX.to_be_bytes())]), P::L1Outside);
        assert_eq!(with(&[(72, &1u64.to_be_bytes())]), P::Dirty);
        assert_eq!(with(&[(72, &2u64.to_be_bytes())]), P::Corrupt);
        assert_eq!(with(&[(72, &4u64.to_be_bytes())]), P::ExternalData);
        assert_eq!(with(&[(72, &(1u64 << 63).to_be_bytes())]), P::UnknownFeatures(1 << 63));
        assert_eq!(with(&[(72, &COMPRESSION.to_be_bytes()), (104, &[9])]), P::Compression(9));
        let base = [(8, &600u64.to_be_bytes()[..]), (16, &9u32.to_be_bytes()), (600, b"base.disk")];
        assert_eq!(with(&base), P::BackingFile("base.disk".into()));
        assert!(P::BackingFile("base.disk".into()).to_string().contains("base.disk"));
        assert_eq!(check(&header(3, 1)[..70]), Err(P::CutShort));
    }

    fn backing(name: &[u8], format: Option<&[u8]>) -> Result<Option<Backing>, Qcow2Problem> {
        let mut h = header(3, 1 << 30);
        h[8..16].copy_from_slice(&600u64.to_be_bytes());
        h[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        h[600..600 + name.len()].copy_from_slice(name);
        // Another extension comes first.
        h[112..120].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 3]);
        if let Some(format) = format {
            h[128..132].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
            h[132..136].copy_from_slice(&(format.len() as u32).to_be_bytes());
            h[136..136 + format.len()].copy_from_slice(format);
        }
        Header::parse(&h)?.backing(&h)
    }

    #[test]
    fn backing_files_are_named_as_paths_and_with_their_format() {
        use Qcow2Problem as P;
        assert_eq!(Header::parse(&header(3, 1)).unwrap().backing(&header(3, 1)), Ok(None));
        let good = backing(b"../a/base:1.img", Some(b"raw")).unwrap().unwrap();
        assert_eq!((good.name, good.qcow2), (PathBuf::from("../a/base:1.img"), false));
        assert!(backing(b"base", Some(b"qcow2")).unwrap().unwrap().qcow2);
        assert_eq!(backing(b"base", None), Err(P::BackingFormatMissing));
        assert_eq!(backing(b"base", Some(b"vmdk")), Err(P::BackingFormat("vmdk".into())));
        for name in ["nbd://host/disk", "json:{}", "http://x", "file:x", "ssh:x/y"] {
            assert_eq!(backing(name.as_bytes(), Some(b"raw")), Err(P::BackingNotLocal(name.into())));
        }
        for name in [&b""[..], b"a\0b", &[b'x'; 1024]] {
            assert_eq!(backing(name, Some(b"raw")), Err(P::BackingName));
        }
        assert_eq!(backing(b"base", Some(&[b'x'; 3000])), Err(P::BackingFormat("x".repeat(100))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1200), real in any::<bool>()) {
            if real {
                for (b, m) in bytes.iter_mut().zip(header(3, 1)) { if *b % 2 == 0 { *b = m } }
            }
            if let Ok(h) = Header::parse(&bytes) {
                let _ = (h.check_importable(1 << 20), h.check_no_backing(&bytes), h.backing(&bytes));
            }
        }
    }
}
