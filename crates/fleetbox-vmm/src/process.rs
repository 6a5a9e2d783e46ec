//! A VMM's process: awaited by one task, signalled from anywhere.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fleetbox_os::child::Child;
use fleetbox_os::ready::ReadyFd;

use crate::VmmExit;

/// A VMM's process. Dropping it kills the process group and reaps it.
///
/// Signals and reaping go through one lock, so no signal ever reaches a process that took over the pid.
#[derive(Debug)]
pub struct VmmProcess {
    // Held for single system calls only, never over an await.
    child: Mutex<Child>,
    pid: u32,
    stderr_log: PathBuf,
}

impl VmmProcess {
    /// Takes over a child whose stderr goes to `stderr_log`.
    #[must_use]
    pub fn new(child: Child, stderr_log: PathBuf) -> Self {
        Self { pid: child.pid(), child: Mutex::new(child), stderr_log }
    }

    /// Its process id, which is its process group too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// What the system answered; `Ok` when it has ended already.
    pub fn terminate(&self) -> io::Result<()> {
        let mut child = self.lock();
        match child.try_wait()? {
            Some(_) => Ok(()),
            None => child.pidfd().terminate(),
        }
    }

    /// Sends SIGKILL to its process group.
    ///
    /// # Errors
    /// What the system answered; `Ok` when it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        self.lock().kill_group()
    }

    /// Waits for its end without blocking a thread, and reaps it. May be cancelled, and called again.
    ///
    /// # Errors
    /// When the runtime cannot watch the process.
    pub async fn ended(&self) -> io::Result<VmmExit> {
        let pidfd = self.lock().pidfd().as_fd().try_clone_to_owned()?;
        let status = ReadyFd::new(pidfd)?.until(|_| self.lock().try_wait()).await?;
        let stderr_tail = tail(&self.stderr_log);
        Ok(VmmExit { code: status.code(), signal: status.signal(), stderr_tail })
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last lines of a VMM's log, at most 2 KiB. Empty when there is none.
#[must_use]
pub fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(2048);
    String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
}

/// Opens a log of a VMM for writing, readable by its owner only; appended to or truncated.
///
/// # Errors
/// What the system answered.
pub fn open_log(path: &Path, append: bool) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).mode(0o600);
    if append {
        options.append(true)
    } else {
        options.write(true).truncate(true)
    };
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetbox_os::child::Spawn;

    #[tokio::test(flavor = "current_thread")]
    async fn the_end_is_told_to_every_waiter_and_later_signals_are_no_errors() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut spawn = Spawn::new("sh").args(["-c", "echo last words >&2; exit 7"]);
        spawn.stderr = Some(open_log(&log, false).unwrap().into());
        let process = VmmProcess::new(spawn.spawn().unwrap(), log);
        let (a, b) = tokio::join!(process.ended(), process.ended());
        let expected = VmmExit { code: Some(7), signal: None, stderr_tail: "last words".into() };
        assert_eq!((a.unwrap(), b.unwrap()), (expected.clone(), expected));
        process.terminate().unwrap();
        process.kill().unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn kill_ends_the_whole_group() {
        let (r, w) = fleetbox_os::fd::pipe().unwrap();
        let mut spawn = Spawn::new("sh").args(["-c", "sleep 1000 & echo up; wait"]);
        spawn.stdout = Some(w);
        let process = VmmProcess::new(spawn.spawn().unwrap(), PathBuf::from("/nonexistent"));
        let mut r = tokio::net::unix::pipe::Receiver::from_owned_fd(r).unwrap();
        let mut up = [0; 3];
        tokio::io::AsyncReadExt::read_exact(&mut r, &mut up).await.unwrap();
        process.kill().unwrap();
        assert_eq!(process.ended().await.unwrap().signal, Some(9));
        // The background sleep held the pipe's write end too: EOF proves that it is gone.
        assert_eq!(tokio::io::AsyncReadExt::read(&mut r, &mut up).await.unwrap(), 0);
    }
}
