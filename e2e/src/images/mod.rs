//! Disk images such as vendors publish, for the tests: made on this host with Debian's own tools, once, and kept.
//!
//! ```text
//!  bootstrap:<suite>?packages=…  --scripts/<name>.sh--> <home>/cache/test-images/<name>-<hash>/{disk.raw, facts, log}
//! ```
//!
//! Invariants:
//! - A folder in the cache is complete or absent: it is made as `.<name>-<hash>.part` under a lock of that name, and then
//!   renamed. The hash is of the recipe: the script, and the systems that it starts from.
//! - The work is done in namespaces of its own (see build.rs): a kill leaves no process, mount or loop device, and
//!   nothing but the part, which the next [`TestImages::open`] removes.

mod build;
mod error;
mod recipe;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox_image::Images;
use fleetbox_spec::ImageRef;
use fleetbox_store::{Lock, LockKind, Store, StoreError};

pub use error::TestImageError;
pub use recipe::TestImage;
use recipe::recipe_hash;

/// Names a lock among those of images.
const LOCK_PREFIX: &str = "test-image-";

/// The longest that another process's work on the same image is waited for.
const WAIT_FOR_BUILDER: Duration = Duration::from_secs(30 * 60);

/// The test images of one fleetbox home.
#[derive(Debug, Clone)]
pub struct TestImages {
    store: Store,
    dir: PathBuf,
}

/// A test image that is there.
#[derive(Debug, Clone)]
pub struct Made {
    image: TestImage,
    dir: PathBuf,
    facts: BTreeMap<String, String>,
}

impl TestImages {
    /// Those of a fleetbox home, which is made unless it is there. Removes what builders that have died left.
    ///
    /// # Errors
    /// When a folder cannot be made, read or removed.
    pub fn open(home: &Path) -> Result<Self, TestImageError> {
        let store = Store::open(home)?;
        let dir = store.root().join("cache").join("test-images");
        store.make_dir(&dir, 0o755)?;
        let all = Self { store, dir };
        all.sweep()?;
        Ok(all)
    }

    /// Finds an image or makes it, and the systems that it is made from: that takes minutes the first time. Blocks the
    /// thread; must not be called from within an async runtime. What several ask for at once is made once.
    ///
    /// # Errors
    /// [`TestImageError`] says at which step, with the builder's last lines. Nothing half-made stays.
    pub fn make(&self, image: TestImage) -> Result<Made, TestImageError> {
        let mut trees = Vec::new();
        for system in image.systems() {
            trees.push(self.system(image, system)?);
        }
        let digests: Vec<&str> = trees.iter().map(|t| t.digest.as_str()).collect();
        let name = format!("{}-{}", image.name(), recipe_hash(image, &digests));
        let target = self.dir.join(&name);
        if let Some(made) = Made::load(image, &target)? {
            return Ok(made);
        }
        let lock = format!("{LOCK_PREFIX}{name}");
        let _lock = Lock::take(&self.store, LockKind::Image, &lock, WAIT_FOR_BUILDER)?;
        // Whoever had the lock may have made it.
        if let Some(made) = Made::load(image, &target)? {
            return Ok(made);
        }
        let part = Part(self.dir.join(format!(".{name}.part")));
        // We hold the lock, so what is there was left by somebody who died.
        fleetbox_store::remove_dir_if_there(&part.0)?;
        self.store.make_dir(&part.0, 0o755)?;
        let disks: Vec<&Path> = trees.iter().map(|t| t.path.as_path()).collect();
        build::run(image, &disks, &part.0)?;
        self.keep(&part.0, &target)?;
        Made::load(image, &target)?.ok_or(TestImageError::NoFact { image: image.name(), fact: "facts" })
    }

    /// A whole system that an image is made from.
    fn system(&self, image: TestImage, reference: &str) -> Result<fleetbox_image::Image, TestImageError> {
        type Cause = Box<dyn std::error::Error + Send + Sync>;
        let failed = |source: Cause| TestImageError::System { image: image.name(), source };
        let reference: ImageRef = reference.parse().map_err(|e| failed(Box::new(e)))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(TestImageError::io("start a runtime to make", &self.dir))?;
        let images = Images::new(self.store.clone());
        runtime.block_on(images.resolve(&reference, &|_| {})).map_err(|e| failed(Box::new(e)))
    }

    /// Makes a finished part the image.
    fn keep(&self, part: &Path, target: &Path) -> Result<(), TestImageError> {
        fleetbox_store::remove_dir_if_there(&part.join("work"))?;
        for entry in fs::read_dir(part).map_err(TestImageError::io("read folder", part))? {
            let path = entry.map_err(TestImageError::io("read folder", part))?.path();
            // The folder must never be there while what is in it is not.
            File::open(&path).and_then(|f| f.sync_all()).map_err(TestImageError::io("sync", &path))?;
            self.store.give_to_owner(&path)?;
        }
        fs::rename(part, target).map_err(TestImageError::io("rename into place", target))
    }

    /// Removes the parts whose builder has ended, which is to say whose lock is free.
    fn sweep(&self) -> Result<(), TestImageError> {
        for entry in fs::read_dir(&self.dir).map_err(TestImageError::io("read folder", &self.dir))? {
            let entry = entry.map_err(TestImageError::io("read folder", &self.dir))?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(".part"))
            else {
                continue;
            };
            match Lock::try_take(&self.store, LockKind::Image, &format!("{LOCK_PREFIX}{name}")) {
                Ok(_lock) => fleetbox_store::remove_dir_if_there(&entry.path())?,
                // It is being made.
                Err(StoreError::Locked { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Made {
    fn load(image: TestImage, dir: &Path) -> Result<Option<Self>, TestImageError> {
        let path = dir.join("facts");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(TestImageError::io("read", &path)(e)),
        };
        let fact = |line: &str| line.split_once(' ').map(|(k, v)| (k.to_owned(), v.trim().to_owned()));
        Ok(Some(Self { image, dir: dir.to_owned(), facts: text.lines().filter_map(fact).collect() }))
    }

    /// A file of it, such as `disk.raw`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What its recipe told of it, such as the version of its kernel.
    ///
    /// # Errors
    /// [`TestImageError::NoFact`]: its recipe does not tell that.
    pub fn fact(&self, name: &'static str) -> Result<&str, TestImageError> {
        let image = self.image.name();
        self.facts.get(name).map(String::as_str).ok_or(TestImageError::NoFact { image, fact: name })
    }
}

/// Removes its folder unless it has been renamed away.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // What stays is swept by the next one.
        let _ = fleetbox_store::remove_dir_if_there(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_builder_left_goes_and_what_is_being_made_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let images = TestImages::open(tmp.path()).unwrap();
        for name in [".xfs-1.part", ".xfs-2.part", "xfs-3"] {
            fs::create_dir(images.dir.join(name)).unwrap();
            fs::write(images.dir.join(name).join("disk.raw"), "x").unwrap();
        }
        let _mine = Lock::try_take(&images.store, LockKind::Image, "test-image-xfs-2").unwrap();
        TestImages::open(tmp.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(&images.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".xfs-2.part", "xfs-3"]);
    }

    #[test]
    fn facts_are_read_and_a_folder_without_them_is_no_image() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(Made::load(TestImage::XfsRoot, tmp.path()).unwrap().is_none());
        fs::write(tmp.path().join("facts"), "kernel 6.1.0-9\nroot_uuid a-b c\n").unwrap();
        let made = Made::load(TestImage::XfsRoot, tmp.path()).unwrap().unwrap();
        assert_eq!(made.fact("kernel").unwrap(), "6.1.0-9");
        assert_eq!(made.fact("root_uuid").unwrap(), "a-b c");
        assert!(matches!(made.fact("sha256"), Err(TestImageError::NoFact { fact: "sha256", .. })));
        assert_eq!(made.file("disk.raw"), tmp.path().join("disk.raw"));
    }
}
