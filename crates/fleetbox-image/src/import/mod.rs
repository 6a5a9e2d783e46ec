//! A file as an image: a private copy, unpacked, converted to raw, inspected, named by the file's digest.
//!
//! ```text
//!  local file -> resolve: copy and digest --+
//!  download   -> (digest while streaming) --+-> adopt: what it is -> unpack/ -> convert -> inspect/ -> complete
//! ```

mod backing;
mod cache;
mod convert;
pub(crate) mod detect;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, DiskFormat, ImageRef, Progress};
use fleetbox_store::{BootDir, Store};

use crate::copy::{Copied, copy, digest, room};
use crate::model::{Meta, load, path_name};
use crate::part::{self, Part};
use crate::task::Task;
use crate::unpack::{Disk, Limits, unpack};
use crate::{Image, ImageError, ImageProgress, ImageStage, inspect};

use backing::Layer;
use cache::Fingerprint;
use detect::Content;

/// No kernel, initramfs and root file system fit into less.
const MIN_SIZE: u64 = 1 << 20;

/// Names of files in a part, before they are the image's.
const SOURCE: &str = "source";
const UNPACKED: &str = "unpacked";

/// How [`Images::import`](crate::Images::import) takes a local file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Whether a qcow2 file may have backing files: local files that it names itself, anywhere. Of them a copy is
    /// kept, too. Never allowed for what was downloaded or is packed.
    pub allow_backing: bool,
}

impl ImportOptions {
    /// Allows or forbids backing files.
    #[must_use]
    pub fn allow_backing(mut self, allow: bool) -> Self {
        self.allow_backing = allow;
        self
    }
}

/// Finds or imports the image in a local file.
pub(crate) fn resolve(
    store: &Store,
    given: &Path,
    options: ImportOptions,
    task: &Task,
) -> Result<Image, ImageError> {
    let path = fs::canonicalize(given).map_err(ImageError::io("find image", given))?;
    let file = open(&path)?;
    let before = Fingerprint::of(&path, &file)?;
    if let Some(image) = cached(store, &before, given)? {
        return Ok(image);
    }
    let name = path_name(&path);
    let lock = part::lock(store, &name, &path.display().to_string(), task)?;
    if let Some(image) = cached(store, &before, given)? {
        return Ok(image);
    }
    // Before anything is copied.
    let content = detect::detect(&path, &start(&file, &path, detect::HEAD)?)?;
    let part = Part::create(store, &name, lock)?;
    // Never the caller's file itself: what is written to it later must not reach any disk.
    let source = part.path().join(SOURCE);
    let mut digest = take_copy(&file, &path, &source, part.path(), task)?;
    if Fingerprint::of(&path, &file)? != before {
        return Err(ImageError::Changed(path));
    }
    let layers = match content == Content::Qcow2 && options.allow_backing {
        true => backing::follow(&before, &path, &source, part.path(), &mut digest, task)?,
        false => Vec::new(),
    };
    let image = match load(store, &digest)? {
        // The same content from another path.
        Some(image) => Image { reference: ImageRef::File(given.to_owned()), ..image },
        None => {
            let reference = ImageRef::File(given.to_owned());
            let label = path.display().to_string();
            take(store, part, &layers, Adopted { source: &source, label: &label, reference, digest }, task)?
        }
    };
    let prints: Vec<_> = layers.into_iter().map(|l| l.print).collect();
    cache::remember(store, &before, &prints, &image.digest)?;
    Ok(image)
}

/// Makes an image of a complete file in the part: a download, or a private copy. The part is completed, or removed.
///
/// `label` is what the user calls the file; `digest_sha256` is of the file as it is, packed or not.
pub(crate) fn adopt(
    store: &Store,
    part: Part<'_>,
    source: &Path,
    label: &str,
    reference: ImageRef,
    digest_sha256: String,
    task: &Task,
) -> Result<Image, ImageError> {
    take(store, part, &[], Adopted { source, label, reference, digest: digest_sha256 }, task)
}

/// A complete file in a part, and what is known of it.
struct Adopted<'a> {
    source: &'a Path,
    label: &'a str,
    reference: ImageRef,
    digest: String,
}

fn take(
    store: &Store,
    part: Part<'_>,
    layers: &[Layer],
    file: Adopted<'_>,
    task: &Task,
) -> Result<Image, ImageError> {
    let names = store.image_dir(&file.digest);
    let here = |name: PathBuf| part.path().join(name.file_name().unwrap_or_default());
    let (label, raw) = (Path::new(file.label), here(names.image("raw")));
    // Under a name of ours, whatever the caller called it.
    let source = part.path().join(SOURCE);
    if file.source != source {
        fs::rename(file.source, &source).map_err(ImageError::io("rename", file.source))?;
    }
    to_raw(&part, layers, &source, label, &raw, task)?;
    let disk = File::options().read(true).write(true).open(&raw).map_err(ImageError::io("open", &raw))?;
    // Whole sectors: VMMs round down, and the last ones would be lost.
    let len = disk.metadata().map_err(ImageError::io("look at", &raw))?.len();
    let virtual_size = len.next_multiple_of(512);
    disk.set_len(virtual_size).map_err(ImageError::io("set the length of", &raw))?;
    tell(task, ImageStage::Inspect, format!("looking into {}", label.display()));
    let boot = BootDir::at(part.path());
    let found = inspect::inspect(disk, label, &boot.kernel(), &boot.initrd(), task)?;
    let host = Arch::host().ok_or(ImageError::UnsupportedHost(std::env::consts::ARCH))?;
    if let Some(arch) = found.arch.filter(|&a| a != host) {
        return Err(ImageError::WrongArch { path: label.to_owned(), found: arch, host });
    }
    tell(task, ImageStage::Sync, format!("waiting for {} to be on the disk", label.display()));
    part.commit(Meta {
        digest: file.digest,
        reference: file.reference,
        format: DiskFormat::Raw,
        virtual_size,
        kernel: found.kernel,
        initrd: found.initrd,
        root_args: found.root_args,
        extra_args: found.extra_args,
        os: found.os.unwrap_or_else(|| "unknown".to_owned()),
        arch: host,
        notes: found.notes,
        inspection: found.inspection,
    })
}

/// Unpacks and converts a file of the part into `raw`, and removes what it no longer needs as soon as it can.
fn to_raw(
    part: &Part<'_>,
    layers: &[Layer],
    source: &Path,
    label: &Path,
    raw: &Path,
    task: &Task,
) -> Result<(), ImageError> {
    let file = File::open(source).map_err(ImageError::io("open", source))?;
    let (name, disk) = match detect::detect(label, &first_bytes(&file, source, label)?)? {
        Content::Raw => (SOURCE, Disk::Raw),
        Content::Qcow2 => (SOURCE, Disk::Qcow2),
        Content::Packed(_) => {
            let len = file.metadata().map_err(ImageError::io("look at", source))?.len();
            // It will hardly become smaller. How much larger, is seen on the way.
            room(part.path(), len)?;
            let to_path = part.path().join(UNPACKED);
            let to = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&to_path)
                .map_err(ImageError::io("create", &to_path))?;
            let disk = unpack(&file, label, &to, &to_path, Limits::of(len), task)?;
            // A damaged end could have left so little.
            first_bytes(&to, &to_path, label)?;
            fleetbox_store::remove_if_there(source)?;
            (UNPACKED, disk)
        }
    };
    drop(file);
    let path = part.path().join(name);
    match disk {
        Disk::Raw => fs::rename(&path, raw).map_err(ImageError::io("rename", &path)),
        Disk::Qcow2 => {
            let to = raw.file_name().and_then(|n| n.to_str()).unwrap_or("image.raw");
            convert::convert(part.path(), convert::From { name, layers, label }, to, task)?;
            fleetbox_store::remove_if_there(&path)?;
            for layer in layers {
                fleetbox_store::remove_if_there(&part.path().join(&layer.name))?;
            }
            let inner = File::open(raw).map_err(ImageError::io("open", raw))?;
            match detect::detect(label, &start(&inner, raw, detect::HEAD)?)? {
                Content::Raw => Ok(()),
                Content::Qcow2 | Content::Packed(_) => Err(convert::nested(label)),
            }
        }
    }
}

fn tell(task: &Task, stage: ImageStage, detail: String) {
    task.report(ImageProgress { stage, detail, progress: None });
}

fn cached(store: &Store, print: &Fingerprint, given: &Path) -> Result<Option<Image>, ImageError> {
    let Some(digest) = cache::recall(store, print) else { return Ok(None) };
    Ok(load(store, &digest)?.map(|image| Image { reference: ImageRef::File(given.to_owned()), ..image }))
}

fn open(path: &Path) -> Result<File, ImageError> {
    let file_type = fs::metadata(path).map_err(ImageError::io("look at image", path))?.file_type();
    let kind = match () {
        () if file_type.is_file() => None,
        () if file_type.is_dir() => Some("folder"),
        () if file_type.is_block_device() => Some("block device"),
        () if file_type.is_fifo() => Some("pipe"),
        () if file_type.is_socket() => Some("socket"),
        () => Some("device"),
    };
    if let Some(kind) = kind {
        return Err(ImageError::NotAFile { path: path.to_owned(), kind });
    }
    // NONBLOCK: should it be replaced by a pipe at this moment, open must not hang.
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(ImageError::io("open image", path))?;
    first_bytes(&file, path, path)?;
    Ok(file)
}

/// The first bytes of a file that may be an image, as many as tell what it is.
fn first_bytes(file: &File, path: &Path, label: &Path) -> Result<Vec<u8>, ImageError> {
    let size = file.metadata().map_err(ImageError::io("look at image", path))?.len();
    let head = start(file, path, detect::HEAD)?;
    match size {
        0 => Err(ImageError::Empty(label.to_owned())),
        _ if size < MIN_SIZE => match detect::detect(label, &head) {
            // A small text is worth being called one.
            Err(e) if !detect::is_unknown(&e) => Err(e),
            // Almost nothing may be much when it is unpacked.
            Ok(Content::Qcow2 | Content::Packed(_)) => Ok(head),
            _ => Err(ImageError::TooSmall { path: label.to_owned(), size, min: MIN_SIZE }),
        },
        _ => Ok(head),
    }
}

/// The first bytes of a file, whose position is then at its start.
fn start(file: &File, path: &Path, most: usize) -> Result<Vec<u8>, ImageError> {
    let mut head = Vec::with_capacity(most);
    let rewind = || {
        rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))
            .map_err(|e| ImageError::io("read image", path)(e.into()))
    };
    rewind()?;
    file.take(most as u64).read_to_end(&mut head).map_err(ImageError::io("read image", path))?;
    rewind()?;
    Ok(head)
}

/// Copies a file into the part and takes the copy's digest, so that the digest is of what is kept.
fn take_copy(
    file: &File,
    path: &Path,
    copy_path: &PathBuf,
    dir: &Path,
    task: &Task,
) -> Result<String, ImageError> {
    let meta = file.metadata().map_err(ImageError::io("look at image", path))?;
    let target = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(copy_path)
        .map_err(ImageError::io("create", copy_path))?;
    let report = |done: u64| {
        task.report(ImageProgress {
            stage: ImageStage::Copy,
            detail: format!("importing {}", path.display()),
            progress: Some(Progress::new(done, Some(meta.len()), "bytes")),
        });
    };
    report(0);
    // Its holes take no room, and a copy that shares its blocks takes none at all.
    if let Err(full) = room(dir, meta.blocks() * 512)
        && rustix::fs::ioctl_ficlone(&target, file).is_err()
    {
        return Err(full);
    }
    if let Copied::Bytes(bytes) = copy(file, path, &target, copy_path, task)? {
        tracing::info!(path = %path.display(), bytes, "copied an image: its file system cannot share blocks");
    }
    let mut told = 0;
    digest(&target, copy_path, task, |done| {
        if done - told >= 16 << 20 {
            told = done;
            report(done);
        }
    })
}

#[cfg(test)]
mod tests;
