//! What kind of kernel a file is, by its first bytes. Pure.
//!
//! Layouts: Linux' Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst and
//! drivers/firmware/efi/libstub/zboot-header.S; "PE Format" by Microsoft; the UAPI Group's Unified Kernel Image
//! specification.

use fleetbox_spec::Arch;

use super::bytes::{le16, le32};

/// Enough of a file's beginning to tell its kind: the table of sections of a unified kernel image lies within.
pub(super) const HEAD: usize = 64 << 10;

/// How a kernel is packed inside of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// x86; booted as it is.
    BzImage {
        version: Option<String>,
    },
    /// arm64; booted as it is.
    Image,
    /// A packed arm64 Image, as some distributions install it.
    Packed(Packing),
    /// A program for EFI that unpacks the Image in it.
    Zboot {
        packing: Packing,
        payload: Range,
    },
    Unified(Box<Unified>),
    /// What it is instead, or how it is packed.
    Other(String),
}

/// The sections of a unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unified {
    pub(super) linux: Range,
    pub(super) initrd: Option<Range>,
    pub(super) cmdline: Option<Range>,
    pub(super) uname: Option<Range>,
}

/// `len` is that of the whole file.
pub(super) fn recognize(head: &[u8], len: u64) -> Form {
    if head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg") {
        return zboot(head, len);
    }
    if let Some(sections) = sections(head)
        && let Some(unified) = unified(&sections, len)
    {
        return unified;
    }
    if head.get(0x202..0x206) == Some(b"HdrS") && le16(head, 0x1fe) == 0xaa55 {
        return bz_image(head);
    }
    if head.get(0x38..0x3c) == Some(b"ARM\x64") {
        return Form::Image;
    }
    let packed: &[(&[u8], Form)] = &[
        (b"\x1f\x8b", Form::Packed(Packing::Gzip)),
        (b"\x28\xb5\x2f\xfd", Form::Packed(Packing::Zstd)),
        (b"\xfd7zXZ\0", Form::Other("it is packed with xz".to_owned())),
        (b"\x02\x21\x4c\x18", Form::Other("it is packed with lz4".to_owned())),
        (b"\x89LZO", Form::Other("it is packed with lzo".to_owned())),
        (b"\x7fELF", Form::Other("it is an ELF file".to_owned())),
    ];
    packed
        .iter()
        .find(|(mark, _)| head.starts_with(mark))
        .map_or_else(|| Form::Other("it is no kernel".to_owned()), |(_, form)| form.clone())
}

fn zboot(head: &[u8], len: u64) -> Form {
    let payload = Range { at: u64::from(le32(head, 8)), len: u64::from(le32(head, 12)) };
    if payload.at.checked_add(payload.len).is_none_or(|end| end > len) {
        return Form::Other("its packed kernel reaches beyond its end".to_owned());
    }
    let name: Vec<u8> = head.iter().skip(24).take(16).take_while(|&&b| b != 0).copied().collect();
    let packing = match name.as_slice() {
        b"gzip" => Packing::Gzip,
        b"zstd" | b"zstd22" => Packing::Zstd,
        other => {
            let name: String =
                String::from_utf8_lossy(other).chars().filter(char::is_ascii_alphanumeric).collect();
            return Form::Other(format!("the kernel in it is packed with {name:?}"));
        }
    };
    Form::Zboot { packing, payload }
}

fn bz_image(head: &[u8]) -> Form {
    let at = match usize::from(le16(head, 0x20e)) {
        0 => None,
        at => Some(at + 0x200),
    };
    let version = at.and_then(|at| {
        let text = head.get(at..)?;
        let text: Vec<u8> = text.iter().take(200).take_while(|b| b.is_ascii_graphic()).copied().collect();
        String::from_utf8(text).ok().filter(|t| !t.is_empty())
    });
    Form::BzImage { version }
}

/// Name, size in memory, and place of each section of a PE file.
fn sections(head: &[u8]) -> Option<Vec<(&[u8], u32, Range)>> {
    let pe = le32(head, 0x3c) as usize;
    if !head.starts_with(b"MZ") || head.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let (count, optional) = (usize::from(le16(head, pe + 6)), usize::from(le16(head, pe + 20)));
    let table = head.get(pe + 24 + optional..)?;
    let sections = table.chunks_exact(40).take(count.min(96)).map(|s| {
        let name = s[..8].split(|&b| b == 0).next().unwrap_or_default();
        (name, le32(s, 8), Range { at: u64::from(le32(s, 20)), len: u64::from(le32(s, 16)) })
    });
    Some(sections.collect())
}

fn unified(sections: &[(&[u8], u32, Range)], len: u64) -> Option<Form> {
    // What follows the first `.profile` are variants of what comes before it.
    let base: Vec<_> = sections.iter().take_while(|s| s.0 != b".profile").collect();
    // In the file a section is filled up; in memory it has its true size.
    let find = |name: &[u8]| {
        base.iter()
            .find(|s| s.0 == name)
            .map(|(_, size, r)| Range { at: r.at, len: r.len.min(u64::from(*size)) })
    };
    let unified = Unified {
        linux: find(b".linux")?,
        initrd: find(b".initrd"),
        cmdline: find(b".cmdline"),
        uname: find(b".uname"),
    };
    let all = [Some(unified.linux), unified.initrd, unified.cmdline, unified.uname];
    let inside = |r: &Range| r.at.checked_add(r.len).is_some_and(|end| end <= len);
    Some(match all.iter().flatten().all(inside) {
        true => Form::Unified(Box::new(unified)),
        false => Form::Other("a section of it reaches beyond its end".to_owned()),
    })
}

/// The processor architecture that a program is for: `e_machine` of a 64-bit little-endian ELF header (elf(5)).
pub(super) fn elf_arch(head: &[u8]) -> Option<Arch> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    match le16(head, 18) {
        0x3e => Some(Arch::Amd64),
        0xb7 => Some(Arch::Arm64),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::inspect) fn fake_bz_image(version: &str, filler: u8) -> Vec<u8> {
        let mut k = vec![filler; 8192];
        k[..0x400].fill(0);
        k[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        k[0x202..0x206].copy_from_slice(b"HdrS");
        k[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        k[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        k[0x300 + version.len()..][..8].copy_from_slice(b" (x@y) #");
        k
    }

    pub(in crate::inspect) fn fake_arm_image(filler: u8) -> Vec<u8> {
        let mut k = vec![filler; 8192];
        k[..2].fill(0);
        k[0x38..0x3c].copy_from_slice(b"ARM\x64");
        k
    }

    /// As drivers/firmware/efi/libstub/zboot-header.S lays it out.
    pub(in crate::inspect) fn fake_zboot(packing: &str, payload: &[u8]) -> Vec<u8> {
        let mut k = vec![0u8; 256];
        k[..2].copy_from_slice(b"MZ");
        k[4..8].copy_from_slice(b"zimg");
        k[8..12].copy_from_slice(&256u32.to_le_bytes());
        k[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        k[24..24 + packing.len()].copy_from_slice(packing.as_bytes());
        k.extend(payload);
        k.extend([0; 64]);
        k
    }

    pub(in crate::inspect) fn fake_uki(machine: u16, parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut k = vec![0u8; 4096];
        k[..2].copy_from_slice(b"MZ");
        k[0x3c..0x40].copy_from_slice(&0x80u32.to_le_bytes());
        k[0x80..0x84].copy_from_slice(b"PE\0\0");
        k[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        k[0x86..0x88].copy_from_slice(&(parts.len() as u16).to_le_bytes());
        k[0x94..0x96].copy_from_slice(&240u16.to_le_bytes());
        for (i, (name, content)) in parts.iter().enumerate() {
            let at = k.len() as u32;
            let raw = content.len().next_multiple_of(512);
            let s = &mut k[0x80 + 24 + 240 + i * 40..][..40];
            s[..name.len()].copy_from_slice(name.as_bytes());
            s[8..12].copy_from_slice(&(content.len() as u32).to_le_bytes());
            s[16..20].copy_from_slice(&(raw as u32).to_le_bytes());
            s[20..24].copy_from_slice(&at.to_le_bytes());
            k.extend(*content);
            k.resize(at as usize + raw, 0);
        }
        k
    }

    #[test]
    fn kinds_of_kernels() {
        let form = |bytes: &[u8]| recognize(bytes, bytes.len() as u64);
        assert_eq!(
            form(&fake_bz_image("6.1.0-9-amd64", 1)),
            Form::BzImage { version: Some("6.1.0-9-amd64".into()) }
        );
        assert_eq!(form(&fake_arm_image(0)), Form::Image);
        assert_eq!(form(b"\x1f\x8b\x08"), Form::Packed(Packing::Gzip));
        assert_eq!(form(b"\x28\xb5\x2f\xfd"), Form::Packed(Packing::Zstd));
        let payload = Range { at: 256, len: 3 };
        assert_eq!(form(&fake_zboot("gzip", b"abc")), Form::Zboot { packing: Packing::Gzip, payload });
        assert_eq!(form(&fake_zboot("zstd22", b"abc")), Form::Zboot { packing: Packing::Zstd, payload });
        let other = |bytes: &[u8]| match form(bytes) {
            Form::Other(why) => why,
            form => panic!("{form:?}"),
        };
        assert!(other(&fake_zboot("xzkern", b"abc")).contains("xzkern"));
        assert!(other(&fake_zboot("gzip", b"abc")[..200]).contains("beyond"));
        assert!(other(b"<html>").contains("no kernel"));
        assert!(other(b"").contains("no kernel"));
        assert!(other(b"\x7fELF\x02\x01").contains("ELF"));
    }

    #[test]
    fn sections_of_a_unified_kernel_image() {
        let uki = fake_uki(
            0x8664,
            &[
                (".linux", b"k"),
                (".initrd", b"ii"),
                (".cmdline", b"ro\0"),
                (".profile", b""),
                (".cmdline", b"other"),
            ],
        );
        let Form::Unified(u) = recognize(&uki, uki.len() as u64) else { panic!() };
        assert_eq!(u.linux, Range { at: 4096, len: 1 });
        assert_eq!(
            (u.initrd.unwrap().len, u.cmdline.unwrap(), u.uname),
            (2, Range { at: 5120, len: 3 }, None)
        );
        assert!(matches!(recognize(&uki, 4096), Form::Other(_)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), base in 0usize..4) {
            let mut b = [fake_uki(1, &[(".linux", b"k")]), fake_zboot("gzip", b""), fake_bz_image("1", 0), vec![]][base].clone();
            b.resize(b.len().max(bytes.len()), 0);
            for (b, n) in b.iter_mut().zip(&bytes) { if *n % 3 == 0 { *b = *n } }
            let len = b.len() as u64;
            if let Form::Unified(u) = recognize(&b, len) {
                prop_assert!(u.linux.at + u.linux.len <= len);
            }
            let _ = elf_arch(&b);
        }
    }
}
