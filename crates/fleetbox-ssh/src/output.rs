//! What a command leaves behind.

use std::fmt;

/// One of a command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        })
    }
}

/// How a command ended, as sshd reports it: the status of the login shell that ran it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code. A shell reports 128 + n for a child that signal n ended.
    Code(u32),
    /// A signal ended it.
    Signal {
        /// The name without `SIG`, as RFC 4254 has it: `KILL`, `TERM`, `SEGV`. sshd names the ones that
        /// the RFC does not know `SIG@openssh.com`.
        name: String,
        /// Whether it left a core file.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == ExitStatus::Code(0)
    }

    /// The exit code; `None` if a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            ExitStatus::Code(code) => Some(*code),
            ExitStatus::Signal { .. } => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit code {code}"),
            ExitStatus::Signal { name, core_dumped } => {
                write!(f, "signal {name}{}", if *core_dumped { " (core dumped)" } else { "" })
            }
        }
    }
}

/// A finished command: its status and all it wrote, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended. In an [`Error::Timeout`](crate::Error::Timeout): how it ended once it was killed, or
    /// code 255 if that never became known.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}
