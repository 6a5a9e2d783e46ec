//! Who needs which image, and which references led to which: read off the machines' folders and the import records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fleetbox_spec::{DiskFormat, ImageRef, MachineName};
use fleetbox_store::{MachineDir, MachineRecord, Store, read_json};
use serde::Deserialize;

use crate::ImageError;
use crate::model::is_digest;

/// What the store told when it was read.
#[derive(Debug, Default)]
pub(super) struct Uses {
    machines: BTreeMap<String, BTreeSet<MachineName>>,
    references: BTreeMap<String, Vec<ImageRef>>,
    /// Neither disk nor record of these could be read, and why.
    unknown: Vec<(MachineName, io::Error)>,
    imports: Vec<Import>,
}

/// A file that was imported.
#[derive(Debug)]
struct Import {
    record: PathBuf,
    path: PathBuf,
    digest: String,
}

impl Uses {
    pub(super) fn read(store: &Store) -> Result<Self, ImageError> {
        let mut uses = Self { imports: imports(store)?, ..Self::default() };
        for cluster in store.clusters()? {
            // Also those without a record: a disk that is there is needed by whoever makes its machine.
            for (name, dir) in store.machine_dirs(&cluster)? {
                uses.add(name, &dir);
            }
        }
        Ok(uses)
    }

    fn add(&mut self, name: MachineName, dir: &MachineDir) {
        let record = read_json::<MachineRecord>(&dir.record()).ok();
        if let Some(record) = &record {
            let known = self.references.entry(record.image_digest.clone()).or_default();
            if !known.contains(&record.image) {
                known.push(record.image.clone());
            }
        }
        match backing_digest(&dir.disk(DiskFormat::Qcow2.as_str())) {
            Ok(Some(digest)) => drop(self.machines.entry(digest).or_default().insert(name)),
            Ok(None) => {}
            // What the disk does not tell, its record may.
            Err(e) => match record {
                Some(record) => drop(self.machines.entry(record.image_digest).or_default().insert(name)),
                None => self.unknown.push((name, e)),
            },
        }
    }

    /// The machines whose disks need an image.
    pub(super) fn machines(&self, digest: &str) -> Vec<MachineName> {
        self.machines.get(digest).into_iter().flatten().cloned().collect()
    }

    /// What the machines that were made from an image call it.
    pub(super) fn references(&self, digest: &str) -> &[ImageRef] {
        self.references.get(digest).map_or(&[], Vec::as_slice)
    }

    /// The files that an image was imported from.
    pub(super) fn imported_as(&self, digest: &str) -> Vec<PathBuf> {
        self.imports.iter().filter(|i| i.digest == digest).map(|i| i.path.clone()).collect()
    }

    /// The records of these imports.
    pub(super) fn import_records(&self, digest: &str) -> impl Iterator<Item = &Path> {
        self.imports.iter().filter(move |i| i.digest == digest).map(|i| i.record.as_path())
    }

    /// What a file was last imported as, by the name of its record.
    pub(super) fn import_of(&self, name: &str) -> Option<&str> {
        let record = format!(".{name}.json");
        let import = self.imports.iter().find(|i| i.record.file_name().is_some_and(|f| *f == *record))?;
        Some(&import.digest)
    }

    /// Refuses when a disk needs the image, or may.
    pub(super) fn check_unneeded(&self, digest: &str) -> Result<(), ImageError> {
        let machines = self.machines(digest);
        if !machines.is_empty() {
            return Err(ImageError::ImageInUse { digest: super::short_digest(digest).to_owned(), machines });
        }
        match self.unknown.first() {
            None => Ok(()),
            Some((machine, why)) => Err(ImageError::UseUnknown {
                digest: super::short_digest(digest).to_owned(),
                machine: machine.clone(),
                source: io::Error::new(why.kind(), why.to_string()),
            }),
        }
    }
}

/// The image that a disk is an overlay on; `None` where there is no such disk, or it stands alone.
fn backing_digest(disk: &Path) -> io::Result<Option<String>> {
    let file = match File::open(disk) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(backing) = backing_file(&file)? else { return Ok(None) };
    // By its name alone: the store may have been moved, and be known by another path since.
    let digest = backing.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    Ok(digest.filter(|d| is_digest(d)).map(str::to_owned))
}

/// The backing file that a qcow2 header names. Offsets: QEMU's `docs/interop/qcow2.rst`.
fn backing_file(file: &File) -> io::Result<Option<PathBuf>> {
    /// "Must not be longer than 1023 bytes."
    const LONGEST: usize = 1023;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "it is no qcow2 file");
    let mut head = [0u8; 20];
    file.read_exact_at(&mut head, 0)?;
    if head[..4] != crate::qcow2::MAGIC {
        return Err(bad());
    }
    let be64 = head[8..16].try_into().map(u64::from_be_bytes).map_err(|_| bad())?;
    let len = head[16..20].try_into().map(u32::from_be_bytes).map_err(|_| bad())?;
    let len = usize::try_from(len).map_err(|_| bad())?;
    if be64 == 0 {
        return Ok(None);
    }
    if len > LONGEST {
        return Err(bad());
    }
    let mut name = vec![0u8; len];
    file.read_exact_at(&mut name, be64)?;
    Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(name))))
}

/// The records of files that were imported. One that is damaged is only a short cut that is not there.
fn imports(store: &Store) -> Result<Vec<Import>, ImageError> {
    #[derive(Deserialize)]
    struct Fingerprint {
        path: PathBuf,
    }
    #[derive(Deserialize)]
    struct Record {
        fingerprint: Fingerprint,
        digest: String,
    }
    let images = store.images_dir();
    let mut all = Vec::new();
    for entry in fs::read_dir(&images).map_err(ImageError::io("read folder", &images))? {
        let entry = entry.map_err(ImageError::io("read folder", &images))?;
        let name = entry.file_name();
        if !name.to_str().is_some_and(|n| n.starts_with(".file-") && n.ends_with(".json")) {
            continue;
        }
        let record = fs::read(entry.path()).ok().and_then(|b| serde_json::from_slice::<Record>(&b).ok());
        if let Some(Record { fingerprint, digest }) = record {
            all.push(Import { record: entry.path(), path: fingerprint.path, digest });
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::manage) fn overlay(backing: &str) -> Vec<u8> {
        let mut head = vec![0u8; 512];
        head[..4].copy_from_slice(&crate::qcow2::MAGIC);
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        if !backing.is_empty() {
            head[8..16].copy_from_slice(&512u64.to_be_bytes());
            head[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        }
        head.extend(backing.as_bytes());
        head
    }

    fn digest_in(bytes: &[u8]) -> io::Result<Option<String>> {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("disk.qcow2");
        fs::write(&path, bytes).unwrap();
        backing_digest(&path)
    }

    #[test]
    fn a_disk_tells_what_it_needs() {
        let digest = "0a".repeat(32);
        let there = digest_in(&overlay(&format!("/x/images/{digest}/image.raw"))).unwrap();
        assert_eq!(there.as_deref(), Some(digest.as_str()));
        assert_eq!(digest_in(&overlay("")).unwrap(), None);
        assert_eq!(digest_in(&overlay("/somewhere/else.raw")).unwrap(), None);
        assert_eq!(backing_digest(Path::new("/nonexistent/disk.qcow2")).unwrap(), None);
        for bad in [&b""[..], b"QFI", &[7u8; 100], &overlay("/x")[..513]] {
            assert!(digest_in(bad).is_err(), "{bad:?}");
        }
        let mut long = overlay("/x");
        long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(digest_in(&long).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() > 4 {
                bytes[..4].copy_from_slice(&crate::qcow2::MAGIC);
            }
            let _ = digest_in(&bytes);
        }
    }
}
