//! Real machines under QEMU: boots, faults, deaths.
//!
//! Boots are what costs: each test makes the most of the machines it has. Two run at a time, for two cores.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program: it panics on purpose, and what it prints is its result"
)]

mod cluster;
mod deaths;
mod image;
mod life;
mod misfortunes;
mod support;

use libtest_mimic::{Arguments, Trial};

fn main() {
    if support::become_owner_if_asked() {
        return;
    }
    let mut args = Arguments::from_args();
    args.test_threads = args.test_threads.or(Some(2));
    let lacking = support::lacking();
    if let Some(what) = &lacking {
        eprintln!("skipped: {what}");
    }
    // Built once, before the tests that would otherwise all wait for it within their own time.
    if lacking.is_none() && !args.list {
        support::build_image(support::IMAGE);
        if args.filter.as_deref().is_none_or(|f| cluster::NAME.contains(f)) {
            support::build_image(cluster::IMAGE);
        }
    }
    let trials =
        [cluster::trials(), misfortunes::trials(), deaths::trials(), life::trials(), image::trials()]
            .into_iter()
            .flatten()
            .map(|t: Trial| t.with_ignored_flag(lacking.is_some()))
            .collect();
    libtest_mimic::run(&args, trials).exit();
}
