use std::io::Write;

use fleetbox_store::LockKind;

use super::*;

fn part<'a>(store: &'a Store, name: &str) -> Part<'a> {
    let lock = fleetbox_store::Lock::try_take(store, LockKind::Image, name).unwrap();
    Part::create(store, name, lock).unwrap()
}

/// A disk with a partition table and nothing that could be booted directly.
fn disk() -> Vec<u8> {
    let mut disk = vec![0u8; 2 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn adopted(store: &Store, bytes: &[u8], digest: &str) -> Result<Image, ImageError> {
    let part = part(store, "download");
    let source = part.path().join("as-downloaded");
    fs::write(&source, bytes).unwrap();
    let (task, _hang_up) = crate::task::for_tests();
    let url = "https://images.test/disk.img".parse().unwrap();
    adopt(store, part, &source, "https://images.test/disk.img", url, digest.to_owned(), &task)
}

#[test]
fn a_download_becomes_an_image_or_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(&tmp.path().join("home")).unwrap();
    let left = || fs::read_dir(store.images_dir()).unwrap().count();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&disk()).unwrap();
    let gz = gz.finish().unwrap();
    for (i, bytes) in [disk(), gz].iter().enumerate() {
        let digest = format!("{i}").repeat(64);
        let image = adopted(&store, bytes, &digest).unwrap();
        assert_eq!((image.digest, image.virtual_size), (digest, 2 << 20));
        assert_eq!(image.reference.to_string(), "https://images.test/disk.img");
        assert!(fs::read(&image.path).unwrap() == disk());
        assert_eq!(left(), i + 1);
    }
    for (bytes, says) in [
        (&b"<!doctype html><title>Sign in</title>"[..], "HTML"),
        (b"", "empty"),
        (&[0xff; 2 << 20], "no partition table"),
    ] {
        let e = adopted(&store, bytes, &"e".repeat(64)).unwrap_err().to_string();
        assert!(e.contains(says) && e.contains("https://images.test"), "{e}");
    }
    // A backing file is never followed from a download.
    let mut overlay = vec![0u8; 1 << 16];
    overlay[..4].copy_from_slice(&crate::qcow2::MAGIC);
    for (at, value) in [(4, 2u32), (12, 600), (16, 11), (20, 16), (28, 1 << 20), (36, 1), (44, 4096)] {
        overlay[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    overlay[600..611].copy_from_slice(b"/etc/passwd");
    let e = adopted(&store, &overlay, &"e".repeat(64)).unwrap_err();
    assert!(
        matches!(&e, ImageError::BadQcow2 { reason: crate::Qcow2Problem::BackingFile(name), .. }
            if name == "/etc/passwd"),
        "{e:?}"
    );
    assert_eq!(left(), 2);
}
