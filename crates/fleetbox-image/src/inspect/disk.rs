//! Bytes of a disk, wherever they are kept.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Something that can be read at any place, as a guest would see it.
pub(crate) trait ReadAt {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `to` from `at` on; `UnexpectedEof` when that reaches beyond the end.
    fn read_at(&self, at: u64, to: &mut [u8]) -> io::Result<()>;
}

/// A disk that several readers share.
pub(crate) type Disk = Rc<dyn ReadAt>;

/// A raw disk.
#[derive(Debug)]
pub(crate) struct RawDisk {
    file: File,
    size: u64,
}

impl RawDisk {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl ReadAt for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, at)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let at = usize::try_from(at).map_err(|_| eof())?;
        let end = at.checked_add(to.len()).ok_or_else(eof)?;
        to.copy_from_slice(self.get(at..end).ok_or_else(eof)?);
        Ok(())
    }
}

/// A part of a disk. A damaged file system may name any place: none outside of its own part is read.
#[derive(Clone)]
pub(crate) struct Window {
    disk: Disk,
    start: u64,
    len: u64,
}

impl Window {
    pub(crate) fn new(disk: Disk, start: u64, len: u64) -> Self {
        Self { disk, start, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let inside = at.checked_add(to.len() as u64).is_some_and(|end| end <= self.len);
        match self.start.checked_add(at).filter(|_| inside) {
            Some(at) => self.disk.read_at(at, to),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// A buffer of `len` bytes, which the caller has bounded.
    pub(crate) fn bytes(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut to = vec![0u8; len];
        self.read(at, &mut to)?;
        Ok(to)
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}
