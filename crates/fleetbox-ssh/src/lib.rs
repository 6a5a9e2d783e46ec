//! SSH to a machine: keys, verified connections, commands, readiness.
//!
//! ```text
//! Client (cheap to clone)
//!   └ Pool: at most 4 connections, 9 commands on each, the rest queued    pool/, schedule is pure
//!       └ Connection: one verified, authenticated russh connection        connection.rs
//!           └ one channel per command: marker, output, exit status        run.rs
//!             and one more, kept free, to kill a command's session        kill.rs
//! ```
//!
//! Invariants:
//! - The server's host key equals the one given in [`Target`], or nothing is sent: there is no trust on
//!   first use and no `known_hosts`.
//! - A command that was handed to a connection is never sent again. [`Error::ConnectionLost`] says
//!   whether it was.
//! - A command that is timed out, dropped, killed or over its output limit has its whole session on the
//!   machine killed, not only the channel closed. What leaves its session (`setsid`, a daemon, a systemd
//!   unit) is **not** covered.
//! - All network traffic runs on one thread of its own per process (`fleetbox-ssh`), started with the
//!   first use. A [`Client`] therefore works from any runtime, connections survive the runtime that asked
//!   for them (each `#[tokio::test]` has its own), and the kill of a dropped command is still sent when
//!   the runtime that dropped it is already gone.
//!
//! The user's login shell on the machine has to be a POSIX shell (bash, dash, zsh, busybox).
#![warn(missing_docs)]

mod client;
mod cloud_init;
mod command;
mod connection;
mod error;
mod io;
mod keys;
mod kill;
mod marker;
mod output;
mod pool;
mod ready;
mod run;
mod session;
mod target;

pub use client::Client;
pub use command::{Command, quote};
pub use error::{Error, Result};
pub use keys::{HostKey, KeyPair, ensure_key_pair, generate_host_key, parse_public_line};
pub use output::{ExitStatus, Output, Stream};
pub use ready::{Attempt, Stage};
pub use russh::keys::{PrivateKey, PublicKey};
pub use session::{Event, Session};
pub use target::{Options, Target};
