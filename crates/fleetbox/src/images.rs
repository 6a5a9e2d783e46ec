//! The images of a fleetbox home: what machines are made from.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fleetbox_holder::image::{self, ImageError, ImageProgress};
use fleetbox_spec::{Arch, DiskFormat, ImageRef, ImageRefError, MachineName, Packages, Progress};

use crate::error::{Error, Result};
use crate::settings::absolute_image;
use crate::vm::open_store;

/// The images of `FLEETBOX_HOME`, else of `~/.fleetbox`.
///
/// ```no_run
/// # async fn f() -> fleetbox::Result<()> {
/// let images = fleetbox::images()?;
/// let image = images.pull("bootstrap:bookworm", |_| {}).await?;
/// println!("{} takes {} bytes", image.os, image.disk_bytes);
/// # Ok(()) }
/// ```
///
/// # Errors
/// When the home cannot be made.
pub fn images() -> Result<Images> {
    Ok(Images { inner: image::Images::new(open_store(None)?) })
}

/// The images of a fleetbox home. Needs no holder; each call looks at the store as it is then.
#[derive(Debug, Clone)]
pub struct Images {
    inner: image::Images,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// What names it in the store: 64 hex digits.
    pub digest: String,
    /// The references known to lead to it, the one it was made for ahead.
    pub references: Vec<ImageRef>,
    /// The operating system's name, or `unknown`.
    pub os: String,
    /// The architecture of its programs.
    pub arch: Arch,
    /// The disk image's format.
    pub format: DiskFormat,
    /// Size in bytes that a guest sees; no disk made from it can be smaller.
    pub virtual_bytes: u64,
    /// Room that it takes on the host's disk, in bytes.
    pub disk_bytes: u64,
    /// When it was made or imported.
    pub made: SystemTime,
    /// The machines whose disks need it, running or not. A disk that is a copy needs none.
    pub used_by: Vec<MachineName>,
    /// Its folder; what is in there must not be changed.
    pub dir: PathBuf,
    /// Whether its own kernel was found, so that machines boot it without firmware.
    pub has_kernel: bool,
    /// What a person should know of it, such as why it boots through firmware.
    pub notes: Vec<String>,
    /// All that its record holds. Later versions may put more into it.
    pub record: serde_json::Value,
}

impl ImageInfo {
    /// The first digits of the digest, as they are shown to a person, and taken where an image is named.
    #[must_use]
    pub fn short_digest(&self) -> &str {
        image::short_digest(&self.digest)
    }

    fn new(stored: image::StoredImage) -> Self {
        let image = stored.image;
        Self {
            references: stored.references,
            os: image.os,
            arch: image.arch,
            format: image.format,
            virtual_bytes: image.virtual_size,
            disk_bytes: stored.disk_bytes,
            made: stored.made,
            used_by: stored.used_by,
            dir: image.path.parent().unwrap_or(Path::new("/")).to_owned(),
            has_kernel: image.kernel.is_some(),
            notes: image.notes,
            record: stored.meta,
            digest: image.digest,
        }
    }
}

/// An image that has a name and can be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CatalogImage {
    /// Its name, such as `debian-12`.
    pub name: String,
    /// Other names for it.
    pub other_names: Vec<String>,
    /// The architecture of its programs.
    pub arch: Arch,
    /// The vendor's name for this build of it.
    pub snapshot: String,
    /// Where it comes from, unless `FLEETBOX_MIRROR_<VENDOR>` names another site.
    pub url: String,
    /// The file's digest, such as `sha256:…`.
    pub checksum: String,
    /// Whether it is in the store already.
    pub in_store: bool,
}

/// What [`Images::list`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImageList {
    /// The images, the newest first.
    pub images: Vec<ImageInfo>,
    /// Digests of images that could not be read, and why. The others are in `images` all the same.
    pub damaged: Vec<(String, Error)>,
}

/// What [`Images::prune`] removed, or would.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImagesPruned {
    /// The images that no disk needs.
    pub removed: Vec<ImageInfo>,
    /// Half-made images of builders that have died.
    pub swept: Vec<PathBuf>,
    /// Room in bytes that this gave back to the host's file system.
    pub freed_bytes: u64,
    /// Digests of what was kept, and why: a disk needs it, somebody is at work with it, it cannot be read.
    pub kept: Vec<(String, Error)>,
}

/// How far the work on an image has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageWork {
    /// What is being done, such as `fetching`.
    pub stage: String,
    /// What exactly, for a person; complete without the stage.
    pub detail: String,
    /// How much is done, where that can be told.
    pub progress: Option<Progress>,
}

/// A Debian image to be built on this host; see [`Images::build`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBuild {
    suite: String,
    packages: Vec<String>,
}

impl ImageBuild {
    /// Of a suite, such as `bookworm`.
    #[must_use]
    pub fn new(suite: impl Into<String>) -> Self {
        Self { suite: suite.into(), packages: Vec::new() }
    }

    /// With further packages.
    #[must_use]
    pub fn packages<S: Into<String>>(mut self, packages: impl IntoIterator<Item = S>) -> Self {
        self.packages.extend(packages.into_iter().map(Into::into));
        self
    }

    /// The reference that it is started by.
    ///
    /// # Errors
    /// When the suite or a package can be none.
    pub fn reference(&self) -> Result<ImageRef> {
        let packages = match self.packages.is_empty() {
            true => Packages::default(),
            false => self.packages.join(",").parse()?,
        };
        match format!("bootstrap:{}", self.suite).parse()? {
            // A suite that brings packages along would be another than it says.
            ImageRef::Bootstrap { suite, packages: none } if none.is_empty() => {
                Ok(ImageRef::Bootstrap { suite, packages })
            }
            _ => Err(ImageRefError::BadSuite(self.suite.clone()).into()),
        }
    }
}

impl Images {
    /// The images of another fleetbox home. An absolute path.
    ///
    /// # Errors
    /// When the home cannot be made.
    pub fn of_home(home: &Path) -> Result<Self> {
        Ok(Self { inner: image::Images::new(open_store(Some(home))?) })
    }

    /// Every image, the newest first. One that is damaged does not hide the others.
    ///
    /// # Errors
    /// When a folder of the home cannot be read.
    pub async fn list(&self) -> Result<ImageList> {
        let found = self.work(image::Images::list).await?;
        let damaged = found.damaged.into_iter().map(|(digest, e)| (digest, Error::image(e)));
        Ok(ImageList {
            images: found.images.into_iter().map(ImageInfo::new).collect(),
            damaged: damaged.collect(),
        })
    }

    /// The images that have a name, for this host's architecture: the built-in list, with what `FLEETBOX_CATALOG` adds
    /// or replaces. Asks nobody.
    ///
    /// # Errors
    /// When that file cannot be read or used.
    pub async fn catalog(&self) -> Result<Vec<CatalogImage>> {
        self.work(|images| {
            let catalog = images.catalog()?;
            let here = catalog.entries().iter().filter(|e| Some(e.arch) == Arch::host());
            here.map(|e| {
                Ok(CatalogImage {
                    name: e.alias.clone(),
                    other_names: e.aliases.clone(),
                    arch: e.arch,
                    snapshot: e.snapshot.clone(),
                    url: e.url.to_string(),
                    checksum: e.checksum.to_string(),
                    in_store: images.has(&e.alias)?,
                })
            })
            .collect()
        })
        .await
    }

    /// One image, by a reference or by the first digits of its digest (at least four).
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); [`InvalidInput`](crate::ErrorKind::InvalidInput) when it could be any
    /// of several.
    pub async fn inspect(&self, name: &str) -> Result<ImageInfo> {
        let name = self.named(name);
        self.work(move |images| images.stored(&images.digest_named(&name)?)).await.map(ImageInfo::new)
    }

    /// Sees that the image of a reference is in the store: downloads, builds or imports it, unless it is there. Of an
    /// address without a digest it is asked whether there is a newer file. What many ask for at once is made once.
    /// Dropping the future ends the work; what was downloaded until then is resumed by the next call.
    ///
    /// # Errors
    /// What was wrong with which image, file or program. Nothing half-made stays.
    pub async fn pull(
        &self,
        reference: &str,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        let tell = told(progress);
        let image = self.inner.pull(&absolute_image(reference)?, &tell).await.map_err(Error::image)?;
        self.stored(image).await
    }

    /// Takes a file as an image: a copy of it, so that later changes of the file reach no machine.
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub async fn import(
        &self,
        file: impl AsRef<Path>,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        let file = std::path::absolute(file.as_ref()).unwrap_or_else(|_| file.as_ref().to_owned());
        self.get(&ImageRef::File(file), progress).await
    }

    /// As [`Images::import`], of a qcow2 file that may have backing files: local files that it names itself, anywhere
    /// on this host. Of them a copy is taken, too. Only for files that are trusted that far.
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub async fn import_with_backing(
        &self,
        file: impl AsRef<Path>,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        let options = image::ImportOptions::default().allow_backing(true);
        let file = std::path::absolute(file.as_ref()).unwrap_or_else(|_| file.as_ref().to_owned());
        let image = self.inner.import(&file, options, &told(progress)).await.map_err(Error::image)?;
        self.stored(image).await
    }

    /// Builds a Debian image on this host. Needs root.
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub async fn build(
        &self,
        build: &ImageBuild,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        self.get(&build.reference()?, progress).await
    }

    async fn get(
        &self,
        reference: &ImageRef,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        let image = self.inner.resolve(reference, &told(progress)).await.map_err(Error::image)?;
        self.stored(image).await
    }

    async fn stored(&self, image: image::Image) -> Result<ImageInfo> {
        self.work(move |images| images.stored(&image.digest)).await.map(ImageInfo::new)
    }

    /// Removes an image, named as for [`Images::inspect`], and tells what it was and how many bytes that gave back to
    /// the file system.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) names the machines whose disks need it; [`Held`](crate::ErrorKind::Held)
    /// when a machine is being made from it at this moment; otherwise as [`Images::inspect`].
    pub async fn remove(&self, name: &str) -> Result<(ImageInfo, u64)> {
        let name = self.named(name);
        let removed = self.work(move |images| {
            let image = images.stored(&images.digest_named(&name)?)?;
            let freed = images.remove(&image.image.digest)?;
            Ok((image, freed))
        });
        let (image, freed) = removed.await?;
        Ok((ImageInfo::new(image), freed))
    }

    /// Removes every image that no disk needs, and what dead builders left; with `dry_run` it only tells.
    ///
    /// # Errors
    /// When a folder of the home cannot be read.
    pub async fn prune(&self, dry_run: bool) -> Result<ImagesPruned> {
        let pruned = self.work(move |images| images.prune(dry_run)).await?;
        Ok(ImagesPruned {
            removed: pruned.removed.into_iter().map(ImageInfo::new).collect(),
            swept: pruned.swept,
            freed_bytes: pruned.freed_bytes,
            kept: pruned.kept.into_iter().map(|(digest, e)| (digest, Error::image(e))).collect(),
        })
    }

    /// A path means something only in this process's folder; anything else stays as it is.
    fn named(&self, name: &str) -> String {
        match absolute_image(name) {
            Ok(file @ ImageRef::File(_)) => file.to_string(),
            _ => name.to_owned(),
        }
    }

    /// Walks folders and removes large files on a thread that may block.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&image::Images) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T> {
        let images = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&images)).await;
        done.unwrap_or(Err(ImageError::WorkerLost)).map_err(Error::image)
    }
}

/// What the image crate tells, as what is told of it here.
fn told(progress: impl Fn(ImageWork) + Send + Sync) -> impl Fn(ImageProgress) + Send + Sync {
    move |p| progress(ImageWork { stage: p.stage.to_string(), detail: p.detail, progress: p.progress })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_built_as_a_reference() {
        let of = |build: ImageBuild| build.reference().map(|r| r.to_string());
        assert_eq!(of(ImageBuild::new("bookworm")).unwrap(), "bootstrap:bookworm");
        assert_eq!(
            of(ImageBuild::new("trixie").packages(["tmux", "jq"])).unwrap(),
            "bootstrap:trixie?packages=jq,tmux"
        );
        for bad in [ImageBuild::new("../x"), ImageBuild::new(""), ImageBuild::new("sid").packages(["a b"])] {
            assert_eq!(of(bad).unwrap_err().kind(), crate::ErrorKind::InvalidInput);
        }
        assert!(of(ImageBuild::new("sid?packages=jq")).is_err(), "packages are no part of a suite");
    }
}
