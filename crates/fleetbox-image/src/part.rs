//! A folder that becomes an image, or goes.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetbox_os::process::ProcessIdentity;
use fleetbox_store::{BootDir, Lock, LockKind, Store, StoreError};

use crate::model::Meta;
use crate::plain;
use crate::task::Task;
use crate::{Image, ImageError, ImageProgress, ImageStage};

/// The longest that another process's work on the same image is waited for.
const WAIT_FOR_BUILDER: Duration = Duration::from_secs(45 * 60);

/// Takes the lock of an image's name, telling who has it while that takes time.
pub(crate) fn lock(store: &Store, name: &str, what: &str, task: &Task) -> Result<Lock, ImageError> {
    let deadline = Instant::now() + WAIT_FOR_BUILDER;
    let mut told = None;
    loop {
        match Lock::try_take(store, LockKind::Image, name) {
            Ok(lock) => return Ok(lock),
            Err(StoreError::Locked { holder, .. }) if Instant::now() < deadline => {
                let detail = format!("{what} is being built by {holder}");
                if told.as_ref() != Some(&detail) {
                    task.report(ImageProgress {
                        stage: ImageStage::Waiting,
                        detail: detail.clone(),
                        progress: None,
                    });
                    told = Some(detail);
                }
                task.pause(Duration::from_millis(100))?;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// `images/.<name>.part`, with its lock. Dropping it removes the folder; [`Part::commit`] makes it an image.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    store: &'a Store,
    dir: PathBuf,
    /// After `dir` in every sense: the folder is gone before anybody else may make it.
    _lock: Lock,
}

impl<'a> Part<'a> {
    pub(crate) fn create(store: &'a Store, name: &str, lock: Lock) -> Result<Self, ImageError> {
        let dir = store.image_part_dir(name);
        // We hold the lock, so what is there was left by somebody who died.
        remove_part(&dir)?;
        store.make_dir(&dir, 0o755)?;
        Ok(Self { store, dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Makes it the image: files synced, `meta.json` written, folder renamed. If an image with this digest is there
    /// already, that one is taken.
    pub(crate) fn commit(self, meta: Meta) -> Result<Image, ImageError> {
        plain::unpack_boot_files(&BootDir::at(&self.dir))?;
        for entry in fs::read_dir(&self.dir).map_err(ImageError::io("read folder", &self.dir))? {
            let path = entry.map_err(ImageError::io("read folder", &self.dir))?.path();
            // meta.json must never be on disk while what it speaks of is not.
            File::open(&path).and_then(|f| f.sync_all()).map_err(ImageError::io("sync", &path))?;
            // The VMM reads it under another uid.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                .map_err(ImageError::io("set mode of", &path))?;
            self.store.give_to_owner(&path)?;
        }
        let target = self.store.image_dir(&meta.digest);
        let meta_path = self.dir.join(target.meta().file_name().unwrap_or_default());
        fleetbox_store::write_json(&meta_path, &meta, 0o644)?;
        self.store.give_to_owner(&meta_path)?;
        // Neither a folder without meta.json (no image) nor an equal image blocks the rename for good.
        match crate::model::load(self.store, &meta.digest)? {
            Some(image) => return Ok(image),
            None => fleetbox_store::remove_dir_if_there(target.path())?,
        }
        fs::rename(&self.dir, target.path()).map_err(ImageError::io("rename into place", target.path()))?;
        let images = self.store.images_dir();
        File::open(&images).and_then(|d| d.sync_all()).map_err(ImageError::io("sync folder", &images))?;
        Ok(meta.into_image(&target))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_part(&self.dir) {
            tracing::warn!(%error, "a half-made image stays until the next sweep");
        }
    }
}

/// Removes a part. A builder that was killed a moment ago may still be making a file in it: tries again for a while.
fn remove_part(dir: &Path) -> Result<(), ImageError> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match fleetbox_store::remove_dir_if_there(dir) {
            Err(StoreError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline =>
            {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            r => return Ok(r?),
        }
    }
}

/// Removes the parts whose lock is free, which is to say whose builder has ended.
pub(crate) fn sweep(store: &Store) -> Result<Vec<PathBuf>, ImageError> {
    let images = store.images_dir();
    let mut removed = Vec::new();
    for entry in fs::read_dir(&images).map_err(ImageError::io("read folder", &images))? {
        let entry = entry.map_err(ImageError::io("read folder", &images))?;
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(".part")) else {
            continue;
        };
        match Lock::try_take(store, LockKind::Image, name) {
            Ok(_lock) => {
                remove_part(&entry.path())?;
                removed.push(entry.path());
            }
            Err(StoreError::Locked { holder, .. }) => {
                tracing::debug!(part = name, %holder, "is being made");
            }
            Err(e) => return Err(e.into()),
        }
    }
    removed.sort();
    Ok(removed)
}

/// A name for a temporary file beside `path` that no other process or thread uses.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let start = ProcessIdentity::current().map(|p| p.start_time).unwrap_or_default();
    path.with_file_name(format!(
        ".{}.{}-{start}-{:?}.part",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id(),
        std::thread::current().id(),
    ))
}
