//! The one disk image in a tar archive.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;

use super::sink::fill;
use super::{Disk, Packing, Unpacker, decoder, peek};
use crate::ImageError;
use crate::import::detect::{self, Content};

/// The most that is read between two members: headers, long names, extended attributes. They are kept in memory.
const MAX_HEADERS: u64 = 1 << 20;
/// So many names are told of a kind.
const MAX_NAMES: usize = 8;
const MAX_NAME: usize = 100;

/// Names of members, the first of them.
#[derive(Debug, Default)]
struct Names {
    first: Vec<String>,
    all: usize,
}

impl Names {
    fn add(&mut self, name: String) {
        self.all += 1;
        if self.first.len() < MAX_NAMES {
            self.first.push(name);
        }
    }
}

/// Lets only so much through at a time. tar reads names of any length into memory; behind this it cannot.
struct Gate<R> {
    from: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(to.len());
        if most == 0 && !to.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a member's header is longer than 1 MiB"));
        }
        let n = self.from.read(&mut to[..most])?;
        self.left.set(self.left.get() - n as u64);
        Ok(n)
    }
}

impl Unpacker<'_> {
    /// Unpacks the one disk image in a tar archive. What else is in it (a README, checksums) does not matter.
    pub(super) fn tape(&mut self, from: &mut dyn Read) -> Result<Disk, ImageError> {
        let left = Rc::new(Cell::new(MAX_HEADERS));
        let mut archive = tar::Archive::new(Gate { from, left: Rc::clone(&left) });
        let (mut images, mut others, mut disk, mut skipped) = (Names::default(), Names::default(), None, 0);
        for member in archive.entries().map_err(|e| self.broken(e))? {
            let mut member = member.map_err(|e| self.broken(e))?;
            left.set(u64::MAX);
            let kind = member.header().entry_type();
            let name = printable(&member.path_bytes());
            if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()) {
                others.add(name);
            } else if let Some(found) = self.member(&mut member, disk.is_none())? {
                disk = disk.or(Some(found));
                images.add(name);
            } else {
                others.add(name);
            }
            self.skip(&mut member, &mut skipped)?;
            left.set(MAX_HEADERS);
        }
        // An archive ends before its file does: what is around it has its checksum at the very end.
        left.set(u64::MAX);
        self.skip(&mut archive.into_inner(), &mut skipped)?;
        match disk {
            Some(disk) if images.all == 1 => Ok(disk),
            _ => Err(ImageError::ArchiveMembers {
                path: self.sink.label.to_owned(),
                more: images.all - images.first.len() + others.all - others.first.len(),
                images: images.first,
                others: others.first,
            }),
        }
    }

    /// Looks into a member, and takes the disk out of it if `take` says so. `None`: it is no disk image.
    fn member(&mut self, member: &mut dyn Read, take: bool) -> Result<Option<Disk>, ImageError> {
        let head = peek(member).map_err(|e| self.broken(e))?;
        let mut content = detect::detect(self.sink.label, &head).ok();
        let mut from: Box<dyn Read + '_> = Box::new(Cursor::new(head).chain(member));
        let mut entered = false;
        // One layer: a disk may be compressed in its archive, but no archive is sought in an archive.
        if let Some(Content::Packed(packing)) = content
            && packing != Packing::Tar
        {
            self.enter(packing)?;
            entered = true;
            from = decoder(packing, from);
            // Damaged, or something else that begins with the same bytes: no disk image either way.
            let inner = peek(&mut *from).unwrap_or_default();
            content = detect::detect(self.sink.label, &inner).ok();
            from = Box::new(Cursor::new(inner).chain(from));
        }
        let disk = match content {
            Some(Content::Raw) => Some(Disk::Raw),
            Some(Content::Qcow2) => Some(Disk::Qcow2),
            Some(Content::Packed(_)) | None => None,
        };
        if take && let Some(disk) = disk {
            self.disk(disk, &mut *from)?;
        }
        if entered {
            self.layers.0.pop();
        }
        Ok(disk)
    }

    /// Reads what is left of a member. Archives may claim members of any size: it counts.
    fn skip(&self, member: &mut dyn Read, skipped: &mut u64) -> Result<(), ImageError> {
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            self.sink.task.check()?;
            let n = fill(member, &mut buffer).map_err(|e| self.broken(e))?;
            *skipped += n as u64;
            self.sink.check(*skipped, 0)?;
            if n < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// A member's name for a message: foreign bytes that end up on terminals.
fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}
