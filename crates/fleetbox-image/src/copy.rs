//! Copies of disk images: shared blocks where the file system can, else only the parts that hold data.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};

use crate::ImageError;
use crate::model::hex;
use crate::task::{self, Task};

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// Both files share their blocks until one of them is written to (FICLONE, ioctl_ficlone(2)).
    Reflink,
    /// This many bytes were read and written; holes stayed holes.
    Bytes(u64),
}

const CHUNK: usize = 1 << 20;
/// A zero block of this size becomes a hole.
const BLOCK: usize = 4096;

/// Copies `from` to the empty file `to`, which gets the same length.
pub(crate) fn copy(
    from: &File,
    from_path: &Path,
    to: &File,
    to_path: &Path,
    task: &Task,
) -> Result<Copied, ImageError> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Copied::Reflink);
    }
    let mut copied = 0;
    for_each_data(from, from_path, task, |chunk| match chunk {
        Chunk::Data(offset, data) => {
            copied += write_sparse(to, offset, data).map_err(ImageError::io("write", to_path))?;
            Ok(())
        }
        Chunk::Hole(_) => Ok(()),
    })?;
    let len = from.metadata().map_err(ImageError::io("look at", from_path))?.len();
    to.set_len(len).map_err(ImageError::io("set the length of", to_path))?;
    Ok(Copied::Bytes(copied))
}

/// Whether so many bytes fit into a folder's file system, and a little more: 16 MiB for the kernel and initramfs of a
/// small image.
pub(crate) fn room(dir: &Path, bytes: u64) -> Result<(), ImageError> {
    let free =
        fleetbox_os::host::free_bytes(dir).map_err(ImageError::io("ask for the free space of", dir))?;
    let (need, free_mib) = ((bytes >> 20) + 16, free >> 20);
    if free_mib < need {
        return Err(ImageError::NoSpace { path: dir.to_owned(), need_mib: need, free_mib });
    }
    Ok(())
}

/// SHA-256 of a file's content, in 64 hex digits: what an image imported from it is named by. Holes are not read.
///
/// # Errors
/// [`ImageError::Io`] when it cannot be read.
pub async fn digest_file(path: &Path) -> Result<String, ImageError> {
    let path = path.to_owned();
    task::run(&|_| {}, move |task| {
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        digest(&file, &path, task, |_| {})
    })
    .await
}

/// SHA-256 of a file's content, in 64 hex digits. `each` hears of the bytes done.
pub(crate) fn digest(
    file: &File,
    path: &Path,
    task: &Task,
    mut each: impl FnMut(u64),
) -> Result<String, ImageError> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let (mut hash, mut done) = (Sha256::new(), 0u64);
    for_each_data(file, path, task, |chunk| {
        match chunk {
            Chunk::Data(_, data) => {
                hash.update(data);
                done += data.len() as u64;
            }
            Chunk::Hole(len) => {
                let mut left = len;
                while left > 0 {
                    let n = left.min(BLOCK as u64);
                    hash.update(&ZEROS[..usize::try_from(n).unwrap_or(BLOCK)]);
                    left -= n;
                    if (left / BLOCK as u64).is_multiple_of(16 * 1024) {
                        task.check()?;
                    }
                }
                done += len;
            }
        }
        each(done);
        Ok(())
    })?;
    Ok(hex(&hash.finalize()))
}

enum Chunk<'a> {
    Data(u64, &'a [u8]),
    Hole(u64),
}

/// Walks a file from its start to its end, without reading its holes (lseek(2), SEEK_DATA).
fn for_each_data(
    file: &File,
    path: &Path,
    task: &Task,
    mut each: impl FnMut(Chunk<'_>) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let read_error = || ImageError::io("read", path);
    let len = file.metadata().map_err(read_error())?.len();
    let mut buffer = vec![0u8; CHUNK];
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset.min(len),
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => len,
            // A file system without holes: it is all data.
            Err(rustix::io::Errno::INVAL) => at,
            Err(e) => return Err(read_error()(e.into())),
        };
        if data > at {
            each(Chunk::Hole(data - at))?;
            at = data;
        }
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(at)) {
            Ok(offset) => offset.clamp(at, len),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NXIO) => len,
            Err(e) => return Err(read_error()(e.into())),
        };
        rustix::fs::seek(file, SeekFrom::Start(at)).map_err(|e| read_error()(e.into()))?;
        while at < hole {
            task.check()?;
            let want = usize::try_from(hole - at).unwrap_or(CHUNK).min(CHUNK);
            let n = (&*file).read(&mut buffer[..want]).map_err(read_error())?;
            if n == 0 {
                // It became shorter under our hands; the caller compares it before and after.
                return Ok(());
            }
            each(Chunk::Data(at, &buffer[..n]))?;
            at += n as u64;
        }
    }
    Ok(())
}

/// Writes what is not zero; gives back how many bytes that were.
pub(crate) fn write_sparse(mut to: &File, offset: u64, data: &[u8]) -> std::io::Result<u64> {
    let (mut written, mut start) = (0, None);
    let mut flush = |from: usize, until: usize| {
        rustix::fs::seek(to, SeekFrom::Start(offset + from as u64))?;
        to.write_all(&data[from..until])?;
        written += (until - from) as u64;
        std::io::Result::Ok(())
    };
    for (i, block) in data.chunks(BLOCK).enumerate() {
        let at = i * BLOCK;
        let zero = block.iter().all(|&b| b == 0);
        match (zero, start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                flush(from, at)?;
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        flush(from, data.len())?;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_copy_has_the_same_bytes_and_digest(
            pieces in proptest::collection::vec((0u64..3_000_000, 1usize..70_000, any::<u8>()), 0..6),
            len in 0u64..4_000_000,
        ) {
            let tmp = tempfile::tempdir().unwrap();
            let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
            let source = File::options().read(true).write(true).create_new(true).open(&a).unwrap();
            for (offset, n, byte) in pieces {
                rustix::io::pwrite(&source, &vec![byte; n], offset).unwrap();
            }
            source.set_len(len).unwrap();
            let target = File::options().read(true).write(true).create_new(true).open(&b).unwrap();
            let (task, _hang_up) = crate::task::for_tests();
            copy(&source, &a, &target, &b, &task).unwrap();
            let bytes = std::fs::read(&a).unwrap();
            prop_assert!(bytes == std::fs::read(&b).unwrap());
            prop_assert_eq!(digest(&target, &b, &task, |_| {}).unwrap(), hex(&Sha256::digest(&bytes)));
        }
    }

    #[test]
    fn zeros_become_holes() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        let mut bytes = vec![0u8; 8 << 20];
        bytes[5 << 20] = 1;
        std::fs::write(&a, &bytes).unwrap();
        let (task, _hang_up) = crate::task::for_tests();
        let (from, to) = (File::open(&a).unwrap(), File::create(&b).unwrap());
        match copy(&from, &a, &to, &b, &task).unwrap() {
            Copied::Bytes(n) => {
                assert_eq!(n, BLOCK as u64);
                assert!(to.metadata().unwrap().blocks() * 512 <= 1 << 20);
            }
            Copied::Reflink => assert_eq!(std::fs::read(&b).unwrap(), bytes),
        }
    }
}
