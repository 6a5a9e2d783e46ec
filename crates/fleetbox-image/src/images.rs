use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, DiskFormat, ImageRef, Packages};
use fleetbox_store::Store;

use crate::{BootFiles, Image, ImageError, ImageProgress, boot_files, bootstrap, import, model, part, task};

/// The images of a store.
#[derive(Debug, Clone)]
pub struct Images {
    store: Store,
}

impl Images {
    /// The images of this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What is booted when no image is named: `bootstrap:bookworm`, Debian 12 built on this host, as this version
    /// has no catalog of images to download.
    #[must_use]
    pub fn default_image(&self) -> ImageRef {
        ImageRef::Bootstrap { suite: "bookworm".to_owned(), packages: Packages::default() }
    }

    /// Finds an image in the store, or builds or imports it. The same image is made once, however many processes ask
    /// for it at the same time: the others wait and hear who is at it.
    ///
    /// A local file is looked at anew at each call: after a change of it, it is another image.
    ///
    /// Dropping the future ends the work: its child processes are killed and its files removed before the drop
    /// returns, which blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`ImageError`] says what was wrong with which image, file or program. Nothing half-made stays.
    pub async fn resolve(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let store = self.store.clone();
        match image.clone() {
            ImageRef::Bootstrap { suite, packages } => {
                task::run(progress, move |task| bootstrap::resolve(&store, &suite, &packages, task)).await
            }
            ImageRef::File(path) => {
                task::run(progress, move |task| import::resolve(&store, &path, task)).await
            }
            // Aliases and URLs, and what later versions of the reference may bring.
            other => Err(ImageError::NotYetSupported(other)),
        }
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

    /// Removes what builders that have died left behind, and names it. Parts that are being made are left alone.
    /// Cheap when there is nothing; meant for the start of any fleetbox process.
    ///
    /// # Errors
    /// When the images' folder cannot be read or a part cannot be removed.
    pub fn sweep(&self) -> Result<Vec<PathBuf>, ImageError> {
        part::sweep(&self.store)
    }
}
