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
mod served;
mod stock;
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
    let mut wanted = Vec::new();
    let stock = stock::trials().into_iter().map(|(trial, images)| {
        let slow = trial.has_ignored_flag().then(|| "slow: `cargo xtask test --full` runs it".to_owned());
        let why = images.iter().find_map(|image| image.lacking()).or(slow);
        let trial = trial.with_ignored_flag(lacking.is_some() || why.is_some());
        match why {
            _ if is_run(&args, &trial) => wanted.extend(images),
            Some(why) if lacking.is_none() => eprintln!("skipped: {}: {why}", trial.name()),
            _ => {}
        }
        trial
    });
    let stock: Vec<Trial> = stock.collect();
    let trials =
        [cluster::trials(), misfortunes::trials(), deaths::trials(), life::trials(), image::trials()]
            .into_iter()
            .flatten()
            .map(|t: Trial| t.with_ignored_flag(lacking.is_some()))
            .chain(stock)
            .collect::<Vec<_>>();
    // Built once, before the tests that would otherwise all wait for it within their own time.
    if lacking.is_none() && !args.list {
        let cluster = trials.iter().any(|t| t.name() == cluster::NAME && is_run(&args, t));
        support::build_images(cluster.then_some(cluster::IMAGE), wanted);
    }
    libtest_mimic::run(&args, trials).exit();
}

/// Whether a trial is one that these arguments run.
fn is_run(args: &Arguments, trial: &Trial) -> bool {
    let slow_too = args.include_ignored || args.ignored;
    !args.is_filtered_out(trial) && (slow_too || !trial.has_ignored_flag())
}
