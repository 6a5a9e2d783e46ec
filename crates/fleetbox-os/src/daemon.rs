//! What a long-lived background process must do to itself first.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

/// Points the three standard streams away from whoever started this process: input from `/dev/null`,
/// output and errors appended to `log`.
///
/// An inherited stdout keeps a reader such as `cargo test | cat` waiting for this process's end.
///
/// # Errors
/// When the log cannot be opened.
pub fn redirect_stdio(log: &Path) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).open("/dev/null")?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// Closes every descriptor from 3 up but those named.
///
/// Call it before this process opens any of its own, from its only thread: whatever else is open was
/// inherited by accident.
///
/// # Errors
/// What close_range(2) answered.
pub fn close_other_descriptors(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd >= 3).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 3u32;
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: closes descriptors that this process inherited and that no object of ours owns yet, as the
        // documentation demands of the caller; the kernel touches no memory.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    for fd in keep {
        close(from, fd.saturating_sub(1))?;
        from = fd + 1;
    }
    close(from, u32::MAX)
}

/// Ignores SIGPIPE, so that a peer that hangs up is an error to handle and not this process's end.
///
/// # Errors
/// What sigaction(2) answered.
pub fn ignore_sigpipe() -> io::Result<()> {
    ignore(libc::SIGPIPE)
}

/// Ignores SIGINT and SIGHUP: a terminal's signals are its owner's to handle.
///
/// # Errors
/// What sigaction(2) answered.
pub fn ignore_terminal_signals() -> io::Result<()> {
    ignore(libc::SIGINT)?;
    ignore(libc::SIGHUP)
}

fn ignore(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: SIG_IGN installs no handler function, so no code of ours can run in signal context.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Becomes the leader of a session of its own, away from the owner's terminal and process group.
///
/// # Errors
/// Never for a process that is not a group leader; one that already leads its session is fine.
pub fn new_session() -> io::Result<()> {
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes a variable from this process's environment.
///
/// Only before a second thread exists; a holder does it first of all.
pub fn remove_env(name: &str) {
    // SAFETY: the caller is still single-threaded (documented above), so nothing reads the environment meanwhile.
    unsafe { std::env::remove_var(name) }
}

/// Switches off core dumps: guest memory is in them.
///
/// # Errors
/// What setrlimit(2) answered.
pub fn no_core_dumps() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}
