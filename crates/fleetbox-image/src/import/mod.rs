//! A local file as an image: a private copy, named by its content's digest.

mod cache;
mod detect;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, DiskFormat, ImageRef, Progress};
use fleetbox_store::Store;

use crate::copy::{Copied, copy, digest};
use crate::model::{Meta, load, path_name};
use crate::part::{self, Part};
use crate::qcow2::Header;
use crate::task::Task;
use crate::tool::{QEMU_IMG, run_on_file};
use crate::{Image, ImageError, ImageProgress, ImageStage, inspect};

use cache::Fingerprint;
use detect::Content;

/// No kernel, initramfs and root file system fit into less.
const MIN_SIZE: u64 = 1 << 20;

/// Finds or imports the image in a file.
pub(crate) fn resolve(store: &Store, given: &Path, task: &Task) -> Result<Image, ImageError> {
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
    let content = detect::detect(&path, &head(&file, &path)?)?;
    let part = Part::create(store, &name, lock)?;
    // Never the caller's file itself: what is written to it later must not reach any disk.
    let copy_path = part.path().join("source");
    let digest = take_copy(&file, &path, &copy_path, part.path(), task)?;
    if Fingerprint::of(&path, &file)? != before {
        return Err(ImageError::Changed(path));
    }
    let image = match load(store, &digest)? {
        // The same content from another path.
        Some(image) => Image { reference: ImageRef::File(given.to_owned()), ..image },
        None => finish(store, part, &path, given, content, digest, task)?,
    };
    cache::remember(store, &before, &image.digest)?;
    Ok(image)
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
    let size = file.metadata().map_err(ImageError::io("look at image", path))?.len();
    match size {
        0 => Err(ImageError::Empty(path.to_owned())),
        // A small text is worth being called one.
        _ if size < MIN_SIZE => match detect::detect(path, &head(&file, path)?) {
            Err(e) if !detect::is_unknown(&e) => Err(e),
            _ if head(&file, path)?.starts_with(&crate::qcow2::MAGIC) => Ok(file),
            _ => Err(ImageError::TooSmall { path: path.to_owned(), size, min: MIN_SIZE }),
        },
        _ => Ok(file),
    }
}

fn head(mut file: &File, path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut head = Vec::with_capacity(detect::HEAD);
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))
        .map_err(|e| ImageError::io("read image", path)(e.into()))?;
    (&mut file)
        .take(detect::HEAD as u64)
        .read_to_end(&mut head)
        .map_err(ImageError::io("read image", path))?;
    Ok(head)
}

/// Copies the file into the part and takes the copy's digest, so that the digest is of what is kept.
fn take_copy(
    file: &File,
    path: &Path,
    copy_path: &PathBuf,
    room: &Path,
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
            progress: Some(Progress { done, total: Some(meta.len()), unit: "bytes".to_owned() }),
        });
    };
    report(0);
    let free =
        fleetbox_os::host::free_bytes(room).map_err(ImageError::io("ask for the free space of", room))?;
    // Its holes take no room. 16 MiB for kernel and initramfs of a small image.
    let (need, free_mib) = (((meta.blocks() * 512) >> 20) + 16, free >> 20);
    if free_mib < need && rustix::fs::ioctl_ficlone(&target, file).is_err() {
        return Err(ImageError::NoSpace { path: room.to_owned(), need_mib: need, free_mib });
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

fn finish(
    store: &Store,
    part: Part<'_>,
    path: &Path,
    given: &Path,
    content: Content,
    digest: String,
    task: &Task,
) -> Result<Image, ImageError> {
    let names = store.image_dir(&digest);
    let here = |name: PathBuf| part.path().join(name.file_name().unwrap_or_default());
    let (source, raw) = (part.path().join("source"), here(names.image("raw")));
    match content {
        Content::Raw => fs::rename(&source, &raw).map_err(ImageError::io("rename", &source))?,
        Content::Qcow2 => {
            convert(path, &source, &raw, task)?;
            let inner = File::open(&raw).map_err(ImageError::io("open", &raw))?;
            if detect::detect(path, &head(&inner, path)?)? == Content::Qcow2 {
                let reason = "there is another qcow2 image in it".to_owned();
                return Err(ImageError::BadQcow2 { path: path.to_owned(), reason });
            }
        }
    }
    let disk = File::options().read(true).write(true).open(&raw).map_err(ImageError::io("open", &raw))?;
    // Whole sectors: VMMs round down, and the last ones would be lost.
    let len = disk.metadata().map_err(ImageError::io("look at", &raw))?.len();
    let virtual_size = len.next_multiple_of(512);
    disk.set_len(virtual_size).map_err(ImageError::io("set the length of", &raw))?;
    task.report(ImageProgress {
        stage: ImageStage::Inspect,
        detail: format!("looking into {}", path.display()),
        progress: None,
    });
    let found = inspect::inspect(disk, path, &here(names.kernel()), &here(names.initrd()), task)?;
    let host = Arch::host().ok_or(ImageError::UnsupportedHost(std::env::consts::ARCH))?;
    if let Some(arch) = found.arch.filter(|&a| a != host) {
        return Err(ImageError::WrongArch { path: path.to_owned(), found: arch, host });
    }
    part.commit(Meta {
        digest,
        reference: ImageRef::File(given.to_owned()),
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

/// To raw, once: then inspection and every VMM read one format, and no VMM parses foreign qcow2 tables.
fn convert(path: &Path, source: &Path, raw: &Path, task: &Task) -> Result<(), ImageError> {
    let bad = |reason| ImageError::BadQcow2 { path: path.to_owned(), reason };
    let mut head = Vec::new();
    File::open(source)
        .and_then(|f| f.take(512).read_to_end(&mut head))
        .map_err(ImageError::io("read", source))?;
    // Of our copy, which nobody changes any more: what is checked is what qemu-img reads.
    Header::parse(&head).and_then(|h| h.check_self_contained()).map_err(bad)?;
    task.report(ImageProgress {
        stage: ImageStage::Convert,
        detail: format!("converting {} to raw", path.display()),
        progress: None,
    });
    let args: Vec<OsString> = ["convert", "-q", "-f", "qcow2", "-O", "raw", "-S", "4k"]
        .map(OsString::from)
        .into_iter()
        .chain([source.into(), raw.into()])
        .collect();
    run_on_file(QEMU_IMG, args, "convert the image", path, crate::disk::CONVERT_LIMITS, task)?;
    fleetbox_store::remove_if_there(source)?;
    Ok(())
}
