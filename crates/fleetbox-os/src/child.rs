//! Children that cannot outlive their parent.
//!
//! Every child started here has a process group of its own, inherits no descriptor but those named,
//! and is sent SIGKILL by the kernel when this process dies (PR_SET_PDEATHSIG, prctl(2)).
//!
//! Two traps of that signal are closed here: it is tied to the parent *thread*, so all children are
//! started from one thread that lives as long as the process; and a parent that died before the child
//! set it sends nothing, so the child looks at its parent once more after setting it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};

use crate::process::PidFd;

/// What to start, and how.
#[derive(Debug)]
pub struct Spawn {
    /// The program: a path, or a name looked up in PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables set on top of the inherited environment.
    pub env: Vec<(OsString, OsString)>,
    /// Variables removed from the inherited environment.
    pub env_remove: Vec<OsString>,
    /// Descriptors to pass, each with its number in the child (3 or more, all different).
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Standard input; `/dev/null` when `None`.
    pub stdin: Option<OwnedFd>,
    /// Standard output; `/dev/null` when `None`.
    pub stdout: Option<OwnedFd>,
    /// Standard error; `/dev/null` when `None`.
    pub stderr: Option<OwnedFd>,
    /// The kernel kills the child when this process dies. Off only for the holder, which has its owner pipe.
    pub die_with_parent: bool,
    /// A session of its own (setsid(2)), not only a process group.
    pub new_session: bool,
    /// Folder to start in; the parent's when `None`.
    pub cwd: Option<PathBuf>,
}

impl Spawn {
    /// A child with nothing inherited but the environment.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            env_remove: Vec::new(),
            fds: Vec::new(),
            stdin: None,
            stdout: None,
            stderr: None,
            die_with_parent: true,
            new_session: false,
            cwd: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Starts the child.
    ///
    /// # Errors
    /// `NotFound` when there is no such program; otherwise what fork or exec answered.
    pub fn spawn(self) -> io::Result<Child> {
        if self.die_with_parent { on_spawner_thread(self) } else { self.spawn_here() }
    }

    fn spawn_here(self) -> io::Result<Child> {
        let mut cmd = Command::new(&self.program);
        cmd.args(&self.args);
        cmd.envs(self.env.iter().map(|(k, v)| (k, v)));
        for k in &self.env_remove {
            cmd.env_remove(k);
        }
        if let Some(cwd) = &self.cwd {
            cmd.current_dir(cwd);
        }
        let io = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        cmd.stdin(io(self.stdin)).stdout(io(self.stdout)).stderr(io(self.stderr));
        // Targets may equal a source's number: move every source above all targets first.
        let floor = self.fds.iter().map(|(_, t)| *t).max().unwrap_or(3) + 1;
        let mut moved = Vec::new();
        for (fd, target) in &self.fds {
            if *target < 3 {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptor targets start at 3"));
            }
            moved.push((rustix::io::fcntl_dupfd_cloexec(fd, floor)?, *target));
        }
        let plan: Vec<(RawFd, RawFd)> = moved.iter().map(|(fd, t)| (fd.as_raw_fd(), *t)).collect();
        let parent = rustix::process::getpid();
        let (die, session) = (self.die_with_parent, self.new_session);
        // SAFETY: the closure runs between fork and exec in a copy of this process and calls only async-signal-safe
        // system calls; it allocates nothing (io::Error::from_raw_os_error and from(Errno) do not allocate).
        unsafe {
            cmd.pre_exec(move || {
                if session {
                    rustix::process::setsid()?;
                } else {
                    rustix::process::setpgid(None, None)?;
                }
                if die {
                    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                    // Had the parent died before the line above, nobody would ever tell us.
                    if rustix::process::getppid() != Some(parent) {
                        return Err(io::Error::from_raw_os_error(libc::ESRCH));
                    }
                }
                // Everything closes on exec ...
                if libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
                    return Err(io::Error::last_os_error());
                }
                // ... but what is named: dup2 clears the flag on the copy.
                for &(from, to) in &plan {
                    if libc::dup2(from, to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = cmd.spawn()?;
        let pidfd = PidFd::open(child.id())?;
        Ok(Child { child, pidfd })
    }
}

type Job = (Spawn, mpsc::SyncSender<io::Result<Child>>);

/// The thread whose death the children watch: it ends with the process and never before.
fn on_spawner_thread(spawn: Spawn) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Option<mpsc::Sender<Job>>>> = OnceLock::new();
    let slot = SPAWNER.get_or_init(|| Mutex::new(None));
    let gone = || io::Error::other("the thread that starts children has ended");
    let sender = {
        let mut slot = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slot.is_none() {
            let (tx, rx) = mpsc::channel::<Job>();
            std::thread::Builder::new().name("spawner".into()).stack_size(256 * 1024).spawn(move || {
                for (spawn, answer) in rx {
                    // A caller that no longer waits drops the Child, which kills it.
                    let _ = answer.send(spawn.spawn_here());
                }
            })?;
            *slot = Some(tx);
        }
        slot.clone().ok_or_else(gone)?
    };
    let (tx, rx) = mpsc::sync_channel(1);
    sender.send((spawn, tx)).map_err(|_| gone())?;
    rx.recv().map_err(|_| gone())?
}

/// A running child. Dropping it kills its process group and reaps it.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: PidFd,
}

impl Child {
    /// The child's process id, which is its process group too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pidfd.pid()
    }

    /// Its pidfd; becomes readable when the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// Its exit status, if it has ended. Reaps it.
    ///
    /// # Errors
    /// What waitpid answered.
    pub fn try_wait(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for the child's end, blocking the thread.
    ///
    /// # Errors
    /// What waitpid answered.
    pub fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait()
    }

    /// Sends SIGKILL to the child's process group. The group exists as long as the child is not reaped.
    ///
    /// # Errors
    /// What kill answered; `Ok` when it has ended already.
    pub fn kill_group(&mut self) -> io::Result<()> {
        use rustix::process::{Pid, Signal, kill_process_group};
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid =
            i32::try_from(self.pid()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        match kill_process_group(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // SIGKILL cannot be blocked, so the wait below is short; it leaves no zombie.
            let _ = self.kill_group();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn passes_only_the_named_descriptors() {
        let (mut r, w) = {
            let (r, w) = crate::fd::pipe().unwrap();
            (std::fs::File::from(r), w)
        };
        // A descriptor that is inheritable by accident must not reach the child.
        let (leak, _keep) = crate::fd::pipe().unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let (passed, mut feed) = {
            let (r, w) = crate::fd::pipe().unwrap();
            (r, std::fs::File::from(w))
        };
        feed.write_all(b"hello").unwrap();
        drop(feed);
        let mut s = Spawn::new("sh").args(["-c", "cat <&7; ls /proc/self/fd | wc -l"]);
        s.fds.push((passed, 7));
        s.stdout = Some(w);
        let mut c = s.spawn().unwrap();
        let mut out = String::new();
        r.read_to_string(&mut out).unwrap();
        assert!(c.wait().unwrap().success());
        // 0, 1, 2, 7, and the one ls has open on the folder itself; the pipe of "|" is its stdout.
        assert_eq!(out.trim(), "hello5");
    }

    #[test]
    fn a_dropped_child_is_killed_with_its_group_and_reaped() {
        let (mut r, w) = {
            let (r, w) = crate::fd::pipe().unwrap();
            (std::fs::File::from(r), w)
        };
        let mut s = Spawn::new("sh").args(["-c", "sleep 1000 & echo up; wait"]);
        s.stdout = Some(w);
        let c = s.spawn().unwrap();
        let pid = c.pid();
        let mut up = [0; 3];
        r.read_exact(&mut up).unwrap();
        drop(c);
        assert_eq!(crate::process::stat(pid).unwrap_err().kind(), io::ErrorKind::NotFound);
        // The background sleep held the pipe's write end too: EOF proves that it is gone.
        assert_eq!(r.read(&mut up).unwrap(), 0);
    }

    #[test]
    fn a_missing_program_is_not_found() {
        assert_eq!(Spawn::new("/nonexistent/x").spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
