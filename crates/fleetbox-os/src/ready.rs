//! Waiting for a descriptor without blocking a thread: pidfds, inotify, the owner pipe.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor registered with the current tokio runtime for reading.
#[derive(Debug)]
pub struct ReadyFd(AsyncFd<OwnedFd>);

impl ReadyFd {
    /// Registers a descriptor.
    ///
    /// # Errors
    /// When the runtime's poller does not take it (regular files) or it is out of resources.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: OwnedFd's as_raw_fd is a valid open descriptor, and the AsyncFd owns it and never swaps or closes it
        // while registered: no &mut access to it is given out.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits until reading would not block (for a pidfd: until the process has ended).
    ///
    /// `done` is asked each time the descriptor looks ready; while it answers `None`, the wait goes on.
    ///
    /// # Errors
    /// What `done` answered, or when the runtime is shutting down.
    pub async fn until<T>(
        &self,
        mut done: impl FnMut(BorrowedFd<'_>) -> io::Result<Option<T>>,
    ) -> io::Result<T> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Some(value) = done(guard.get_inner().as_fd())? {
                return Ok(value);
            }
            guard.clear_ready();
        }
    }
}

/// Waits until the other end of a pipe is closed by everyone who had it.
///
/// # Errors
/// What reading answered.
pub async fn end_of_pipe(pipe: OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&pipe)?;
    rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK)?;
    ReadyFd::new(pipe)?
        .until(|fd| {
            let mut buf = [0u8; 64];
            match rustix::io::read(fd, &mut buf) {
                Ok(0) => Ok(Some(())),
                // Nobody has anything to say on this pipe; whatever comes is passed over.
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })
        .await
}

/// Tells when a file is written to (inotify(7)), so that following a console costs nothing while it is silent.
#[derive(Debug)]
pub struct FileWatch {
    ready: ReadyFd,
}

impl FileWatch {
    /// Watches a file, which must exist.
    ///
    /// # Errors
    /// `NotFound`, or when the user's inotify instances are used up (`fs.inotify.max_user_instances`).
    pub fn new(file: &Path) -> io::Result<Self> {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        File::open(file)?;
        let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        add_watch(&fd, file, WatchFlags::MODIFY)?;
        Ok(Self { ready: ReadyFd::new(fd)? })
    }

    /// Waits for the next write since the last call.
    ///
    /// # Errors
    /// What reading the watch answered.
    pub async fn changed(&self) -> io::Result<()> {
        self.ready
            .until(|fd| {
                let mut buf = [0u8; 4096];
                match rustix::io::read(fd, &mut buf) {
                    Ok(_) => Ok(Some(())),
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
                    Err(e) => Err(e.into()),
                }
            })
            .await
    }

    /// Forgets the writes so far: for whoever is about to read the file anyway.
    ///
    /// # Errors
    /// What reading the watch answered.
    pub fn forget(&self) -> io::Result<()> {
        let mut buf = [0u8; 4096];
        match rustix::io::read(self.ready.0.get_ref(), &mut buf) {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn run<T>(f: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
    }

    #[test]
    fn the_pipe_ends_with_its_last_writer() {
        run(async {
            let (r, w) = crate::fd::pipe().unwrap();
            let second = w.try_clone().unwrap();
            let mut end = Box::pin(end_of_pipe(r));
            drop(w);
            std::fs::File::from(second.try_clone().unwrap()).write_all(b"noise").unwrap();
            assert!(tokio::time::timeout(std::time::Duration::from_millis(30), &mut end).await.is_err());
            drop(second);
            end.await.unwrap();
        });
    }

    #[test]
    fn a_write_wakes_the_watch() {
        run(async {
            let tmp = tempfile::NamedTempFile::new().unwrap();
            let watch = FileWatch::new(tmp.path()).unwrap();
            tmp.as_file().write_all(b"x").unwrap();
            watch.changed().await.unwrap();
        });
    }

    #[test]
    fn what_is_forgotten_wakes_nobody_and_what_follows_does() {
        run(async {
            let tmp = tempfile::NamedTempFile::new().unwrap();
            let watch = FileWatch::new(tmp.path()).unwrap();
            // Nothing to forget is fine, too.
            watch.forget().unwrap();
            tmp.as_file().write_all(b"x").unwrap();
            watch.forget().unwrap();
            // One look: a write that was still known would make it ready at once.
            let look = std::time::Duration::from_millis(30);
            assert!(tokio::time::timeout(look, watch.changed()).await.is_err());
            tmp.as_file().write_all(b"y").unwrap();
            watch.changed().await.unwrap();
        });
    }
}
