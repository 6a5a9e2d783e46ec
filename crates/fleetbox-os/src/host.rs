//! Plain facts about the host.

use std::fs;
use std::io;
use std::path::Path;

/// Memory of the host in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_mib: u64,
    /// What could be had without swapping (`MemAvailable`, proc(5)).
    pub available_mib: u64,
}

/// Reads `/proc/meminfo`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn memory() -> io::Result<Memory> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|l| {
                l.strip_prefix(name)?
                    .strip_prefix(':')?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .map(|kib| kib / 1024)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name} in /proc/meminfo")))
    };
    Ok(Memory { total_mib: field("MemTotal")?, available_mib: field("MemAvailable")? })
}

/// Bytes that an unprivileged writer may still write to the file system of `path`.
///
/// # Errors
/// What statvfs(3) answered.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let s = rustix::fs::statvfs(path)?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

/// Whether the effective user is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The effective user id.
#[must_use]
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The user and group that called sudo, if this process runs as root under it.
#[must_use]
pub fn sudo_caller() -> Option<(u32, u32)> {
    if !is_root() {
        return None;
    }
    let id = |var| std::env::var(var).ok()?.parse::<u32>().ok();
    Some((id("SUDO_UID")?, id("SUDO_GID")?))
}

/// Home folder of a user, from the user database file.
///
/// # Errors
/// When `/etc/passwd` cannot be read; `NotFound` when the user is not in it.
pub fn home_of(uid: u32) -> io::Result<std::path::PathBuf> {
    let text = fs::read_to_string("/etc/passwd")?;
    text.lines()
        .find_map(|l| {
            let f: Vec<&str> = l.split(':').collect();
            (f.len() >= 6 && f[2].parse() == Ok(uid)).then(|| f[5].into())
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no user {uid} in /etc/passwd")))
}

/// Gives a file or folder to a user and group.
///
/// # Errors
/// What chown(2) answered.
pub fn chown(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
}
