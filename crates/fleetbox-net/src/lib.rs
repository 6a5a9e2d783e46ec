//! The host's side of a cluster's network: bridge, taps, addresses, and the write-ahead journal that
//! lets any later process undo what a dead one left.
//!
//! ```text
//!  Network::open                     Network::attach           Network::close
//!    subnet lock (machine-wide)        journal: tap              taps, last attached first
//!    choose a /24                      rules still whole?        DNS server
//!    bridge, addresses, DNS server     make tap, enslave, up     others' firewalls, forwarding
//!    forwarding lock (machine-wide)    name resolves             rules, bridge
//!    rules, forwarding                                           each seen to be gone, then struck off
//!    others' firewalls opened
//! ```
//!
//! Invariants:
//! - A host resource is in the journal before it exists, and is struck off after it is seen to be gone.
//! - Only the owner of a journal, or [`reconcile()`] once that owner is dead, undoes what is in it.
//! - Nothing is moved to another thread: network namespaces belong to threads, and the tests (and
//!   containers) depend on every netlink socket and child process being made on the caller's.
//! - What is decided (which subnet, which address, which name) is decided by pure functions.
#![warn(missing_docs)]

mod dns;
mod egress;
mod error;
mod foreign;
mod forwarding;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod journal;
mod lock;
mod names;
mod netlink;
mod network;
mod nft;
mod orphans;
mod reconcile;
mod ruleset;
mod subnet;
mod sysctl;
mod undo;

pub use dns::ResolvConf;
pub use error::NetError;
pub use health::Damage;
pub use journal::{Journal, Resource};
pub use names::{bridge_name, is_our_bridge, is_our_tap, tap_name};
pub use network::{Attachment, Network, Opened};
pub use orphans::{Orphan, orphans};
pub use reconcile::{ReconcileReport, Unowned, reconcile, unowned};
pub use subnet::{Ipv4Range, choose_address, choose_subnet};
