//! For fleetbox's own tests: waits, skips that are counted, and the leak check.
//!
//! - [`wait_for`]: wait for a level, with a deadline, and report the last thing seen.
//! - [`skip!`]: leave a libtest test that cannot run here, so that `cargo xtask test` counts it as skipped.
//! - [`HostSnapshot`]: what is on the host before a test, and what is left of it afterwards.
#![warn(missing_docs)]

mod leak;
mod skip;
mod wait;

pub use leak::{Change, HostSnapshot, Kind, Leak};
pub use skip::{SKIP_FILE, Skip, read_skips, report_skip};
pub use wait::{TimedOut, wait_for};
