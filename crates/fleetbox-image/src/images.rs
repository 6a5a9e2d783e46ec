use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetbox_spec::{Arch, DiskFormat, ImageRef, Packages};
use fleetbox_store::Store;

use crate::fetch::{self, Source};
use crate::task::{self, Task};
use crate::{
    BootFiles, Catalog, DownloadOptions, Image, ImageError, ImageProgress, ImportOptions, PartialDownload,
    boot_files, bootstrap, import, model, part,
};

/// The images of a store.
#[derive(Debug, Clone)]
pub struct Images {
    store: Store,
    options: Arc<DownloadOptions>,
}

/// What is booted when no image is named.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DefaultImage {
    /// The image.
    pub image: ImageRef,
    /// Why this one, for a person: `from the store`.
    pub why: String,
}

/// The image that is the default where it can be had.
const DEFAULT: &str = "debian-12";

impl Images {
    /// The images of this store, downloaded as this process's environment says
    /// ([`DownloadOptions::from_env`]).
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self::with_options(store, DownloadOptions::from_env())
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The images of this store, downloaded in another way.
    #[must_use]
    pub fn with_options(store: Store, options: DownloadOptions) -> Self {
        Self { store, options: Arc::new(options) }
    }

    /// What is booted when no image is named: `debian-12` where it is in the store already or its site answers within
    /// 1.5 s, else `bootstrap:bookworm`, Debian 12 built on this host. The site's answer is believed for an hour, its
    /// silence for ten minutes, so that a host without internet is not kept waiting at each call.
    ///
    /// # Errors
    /// When the catalog cannot be used, or the store cannot be read or written.
    pub async fn default_image(&self) -> Result<DefaultImage, ImageError> {
        let images = self.clone();
        task::run(&|_| {}, move |task| images.choose_default(task)).await
    }

    fn choose_default(&self, task: &Task) -> Result<DefaultImage, ImageError> {
        let alias = |why| DefaultImage { image: ImageRef::Alias(DEFAULT.to_owned()), why };
        let built = |why| DefaultImage {
            image: ImageRef::Bootstrap { suite: "bookworm".to_owned(), packages: Packages::default() },
            why,
        };
        let source = match self.source_of(DEFAULT) {
            Ok(source) => source,
            Err(ImageError::UnknownAlias { .. } | ImageError::NotForArch { .. }) => {
                return Ok(built(format!("built on this host: the catalog has no {DEFAULT} for it")));
            }
            Err(e) => return Err(e),
        };
        if fetch::in_store(&self.store, &source)? {
            return Ok(alias("from the store".to_owned()));
        }
        let host = source.url.host();
        Ok(match fetch::answers(&self.store, &source, &self.options, task)? {
            true => alias(format!("downloaded from {host}")),
            false => built(format!("built on this host: {DEFAULT} cannot be had from {host}")),
        })
    }

    /// The images that have a name: the built-in list, with what `FLEETBOX_CATALOG` adds or replaces.
    ///
    /// # Errors
    /// When that file cannot be read or used.
    pub fn catalog(&self) -> Result<Catalog, ImageError> {
        match &self.options.catalog {
            Some(path) => Catalog::with_file(path),
            None => Catalog::built_in(),
        }
    }

    /// Whether the image that a name of the catalog stands for on this host is in the store. Asks nobody.
    ///
    /// # Errors
    /// [`ImageError::UnknownAlias`], [`ImageError::NotForArch`], or when the store cannot be read.
    pub fn has(&self, alias: &str) -> Result<bool, ImageError> {
        fetch::in_store(&self.store, &self.source_of(alias)?)
    }

    /// Where the image of a name comes from.
    fn source_of(&self, alias: &str) -> Result<Source, ImageError> {
        let arch = Arch::host().ok_or(ImageError::UnsupportedHost(std::env::consts::ARCH))?;
        let catalog = self.catalog()?;
        let entry = catalog.find(alias, arch)?;
        Ok(Source {
            reference: ImageRef::Alias(alias.to_owned()),
            url: self.options.mirrors.address(&catalog, entry)?,
            pin: Some(entry.checksum.clone()),
        })
    }

    /// Finds an image in the store, or downloads, builds or imports it. The same image is made once, however many
    /// processes ask for it at the same time: the others wait and hear who is at it and how far.
    ///
    /// A local file is looked at anew at each call: after a change of it, it is another image. An image that was
    /// downloaded before is taken from the store without asking anybody: by its digest where one is known (a name of
    /// the catalog, an address with `#sha256=`), else by its address; [`Images::pull`] asks whether there is a newer
    /// file at an address.
    ///
    /// Dropping the future ends the work: its child processes are killed and its files removed before the drop
    /// returns, which blocks for some tens of milliseconds. What was downloaded until then stays, and is resumed by
    /// the next call of any process, for a week ([`Images::downloads`]).
    ///
    /// # Errors
    /// [`ImageError`] says what was wrong with which image, file, address or program. Nothing half-made stays, but
    /// what was downloaded where the rest can still come.
    pub async fn resolve(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        self.get_or_make(image, false, progress).await
    }

    /// As [`Images::resolve`], but an address without a digest is asked whether the file there is still the one in
    /// the store (ETag, Last-Modified), and downloaded if not. The image of the file before stays, for the machines
    /// that were made from it.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub async fn pull(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        self.get_or_make(image, true, progress).await
    }

    async fn get_or_make(
        &self,
        image: &ImageRef,
        anew: bool,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let (store, options) = (self.store.clone(), Arc::clone(&self.options));
        let download = |source: Source| async move {
            task::run(progress, move |task| fetch::resolve(&store, &source, &options, anew, task)).await
        };
        match image.clone() {
            ImageRef::Bootstrap { suite, packages } => {
                let store = self.store.clone();
                task::run(progress, move |task| bootstrap::resolve(&store, &suite, &packages, task)).await
            }
            ImageRef::File(path) => {
                let store = self.store.clone();
                let options = ImportOptions::default();
                task::run(progress, move |task| import::resolve(&store, &path, options, task)).await
            }
            ImageRef::Alias(alias) => download(self.source_of(&alias)?).await,
            ImageRef::Url(url) => download(Source::of_url(&url)).await,
            // What later versions of the reference may bring.
            other => Err(ImageError::NotYetSupported(other)),
        }
    }

    /// Imports a local file as [`Images::resolve`] does, and with more say in it. Afterwards `resolve` finds what was
    /// imported, for as long as none of the files changes.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub async fn import(
        &self,
        path: &Path,
        options: ImportOptions,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let (store, path) = (self.store.clone(), path.to_owned());
        task::run(progress, move |task| import::resolve(&store, &path, options, task)).await
    }

    /// The image of a digest, such as the one in a machine's record.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`] when it is not in the store; [`ImageError::Store`] when its record is damaged or
    /// was written by a newer version.
    pub fn get(&self, digest: &str) -> Result<Image, ImageError> {
        model::load(&self.store, digest)?.ok_or_else(|| ImageError::NoSuchImage {
            digest: digest.to_owned(),
            dir: self.store.images_dir(),
        })
    }

    /// What a machine's disk boots as it is now: looks into it (an overlay with its image, or a raw disk) as an image is
    /// looked into, and writes kernel and initramfs into `out_dir` as `kernel` and `initrd`, each complete or as it was
    /// before. Where the files on the disk are still those of its image, or those taken out last (by path, length and
    /// time of change, which `boot.json` in the same folder keeps), nothing is copied.
    ///
    /// The disk must not be in use. Without privilege; some milliseconds, and what copying a kernel takes.
    ///
    /// # Errors
    /// [`ImageError::BadQcow2`], [`ImageError::BadPartitionTable`], [`ImageError::WrongArch`] when the system on it is
    /// not for `arch`, [`ImageError::Io`]. A disk on which no kernel is found is no error: [`BootFiles::notes`] says why.
    pub async fn boot_files_of_disk(
        &self,
        disk: &Path,
        format: DiskFormat,
        out_dir: &Path,
        arch: Arch,
    ) -> Result<BootFiles, ImageError> {
        let (store, disk, out) = (self.store.clone(), disk.to_owned(), out_dir.to_owned());
        task::run(&|_| {}, move |task| boot_files::of_disk(&store, &disk, format, &out, arch, task)).await
    }

    /// Downloads that have begun and are no images yet: those under way, and those that were interrupted and wait to
    /// be resumed.
    ///
    /// # Errors
    /// When the images' folder cannot be read.
    pub fn downloads(&self) -> Result<Vec<PartialDownload>, ImageError> {
        fetch::list(&self.store)
    }

    /// Removes the downloads that were interrupted, however young; names their folders. Those under way are left
    /// alone.
    ///
    /// # Errors
    /// When the images' folder cannot be read or a download cannot be removed.
    pub fn remove_downloads(&self) -> Result<Vec<PathBuf>, ImageError> {
        fetch::sweep(&self.store, Duration::ZERO)
    }

    /// Removes what builders that have died left behind, and downloads that were interrupted a week ago or longer;
    /// names all of it. What is being made is left alone. Cheap when there is nothing; meant for the start of any
    /// fleetbox process.
    ///
    /// # Errors
    /// When the images' folder cannot be read or a part cannot be removed.
    pub fn sweep(&self) -> Result<Vec<PathBuf>, ImageError> {
        let mut removed = part::sweep(&self.store)?;
        removed.extend(fetch::sweep_old(&self.store)?);
        Ok(removed)
    }
}
