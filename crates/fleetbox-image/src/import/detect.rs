//! What a file is, by its content and never by its name. Pure.

use std::path::Path;

use crate::ImageError;

/// How much of a file's start is looked at: up to behind the superblock of btrfs (btrfs(5)), the farthest.
pub(super) const HEAD: usize = 68 * 1024;

/// A disk image in a format that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Raw,
    Qcow2,
}

const UNKNOWN: &str = "it has no partition table and no file system that is known";

/// Formats that are recognized in order to say what they are: magic, its offset, what to say.
const OTHERS: &[(&[u8], usize, &str)] = &[
    (&[0x1f, 0x8b], 0, "it is compressed with gzip; unpack it first"),
    (b"\xfd7zXZ\0", 0, "it is compressed with xz; unpack it first"),
    (&[0x28, 0xb5, 0x2f, 0xfd], 0, "it is compressed with zstd; unpack it first"),
    (b"BZh", 0, "it is compressed with bzip2; unpack it first"),
    (b"PK\x03\x04", 0, "it is a zip archive; unpack it first"),
    (b"ustar", 257, "it is a tar archive; unpack it first"),
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
pub(super) fn detect(path: &Path, head: &[u8]) -> Result<Content, ImageError> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let not = |found| Err(ImageError::NotAnImage { path: path.to_owned(), found });
    if head.starts_with(&crate::qcow2::MAGIC) {
        return Ok(Content::Qcow2);
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
pub(super) fn is_unknown(e: &ImageError) -> bool {
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
