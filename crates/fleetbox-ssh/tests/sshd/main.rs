//! The crate against a real OpenSSH server on loopback. On a host without one, every test is shown as
//! ignored, with the reason on standard error.
#![expect(clippy::unwrap_used, reason = "a test may panic; clippy.toml's exception needs libtest's harness")]

mod commands;
mod fixture;
mod killing;
mod pooling;
mod readiness;

use std::future::Future;
use std::sync::Arc;

use fixture::Sshd;
use libtest_mimic::{Arguments, Failed, Trial};

/// A test that shares one server with the others; each has a runtime of its own, as `#[tokio::test]` has.
fn shared<F: Future<Output = ()>>(
    name: &'static str,
    sshd: &Option<Arc<Sshd>>,
    test: impl FnOnce(Arc<Sshd>) -> F + Send + 'static,
) -> Trial {
    let sshd = sshd.clone();
    trial(name, sshd.is_none(), move || test(sshd.unwrap()))
}

/// A test with servers of its own.
fn own<F: Future<Output = ()>>(
    name: &'static str,
    sshd: &Option<Arc<Sshd>>,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    trial(name, sshd.is_none(), test)
}

fn trial<F: Future<Output = ()>>(
    name: &'static str,
    skip: bool,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    let run = move || -> Result<(), Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(test());
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(skip)
}

#[expect(clippy::print_stderr, reason = "a skipped test has to say why")]
fn main() {
    let arguments = Arguments::from_args();
    let found = fixture::find();
    let sshd = match &found {
        Ok(_) if !arguments.list => Some(Arc::new(Sshd::start(""))),
        _ => None,
    };
    let mut trials = Vec::new();
    trials.extend(commands::trials(&sshd));
    trials.extend(killing::trials(&sshd));
    trials.extend(pooling::trials(&sshd));
    trials.extend(readiness::trials(&sshd));
    if let Err(reason) = &found {
        for trial in &trials {
            eprintln!("skip: fleetbox-ssh::sshd::{}: {reason}", trial.name());
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // `exit` would skip the destructor that stops the server.
    if let Some(sshd) = sshd {
        sshd.stop();
    }
    conclusion.exit_if_failed();
}
