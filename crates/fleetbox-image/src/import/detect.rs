//! What a file is, by its content and never by its name. Pure.

use std::fmt;
use std::path::Path;

use crate::ImageError;

/// How much of a file's start is looked at: up to behind the superblock of btrfs (btrfs(5)), the farthest.
pub(crate) const HEAD: usize = 68 * 1024;

/// A disk image in a format that can be imported, or what may hold one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Raw,
    Qcow2,
    Packed(Packing),
}

/// What disk images are packed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Xz,
    Zstd,
    Tar,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Tar => "tar",
        })
    }
}

/// What can be unpacked: magic and its offset. Sources: RFC 1952 (with the only method there is), xz-file-format §2.1.1,
/// RFC 8878 §3.1.1, POSIX pax (ustar, and what GNU tar writes in its place).
const PACKED: &[(&[u8], usize, Packing)] = &[
    (&[0x1f, 0x8b, 8], 0, Packing::Gzip),
    (b"\xfd7zXZ\0", 0, Packing::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], 0, Packing::Zstd),
    (b"ustar", 257, Packing::Tar),
];

const UNKNOWN: &str = "it has no partition table and no file system that is known";

/// Formats that are recognized in order to say what they are: magic, its offset, what to say.
const OTHERS: &[(&[u8], usize, &str)] = &[
    (b"070701", 0, "it is a cpio archive, perhaps an initramfs"),
    (b"!<arch>\n", 0, "it is an ar archive, perhaps a Debian package"),
    (b"7z\xbc\xaf\x27\x1c", 0, "it is a 7z archive; unpack it first"),
    (b"BZh", 0, "it is compressed with bzip2; unpack it first"),
    (b"PK\x03\x04", 0, "it is a zip archive; unpack it first"),
    (b"KDMV", 0, "it is a VMDK file; convert it with qemu-img convert -O qcow2"),
    (b"# Disk DescriptorFile", 0, "it is a VMDK description; convert it with qemu-img convert -O qcow2"),
    (b"vhdxfile", 0, "it is a VHDX file; convert it with qemu-img convert -O qcow2"),
    (b"conectix", 0, "it is a VHD file; convert it with qemu-img convert -O qcow2"),
    (b"<<< ", 0, "it is a VDI file; convert it with qemu-img convert -O qcow2"),
    (b"\x7fELF", 0, "it is a program"),
];

/// File systems that are known to be some, even those that are not looked into: magic and its offset.
const FILE_SYSTEMS: &[(&[u8], usize)] = &[(&[0x53, 0xef], 0x438), (b"XFSB", 0), (b"_BHRfS_M", 0x10040)];

/// Says what a file is, from its first [`HEAD`] bytes.
pub(crate) fn detect(path: &Path, head: &[u8]) -> Result<Content, ImageError> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let not = |found| Err(ImageError::NotAnImage { path: path.to_owned(), found });
    if head.starts_with(&crate::qcow2::MAGIC) {
        return Ok(Content::Qcow2);
    }
    if let Some((.., packing)) = PACKED.iter().find(|(magic, offset, _)| at(*offset, magic)) {
        return Ok(Content::Packed(*packing));
    }
    // What pzstd(1) and others put before the first frame (RFC 8878 §3.1.2).
    if matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
        return Ok(Content::Packed(Packing::Zstd));
    }
    if let Some((.., found)) = OTHERS.iter().find(|(magic, offset, _)| at(*offset, magic)) {
        return not(found);
    }
    if let Some(found) = text(head) {
        return not(found);
    }
    let partitioned = at(510, &[0x55, 0xaa]) || at(512, b"EFI PART");
    if partitioned || FILE_SYSTEMS.iter().any(|(magic, offset)| at(*offset, magic)) {
        return Ok(Content::Raw);
    }
    // A hybrid ISO has a partition table and got through above; a plain one has no system to boot from a disk.
    if at(0x8001, b"CD001") {
        return not("it is an ISO 9660 image, made to install from, not a disk image");
    }
    not(UNKNOWN)
}

/// Whether the content could not be told at all.
pub(crate) fn is_unknown(e: &ImageError) -> bool {
    matches!(e, ImageError::NotAnImage { found, .. } if *found == UNKNOWN)
}

fn text(head: &[u8]) -> Option<&'static str> {
    let start = &head[..head.len().min(1024)];
    // The end of the piece may cut a character.
    let valid = match std::str::from_utf8(start) {
        Ok(s) => s,
        Err(e) if e.valid_up_to() + 4 > start.len() => std::str::from_utf8(&start[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if valid.is_empty() || valid.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c'))
    {
        return None;
    }
    let lower = valid.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        return Some("it is an HTML page, perhaps what a server answered instead of the image");
    }
    Some("it is a text file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(offset: usize, magic: &[u8]) -> Result<Content, String> {
        let mut head = vec![0u8; HEAD];
        head[offset..offset + magic.len()].copy_from_slice(magic);
        detect(Path::new("x"), &head).map_err(|e| e.to_string())
    }

    #[test]
    fn by_content() {
        assert_eq!(with(0, &crate::qcow2::MAGIC).unwrap(), Content::Qcow2);
        assert_eq!(with(510, &[0x55, 0xaa]).unwrap(), Content::Raw);
        assert_eq!(with(0x438, &[0x53, 0xef]).unwrap(), Content::Raw);
        for (magic, offset, packing) in PACKED {
            assert_eq!(with(*offset, magic).unwrap(), Content::Packed(*packing));
        }
        assert_eq!(with(0, &[0x57, 0x2a, 0x4d, 0x18]).unwrap(), Content::Packed(Packing::Zstd));
        for (magic, offset, found) in OTHERS {
            assert!(with(*offset, magic).unwrap_err().contains(found), "{found}");
        }
        assert!(with(0x8001, b"CD001").unwrap_err().contains("ISO 9660"));
        assert!(with(0, b"").unwrap_err().contains("no partition table"));
    }

    #[test]
    fn text_is_called_text() {
        let said = |s: &str| detect(Path::new("x"), s.as_bytes()).unwrap_err().to_string();
        assert!(said("\n <!DOCTYPE HTML><title>404").contains("HTML"));
        assert!(said("not an image\n").contains("text file"));
        assert!(said(&"é".repeat(2000)).contains("text file"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = detect(Path::new("x"), &bytes);
        }
    }
}
