//! Where to connect, and how.

use std::net::SocketAddr;
use std::time::Duration;

use russh::keys::PublicKey;

/// One machine's sshd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Address and port.
    pub addr: SocketAddr,
    /// The user to log in as; its login shell has to be a POSIX shell.
    pub user: String,
    /// The host key that the server must show. The comment is not compared.
    pub host_key: PublicKey,
}

/// Limits and timers of a [`Client`](crate::Client). The defaults suit sshd's own defaults and machines
/// under emulation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Commands on one connection at a time. One more channel is used to kill a command's session, so
    /// this is one less than sshd's `MaxSessions` (10). Default 9.
    pub channels_per_connection: usize,
    /// Connections at most; they are opened one after another (sshd's `MaxStartups` is 10:30:100), and
    /// the second only when commands have queued for [`grow_after`](Self::grow_after). Default 4.
    pub max_connections: usize,
    /// How long commands queue before another connection is opened: under emulation a handshake costs
    /// 0.5 s of the guest's CPU, as much as ten short commands. Default 250 ms.
    pub grow_after: Duration,
    /// Limit of the TCP connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Limit of handshake and authentication each, and of opening a channel. Default 30 s: under
    /// emulation, on a machine that is still booting, a key exchange takes seconds.
    pub handshake_timeout: Duration,
    /// A question is sent after this time without a sign of life from the machine. Default 5 s.
    pub keepalive_interval: Duration,
    /// After this many unanswered questions the connection is dead. Default 3; with an interval of 5 s
    /// a machine that vanished is noticed after 20 s.
    pub keepalive_max: usize,
    /// Limit of killing a command's session, from the decision to the confirmation. Default 15 s.
    pub kill_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            channels_per_connection: 9,
            max_connections: 4,
            grow_after: Duration::from_millis(250),
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(5),
            keepalive_max: 3,
            kill_timeout: Duration::from_secs(15),
        }
    }
}
