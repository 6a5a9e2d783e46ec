//! Where an unpacked disk goes: a sparse file, and not more of it than the limits allow.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::limit::{Limits, RESERVE};
use crate::ImageError;
use crate::copy::write_sparse;
use crate::task::Task;

const CHUNK: usize = 1 << 20;
/// How much is written between two looks at the free space.
const LOOK_EVERY: u64 = 32 << 20;

/// A file that a disk is unpacked to.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    /// What is unpacked, as the user knows it.
    pub(super) label: &'a Path,
    pub(super) limits: Limits,
    pub(super) task: &'a Task,
}

impl Sink<'_> {
    /// Writes all that the reader gives, zeros as holes. The outer error is final, the inner one the reader's.
    pub(super) fn write_all_of(&self, from: &mut dyn Read) -> Result<io::Result<()>, ImageError> {
        let mut buffer = vec![0u8; CHUNK];
        let (mut total, mut data, mut looked_at) = (0u64, 0u64, None);
        loop {
            self.task.check()?;
            let n = match fill(from, &mut buffer) {
                Ok(n) => n,
                Err(e) => return Ok(Err(e)),
            };
            self.check(total + n as u64, data)?;
            if looked_at.is_none_or(|at| data - at >= LOOK_EVERY) {
                looked_at = Some(data);
                self.check_free(data)?;
            }
            let written = write_sparse(self.file, total, &buffer[..n]);
            data += written.map_err(|e| self.failed(e, data))?;
            total += n as u64;
            self.check(total, data)?;
            if n < CHUNK {
                break;
            }
        }
        self.file.set_len(total).map_err(|e| self.failed(e, data))?;
        Ok(Ok(()))
    }

    /// Whether so many bytes, and so many that are not zero, are within the limits.
    pub(super) fn check(&self, total: u64, data: u64) -> Result<(), ImageError> {
        self.limits
            .check(total, data)
            .map_err(|limit| ImageError::UnpackLimit { path: self.label.to_owned(), limit })
    }

    fn check_free(&self, written: u64) -> Result<(), ImageError> {
        let dir = self.path.parent().unwrap_or(self.path);
        let free =
            fleetbox_os::host::free_bytes(dir).map_err(ImageError::io("ask for the free space of", dir))?;
        if free < RESERVE { Err(self.full(written)) } else { Ok(()) }
    }

    fn full(&self, written: u64) -> ImageError {
        ImageError::UnpackSpace {
            path: self.label.to_owned(),
            dir: self.path.parent().unwrap_or(self.path).to_owned(),
            written_mib: written >> 20,
            reserve_mib: RESERVE >> 20,
        }
    }

    fn failed(&self, e: io::Error, written: u64) -> ImageError {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(written),
            _ => ImageError::io("write", self.path)(e),
        }
    }
}

/// Reads until the buffer is full or nothing comes any more: the blocks that are looked at stay aligned.
pub(super) fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match from.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}
