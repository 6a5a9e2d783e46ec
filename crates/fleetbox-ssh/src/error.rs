//! The crate's one error type.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::output::{Output, Stream};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message says what was attempted on which thing; the cause is the `source()`.
///
/// It is `Clone` because one failed connection attempt answers every command that was waiting for it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key file could not be read, written or put in place.
    #[error("{action} key file {}", path.display())]
    KeyFile {
        /// What was being done, as "read", "write", ….
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// Key material is not what it should be, or could not be made.
    #[error("{what} is not a usable SSH key")]
    KeyFormat {
        /// The file, line or key in question.
        what: String,
        /// The cause.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
    /// The thread that carries all connections could not be started.
    #[error("start the SSH thread")]
    Thread {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// No TCP connection: nothing listens, or the machine is not there.
    #[error("connect to {addr}")]
    Connect {
        /// Where to.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// Connecting got stuck in the stage named.
    #[error("{stage} with {addr} took longer than {after:?}")]
    ConnectTimeout {
        /// Where to.
        addr: SocketAddr,
        /// "TCP connection", "SSH handshake", "authentication" or "opening a channel".
        stage: &'static str,
        /// The limit that passed.
        after: Duration,
    },
    /// The SSH handshake or the authentication broke off.
    #[error("SSH handshake with {addr}")]
    Handshake {
        /// Where to.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: Arc<russh::Error>,
    },
    /// The server showed another host key than the one it must have. Nothing was sent to it.
    #[error("{addr} has host key {actual}, expected {expected}")]
    HostKeyMismatch {
        /// Where to.
        addr: SocketAddr,
        /// Fingerprint of the key it must have.
        expected: String,
        /// Fingerprint of the key it showed.
        actual: String,
    },
    /// The server does not accept the key for this user.
    #[error("{addr} refused the key of user {user}")]
    AuthRejected {
        /// Where to.
        addr: SocketAddr,
        /// The user.
        user: String,
    },
    /// The server refused to open a channel (`MaxSessions` reached by somebody else, no memory, …).
    #[error("{addr} refused to open a channel")]
    ChannelRefused {
        /// Where to.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: Arc<russh::Error>,
    },
    /// The connection broke. With `dispatched` the command may have run, wholly or in part: it is never
    /// sent again by this crate, and only the caller knows whether that would be safe.
    #[error("connection to {addr} lost {} `{command}` was sent", if *dispatched { "after" } else { "before" })]
    ConnectionLost {
        /// Where to.
        addr: SocketAddr,
        /// The command, shortened.
        command: String,
        /// Whether the command was handed to the connection.
        dispatched: bool,
        /// The cause, where it is known.
        #[source]
        source: Option<Arc<russh::Error>>,
    },
    /// The server did not start the command.
    #[error("{addr} refused to run `{command}`")]
    ExecRefused {
        /// Where to.
        addr: SocketAddr,
        /// The command, shortened.
        command: String,
    },
    /// The channel was closed without saying how the command ended.
    #[error("{addr} closed `{command}` without an exit status")]
    NoExitStatus {
        /// Where to.
        addr: SocketAddr,
        /// The command, shortened.
        command: String,
    },
    /// The command's own time limit passed.
    #[error("`{command}` did not end within {after:?}{}", timeout_note(*dispatched, *killed))]
    Timeout {
        /// The command, shortened.
        command: String,
        /// The limit.
        after: Duration,
        /// Whether it was sent to the machine before the limit passed.
        dispatched: bool,
        /// Whether the machine confirmed that nothing of the command's session is left.
        killed: bool,
        /// What it had written until then; empty for a [`Session`](crate::Session), which had it all.
        output: Arc<Output>,
    },
    /// The command wrote more than its output limit; its session was killed.
    #[error("`{command}` wrote more than {limit} bytes to {stream}")]
    OutputTooLarge {
        /// The command, shortened.
        command: String,
        /// The stream that overflowed.
        stream: Stream,
        /// The limit in bytes.
        limit: usize,
        /// Whether the machine confirmed that nothing of the command's session is left.
        killed: bool,
    },
    /// The command's session could not be killed, or not all of it.
    #[error("kill the session of `{command}` on {addr}")]
    KillFailed {
        /// Where to.
        addr: SocketAddr,
        /// The command, shortened.
        command: String,
    },
    /// The command cannot be expressed as one remote command line.
    #[error("invalid command: {reason}")]
    InvalidCommand {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing reads the command's standard input any more.
    #[error("write to the standard input of `{command}`")]
    StdinClosed {
        /// The command, shortened.
        command: String,
    },
    /// The machine did not accept a login before the deadline. The source is the last attempt's error.
    #[error("{addr} accepted no login within {waited:?} ({attempts} attempts)")]
    NotReady {
        /// Where to.
        addr: SocketAddr,
        /// How long it was waited for.
        waited: Duration,
        /// How often it was tried.
        attempts: u32,
        /// The last attempt's error; `None` if the deadline passed before the first.
        #[source]
        source: Option<Box<Error>>,
    },
    /// cloud-init did not finish before the deadline.
    #[error("cloud-init of instance {instance_id} did not finish within {waited:?}; last seen: {last_seen}")]
    CloudInitTimeout {
        /// The instance-id that was waited for.
        instance_id: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the machine said last.
        last_seen: String,
        /// The last error, if the last question failed.
        #[source]
        source: Option<Box<Error>>,
    },
    /// cloud-init finished and reports errors, or cannot run at all.
    #[error("cloud-init of instance {instance_id} reports: {}", errors.join("; "))]
    CloudInitFailed {
        /// The instance-id that was waited for.
        instance_id: String,
        /// The errors from `/run/cloud-init/result.json`.
        errors: Vec<String>,
    },
}

fn timeout_note(dispatched: bool, killed: bool) -> &'static str {
    match (dispatched, killed) {
        (false, _) => " (it was never sent: no connection or no free channel)",
        (true, true) => " and was killed",
        (true, false) => "; whether its processes were killed is not confirmed",
    }
}

impl Error {
    /// Whether the same call may succeed a little later without anything being changed, and repeating it
    /// cannot run a command twice: the machine is booting, restarting, or short of something.
    ///
    /// A lost connection counts only if the command was not sent. A rejected login does not count,
    /// although a machine that is still booting may reject one: [`Client::wait_ready`](crate::Client::wait_ready)
    /// takes that into account by itself.
    ///
    /// ```
    /// # use fleetbox_ssh::Error;
    /// let addr = "10.0.0.2:22".parse().unwrap();
    /// let lost = |dispatched| Error::ConnectionLost { addr, command: "true".into(), dispatched, source: None };
    /// assert!(lost(false).is_transient() && !lost(true).is_transient());
    /// ```
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Connect { .. }
            | Error::ConnectTimeout { .. }
            | Error::Handshake { .. }
            | Error::ChannelRefused { .. } => true,
            Error::ConnectionLost { dispatched, .. } | Error::Timeout { dispatched, .. } => !dispatched,
            _ => false,
        }
    }
}
