use std::io::Write;
use std::os::unix::fs::MetadataExt;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

/// A disk with a partition table's signature, some data, and much of nothing.
fn disk() -> Vec<u8> {
    let mut disk = vec![0u8; 3 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (i, byte) in disk[1 << 20..][..100_000].iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    disk
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Any name, such as no honest archiver writes.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

const MIB: u64 = 1 << 20;

fn limited(bytes: &[u8], limits: Limits) -> Result<(Disk, File), ImageError> {
    let mut from = tempfile::tempfile().unwrap();
    from.write_all(bytes).unwrap();
    rustix::fs::seek(&from, rustix::fs::SeekFrom::Start(0)).unwrap();
    let to = tempfile::tempfile().unwrap();
    let to_path = std::env::temp_dir().join("unpacked");
    let (task, _hang_up) = crate::task::for_tests();
    let disk = unpack(&from, Path::new("disk.packed"), &to, &to_path, limits, &task)?;
    Ok((disk, to))
}

fn unpacked(bytes: &[u8]) -> Result<(Disk, Vec<u8>), ImageError> {
    let (disk, mut to) = limited(bytes, Limits::small(bytes.len() as u64, 16 * MIB, 8 * MIB))?;
    rustix::fs::seek(&to, rustix::fs::SeekFrom::Start(0)).unwrap();
    let mut content = Vec::new();
    to.read_to_end(&mut content).unwrap();
    Ok((disk, content))
}

fn refused(bytes: &[u8]) -> ImageError {
    match unpacked(bytes) {
        Ok((disk, content)) => panic!("took {} bytes as {disk:?}", content.len()),
        Err(e) => e,
    }
}

#[test]
fn what_is_packed_comes_out_again() {
    let disk = disk();
    for packed in [
        disk.clone(),
        gz(&disk),
        zst(&disk),
        gz(&zst(&disk)),
        tar(&[("disk.raw", &disk)]),
        gz(&tar(&[("disk.raw", &disk)])),
        zst(&tar(&[("./disk.raw", &disk)])),
        tar(&[("README", b"how to\n"), ("disk.raw.gz", &gz(&disk)), ("docs.gz", &gz(b"more\n"))]),
        gz(&tar(&[("a/", b""), ("../../etc/passwd", &disk)])),
    ] {
        let (kind, content) = unpacked(&packed).unwrap();
        assert_eq!(kind, Disk::Raw);
        assert!(content == disk, "{} bytes differ", content.len());
    }
    let mut qcow2 = crate::qcow2::MAGIC.to_vec();
    qcow2.resize(4096, 1);
    assert_eq!(unpacked(&gz(&qcow2)).unwrap(), (Disk::Qcow2, qcow2));
}

#[test]
fn files_one_after_another_are_one() {
    let disk = disk();
    let (a, b) = disk.split_at(1 << 20);
    assert!(unpacked(&[gz(a), gz(b)].concat()).unwrap().1 == disk);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    assert!(unpacked(&[&skippable[..], &zst(a), &skippable, &zst(b)].concat()).unwrap().1 == disk);
}

#[test]
fn zeros_become_holes() {
    let (_, to) = limited(&gz(&disk()), Limits::of(10_000)).unwrap();
    let meta = to.metadata().unwrap();
    assert_eq!(meta.len(), 3 << 20);
    assert!(meta.blocks() * 512 <= 512 << 10, "{} blocks", meta.blocks());
}

#[test]
fn bombs_are_stopped_at_their_limit() {
    let exceeded = |bytes: &[u8]| match refused(bytes) {
        ImageError::UnpackLimit { limit, .. } => limit,
        other => panic!("{other:?}"),
    };
    let (mut zeros, mut data) = (vec![0; 20 << 20], vec![1; 9 << 20]);
    for bytes in [&mut zeros, &mut data] {
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    for pack in [gz, zst] {
        assert!(matches!(exceeded(&pack(&zeros)), UnpackLimit::Total { most, .. } if most == 16 * MIB));
        assert!(matches!(exceeded(&pack(&data)), UnpackLimit::Data { most, .. } if most == 8 * MIB));
    }
    // Not as a disk, but beside one.
    let beside = gz(&tar(&[("disk.raw", &disk()), ("zeros", &vec![0; 20 << 20])]));
    assert!(matches!(exceeded(&beside), UnpackLimit::Total { .. }));
    let deep = (0..5).fold(disk(), |inner, _| gz(&inner));
    assert_eq!(exceeded(&deep), UnpackLimit::Layers { most: MAX_LAYERS });
}

#[test]
fn a_name_of_a_member_fills_no_memory() {
    // GNU tar's long name: a member of type L that holds it.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(4 << 20);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &*vec![b'n'; 4 << 20]).unwrap();
    let err = refused(&gz(&builder.into_inner().unwrap()));
    let ImageError::Unpack { packing, source, .. } = &err else { panic!("{err:?}") };
    assert_eq!(packing, "tar in gzip");
    assert!(source.to_string().contains("1 MiB"), "{source}");
}

#[test]
fn an_archive_holds_exactly_one_disk() {
    let disk = disk();
    let said = |members: &[(&str, &[u8])]| refused(&tar(members)).to_string();
    let many: Vec<String> = (0..20).map(|i| format!("etc/{i}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
    let none = said(&many);
    assert!(none.contains("none: etc/0, ") && none.contains("and 12 more"), "{none}");
    let two = said(&[("a.raw", &disk), ("README", b"x\n"), ("b.raw.gz", &gz(&disk))]);
    assert!(two.contains("several: a.raw, b.raw.gz (beside README)"), "{two}");
    let odd = said(&[("\u{1b}[31mred", b"x\n")]);
    assert!(odd.contains("none: [31mred"), "{odd}");
    // An archive in an archive is not looked into.
    assert!(said(&[("inner.tar", &tar(&[("disk.raw", &disk)]))]).contains("none: inner.tar"));
}

#[test]
fn what_is_damaged_says_so() {
    let disk = disk();
    for (packed, packing) in
        [(gz(&disk), "gzip"), (zst(&disk), "zstd"), (gz(&tar(&[("d", &disk)])), "tar in gzip")]
    {
        let cut = refused(&packed[..packed.len() - 9]);
        assert!(matches!(&cut, ImageError::Unpack { packing: p, .. } if p == packing), "{cut:?}");
        let mut flipped = packed.clone();
        let at = packed.len() - 6;
        flipped[at] ^= 0x10;
        let flipped = refused(&flipped);
        assert!(matches!(flipped, ImageError::Unpack { .. }), "{flipped:?}");
    }
    let nothing = refused(&gz(b"<html>404</html>"));
    assert!(nothing.to_string().contains("HTML"), "{nothing}");
    assert!(matches!(refused(&gz(&[0; 100_000])), ImageError::NotAnImage { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn foreign_bytes_never_panic(
        kind in 0usize..5,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        static GOOD: std::sync::LazyLock<[Vec<u8>; 5]> = std::sync::LazyLock::new(|| {
            let small = &disk()[..1 << 16];
            // A small disk, by xz(1).
            let xz = include_bytes!("../../tests/data/small.xz").to_vec();
            [gz(small), zst(small), tar(&[("a", small)]), gz(&tar(&[("a", small), ("b", b"x")])), xz]
        });
        let mut bytes = GOOD[kind].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(1 + cut.index(2 * bytes.len()));
        let _ = limited(&bytes, Limits::small(1, MIB, MIB / 2));
    }
}
