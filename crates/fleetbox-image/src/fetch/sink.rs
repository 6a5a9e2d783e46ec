//! Where a body goes: into a file, and through the hash functions on its way.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use fleetbox_spec::{Checksum, HashAlgorithm};
use sha2::{Digest, Sha256, Sha512};

use crate::ImageError;
use crate::copy::write_sparse;
use crate::model::hex;
use crate::task::Task;

/// Written at once: large enough for few system calls, and for zeros in it to become holes.
const CHUNK: usize = 1 << 20;

/// A file that grows, with the digests of what is in it.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// Not in the file yet; belongs at `written`.
    buffer: Vec<u8>,
    written: u64,
    /// As much as would survive the loss of power.
    synced: u64,
    hashes: Hashes,
}

/// SHA-256, which names the image, and what else was asked for.
#[derive(Debug)]
struct Hashes {
    sha256: Sha256,
    sha512: Option<Sha512>,
}

/// The digests of a whole file, in hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) sha256: String,
    pub(super) sha512: Option<String>,
}

impl Digests {
    /// The one that a checksum can be compared with.
    pub(super) fn of(&self, algorithm: HashAlgorithm) -> Option<&str> {
        match algorithm {
            HashAlgorithm::Sha256 => Some(&self.sha256),
            HashAlgorithm::Sha512 => self.sha512.as_deref(),
            _ => None,
        }
    }
}

impl Hashes {
    fn new(pin: Option<&Checksum>) -> Self {
        let sha512 = pin.is_some_and(|p| p.algorithm() == HashAlgorithm::Sha512);
        Self { sha256: Sha256::new(), sha512: sha512.then(Sha512::new) }
    }

    fn update(&mut self, data: &[u8]) {
        self.sha256.update(data);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(data);
        }
    }
}

impl Sink {
    /// An empty file in place of whatever is there. Never the same file made empty: another name may lead to it.
    pub(super) fn create(path: &Path, pin: Option<&Checksum>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file, buffer: Vec::new(), written: 0, synced: 0, hashes: Hashes::new(pin) })
    }

    /// The first `len` bytes of a file that is there, read again for their digests. What is behind them is cut off.
    pub(super) fn resume(
        path: &Path,
        len: u64,
        pin: Option<&Checksum>,
        task: &Task,
        mut each: impl FnMut(u64),
    ) -> Result<Self, ImageError> {
        let error = || ImageError::io("read what is there of", path);
        let mut file = File::options().read(true).write(true).open(path).map_err(error())?;
        if file.metadata().map_err(error())?.len() != len {
            file.set_len(len).map_err(error())?;
        }
        let mut hashes = Hashes::new(pin);
        let (mut buffer, mut done) = (vec![0; CHUNK], 0);
        loop {
            task.check()?;
            match file.read(&mut buffer).map_err(error())? {
                0 => break,
                n => {
                    hashes.update(&buffer[..n]);
                    done += n as u64;
                    each(done);
                }
            }
        }
        Ok(Self { file, buffer: Vec::new(), written: done, synced: done, hashes })
    }

    /// How much there is.
    pub(super) fn done(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// How much of it is safe from the loss of power.
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        self.hashes.update(data);
        while !data.is_empty() {
            // To a multiple of the chunk in the file, so that zeros can be told by whole blocks.
            let room = CHUNK - usize::try_from(self.done() % CHUNK as u64).unwrap_or(0);
            let (now, later) = data.split_at(room.min(data.len()));
            self.buffer.extend_from_slice(now);
            data = later;
            if now.len() == room {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes all of it to the file.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            write_sparse(&self.file, self.written, &self.buffer)?;
            let end = self.done();
            // Zeros at the end are not written; the file's length still says how much there is.
            self.file.set_len(end)?;
            self.written = end;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes all of it to the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()?;
        self.synced = self.written;
        Ok(())
    }

    /// The digests of all of it.
    pub(super) fn finish(mut self) -> io::Result<Digests> {
        self.sync()?;
        let Hashes { sha256, sha512 } = self.hashes;
        Ok(Digests { sha256: hex(&sha256.finalize()), sha512: sha512.map(|h| hex(&h.finalize())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    fn pin() -> Checksum {
        Checksum::new(HashAlgorithm::Sha512, &"0".repeat(128)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn whatever_the_pieces_and_interruptions_the_file_and_its_digests_are_the_same(
            pieces in proptest::collection::vec((0usize..600_000, any::<u8>(), any::<bool>()), 1..12),
        ) {
            let tmp = tempfile::tempdir().unwrap();
            let path = tmp.path().join("body");
            let (task, _hang_up) = crate::task::for_tests();
            let (mut sink, mut all) = (Sink::create(&path, Some(&pin())).unwrap(), Vec::new());
            for (len, byte, interrupt) in pieces {
                let piece = vec![byte % 3; len];
                sink.write(&piece).unwrap();
                all.extend_from_slice(&piece);
                prop_assert_eq!(sink.done(), all.len() as u64);
                if interrupt {
                    sink.flush().unwrap();
                    drop(sink);
                    // Beyond what is trusted there may be anything.
                    let file = File::options().write(true).open(&path).unwrap();
                    file.set_len(all.len() as u64 + 77).unwrap();
                    sink = Sink::resume(&path, all.len() as u64, Some(&pin()), &task, |_| {}).unwrap();
                }
            }
            let digests = sink.finish().unwrap();
            prop_assert!(std::fs::read(&path).unwrap() == all);
            prop_assert_eq!(digests.sha256, hex(&Sha256::digest(&all)));
            prop_assert_eq!(digests.sha512.unwrap(), hex(&Sha512::digest(&all)));
        }
    }

    #[test]
    fn zeros_take_no_room_and_a_second_name_keeps_its_content() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, other) = (tmp.path().join("body"), tmp.path().join("other"));
        let mut sink = Sink::create(&path, None).unwrap();
        sink.write(&vec![0; 8 << 20]).unwrap();
        sink.finish().unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 8 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{}", meta.blocks());
        std::fs::hard_link(&path, &other).unwrap();
        drop(Sink::create(&path, None).unwrap());
        assert_eq!(std::fs::metadata(&other).unwrap().len(), 8 << 20);
    }
}
