//! Kernel and initramfs unpacked beforehand, for guests that are emulated.
//!
//! A kernel unpacks itself and its initramfs at each boot. Under emulation that is a tenth of a boot; here it is done
//! once for each image. `kernel` and `initrd` stay as the image has them: these are further files beside them, made where
//! the format is known, and missing where it is not.
//!
//! Layouts: Linux' Documentation/arch/x86/boot.rst (`payload_offset`), Documentation/driver-api/early-userspace/
//! buffer-format.rst (an initramfs is any number of archives, each packed or not), and the ELF note by which a kernel
//! can be entered unpacked (`XEN_ELFNOTE_PHYS32_ENTRY`, "PVH"), in include/xen/interface/elfnote.h.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use fleetbox_store::BootDir;

use crate::ImageError;

/// More than any distribution's kernel, unpacked.
const MAX_KERNEL: usize = 256 << 20;

/// An unpacked initramfs is in the guest's memory twice for a moment, so a big one stays packed.
const MAX_INITRD: usize = 64 << 20;

/// Writes what the kernel and the initramfs in a folder would be unpacked to beside them, in the place of what is
/// there, as in [`Image::plain_kernel`](crate::Image::plain_kernel) and
/// [`Image::plain_initrd`](crate::Image::plain_initrd). What has no such form has no such file.
///
/// # Errors
/// [`ImageError::Io`] and [`ImageError::Store`] when a file cannot be read, removed or written.
pub fn unpack_boot_files(dir: &BootDir) -> Result<(), ImageError> {
    let unpacked = [
        (dir.plain_kernel(), read_if_there(&dir.kernel(), MAX_KERNEL)?.and_then(|bytes| kernel(&bytes))),
        (dir.plain_initrd(), read_if_there(&dir.initrd(), MAX_INITRD)?.and_then(|bytes| initrd(&bytes))),
    ];
    for (path, bytes) in unpacked {
        fleetbox_store::remove_if_there(&path)?;
        if let Some(bytes) = bytes {
            write(&path, &bytes)?;
        }
    }
    Ok(())
}

fn read_if_there(path: &Path, max: usize) -> Result<Option<Vec<u8>>, ImageError> {
    match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
            Ok((bytes.len() <= max).then_some(bytes))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ImageError::io("open", path)(e)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let done = File::create_new(path).and_then(|mut file| file.write_all(bytes));
    if let Err(e) = done {
        // Half a kernel must not become part of the image.
        let _ = fs::remove_file(path);
        return Err(ImageError::io("write", path)(e));
    }
    Ok(())
}

/// The ELF program within an x86 bzImage, if it can be entered directly.
pub(crate) fn kernel(bz_image: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| bz_image.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    // The payload's place is told since version 2.08 of the boot protocol.
    let version = u16::from_le_bytes(bz_image.get(0x206..0x208)?.try_into().ok()?);
    if bz_image.get(0x202..0x206)? != b"HdrS" || version < 0x208 {
        return None;
    }
    let setup_sectors = match *bz_image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let at = ((setup_sectors + 1) * 512).checked_add(word(0x248)? as usize)?;
    let payload = bz_image.get(at..at.checked_add(word(0x24c)? as usize)?)?;
    let (kernel, _) = unpack(payload, MAX_KERNEL)?;
    has_direct_entry(&kernel).then_some(kernel)
}

/// Whether an ELF file is an x86-64 program with the note that tells where it is entered in 32-bit mode. Without it
/// QEMU refuses an unpacked kernel.
fn has_direct_entry(elf: &[u8]) -> bool {
    const PT_NOTE: u32 = 4;
    const PHYS32_ENTRY: u32 = 18;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| {
        let value = u64::from_le_bytes(elf.get(at..at.checked_add(8)?)?.try_into().ok()?);
        usize::try_from(value).ok()
    };
    let find = || {
        // ELF, 64 bits, little-endian, x86-64.
        if elf.get(..6)? != b"\x7fELF\x02\x01" || u16_at(18)? != 62 {
            return None;
        }
        let (table, size, count) = (u64_at(32)?, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        for header in (0..count).map_while(|n| table.checked_add(n.checked_mul(size)?)) {
            if u32_at(header)? != PT_NOTE {
                continue;
            }
            let (mut at, len) = (u64_at(header.checked_add(8)?)?, u64_at(header.checked_add(32)?)?);
            let end = at.checked_add(len)?;
            while at.checked_add(12)? <= end {
                let (name, desc) = (u32_at(at)? as usize, u32_at(at + 4)? as usize);
                let is_xen = elf.get(at + 12..(at + 12).checked_add(name)?)? == b"Xen\0";
                if is_xen && u32_at(at + 8)? == PHYS32_ENTRY {
                    return Some(());
                }
                let next =
                    name.checked_next_multiple_of(4)?.checked_add(desc.checked_next_multiple_of(4)?)?;
                at = at.checked_add(12)?.checked_add(next)?;
            }
        }
        None
    };
    find().is_some()
}

/// An initramfs with each of its packed archives unpacked; `None` where one is of an unknown kind, where it is too big, or
/// where nothing in it is packed.
pub(crate) fn initrd(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut rest, mut out, mut packed) = (bytes, Vec::new(), false);
    while !rest.is_empty() {
        if rest[0] == 0 {
            // Filling between archives. The kernel wants each archive at a multiple of four.
            let zeros = rest.iter().take_while(|&&b| b == 0).count();
            rest = &rest[zeros..];
            continue;
        }
        out.resize(out.len().next_multiple_of(4), 0);
        let used = if rest.starts_with(b"070701") || rest.starts_with(b"070702") {
            let len = archive_len(rest)?;
            out.extend_from_slice(&rest[..len]);
            len
        } else {
            let (archive, used) = unpack(rest, MAX_INITRD - out.len().min(MAX_INITRD))?;
            if !archive.starts_with(b"07070") {
                return None;
            }
            packed = true;
            out.extend_from_slice(&archive);
            used
        };
        if used == 0 || out.len() > MAX_INITRD {
            return None;
        }
        rest = &rest[used..];
    }
    packed.then_some(out)
}

/// The length of a cpio archive (`newc`) that begins here, its trailer included.
fn archive_len(bytes: &[u8]) -> Option<usize> {
    let hex = |at: usize| {
        let text = std::str::from_utf8(bytes.get(at..at.checked_add(8)?)?).ok()?;
        usize::from_str_radix(text, 16).ok()
    };
    let mut at = 0usize;
    loop {
        let magic = bytes.get(at..at.checked_add(6)?)?;
        if magic != b"070701" && magic != b"070702" {
            return None;
        }
        let (size, name_len) = (hex(at + 54)?, hex(at + 94)?);
        let name = bytes.get(at + 110..(at + 110).checked_add(name_len)?)?;
        let data = (at + 110).checked_add(name_len)?.checked_next_multiple_of(4)?;
        at = data.checked_add(size)?.checked_next_multiple_of(4)?;
        if name == b"TRAILER!!!\0" {
            return (at <= bytes.len()).then_some(at);
        }
    }
}

/// Unpacks one stream, whatever packed it; also says how many bytes of the input it took.
fn unpack(bytes: &[u8], max: usize) -> Option<(Vec<u8>, usize)> {
    if bytes.starts_with(b"\x1f\x8b") {
        let mut decoder = flate2::bufread::GzDecoder::new(bytes);
        let out = read_at_most(&mut decoder, max)?;
        Some((out, bytes.len() - decoder.into_inner().len()))
    } else if bytes.starts_with(b"\x28\xb5\x2f\xfd") {
        let mut rest = bytes;
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest).ok()?;
        let out = read_at_most(&mut decoder, max)?;
        drop(decoder);
        Some((out, bytes.len() - rest.len()))
    } else if bytes.starts_with(b"\x02\x21\x4c\x18") {
        lz4_legacy(bytes, max)
    } else {
        None
    }
}

fn read_at_most(from: &mut impl Read, max: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    from.take(max as u64 + 1).read_to_end(&mut out).ok()?;
    (out.len() <= max).then_some(out)
}

/// The frame that `lz4 -l` writes and the kernel reads: blocks of at most 8 MiB, each after its packed size. It has no
/// end of its own: it ends with the input, or where the next size is one that no block can have.
fn lz4_legacy(bytes: &[u8], max: usize) -> Option<(Vec<u8>, usize)> {
    const BLOCK: usize = 8 << 20;
    let (mut at, mut out) = (4, Vec::new());
    while let Some(size) = bytes.get(at..at + 4) {
        let size = u32::from_le_bytes(size.try_into().ok()?) as usize;
        // The kernel's build appends the whole unpacked size, which then ends the input.
        let Some(block) = bytes.get(at + 4..(at + 4).checked_add(size)?).filter(|_| size > 0) else { break };
        let room = BLOCK.min(max.checked_sub(out.len())?);
        out.extend(lz4_flex::block::decompress(block, room).ok()?);
        at += 4 + size;
    }
    Some((out, at))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// An ELF file whose only header is a note of this type, named "Xen".
    fn elf(note: u32) -> Vec<u8> {
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 4;
        elf[72..80].copy_from_slice(&120u64.to_le_bytes());
        // A note of somebody else's comes first.
        let mut notes: Vec<u8> = [4u32, 5, note].iter().flat_map(|n| n.to_le_bytes()).collect();
        notes.extend(b"GNU\0\x01\x02\x03\x04\x05\0\0\0");
        notes.extend([4u32, 8, note].iter().flat_map(|n| n.to_le_bytes()));
        notes.extend(b"Xen\0\0\0\x10\0\0\0\0\0");
        elf[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        elf.extend(notes);
        elf
    }

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 5 * 512 + 16];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0xee; 100]);
        image
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut out = b"\x02\x21\x4c\x18".to_vec();
        for block in bytes.chunks(8 << 20) {
            let packed = lz4_flex::block::compress(block);
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend(packed);
        }
        out
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn cpio(name: &str, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in [(name, data), ("TRAILER!!!", &[][..])] {
            let size = data.len();
            out.extend(b"070701");
            for n in 0..13 {
                let value = match n {
                    6 => size,
                    11 => name.len() + 1,
                    _ => 0,
                };
                out.extend(format!("{value:08x}").bytes());
            }
            out.extend(name.bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn a_kernel_that_can_be_entered_directly() {
        let inner = elf(18);
        let mut big = inner.clone();
        // More than one block of lz4.
        big.resize(9 << 20, 7);
        for payload in [gz(&inner), zstd(&inner), lz4(&big)] {
            // The build appends the unpacked size behind all but gzip's.
            let mut with_size = payload.clone();
            with_size.extend((big.len() as u32).to_le_bytes());
            for payload in [payload, with_size] {
                let got = kernel(&bz_image(&payload)).unwrap();
                assert!(got == inner || got == big);
            }
        }
    }

    #[test]
    fn other_kernels_stay_packed() {
        assert_eq!(kernel(&bz_image(&gz(&elf(17)))), None, "no note of the entry");
        assert_eq!(kernel(&bz_image(&gz(b"not ELF at all"))), None);
        assert_eq!(kernel(&bz_image(b"\xfd7zXZ\0...")), None, "a packer not known here");
        assert_eq!(kernel(b"MZ"), None);
        let mut old = bz_image(&gz(&elf(18)));
        old[0x206] = 0x07;
        assert_eq!(kernel(&old), None, "a protocol that does not tell the payload");
    }

    #[test]
    fn an_initramfs_of_several_archives() {
        let (microcode, main) = (cpio("kernel/x86/microcode", b"12345"), cpio("init", b"#!/bin/sh\n"));
        let joined = [microcode.clone(), main.clone()].concat();
        for packed in [gz(&main), zstd(&main)] {
            let mut whole = microcode.clone();
            whole.extend([0u8; 508]);
            whole.extend(&packed);
            whole.extend([0u8; 3]);
            assert_eq!(initrd(&whole).unwrap(), joined);
        }
        assert_eq!(initrd(&joined), None, "nothing packed");
        assert_eq!(initrd(&[microcode.clone(), b"\xfd7zXZ\0".to_vec()].concat()), None);
        assert_eq!(initrd(&gz(b"no archive")), None);
        assert_eq!(initrd(&microcode[..microcode.len() - 3]), None, "cut short");
    }

    #[test]
    fn a_bomb_is_left_alone() {
        let bomb = gz(&[cpio("a", b""), vec![0u8; MAX_INITRD]].concat());
        assert!(bomb.len() < 1 << 20);
        assert_eq!(initrd(&bomb), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), kind in 0..5u8) {
            let start: &[u8] = match kind {
                0 => b"070701",
                1 => b"\x02\x21\x4c\x18\x10\0\0\0",
                2 => b"\x28\xb5\x2f\xfd",
                3 => b"\x1f\x8b\x08\0",
                _ => b"",
            };
            bytes.splice(0..0, start.iter().copied());
            let _ = initrd(&bytes);
            let _ = kernel(&bz_image(&bytes));
            let mut elf = elf(18);
            elf.splice(20..20 + bytes.len().min(60), bytes.iter().copied().take(60));
            let _ = has_direct_entry(&elf);
        }
    }
}
