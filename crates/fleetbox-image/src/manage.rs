//! The images of a store as a whole: what there is, who needs it, and what can go.
//!
//! An image is needed by the machines whose disks are overlays on it, which their disks themselves tell; a disk that
//! is a copy needs none. A start that has not made its disk yet holds a share of the image's `image-use` lock
//! ([`ImageUse`]), and a removal holds that lock alone from before it looks for needs until the image is gone: so
//! either the removal sees the disk or the share, or the start sees that the image is gone and gets it anew.

mod uses;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use fleetbox_spec::{ImageRef, MachineName};
use fleetbox_store::{ImageDir, Lock, LockKind, SharedLock, Store, StoreError};

use crate::model::{is_digest, load, path_name};
use crate::{Image, ImageError, ImageProgress, Images, bootstrap};

use uses::Uses;

/// Digits of a digest that are shown, and nearly always enough to name it.
const SHORT: usize = 12;
/// The fewest digits of a digest that are taken for one.
const FEWEST: usize = 4;
/// How long a start waits for a removal of its image: that takes as long as deleting a few files.
const WAIT_FOR_REMOVAL: Duration = Duration::from_secs(30);
/// How often a start gets an image anew that is removed under its hands.
const TRIES: u32 = 3;

/// An image in the store, and what the store knows of it beside its content.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StoredImage {
    /// The image.
    pub image: Image,
    /// Every reference known to lead to it, the one it was first made for ahead.
    pub references: Vec<ImageRef>,
    /// Room that its files take on the host's disk, in bytes: holes take none.
    pub disk_bytes: u64,
    /// When it was made, or imported.
    pub made: SystemTime,
    /// The machines whose disks need it, running or not.
    pub used_by: Vec<MachineName>,
    /// All that its record holds, as it is on disk; later versions may put more into it.
    pub meta: serde_json::Value,
}

/// What [`Images::list`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImageListing {
    /// The images, the newest first.
    pub images: Vec<StoredImage>,
    /// Folders that hold no image that this program can read: digest, and why.
    pub damaged: Vec<(String, ImageError)>,
}

/// What [`Images::prune`] removed, or would.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImagesPruned {
    /// The images that no disk needs.
    pub removed: Vec<StoredImage>,
    /// Half-made images of builders that have died. Empty in a dry run: every start clears these away.
    pub swept: Vec<PathBuf>,
    /// Room in bytes that this gave back to the host's file system.
    pub freed_bytes: u64,
    /// What was kept, by digest, and why.
    pub kept: Vec<(String, ImageError)>,
}

/// An image that nobody removes while this is kept.
#[derive(Debug)]
#[must_use = "the image may be removed as soon as this is dropped"]
pub struct ImageUse {
    _share: SharedLock,
}

/// The first digits of a digest, as they are shown to a person.
#[must_use]
pub fn short_digest(digest: &str) -> &str {
    digest.get(..SHORT).unwrap_or(digest)
}

impl Images {
    /// Every image of the store, the newest first. One that is damaged does not hide the others.
    ///
    /// # Errors
    /// When a folder of the store cannot be read.
    pub fn list(&self) -> Result<ImageListing, ImageError> {
        let (uses, mut listing) = (Uses::read(self.store())?, ImageListing::default());
        for digest in digests(self.store())? {
            match self.look(&digest, &uses) {
                Ok(Some(image)) => listing.images.push(image),
                // Removed since the folder was read.
                Ok(None) => {}
                Err(e) => listing.damaged.push((digest, e)),
            }
        }
        listing.images.sort_by(|a, b| b.made.cmp(&a.made).then_with(|| a.image.digest.cmp(&b.image.digest)));
        Ok(listing)
    }

    fn look(&self, digest: &str, uses: &Uses) -> Result<Option<StoredImage>, ImageError> {
        let dir = self.store().image_dir(digest);
        let Some(image) = load(self.store(), digest)? else {
            // Its folder is complete or absent: without a record it is neither.
            return match dir.path().exists() {
                true => {
                    Err(ImageError::NoSuchImage { digest: digest.to_owned(), dir: self.store().images_dir() })
                }
                false => Ok(None),
            };
        };
        let file = dir.meta();
        let meta = fs::read(&file).map_err(ImageError::io("read", &file))?;
        let damaged = |source| StoreError::Damaged { path: file.clone(), source };
        let meta = serde_json::from_slice(&meta).map_err(damaged)?;
        let made =
            fs::metadata(&file).and_then(|m| m.modified()).map_err(ImageError::io("look at", &file))?;
        let mut references = vec![image.reference.clone()];
        let others = uses.references(digest).iter().cloned();
        let imported = uses.imported_as(digest).into_iter().map(ImageRef::File);
        for other in others.chain(imported) {
            if !references.contains(&other) {
                references.push(other);
            }
        }
        let used_by = uses.machines(digest);
        Ok(Some(StoredImage { image, references, disk_bytes: size(&dir)?.taken, made, used_by, meta }))
    }

    /// One image with all that the store knows of it.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`]; [`ImageError::Store`] when its record is damaged.
    pub fn stored(&self, digest: &str) -> Result<StoredImage, ImageError> {
        let none = || ImageError::NoSuchImage { digest: digest.to_owned(), dir: self.store().images_dir() };
        if !is_digest(digest) {
            return Err(none());
        }
        self.look(digest, &Uses::read(self.store())?)?.ok_or_else(none)
    }

    /// The digests of the images in the store that a reference leads to, or led to: an alias or a file may have meant
    /// other contents before. Builds nothing and asks nobody. The one that it leads to now, where that can be told
    /// without the network, is the only one.
    ///
    /// # Errors
    /// When a folder of the store cannot be read.
    pub fn digests_of(&self, reference: &ImageRef) -> Result<Vec<String>, ImageError> {
        let there = |digest: &String| self.store().image_dir(digest).meta().exists();
        if let ImageRef::Bootstrap { suite, packages } = reference {
            return Ok(bootstrap::digest_of(suite, packages).into_iter().filter(there).collect());
        }
        let (uses, mut found) = (Uses::read(self.store())?, BTreeSet::new());
        if let ImageRef::File(path) = reference {
            // A file that is gone was imported by the name that it had then.
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            found.extend(uses.import_of(&path_name(&path)).map(str::to_owned));
        }
        if found.is_empty() {
            for digest in digests(self.store())? {
                let named =
                    load(self.store(), &digest).ok().flatten().is_some_and(|i| i.reference == *reference);
                if named || uses.references(&digest).contains(reference) {
                    found.insert(digest);
                }
            }
        }
        Ok(found.into_iter().filter(there).collect())
    }

    /// The digest of the image that a person means: by a reference, or by the first digits of its digest, as many as
    /// make it the only one and at least four.
    ///
    /// # Errors
    /// [`ImageError::UnknownImage`]; [`ImageError::AmbiguousImage`] names those that it could be.
    pub fn digest_named(&self, text: &str) -> Result<String, ImageError> {
        let mut found = match text.parse::<ImageRef>() {
            Ok(reference) => self.digests_of(&reference)?,
            Err(_) => Vec::new(),
        };
        let digits = (FEWEST..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if found.is_empty() && digits {
            let prefix = text.to_ascii_lowercase();
            found = digests(self.store())?.into_iter().filter(|d| d.starts_with(&prefix)).collect();
        }
        match found.len() {
            0 => Err(ImageError::UnknownImage(text.to_owned())),
            1 => Ok(found.remove(0)),
            _ => Err(ImageError::AmbiguousImage { name: text.to_owned(), digests: found }),
        }
    }

    /// Removes an image that no disk needs, and says how many bytes that gave back to the file system.
    ///
    /// # Errors
    /// [`ImageError::ImageInUse`] names the machines whose disks need it; [`ImageError::ImageBusy`] when a start or a
    /// build is at work with it at this moment; [`ImageError::UseUnknown`] when it cannot be told whether a disk needs
    /// it; [`ImageError::NoSuchImage`]. Nothing is removed then.
    pub fn remove(&self, digest: &str) -> Result<u64, ImageError> {
        let store = self.store();
        let dir = store.image_dir(digest);
        if !is_digest(digest) || !dir.path().exists() {
            return Err(ImageError::NoSuchImage { digest: digest.to_owned(), dir: store.images_dir() });
        }
        // Alone before looking: a start that shares it has its disk on the way.
        let _alone = lock(store, LockKind::ImageUse, digest)?;
        let uses = Uses::read(store)?;
        uses.check_unneeded(digest)?;
        // A part of that name is this image's, too: its builder's, or a removal's that was cut short.
        let _part = lock(store, LockKind::Image, digest)?;
        let freed = size(&dir)?.freed;
        let part = store.image_part_dir(digest);
        fleetbox_store::remove_dir_if_there(&part)?;
        // In one step: an image is complete or absent. What is left of it after a crash, the next sweep removes.
        match fs::rename(dir.path(), &part) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ImageError::NoSuchImage { digest: digest.to_owned(), dir: store.images_dir() });
            }
            renamed => renamed.map_err(ImageError::io("remove image", dir.path()))?,
        }
        fleetbox_store::remove_dir_if_there(&part)?;
        for record in uses.import_records(digest) {
            fleetbox_store::remove_if_there(record)?;
        }
        Ok(freed)
    }

    /// Removes every image that no disk needs, and what dead builders left. With `dry_run` it only tells which. What is
    /// being built, used by a start or cannot be read is kept, and told.
    ///
    /// # Errors
    /// When a folder of the store cannot be read.
    pub fn prune(&self, dry_run: bool) -> Result<ImagesPruned, ImageError> {
        let mut pruned = ImagesPruned::default();
        if !dry_run {
            pruned.swept = self.sweep()?;
        }
        let uses = Uses::read(self.store())?;
        let listing = self.list()?;
        pruned.kept = listing.damaged;
        for image in listing.images {
            let digest = image.image.digest.clone();
            let removed = match dry_run {
                true => uses
                    .check_unneeded(&digest)
                    .and_then(|()| Ok(size(&self.store().image_dir(&digest))?.freed)),
                false => self.remove(&digest),
            };
            match removed {
                Ok(freed) => {
                    pruned.freed_bytes += freed;
                    pruned.removed.push(image);
                }
                Err(e) => pruned.kept.push((digest, e)),
            }
        }
        Ok(pruned)
    }

    /// As [`Images::resolve`], and keeps the image from being removed until a disk of it is made.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub async fn resolve_for_use(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
    ) -> Result<(Image, ImageUse), ImageError> {
        let mut tries = 1;
        loop {
            let found = self.resolve(image, progress).await?;
            let held = self.share(&found.digest).await?;
            match self.get(&found.digest) {
                Ok(_) => return Ok((found, held)),
                // Removed between the two: it is got anew.
                Err(ImageError::NoSuchImage { .. }) if tries < TRIES => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// As [`Images::get`], and keeps the image from being removed.
    ///
    /// # Errors
    /// As [`Images::get`].
    pub async fn get_for_use(&self, digest: &str) -> Result<(Image, ImageUse), ImageError> {
        let held = self.share(digest).await?;
        Ok((self.get(digest)?, held))
    }

    async fn share(&self, digest: &str) -> Result<ImageUse, ImageError> {
        let deadline = Instant::now() + WAIT_FOR_REMOVAL;
        loop {
            match SharedLock::try_take(self.store(), LockKind::ImageUse, digest) {
                Ok(share) => return Ok(ImageUse { _share: share }),
                Err(StoreError::Locked { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(e) => return Err(busy(e, digest)),
            }
        }
    }
}

fn lock(store: &Store, kind: LockKind, digest: &str) -> Result<Lock, ImageError> {
    Lock::try_take(store, kind, digest).map_err(|e| busy(e, digest))
}

fn busy(error: StoreError, digest: &str) -> ImageError {
    match error {
        StoreError::Locked { kind, holder, .. } => {
            let digest = short_digest(digest).to_owned();
            let by = match (kind, holder.pid()) {
                (LockKind::ImageUse, None) => "a machine that is being made from it".to_owned(),
                _ => holder.to_string(),
            };
            ImageError::ImageBusy { digest, by }
        }
        e => e.into(),
    }
}

/// The names of the images' folders.
fn digests(store: &Store) -> Result<Vec<String>, ImageError> {
    let images = store.images_dir();
    let mut all = Vec::new();
    for entry in fs::read_dir(&images).map_err(ImageError::io("read folder", &images))? {
        let name = entry.map_err(ImageError::io("read folder", &images))?.file_name();
        all.extend(name.to_str().filter(|n| is_digest(n)).map(str::to_owned));
    }
    all.sort();
    Ok(all)
}

struct Size {
    /// What its files take.
    taken: u64,
    /// What is given back when its folder goes: a kernel that a machine has, too, stays.
    freed: u64,
}

fn size(dir: &ImageDir) -> Result<Size, ImageError> {
    let dir: &Path = dir.path();
    let mut size = Size { taken: 0, freed: 0 };
    for entry in fs::read_dir(dir).map_err(ImageError::io("read folder", dir))? {
        let meta = entry.and_then(|e| e.metadata()).map_err(ImageError::io("read folder", dir))?;
        let bytes = meta.blocks() * 512;
        size.taken += bytes;
        size.freed += if meta.nlink() == 1 { bytes } else { 0 };
    }
    Ok(size)
}

#[cfg(test)]
mod tests;
