//! Downloads from a server on the loopback interface, with everything that can go wrong on the way. Needs no privilege
//! but for the full disk; what needs a program or a right that is not there is counted as ignored, with its reason.

mod bad;
mod catalog;
mod good;
mod lab;
mod process;
mod resume;
mod server;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A name, what it needs, and the test.
type Test = (&'static str, &'static [&'static str], fn() -> lab::Result);

/// Not a program: the right to mount.
const ROOT: &str = "root";

fn main() -> ExitCode {
    if let (Ok(image), Some(home)) = (std::env::var(lab::DOWNLOADER), std::env::var_os(lab::HOME)) {
        return lab::download_as_child(&image, home.into());
    }
    let args = Arguments::from_args();
    let tests: [&[Test]; 5] = [good::TESTS, bad::TESTS, resume::TESTS, process::TESTS, catalog::TESTS];
    let trials = tests
        .into_iter()
        .flatten()
        .map(|&(name, needs, test)| match needs.iter().find_map(|need| lacks(need)) {
            Some(reason) => {
                Trial::test(name, test).with_kind(format!("ignored: {reason}")).with_ignored_flag(true)
            }
            None => Trial::test(name, test),
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

fn lacks(need: &str) -> Option<String> {
    if need == ROOT {
        return (!fleetbox_os::host::is_root()).then(|| "needs root".to_owned());
    }
    let there = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(need).exists());
    (!there).then(|| format!("{need} is not installed"))
}
