//! Unpacking xz.

use std::io::{self, Read};

use lzma_rust2::{Action, Status, XzStream};

/// The most memory for one block, in KiB. `xz -9` needs 65 MiB; what needs more was made to need it.
const MEMORY_KIB: u32 = 256 << 10;

const INPUT: usize = 64 << 10;

/// Reads what is packed in an xz file, checksums verified. Streams one after another are one file, as for xz(1).
pub(super) struct Xz<R> {
    source: R,
    stream: XzStream,
    input: Box<[u8]>,
    /// What of `input` is still to be taken in.
    from: usize,
    until: usize,
    at_end: bool,
}

impl<R: Read> Xz<R> {
    pub(super) fn new(source: R) -> Self {
        let stream = XzStream::new_mem_limit(true, MEMORY_KIB);
        Self { source, stream, input: vec![0; INPUT].into(), from: 0, until: 0, at_end: false }
    }
}

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        loop {
            if self.from == self.until && !self.at_end {
                (self.from, self.until) = (0, self.source.read(&mut self.input)?);
                self.at_end = self.until == 0;
            }
            let action = if self.at_end { Action::Finish } else { Action::Run };
            let input = self.input.get(self.from..self.until).unwrap_or_default();
            let done = self.stream.process(input, to, action)?;
            self.from += done.bytes_consumed;
            if done.bytes_produced > 0 {
                return Ok(done.bytes_produced);
            }
            match done.status {
                Status::StreamEnd => return Ok(0),
                // Neither taken in nor given out: it would go on like that for ever.
                _ if done.bytes_consumed == 0 && (self.at_end || self.from < self.until) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                _ => {}
            }
        }
    }
}
