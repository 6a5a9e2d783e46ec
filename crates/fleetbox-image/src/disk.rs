//! Machines' disks: made from an image, and grown.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox_spec::DiskFormat;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::copy::{Copied, copy, room};
use crate::qcow2::Header;
use crate::task::{self, Task};
use crate::tool::{Limits, QEMU_IMG, run_on_file};
use crate::{Image, ImageError};

/// How a disk was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskMade {
    /// An overlay that holds only the differences to the image: constant time.
    Overlay,
    /// A copy that shares its blocks with the image: constant time.
    Reflink,
    /// A copy of the image's data: it took time and room for this many bytes.
    Copied {
        /// Bytes read and written.
        bytes: u64,
    },
}

/// Headers only are written; a lock that another process has makes it fail at once.
const LIMITS: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(60) };

/// Makes a disk of `size_bytes` (rounded up to a multiple of 512) from an image: as qcow2 an overlay on the image, as
/// raw a copy. The file has mode 0600, and is complete or absent.
///
/// Dropping the future ends the work and removes what was made.
///
/// # Errors
/// [`ImageError::DiskExists`] when there is one (it is left alone), [`ImageError::DiskTooSmall`] names both sizes,
/// [`ImageError::NoSpace`] before a copy that would not fit, [`ImageError::ToolMissing`] and [`ImageError::ToolFailed`] of qemu-img, [`ImageError::Io`].
pub async fn create_disk(
    image: &Image,
    dest: &Path,
    format: DiskFormat,
    size_bytes: u64,
) -> Result<DiskMade, ImageError> {
    let (image, dest) = (image.clone(), dest.to_owned());
    task::run(&|_| {}, move |task| create(&image, &dest, format, size_bytes, task)).await
}

/// Makes a disk at least `size_bytes` large (rounded up to a multiple of 512). Never shrinks one. The disk must not be
/// in use; qemu-img sees to that for qcow2.
///
/// # Errors
/// [`ImageError::Shrink`] names both sizes; otherwise as [`create_disk`].
pub async fn grow_disk(path: &Path, format: DiskFormat, size_bytes: u64) -> Result<(), ImageError> {
    let path = path.to_owned();
    task::run(&|_| {}, move |task| grow(&path, format, size_bytes, task)).await
}

/// Size of a disk in bytes, as a guest sees it.
///
/// # Errors
/// [`ImageError::Io`]; [`ImageError::BadQcow2`] when the file is no qcow2 file.
pub async fn disk_size(path: &Path, format: DiskFormat) -> Result<u64, ImageError> {
    // One small read: not worth a thread.
    size_of(path, format)
}

fn size_of(path: &Path, format: DiskFormat) -> Result<u64, ImageError> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    match format {
        DiskFormat::Raw => Ok(file.metadata().map_err(ImageError::io("look at", path))?.len()),
        DiskFormat::Qcow2 => {
            let mut head = Vec::new();
            (&mut file).take(512).read_to_end(&mut head).map_err(ImageError::io("read", path))?;
            Header::parse(&head)
                .map(|h| h.virtual_size)
                .map_err(|reason| ImageError::BadQcow2 { path: path.to_owned(), reason })
        }
    }
}

/// A size that every backend takes.
fn in_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(512).unwrap_or(size)
}

fn create(
    image: &Image,
    dest: &Path,
    format: DiskFormat,
    size: u64,
    task: &Task,
) -> Result<DiskMade, ImageError> {
    let size = in_sectors(size);
    if size < image.virtual_size {
        return Err(ImageError::DiskTooSmall {
            image: image.reference.clone(),
            image_size: image.virtual_size,
            wanted: size,
        });
    }
    if dest.symlink_metadata().is_ok() {
        return Err(ImageError::DiskExists(dest.to_owned()));
    }
    let part = Temporary(crate::part::temporary(dest));
    // Made here for its mode: it is going to hold a machine's secrets.
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part.0)
        .map_err(ImageError::io("create", &part.0))?;
    let made = match (format, image.format) {
        (DiskFormat::Qcow2, backing) => {
            let args: Vec<OsString> = ["create", "-q", "-f", "qcow2", "-F", backing.as_str(), "-b"]
                .map(OsString::from)
                .into_iter()
                .chain([image.path.clone().into(), part.0.clone().into(), size.to_string().into()])
                .collect();
            run_on_file(QEMU_IMG, args, "create the disk", dest, LIMITS, task)?;
            DiskMade::Overlay
        }
        (DiskFormat::Raw, DiskFormat::Raw) => {
            let from = File::open(&image.path).map_err(ImageError::io("open", &image.path))?;
            let data = from.metadata().map_err(ImageError::io("look at", &image.path))?.blocks() * 512;
            // A copy that shares its blocks takes no room.
            if let Err(full) = room(dest.parent().unwrap_or(dest), data)
                && rustix::fs::ioctl_ficlone(&file, &from).is_err()
            {
                return Err(full);
            }
            let how = copy(&from, &image.path, &file, &part.0, task)?;
            file.set_len(size).map_err(ImageError::io("set the length of", &part.0))?;
            match how {
                Copied::Reflink => DiskMade::Reflink,
                Copied::Bytes(bytes) => DiskMade::Copied { bytes },
            }
        }
        (DiskFormat::Raw, DiskFormat::Qcow2) => {
            let args: Vec<OsString> = ["convert", "-q", "-n", "-f", "qcow2", "-O", "raw", "-S", "4k"]
                .map(OsString::from)
                .into_iter()
                .chain([image.path.clone().into(), part.0.clone().into()])
                .collect();
            file.set_len(size).map_err(ImageError::io("set the length of", &part.0))?;
            run_on_file(QEMU_IMG, args, "convert to the disk", dest, CONVERT_LIMITS, task)?;
            let blocks = file.metadata().map_err(ImageError::io("look at", &part.0))?.blocks();
            DiskMade::Copied { bytes: blocks * 512 }
        }
    };
    // Not over a disk that somebody made meanwhile.
    match renameat_with(CWD, &part.0, CWD, dest, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(made),
        Err(rustix::io::Errno::EXIST) => Err(ImageError::DiskExists(dest.to_owned())),
        Err(e) => Err(ImageError::io("rename into place", dest)(e.into())),
    }
}

/// qemu-img convert says nothing while it works.
pub(crate) const CONVERT_LIMITS: Limits =
    Limits { silence: Duration::from_secs(30 * 60), total: Duration::from_secs(30 * 60) };

fn grow(path: &Path, format: DiskFormat, wanted: u64, task: &Task) -> Result<(), ImageError> {
    let (size, wanted) = (size_of(path, format)?, in_sectors(wanted));
    if wanted < size {
        return Err(ImageError::Shrink { path: path.to_owned(), size, wanted });
    }
    if wanted == size {
        return Ok(());
    }
    match format {
        DiskFormat::Raw => File::options()
            .write(true)
            .open(path)
            .and_then(|f| f.set_len(wanted).and_then(|()| f.sync_all()))
            .map_err(ImageError::io("grow", path)),
        DiskFormat::Qcow2 => {
            let args: Vec<OsString> = ["resize", "-q", "-f", "qcow2"]
                .map(OsString::from)
                .into_iter()
                .chain([path.into(), wanted.to_string().into()])
                .collect();
            run_on_file(QEMU_IMG, args, "grow the disk", path, LIMITS, task).map(drop)
        }
    }
}

/// Removes its file unless it has been renamed away.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
