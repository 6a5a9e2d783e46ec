//! Who a process is, whether it still lives, and how to signal it without hitting another.
//!
//! A bare pid names whichever process has it now. Everything here names a process by pid *and* start
//! time (field 22 of `/proc/<pid>/stat`, proc(5)), within one boot and one pid namespace.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The identity of a process: enough to tell, later and from another process, whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its process id in its own pid namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), `starttime`).
    pub start_time: u64,
    /// The boot it ran in (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Inode of its pid namespace: a pid means something in there only.
    pub pid_ns: u64,
    /// Inode of its network namespace: its links and rules are in there only.
    pub net_ns: u64,
}

/// What has become of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended, or the host has been rebooted since.
    Dead,
    /// It belongs to another pid namespace of this boot, so nothing can be told from here.
    Unknown,
}

impl ProcessIdentity {
    /// The calling process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn current() -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
            pid_ns: namespace_inode("pid")?,
            net_ns: namespace_inode("net")?,
        })
    }

    /// Whether the process still lives. A reused pid counts as dead, a zombie too.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        let (Ok(boot), Ok(pid_ns)) = (boot_id(), namespace_inode("pid")) else { return Liveness::Unknown };
        if boot != self.boot_id {
            return Liveness::Dead;
        }
        if pid_ns != self.pid_ns {
            return Liveness::Unknown;
        }
        match stat(self.pid) {
            Ok(s) if s.start_time == self.start_time && !s.is_dead() => Liveness::Alive,
            Ok(_) => Liveness::Dead,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Liveness::Dead,
            // ESRCH: it ended between open and read.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Liveness::Dead,
            Err(_) => Liveness::Unknown,
        }
    }
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter, such as `R`, `S`, `Z`.
    pub state: char,
    /// Parent's pid.
    pub ppid: u32,
    /// Process group.
    pub pgrp: u32,
    /// Session id.
    pub session: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// User and system CPU time in clock ticks, waited-for children not counted.
    pub cpu_ticks: u64,
}

impl Stat {
    /// A zombie, or dead: it executes nothing any more.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The command's name, field 2, is in parentheses and may itself hold any character.
    let rest = &text[text.rfind(')')? + 1..];
    let f: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        state: f.first()?.chars().next()?,
        ppid: f.get(1)?.parse().ok()?,
        pgrp: f.get(2)?.parse().ok()?,
        session: f.get(3)?.parse().ok()?,
        cpu_ticks: f.get(11)?.parse::<u64>().ok()? + f.get(12)?.parse::<u64>().ok()?,
        start_time: f.get(19)?.parse().ok()?,
    })
}

/// Reads `/proc/<pid>/stat`.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/<pid>/stat"))
}

/// When a process started, in clock ticks since boot.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    stat(pid).map(|s| s.start_time)
}

/// This boot's random id.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Inode number of one of the calling thread's namespaces (`net`, `pid`, `mnt`, ...).
///
/// # Errors
/// When `/proc` cannot be read.
pub fn namespace_inode(kind: &str) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // The thread's own: tests enter network namespaces one thread at a time.
    Ok(fs::metadata(format!("/proc/thread-self/ns/{kind}"))?.ino())
}

/// A process held by descriptor: signals through it never reach a process that took over its pid.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: u32,
}

impl PidFd {
    /// Opens a process (pidfd_open(2)); poll the descriptor for readability to learn of its end.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let p = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        // NONBLOCK so that an async runtime may register it.
        Ok(Self { fd: pidfd_open(p, PidfdFlags::NONBLOCK)?, pid })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// `ESRCH` when it has been reaped already.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::TERM)?)
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// `ESRCH` when it has been reaped already.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::KILL)?)
    }

    /// A second descriptor for the same process.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, pid: self.pid })
    }
}

impl std::os::fd::AsFd for PidFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for PidFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 10 5 7 8 20 0 1 0 12345 1 1";
        let s = parse_stat(text).unwrap();
        assert_eq!((s.state, s.ppid, s.session, s.start_time, s.cpu_ticks), ('S', 1, 42, 12345, 15));
        assert!(parse_stat("garbage").is_none());
    }

    #[test]
    fn liveness_tells_self_reused_and_rebooted() {
        let me = ProcessIdentity::current().unwrap();
        assert_eq!(me.liveness(), Liveness::Alive);
        assert_eq!(ProcessIdentity { start_time: 1, ..me.clone() }.liveness(), Liveness::Dead);
        assert_eq!(ProcessIdentity { boot_id: "other".into(), ..me.clone() }.liveness(), Liveness::Dead);
        assert_eq!(ProcessIdentity { pid_ns: 1, ..me }.liveness(), Liveness::Unknown);
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = ProcessIdentity { pid: child.id(), ..ProcessIdentity::current().unwrap() };
        let id = ProcessIdentity { start_time: start_time(child.id()).unwrap(), ..id };
        let fd = PidFd::open(child.id()).unwrap();
        let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        assert_eq!(id.liveness(), Liveness::Dead);
        child.wait().unwrap();
        assert_eq!(id.liveness(), Liveness::Dead);
    }
}
