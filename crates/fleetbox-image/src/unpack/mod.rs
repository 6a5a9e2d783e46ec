//! Taking a disk image out of what it is packed in: gzip, xz, Zstandard and tar, around one another.
//!
//! ```text
//!  file -> Source (progress, cancelling) -> [gzip|xz|zstd]* -> disk ---------------------> Sink (sparse, limited)
//!                                                     |                                      ^
//!                                                     +-> tar -> its one disk [gzip|xz|zstd]-+
//! ```
//!
//! What a layer is, is told by its first bytes. Nothing is held in memory but what the decoders need, which is
//! bounded; nothing is written but the one file; no name out of an archive is ever used as a path.

mod limit;
mod sink;
mod tape;
mod xz;
mod zst;

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use fleetbox_spec::Progress;

use crate::import::detect::{self, Content, Packing};
use crate::task::Task;
use crate::{ImageError, ImageProgress, ImageStage};

use limit::MAX_LAYERS;
pub use limit::UnpackLimit;
pub(crate) use limit::{Limits, MAX_DISK};
use sink::{Sink, fill};

/// A disk image that is not packed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Raw,
    Qcow2,
}

/// What a file is packed in, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Layers(Vec<Packing>);

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, layer) in self.0.iter().rev().enumerate() {
            write!(f, "{}{layer}", if i == 0 { "" } else { " in " })?;
        }
        Ok(())
    }
}

/// Unpacks `from`, which is known to the user as `label`, to the empty file `to`. Zeros become holes.
pub(crate) fn unpack(
    from: &File,
    label: &Path,
    to: &File,
    to_path: &Path,
    limits: Limits,
    task: &Task,
) -> Result<Disk, ImageError> {
    let total = from.metadata().map_err(ImageError::io("look at", label))?.len();
    let mut source = Source { file: from, done: 0, told: 0, total, label, task };
    source.report();
    let sink = Sink { file: to, path: to_path, label, limits, task };
    let mut unpacker = Unpacker { sink: &sink, layers: Layers::default() };
    unpacker.stream(&mut source)
}

struct Unpacker<'a> {
    sink: &'a Sink<'a>,
    layers: Layers,
}

impl Unpacker<'_> {
    /// Unpacks what a reader gives, whatever it is.
    fn stream(&mut self, from: &mut dyn Read) -> Result<Disk, ImageError> {
        let head = peek(from).map_err(|e| self.broken(e))?;
        let content = detect::detect(self.sink.label, &head)?;
        let mut whole = Cursor::new(head).chain(from);
        match content {
            Content::Raw => self.disk(Disk::Raw, &mut whole),
            Content::Qcow2 => self.disk(Disk::Qcow2, &mut whole),
            Content::Packed(packing) => {
                self.enter(packing)?;
                match packing {
                    Packing::Tar => self.tape(&mut whole),
                    _ => self.stream(&mut *decoder(packing, &mut whole)),
                }
            }
        }
    }

    fn enter(&mut self, packing: Packing) -> Result<(), ImageError> {
        self.layers.0.push(packing);
        if self.layers.0.len() > MAX_LAYERS {
            let limit = UnpackLimit::Layers { most: MAX_LAYERS };
            return Err(ImageError::UnpackLimit { path: self.sink.label.to_owned(), limit });
        }
        Ok(())
    }

    fn disk(&self, disk: Disk, from: &mut dyn Read) -> Result<Disk, ImageError> {
        self.sink.write_all_of(from)?.map_err(|e| self.broken(e))?;
        Ok(disk)
    }

    /// What a reader's error means: the work was given up, or the file is damaged.
    fn broken(&self, source: io::Error) -> ImageError {
        match self.sink.task.check() {
            Err(cancelled) => cancelled,
            Ok(()) => ImageError::Unpack {
                path: self.sink.label.to_owned(),
                packing: self.layers.to_string(),
                source,
            },
        }
    }
}

/// The first bytes of a stream, as many as it takes to tell what it is.
fn peek(from: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; detect::HEAD];
    let n = fill(from, &mut head)?;
    head.truncate(n);
    Ok(head)
}

/// What unpacks a layer that holds one file. (A tar holds several.)
fn decoder<'r>(packing: Packing, from: impl Read + 'r) -> Box<dyn Read + 'r> {
    match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(from)),
        Packing::Xz => Box::new(xz::Xz::new(from)),
        Packing::Zstd => Box::new(zst::Zstd::new(from)),
        Packing::Tar => Box::new(from),
    }
}

/// The packed file. It tells how far it is read, and ends with an error once nobody waits any more.
struct Source<'a> {
    file: &'a File,
    done: u64,
    told: u64,
    total: u64,
    label: &'a Path,
    task: &'a Task,
}

impl Source<'_> {
    const TELL_EVERY: u64 = 8 << 20;

    fn report(&mut self) {
        self.told = self.done;
        self.task.report(ImageProgress {
            stage: ImageStage::Unpack,
            detail: format!("unpacking {}", self.label.display()),
            progress: Some(Progress::new(self.done, Some(self.total), "bytes")),
        });
    }
}

impl Read for Source<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.task.check().map_err(io::Error::other)?;
        let n = self.file.read(to)?;
        self.done += n as u64;
        if self.done - self.told >= Self::TELL_EVERY {
            self.report();
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
