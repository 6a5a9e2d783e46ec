//! Boot files out of an image, as `qemu -kernel` and `-initrd` take them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use fleetbox_spec::Arch;

use super::fs::{FsError, ReadFile};
use super::kernel::{self, Form, Packing, Range};
use super::tree::Tree;
use crate::ImageError;
use crate::task::Task;

/// The largest kernel or initramfs taken out of an image, unpacked: real ones are a tenth of it.
pub(super) const MAX_BOOT_FILE: u64 = 512 << 20;

/// A kernel that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// As in [`crate::KernelKind`].
    pub(super) kind: crate::KernelKind,
    pub(super) arch: Arch,
    pub(super) version: Option<String>,
}

/// A file or a range of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) path: String,
    pub(super) range: Option<Range>,
}

impl Source {
    pub(super) fn file(path: &str) -> Self {
        Self { path: path.to_owned(), range: None }
    }
}

/// A reader of a range of a file, for decoders that want [`Read`].
struct Reader {
    file: Box<dyn ReadFile>,
    left: u64,
}

impl Reader {
    fn open(tree: &Tree, source: &Source, max: u64) -> Result<Self, FsError> {
        let (found, mut file) = tree.open(&source.path)?;
        let range = source.range.unwrap_or(Range { at: 0, len: found.stat.len });
        if range.len > max || range.at > max {
            return Err(FsError::TooLarge { len: range.len.max(range.at), max });
        }
        let (mut skip, mut buffer) = (range.at, vec![0u8; 64 << 10]);
        while skip > 0 {
            let n = buffer.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            match file.read(&mut buffer[..n])? {
                0 => break,
                n => skip -= n as u64,
            }
        }
        Ok(Self { file, left: range.len })
    }
}

impl Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        // The chain of causes as one line: it ends up in a note.
        let n = self.file.read(&mut to[..most]).map_err(|e| io::Error::other(e.text()))?;
        self.left -= n as u64;
        Ok(n)
    }
}

/// The outer error is ours; the inner one says why the image does not yield the file.
type Taken<T> = Result<Result<T, String>, ImageError>;

/// Copies all of `from`, which may have at most `max` bytes.
fn copy(from: &mut dyn Read, out: &mut File, to: &Path, max: u64, task: &Task) -> Taken<u64> {
    let mut buffer = vec![0u8; 256 << 10];
    let mut done = 0;
    loop {
        task.check()?;
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(Ok(done)),
            Ok(n) => n,
            Err(e) => return Ok(Err(e.to_string())),
        };
        done += n as u64;
        if done > max {
            return Ok(Err(format!("it has more than {} MiB", max >> 20)));
        }
        out.write_all(&buffer[..n]).map_err(ImageError::io("write", to))?;
    }
}

/// Writes the kernel to `to`, unpacked where the VMM would not do that itself: at most `max` bytes.
pub(super) fn kernel(tree: &Tree, source: &Source, to: &Path, max: u64, task: &Task) -> Taken<Kernel> {
    let (head, len) = match head(tree, source, max) {
        Ok(h) => h,
        Err(e) => return Ok(Err(e.text())),
    };
    let plain = |kind, arch, version| (kind, arch, version, None::<(Packing, Option<Range>)>);
    let (kind, arch, version, packed) = match kernel::recognize(&head, len) {
        Form::BzImage { version } => plain(crate::KernelKind::BzImage, Arch::Amd64, version),
        Form::Image => plain(crate::KernelKind::Image, Arch::Arm64, None),
        Form::Packed(packing) => {
            let kind = match packing {
                Packing::Gzip => crate::KernelKind::ImageGzip,
                Packing::Zstd => crate::KernelKind::ImageZstd,
            };
            (kind, Arch::Arm64, None, Some((packing, None)))
        }
        Form::Zboot { packing, payload } => {
            (crate::KernelKind::EfiZboot, Arch::Arm64, None, Some((packing, Some(payload))))
        }
        Form::Unified(_) => return Ok(Err("there is a unified kernel image in it".to_owned())),
        Form::Other(why) => return Ok(Err(why)),
    };
    let base = source.range.map_or(0, |r| r.at);
    let inner = match packed {
        Some((_, Some(payload))) => Source {
            path: source.path.clone(),
            range: Some(Range { at: base + payload.at, len: payload.len }),
        },
        _ => source.clone(),
    };
    let reader = match Reader::open(tree, &inner, max) {
        Ok(r) => r,
        Err(e) => return Ok(Err(e.text())),
    };
    let mut out = File::create(to).map_err(ImageError::io("create", to))?;
    let copied = match packed {
        None => copy(&mut { reader } as &mut dyn Read, &mut out, to, max, task)?,
        Some((Packing::Gzip, _)) => {
            let reader = io::BufReader::with_capacity(256 << 10, reader);
            copy(&mut flate2::bufread::GzDecoder::new(reader), &mut out, to, max, task)?
        }
        Some((Packing::Zstd, _)) => {
            match ruzstd::decoding::StreamingDecoder::new(io::BufReader::with_capacity(256 << 10, reader)) {
                Ok(mut decoder) => copy(&mut decoder, &mut out, to, max, task)?,
                Err(e) => Err(e.to_string()),
            }
        }
    };
    let written = match copied {
        Ok(n) => n,
        Err(why) => return Ok(Err(why)),
    };
    if packed.is_some() {
        let mut head = Vec::new();
        let unpacked = File::open(to).and_then(|f| f.take(64).read_to_end(&mut head));
        unpacked.map_err(ImageError::io("read", to))?;
        if kernel::recognize(&head, written) != Form::Image {
            return Ok(Err("what is packed in it is no arm64 kernel".to_owned()));
        }
    }
    Ok(Ok(Kernel { kind, arch, version }))
}

fn head(tree: &Tree, source: &Source, max: u64) -> Result<(Vec<u8>, u64), FsError> {
    let mut reader = Reader::open(tree, source, max)?;
    let len = reader.left;
    let mut head = Vec::new();
    (&mut reader).take(kernel::HEAD as u64).read_to_end(&mut head).map_err(FsError::Io)?;
    Ok((head, len))
}

/// Writes initramfs archives one after another, each at a multiple of 4 bytes, as boot loaders load them.
pub(super) fn initrd(tree: &Tree, sources: &[Source], to: &Path, task: &Task) -> Taken<()> {
    let mut out = File::create(to).map_err(ImageError::io("create", to))?;
    let mut all = 0u64;
    for source in sources {
        let mut reader = match Reader::open(tree, source, MAX_BOOT_FILE) {
            Ok(r) => r,
            Err(e) => return Ok(Err(e.text())),
        };
        let padding = (all.next_multiple_of(4) - all) as usize;
        out.write_all(&[0u8; 4][..padding]).map_err(ImageError::io("write", to))?;
        match copy(&mut reader, &mut out, to, MAX_BOOT_FILE, task)? {
            Ok(0) => return Ok(Err("it is empty".to_owned())),
            Ok(n) => all += padding as u64 + n,
            Err(why) => return Ok(Err(why)),
        };
        if all > MAX_BOOT_FILE {
            return Ok(Err(format!("they have more than {} MiB", MAX_BOOT_FILE >> 20)));
        }
    }
    Ok(Ok(()))
}

/// A short text in a range of a file, such as the arguments in a unified kernel image.
pub(super) fn text(tree: &Tree, path: &str, range: Range) -> Option<String> {
    if range.len > 64 << 10 {
        return None;
    }
    let mut reader =
        Reader::open(tree, &Source { path: path.to_owned(), range: Some(range) }, MAX_BOOT_FILE).ok()?;
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_end_matches('\0').trim().to_owned())
}
