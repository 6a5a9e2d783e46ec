//! Which digest a file had when it was last imported, so that a second start need not read it all again.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fleetbox_store::{Store, Versioned};
use serde::{Deserialize, Serialize};

use crate::ImageError;
use crate::model::path_name;

/// What tells, without reading it, that a file is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    path: PathBuf,
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    /// Set by the kernel alone: a tool that restores mtime does not restore it.
    ctime: (i64, i64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    fingerprint: Fingerprint,
    /// Of the files behind it, whose content is part of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    backing: Vec<Fingerprint>,
    digest: String,
}

impl Versioned for Record {
    const VERSION: u32 = 1;
}

impl Fingerprint {
    pub(super) fn of(path: &Path, file: &File) -> Result<Self, ImageError> {
        Ok(Self::from(path, &file.metadata().map_err(ImageError::io("look at image", path))?))
    }

    fn from(path: &Path, m: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What tells two files apart, whatever their paths.
    pub(super) fn file_id(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// Changed so lately that another change might not show in its times (their steps are those of the kernel's clock
    /// tick, or a second on some file systems).
    fn is_fresh(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let last = self.mtime.0.max(self.ctime.0);
        u64::try_from(last).unwrap_or(0).saturating_add(2) > now
    }
}

fn file(store: &Store, path: &Path) -> PathBuf {
    store.images_dir().join(format!(".{}.json", path_name(path)))
}

/// The digest that the file had, if it is still the same. Whatever is wrong with the record: it is only a short cut.
pub(super) fn recall(store: &Store, print: &Fingerprint) -> Option<String> {
    let record = fleetbox_store::read_json::<Record>(&file(store, &print.path)).ok()?;
    let same = |b: &Fingerprint| {
        fs::metadata(&b.path).is_ok_and(|m| m.is_file() && Fingerprint::from(&b.path, &m) == *b)
    };
    (record.fingerprint == *print && record.backing.iter().all(same)).then_some(record.digest)
}

/// Keeps the digest of a file and of those behind it.
pub(super) fn remember(
    store: &Store,
    print: &Fingerprint,
    backing: &[Fingerprint],
    digest: &str,
) -> Result<(), ImageError> {
    let now = SystemTime::now();
    if print.is_fresh(now) || backing.iter().any(|b| b.is_fresh(now)) {
        return Ok(());
    }
    let path = file(store, &print.path);
    let record = Record { fingerprint: print.clone(), backing: backing.to_vec(), digest: digest.to_owned() };
    fleetbox_store::write_json(&path, &record, 0o644)?;
    Ok(store.give_to_owner(&path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_times_cannot_show_is_not_trusted() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        std::fs::write(&path, "x").unwrap();
        let print = Fingerprint::of(&path, &File::open(&path).unwrap()).unwrap();
        assert!(print.is_fresh(SystemTime::now()));
        assert!(!print.is_fresh(SystemTime::now() + Duration::from_secs(10)));
    }
}
