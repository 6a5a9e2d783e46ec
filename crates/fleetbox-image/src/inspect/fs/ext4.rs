//! ext2, ext3 and ext4, by the crate ext4-view, which replays the journal in memory: a disk that was not unmounted is
//! read as it would be mounted.

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::{FileSystem, FsError, Kind, MAX_ENTRIES, ReadFile, Stat};
use crate::ext4_size;
use crate::inspect::disk::Window;

struct Reader(Window);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read(start, to)?)
    }
}

pub(super) struct Ext4Fs(Ext4);

fn error(e: Ext4Error) -> FsError {
    match e {
        Ext4Error::NotFound => FsError::NotFound,
        Ext4Error::NotADirectory => FsError::NotAFolder,
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FsError::NotAFile,
        e => FsError::Ext4(e),
    }
}

impl Ext4Fs {
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let mut superblock = [0u8; ext4_size::SUPERBLOCK];
        window.read(1024, &mut superblock)?;
        ext4_size::check(&superblock, window.len()).map_err(FsError::Damaged)?;
        Ext4::load(Box::new(Reader(window))).map(Self).map_err(error)
    }
}

impl FileSystem for Ext4Fs {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> Option<String> {
        Some(self.0.uuid().to_string())
    }

    fn label(&self) -> Option<String> {
        self.0.label().to_str().ok().filter(|l| !l.is_empty()).map(str::to_owned)
    }

    fn stat(&self, path: &str) -> Result<Stat, FsError> {
        let m = self.0.symlink_metadata(path).map_err(error)?;
        let kind = match m.file_type() {
            ext4_view::FileType::Regular => Kind::File,
            ext4_view::FileType::Directory => Kind::Folder,
            ext4_view::FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        let time = m.modified();
        Ok(Stat { kind, len: m.len(), mtime: (time.seconds(), time.nanoseconds()) })
    }

    fn read_link(&self, path: &str) -> Result<String, FsError> {
        // The length first: a damaged inode may claim any.
        let len = self.stat(path)?.len;
        if len > 4096 {
            return Err(FsError::TooLarge { len, max: 4096 });
        }
        let target = self.0.read_link(path).map_err(error)?;
        Ok(target.to_str().map_err(|_| FsError::Damaged("a link is not text"))?.to_owned())
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        Ok(self
            .0
            .read_dir(path)
            .map_err(error)?
            .take(MAX_ENTRIES)
            // A damaged entry ends the listing, which may then lack what follows, as `ls` would.
            .map_while(Result::ok)
            .filter_map(|e| e.file_name().as_str().ok().map(str::to_owned))
            .filter(|n| n != "." && n != "..")
            .collect())
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadFile>, FsError> {
        Ok(Box::new(Open(self.0.open(path).map_err(error)?)))
    }
}

struct Open(ext4_view::File);

impl ReadFile for Open {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, FsError> {
        self.0.read_bytes(to).map_err(error)
    }
}
