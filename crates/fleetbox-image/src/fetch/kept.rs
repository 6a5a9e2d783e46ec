//! What stays of a download that was interrupted, and for how long.
//!
//! ```text
//!  images/.<name>.download/{body, state.json}     under the image lock of <name>
//! ```
//! `state.json` is written before the first byte of `body`, so that bytes without it are of no known file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fleetbox_store::{Lock, LockKind, Store, StoreError, Versioned};
use serde::{Deserialize, Serialize};

use super::answer::{Known, Validator};
use crate::ImageError;

/// How long what was downloaded of an image waits for the rest.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A download that has begun and has not become an image yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartialDownload {
    /// Where it comes from.
    pub url: String,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes in all, where the server said so.
    pub total: Option<u64>,
    /// When the last of them came.
    pub changed: SystemTime,
    /// The process that is at it; `None` when it was interrupted, and will be resumed by the next use of the image.
    pub owner: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    url: String,
    validator: Validator,
    total: Option<u64>,
    /// The boot in which `body` was written. Within it, all of `body` is good, as the kernel has it.
    boot_id: String,
    /// So much of it was on the disk when this was written.
    synced: u64,
}

impl Versioned for State {
    const VERSION: u32 = 1;
}

/// The folder of one download. Whoever has one holds its lock.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    store: &'a Store,
    dir: PathBuf,
    _lock: &'a Lock,
}

impl<'a> Kept<'a> {
    pub(super) fn new(store: &'a Store, name: &str, lock: &'a Lock) -> Self {
        Self { store, dir: store.image_download_dir(name), _lock: lock }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn body(&self) -> PathBuf {
        self.dir.join("body")
    }

    fn state(&self) -> PathBuf {
        state(&self.dir)
    }

    pub(super) fn make(&self) -> Result<(), ImageError> {
        Ok(self.store.make_dir(&self.dir, 0o755)?)
    }

    /// What is known of the file of which so many bytes are there. Nothing if there is nothing of use.
    pub(super) fn load(&self, url: &str) -> Option<(Known, u64)> {
        let state = fleetbox_store::read_json::<State>(&self.state()).ok()?;
        let body = fs::metadata(self.body()).ok()?;
        let boot_id = fleetbox_os::process::boot_id().ok();
        let len = trusted(&state, body.len(), boot_id.as_deref());
        // Another name of a file may be that of an image, which must not change.
        let complete = state.total == Some(len);
        if state.url != url || len == 0 || (body.nlink() > 1 && !(complete && body.len() == len)) {
            return None;
        }
        Some((Known { validator: state.validator, total: state.total }, len))
    }

    /// Writes down what the body is of.
    pub(super) fn save(&self, url: &str, known: &Known, synced: u64) -> Result<(), ImageError> {
        let state = State {
            url: url.to_owned(),
            validator: known.validator.clone(),
            total: known.total,
            boot_id: fleetbox_os::process::boot_id().map_err(ImageError::io("read", "the boot id"))?,
            synced,
        };
        fleetbox_store::write_json(&self.state(), &state, 0o644)?;
        self.store.give_to_owner(&self.state())?;
        if self.body().exists() {
            self.store.give_to_owner(&self.body())?;
        }
        Ok(())
    }

    pub(super) fn clear(&self) -> Result<(), ImageError> {
        Ok(fleetbox_store::remove_dir_if_there(&self.dir)?)
    }
}

fn state(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

/// How many bytes of the body are what the server sent.
fn trusted(state: &State, len: u64, boot_id: Option<&str>) -> u64 {
    let good = match boot_id == Some(&state.boot_id) {
        true => len,
        // The machine went down since: its last bytes may be zeros that nobody wrote.
        false => len.min(state.synced),
    };
    state.total.map_or(good, |total| good.min(total))
}

/// How much there is of a download, and of how much, for those who wait for it.
pub(super) fn progress(store: &Store, name: &str) -> Option<(u64, Option<u64>)> {
    let dir = store.image_download_dir(name);
    let done = fs::metadata(dir.join("body")).ok()?.len();
    let total = fleetbox_store::read_json::<State>(&state(&dir)).ok().and_then(|s| s.total);
    Some((done, total))
}

fn each(store: &Store) -> Result<Vec<(String, PathBuf)>, ImageError> {
    let images = store.images_dir();
    let mut all = Vec::new();
    for entry in fs::read_dir(&images).map_err(ImageError::io("read folder", &images))? {
        let entry = entry.map_err(ImageError::io("read folder", &images))?;
        let file_name = entry.file_name();
        if let Some(name) = file_name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(".download")) {
            all.push((name.to_owned(), entry.path()));
        }
    }
    all.sort();
    Ok(all)
}

fn changed(dir: &Path) -> SystemTime {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    time(&dir.join("body")).or_else(|| time(dir)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// All downloads that have begun.
pub(crate) fn list(store: &Store) -> Result<Vec<PartialDownload>, ImageError> {
    let mut all = Vec::new();
    for (name, dir) in each(store)? {
        let (Ok(state), Some((done, total))) =
            (fleetbox_store::read_json::<State>(&state(&dir)), progress(store, &name))
        else {
            continue;
        };
        let owner = Lock::holder(store, LockKind::Image, &name)?.and_then(|h| h.pid());
        all.push(PartialDownload { url: state.url, done, total, changed: changed(&dir), owner });
    }
    Ok(all)
}

/// Removes downloads that nobody is at and nothing came for since so long.
pub(crate) fn sweep(store: &Store, older_than: Duration) -> Result<Vec<PathBuf>, ImageError> {
    let mut removed = Vec::new();
    for (name, dir) in each(store)? {
        // A time in the future has no age.
        let age = SystemTime::now().duration_since(changed(&dir)).unwrap_or_default();
        if age < older_than {
            continue;
        }
        match Lock::try_take(store, LockKind::Image, &name) {
            Ok(_lock) => {
                fleetbox_store::remove_dir_if_there(&dir)?;
                removed.push(dir);
            }
            Err(StoreError::Locked { holder, .. }) => tracing::debug!(%name, %holder, "is being downloaded"),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(removed)
}

/// Removes downloads that have waited for too long.
pub(crate) fn sweep_old(store: &Store) -> Result<Vec<PathBuf>, ImageError> {
    sweep(store, KEPT_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_crash_only_what_was_synced_counts() {
        let state = |total| State {
            url: String::new(),
            validator: Validator::default(),
            total,
            boot_id: "this".into(),
            synced: 50,
        };
        assert_eq!(trusted(&state(Some(100)), 70, Some("this")), 70);
        assert_eq!(trusted(&state(Some(100)), 70, Some("other")), 50);
        assert_eq!(trusted(&state(Some(100)), 70, None), 50);
        assert_eq!(trusted(&state(Some(100)), 30, Some("other")), 30);
        assert_eq!(trusted(&state(Some(60)), 70, Some("this")), 60);
        assert_eq!(trusted(&state(None), 70, Some("this")), 70);
    }

    #[test]
    fn what_is_kept_is_found_again_listed_and_swept_by_age() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let lock = Lock::try_take(&store, LockKind::Image, "url-x").unwrap();
        let kept = Kept::new(&store, "url-x", &lock);
        assert_eq!(kept.load("u"), None);
        kept.make().unwrap();
        fs::write(kept.body(), "12345").unwrap();
        assert_eq!(kept.load("u"), None);
        let known =
            Known { validator: Validator { etag: Some("e".into()), last_modified: None }, total: Some(9) };
        kept.save("u", &known, 0).unwrap();
        assert_eq!(kept.load("u"), Some((known.clone(), 5)));
        assert_eq!(kept.load("another"), None);
        // Somebody is at it.
        assert_eq!(sweep(&store, Duration::ZERO).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(list(&store).unwrap()[0].owner, Some(std::process::id()));
        // A second name: not to be written to any more, unless there is nothing left to write.
        let second = tmp.path().join("second");
        fs::hard_link(kept.body(), &second).unwrap();
        assert_eq!(kept.load("u"), None);
        let whole = Known { total: Some(5), ..known };
        kept.save("u", &whole, 5).unwrap();
        assert_eq!(kept.load("u"), Some((whole, 5)));
        let dir = kept.dir().to_owned();
        drop(lock);
        assert_eq!(sweep_old(&store).unwrap(), Vec::<PathBuf>::new());
        let listed = list(&store).unwrap();
        assert_eq!(
            (listed[0].url.as_str(), listed[0].done, listed[0].total, listed[0].owner),
            ("u", 5, Some(5), None)
        );
        let long_ago = SystemTime::now() - KEPT_FOR - Duration::from_secs(60);
        fs::File::options().write(true).open(dir.join("body")).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(sweep_old(&store).unwrap(), [dir]);
        assert_eq!(list(&store).unwrap(), []);
    }
}
