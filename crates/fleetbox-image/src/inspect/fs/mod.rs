//! File systems, read without mounting them.
//!
//! Each reader answers for paths that are already free of links and of `..` ([`super::tree`] resolves them, inside the
//! image only), so that none of them has to defend itself against loops of links.

mod btrfs;
mod compress;
mod ext4;
mod fat;
#[cfg(test)]
pub(in crate::inspect) mod fixtures;
mod probe;
mod xfs;

use std::io;

use super::disk::Window;

pub(in crate::inspect) use btrfs::{Btrfs, Subvolume};
pub(in crate::inspect) use compress::{Unpack, unpack};
pub(in crate::inspect) use probe::{Holds, probe};

/// The most entries of one folder that are looked at.
pub(in crate::inspect) const MAX_ENTRIES: usize = 1 << 16;

/// Why a file system does not yield something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(in crate::inspect) enum FsError {
    /// The disk itself.
    #[error("it could not be read")]
    Io(#[from] io::Error),
    #[error("it does not exist")]
    NotFound,
    #[error("it is no folder")]
    NotAFolder,
    #[error("it is no plain file")]
    NotAFile,
    #[error("its links lead in a circle")]
    TooManyLinks,
    #[error("it has {len} bytes; at most {max} are read")]
    TooLarge { len: u64, max: u64 },
    /// What contradicts itself.
    #[error("the file system is damaged: {0}")]
    Damaged(&'static str),
    /// What this reader does not know.
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error("the file system is damaged or of a newer kind")]
    Ext4(#[source] ext4_view::Ext4Error),
}

impl FsError {
    /// The whole chain of causes in one line, for a note.
    pub(in crate::inspect) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(c) = cause {
            text.push_str(": ");
            text.push_str(&c.to_string());
            cause = c.source();
        }
        text
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inspect) enum Kind {
    File,
    Folder,
    Link,
    Other,
}

/// A file's kind, length and time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inspect) struct Stat {
    pub(in crate::inspect) kind: Kind,
    pub(in crate::inspect) len: u64,
    /// Seconds and nanoseconds since 1970; for telling a change only.
    pub(in crate::inspect) mtime: (i64, u32),
}

/// A file being read from its beginning.
pub(in crate::inspect) trait ReadFile {
    /// Fills a part of `to`; 0 at the end.
    fn read(&mut self, to: &mut [u8]) -> Result<usize, FsError>;
}

/// A file system. Paths begin with `/` and have no links, no `.` and no `..` but perhaps in the last place.
pub(in crate::inspect) trait FileSystem {
    /// As `rootfstype=` takes it.
    fn name(&self) -> &'static str;
    /// As `root=UUID=` takes it.
    fn uuid(&self) -> Option<String>;
    fn label(&self) -> Option<String>;
    /// What may be missing because the reader does not replay what the kernel would replay at mount.
    fn unreplayed(&self) -> Option<&'static str> {
        None
    }
    /// Does not follow a link in the last place.
    fn stat(&self, path: &str) -> Result<Stat, FsError>;
    fn read_link(&self, path: &str) -> Result<String, FsError>;
    /// At most [`MAX_ENTRIES`] names, without `.` and `..`, in no order.
    fn list(&self, path: &str) -> Result<Vec<String>, FsError>;
    fn open(&self, path: &str) -> Result<Box<dyn ReadFile>, FsError>;
}

/// Opens what `probe` has recognized; `None` for what is no file system that is read here.
pub(in crate::inspect) fn open(
    holds: Holds,
    window: &Window,
) -> Option<Result<Box<dyn FileSystem>, FsError>> {
    fn boxed<F: FileSystem + 'static>(fs: Result<F, FsError>) -> Result<Box<dyn FileSystem>, FsError> {
        Ok(Box::new(fs?))
    }
    match holds {
        Holds::Ext4 => Some(boxed(ext4::Ext4Fs::open(window.clone()))),
        Holds::Xfs => Some(boxed(xfs::Xfs::open(window.clone()))),
        Holds::Btrfs => Some(boxed(Btrfs::open(window.clone(), None))),
        Holds::Fat => Some(boxed(fat::Fat::open(window.clone()))),
        _ => None,
    }
}

/// The components of a path.
fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|c| !c.is_empty() && *c != ".")
}

/// A range of a file's bytes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// Where in the file, in bytes.
    at: u64,
    len: u64,
    /// Where in the window; `None`: it reads as zeros.
    disk: Option<u64>,
}

/// Reads a file that is laid out in pieces, sorted by place and without overlap; holes between them are zeros.
struct Pieces {
    window: Window,
    pieces: Vec<Piece>,
    len: u64,
    at: u64,
    /// The first piece that may still matter.
    next: usize,
}

impl Pieces {
    fn new(window: Window, mut pieces: Vec<Piece>, len: u64) -> Result<Self, FsError> {
        pieces.sort_by_key(|p| p.at);
        let overlap =
            pieces.windows(2).any(|w| w[0].at.checked_add(w[0].len).is_none_or(|end| end > w[1].at));
        if overlap {
            return Err(FsError::Damaged("two extents of a file overlap"));
        }
        Ok(Self { window, pieces, len, at: 0, next: 0 })
    }

    fn seek(&mut self, at: u64) {
        self.at = at;
        self.next = 0;
    }
}

impl ReadFile for Pieces {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, FsError> {
        let left = self.len.saturating_sub(self.at);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(to.len());
        if want == 0 {
            return Ok(0);
        }
        while self.pieces.get(self.next).is_some_and(|p| p.at.saturating_add(p.len) <= self.at) {
            self.next += 1;
        }
        let zeros = |to: &mut [u8], until: u64, at: u64| {
            let n = usize::try_from(until - at).unwrap_or(usize::MAX).min(want);
            to[..n].fill(0);
            n
        };
        let n = match self.pieces.get(self.next) {
            None => zeros(to, self.len, self.at),
            Some(p) if p.at > self.at => zeros(to, p.at, self.at),
            Some(p) => {
                let inside = self.at - p.at;
                let n = usize::try_from(p.len - inside).unwrap_or(usize::MAX).min(want);
                match p.disk {
                    None => to[..n].fill(0),
                    Some(disk) => {
                        let from =
                            disk.checked_add(inside).ok_or(FsError::Damaged("an extent has no end"))?;
                        self.window.read(from, &mut to[..n])?;
                    }
                }
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

/// Reads a file whose bytes are at hand.
struct Held {
    bytes: Vec<u8>,
    at: usize,
}

impl ReadFile for Held {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, FsError> {
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let n = left.len().min(to.len());
        to[..n].copy_from_slice(&left[..n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::rc::Rc;

    fn read_all(mut file: impl ReadFile, step: usize) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), vec![0xee; step]);
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => return all,
                n => all.extend_from_slice(&buffer[..n]),
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_read_as_a_whole(
            layout in proptest::collection::vec((0u64..5, 1u64..5, any::<bool>()), 0..8),
            tail in 0u64..5, step in 1usize..12,
        ) {
            let disk: Vec<u8> = (0..=255).collect();
            let (mut pieces, mut want, mut at) = (Vec::new(), Vec::new(), 0);
            for (i, (gap, len, hole)) in layout.into_iter().enumerate() {
                want.extend(std::iter::repeat_n(0, gap as usize));
                at += gap;
                let from = (i as u64) * 10 + 1;
                pieces.push(Piece { at, len, disk: (!hole).then_some(from) });
                want.extend((from..from + len).map(|b| if hole { 0 } else { b as u8 }));
                at += len;
            }
            want.extend(std::iter::repeat_n(0, tail as usize));
            let window = Window::new(Rc::new(disk), 0, 256);
            pieces.reverse();
            let got = read_all(Pieces::new(window, pieces, at + tail).unwrap(), step);
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn overlapping_pieces_are_damage() {
        let window = Window::new(Rc::new(vec![0u8; 10]), 0, 10);
        let piece = |at, len| Piece { at, len, disk: Some(0) };
        for bad in [vec![piece(0, 2), piece(1, 2)], vec![piece(0, u64::MAX), piece(5, 1)]] {
            assert!(matches!(Pieces::new(window.clone(), bad, 3), Err(FsError::Damaged(_))));
        }
    }
}
