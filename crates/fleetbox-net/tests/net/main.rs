//! The net tier: real bridges, taps and rules, each test in a network namespace of its own.
//!
//! Needs root and iproute2 (and nftables, where a test says so). A test that cannot run here is counted
//! as ignored, with its reason on stderr.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test without libtest's harness is not cfg(test), where these are allowed"
)]

mod crash;
mod dns;
mod firewall;
mod lifecycle;
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // The tests kill real owners: this very binary, started with a variable.
    if let Some(store) = std::env::var_os(crash::OWNER) {
        return crash::be_an_owner(store.as_ref());
    }
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    lifecycle::add(&mut trials);
    crash::add(&mut trials);
    firewall::add(&mut trials);
    dns::add(&mut trials);
    let reasons = support::cannot_run();
    for reason in &reasons {
        eprintln!("net tier: ignored: {reason}");
    }
    let trials: Vec<Trial> =
        trials.into_iter().map(|t| if reasons.is_empty() { t } else { t.with_ignored_flag(true) }).collect();
    libtest_mimic::run(&args, trials).exit_code()
}
