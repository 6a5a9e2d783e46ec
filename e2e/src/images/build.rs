//! Running a recipe in namespaces of its own.
//!
//! ```text
//!  this process --death signal--> unshare --death signal--> sh (PID 1) --> chroot, mkfs, …
//! ```
//! So the end of this process ends all of them, and drops their mounts and loop devices.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use fleetbox_os::child::Spawn;
use fleetbox_os::process::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{TestImage, TestImageError};

/// The slowest recipe takes half a minute on a calm host.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Until the shell is there.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Until the kernel has ended all of a namespace.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What all systems of a recipe and its scratch files take at most, in MiB, twice: so much must be free to work in
/// memory, where what is half made is gone with the namespace.
const MEMORY_MIB: u64 = 8 * 1024;

/// Lines of the log that an error shows.
const TAIL_LINES: usize = 20;

/// Makes an image from systems, in a folder.
pub(super) fn run(image: TestImage, systems: &[&Path], part: &Path) -> Result<(), TestImageError> {
    let failed = |source| TestImageError::Builder { image: image.name(), source };
    let (stdin, go) = fleetbox_os::fd::pipe().map_err(failed)?;
    let (said, stdout) = fleetbox_os::fd::pipe().map_err(failed)?;
    let in_memory = fleetbox_os::host::memory().is_ok_and(|m| m.available_mib >= MEMORY_MIB);
    let mut spawn = Spawn::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--"])
        .args(["sh", "-c", &image.script(), image.name()]);
    let mut env = |key: &str, value: &OsStr| spawn.env.push((key.into(), value.into()));
    env("PART", part.as_os_str());
    env("TREE", systems.first().map_or(OsStr::new(""), |p| p.as_os_str()));
    env("OTHER_TREE", systems.get(1).map_or(OsStr::new(""), |p| p.as_os_str()));
    env("IN_MEMORY", OsStr::new(if in_memory { "1" } else { "0" }));
    spawn.stdin = Some(stdin);
    spawn.stderr = Some(stdout.try_clone().map_err(failed)?);
    spawn.stdout = Some(stdout);

    // Dropped after the child: PID 1 of a PID namespace is reaped only when all others of it have ended.
    let mut first = Gone(None);
    let mut child = spawn.spawn().map_err(failed)?;
    first.0 = Some(shake_hands(File::from(said), File::from(go)).map_err(failed)?);
    if !readable_within(&child.pidfd(), LIMIT).map_err(failed)? {
        return Err(TestImageError::Stalled {
            image: image.name(),
            after_s: LIMIT.as_secs(),
            tail: tail(part),
        });
    }
    let status = child.wait().map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => {
            Err(TestImageError::Failed { image: image.name(), status: status.to_string(), tail: tail(part) })
        }
    }
}

/// Learns the shell's process id, holds it, and lets it go on.
fn shake_hands(said: File, mut go: File) -> io::Result<PidFd> {
    if !readable_within(&said, START_LIMIT)? {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not say its process id"));
    }
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    // What is there instead is an error message, of `unshare` for one.
    let pid = line.trim().parse().map_err(|_| io::Error::other(line.trim().to_owned()))?;
    let first = PidFd::open(pid)?;
    go.write_all(b"go\n")?;
    Ok(first)
}

/// Waits, when dropped, for the namespace's first process to be gone.
struct Gone(Option<PidFd>);

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(first) = &self.0 {
            let _ = readable_within(first, END_LIMIT);
        }
    }
}

fn readable_within(fd: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// The last lines of the log.
fn tail(part: &Path) -> String {
    let log = std::fs::read(part.join("log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&log).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
