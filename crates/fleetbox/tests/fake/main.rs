//! The fake-backend tier of the façade: real holder processes, real bridges and taps, no guest.
//!
//! The program re-executes itself in two ways: once at its start, with the fake backend chosen in the environment
//! (which a test must not change in its own process), and as an *owner*, a process that starts a machine and is then
//! killed ([`support::Owner`]).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program: it panics on purpose, and what it prints is its result"
)]

mod clients;
mod clusters;
mod deaths;
mod kernels;
mod lifecycle;
mod refusals;
mod storms;
mod support;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let roles = [
        support::become_owner_if_asked,
        support::become_stranger_if_asked,
        support::become_pruner_if_asked,
        storms::become_one_of_many_if_asked,
    ];
    if roles.iter().any(|role| role()) {
        return;
    }
    if std::env::var_os("FLEETBOX_BACKEND").is_none_or(|b| b != "fake") {
        support::run_again_with_the_fake();
    }
    let args = Arguments::from_args();
    let root = fleetbox_os::host::is_root();
    if !root {
        eprintln!("skipped: bridges and taps need root");
    }
    let all = [
        lifecycle::trials(),
        deaths::trials(),
        refusals::trials(),
        clients::trials(),
        clusters::trials(),
        kernels::trials(),
        storms::trials(),
    ];
    let trials = all.into_iter().flatten().map(|t: Trial| t.with_ignored_flag(!root)).collect();
    libtest_mimic::run(&args, trials).exit();
}
