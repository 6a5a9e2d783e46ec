//! Locks between processes that say who holds them.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fleetbox_os::process::{Liveness, ProcessIdentity};

use crate::{Store, StoreError};

/// What a lock is for. Names of one kind do not clash with those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockKind {
    /// A cluster: held by its holder process for all its life.
    Cluster,
    /// A machine's name and disk: held while it is being made, runs, or is being removed.
    Machine,
    /// An image: held while it is being built.
    Image,
    /// An image's use: shared by whoever is making a disk from it, held alone by whoever removes it.
    ImageUse,
    /// The choice of a subnet, machine-wide.
    Subnet,
    /// Forwarding settings of the host, machine-wide.
    Forwarding,
    /// The undo of a dead owner's resources.
    Reconcile,
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cluster => "cluster",
            Self::Machine => "machine",
            Self::Image => "image",
            Self::ImageUse => "image-use",
            Self::Subnet => "subnet",
            Self::Forwarding => "forwarding",
            Self::Reconcile => "reconcile",
        })
    }
}

/// Who holds a lock, as far as the lock file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder(Option<ProcessIdentity>);

impl LockHolder {
    /// The holder's process id, where it has written it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(|p| p.pid)
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid() {
            Some(pid) => write!(f, "pid {pid}"),
            None => f.write_str("a process that has not said who it is"),
        }
    }
}

/// A lock, held until dropped or until the process ends (flock(2)).
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes a lock if it is free.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names the holder.
    pub fn try_take(store: &Store, kind: LockKind, name: &str) -> Result<Self, StoreError> {
        let path = store.lock_file(kind, name);
        let mut file = open(&path)?;
        match file.try_lock() {
            Ok(()) => {
                write_holder(&mut file, &path)?;
                store.give_to_owner(&path)?;
                Ok(Self { file })
            }
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::Locked { kind, name: name.to_owned(), holder: read_holder(&mut file) })
            }
            Err(TryLockError::Error(e)) => Err(StoreError::io("lock", path)(e)),
        }
    }

    /// Takes a lock, waiting for it until a deadline. Blocks the thread.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names the last holder seen.
    pub fn take(store: &Store, kind: LockKind, name: &str, wait: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + wait;
        // flock has no timeout, so poll; the holders of short locks are done within milliseconds.
        let mut pause = Duration::from_millis(1);
        loop {
            match Self::try_take(store, kind, name) {
                Err(StoreError::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::park_timeout(pause.min(deadline.saturating_duration_since(Instant::now())));
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                r => return r,
            }
        }
    }

    /// Who holds a lock now; `None` when it is free or was never taken.
    ///
    /// # Errors
    /// When the lock file cannot be read.
    pub fn holder(store: &Store, kind: LockKind, name: &str) -> Result<Option<LockHolder>, StoreError> {
        let path = store.lock_file(kind, name);
        let mut file = match OpenOptions::new().read(true).open(&path) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io("open", path)(e)),
        };
        // A shared try-lock tells "free" without the power to keep an exclusive taker out for long.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_holder(&mut file))),
            Err(TryLockError::Error(e)) => Err(StoreError::io("lock", path)(e)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Empty it so that the next reader does not take a past holder for a present one; the lock itself goes
        // with the descriptor.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

/// A lock that several may have at once, but nobody beside a [`Lock`] of the same name. It does not say who has it.
#[derive(Debug)]
pub struct SharedLock {
    file: File,
}

impl SharedLock {
    /// Takes a share unless somebody holds the lock alone.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names who does.
    pub fn try_take(store: &Store, kind: LockKind, name: &str) -> Result<Self, StoreError> {
        let path = store.lock_file(kind, name);
        let mut file = open(&path)?;
        match file.try_lock_shared() {
            Ok(()) => {
                store.give_to_owner(&path)?;
                Ok(Self { file })
            }
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::Locked { kind, name: name.to_owned(), holder: read_holder(&mut file) })
            }
            Err(TryLockError::Error(e)) => Err(StoreError::io("lock", path)(e)),
        }
    }
}

impl Drop for SharedLock {
    fn drop(&mut self) {
        // It goes with the descriptor; said outright for a descriptor that a child inherited.
        let _ = self.file.unlock();
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .map_err(StoreError::io("open", path))
}

fn write_holder(file: &mut File, path: &Path) -> Result<(), StoreError> {
    let me = ProcessIdentity::current().map_err(StoreError::io("identify this process for", path))?;
    let bytes =
        serde_json::to_vec(&me).map_err(|source| StoreError::Damaged { path: path.to_owned(), source })?;
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(&bytes))
        .map_err(StoreError::io("write", path))
}

fn read_holder(file: &mut File) -> LockHolder {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    // A dead process holds no lock: what it wrote is about to be replaced by the real holder.
    LockHolder(serde_json::from_str::<ProcessIdentity>(&text).ok().filter(|p| p.liveness() != Liveness::Dead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_holds_it_and_gives_it_up() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        assert_eq!(Lock::holder(&store, LockKind::Machine, "web").unwrap(), None);
        let lock = Lock::try_take(&store, LockKind::Machine, "web").unwrap();
        let err = Lock::take(&store, LockKind::Machine, "web", Duration::from_millis(20)).unwrap_err();
        assert_eq!(err.to_string(), format!("machine \"web\" is held by pid {}", std::process::id()));
        assert_eq!(
            Lock::holder(&store, LockKind::Machine, "web").unwrap().unwrap().pid(),
            Some(std::process::id())
        );
        // Another kind or name is another lock.
        Lock::try_take(&store, LockKind::Cluster, "web").unwrap();
        Lock::try_take(&store, LockKind::Machine, "db").unwrap();
        drop(lock);
        Lock::try_take(&store, LockKind::Machine, "web").unwrap();
    }
    #[test]
    fn shares_keep_the_one_out_and_it_keeps_them_out() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let share = || SharedLock::try_take(&store, LockKind::ImageUse, "x");
        let alone = || Lock::try_take(&store, LockKind::ImageUse, "x");
        let (one, two) = (share().unwrap(), share().unwrap());
        let refused = alone().unwrap_err().to_string();
        assert!(refused.contains("a process that has not said who it is"), "{refused}");
        drop(one);
        assert!(alone().is_err());
        drop(two);
        let holder = alone().unwrap();
        let refused = share().unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(holder);
        share().unwrap();
    }
}
