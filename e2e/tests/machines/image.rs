//! Images: a build that is killed, a local file.

use std::path::Path;

use fleetbox::ErrorKind;
use fleetbox::blocking::Vm;
use fleetbox_testkit::wait_for;
use libtest_mimic::Trial;

use crate::support::{
    IMAGE, Owner, PATIENCE, PROMISE, TestResult, Traces, built_image, chain, home, trial, unique,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("owner_killed_while_the_image_is_built", build_killed),
        trial("a_local_raw_file_boots", local_file),
        trial("files_that_are_no_image", no_image),
    ]
}

fn build_killed() -> TestResult {
    let other = tempfile::Builder::new().prefix("fb").tempdir()?;
    let mut owner = Owner::spawn_in(other.path(), "unbuilt", IMAGE);
    owner.says("progress image")?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    owner.kill();
    wait_for("nothing to be left of the build", PROMISE, || {
        let mut left: Vec<String> = ["images", "journal", "clusters"]
            .iter()
            .flat_map(|d| std::fs::read_dir(other.path().join(d)).into_iter().flatten().flatten())
            .map(|e| e.path().display().to_string())
            .collect();
        left.extend(users_of(other.path()));
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    })?;
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo")?, mounts);
    Ok(())
}

/// Processes that name a folder in their arguments or environment.
fn users_of(dir: &Path) -> Vec<String> {
    let needle = dir.display().to_string();
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let text = |f: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(f)).unwrap_or_default()).into_owned()
        };
        if text("cmdline").contains(&needle) || text("environ").contains(&needle) {
            users.push(format!(
                "process {} {}",
                entry.file_name().to_string_lossy(),
                text("cmdline").replace('\0', " ")
            ));
        }
    }
    users
}

fn local_file() -> TestResult {
    let tmp = tempfile::tempdir()?;
    let file = tmp.path().join("mine.raw");
    let copied = std::process::Command::new("cp")
        .arg("--reflink=auto")
        .arg("--sparse=always")
        .arg(built_image()?)
        .arg(&file)
        .status()?;
    assert!(copied.success());
    let name = unique("local");
    let vm = Vm::start(Vm::builder(&name).image(file.display().to_string()))?;
    assert_eq!(vm.ssh("hostname")?, name);
    // What the user does to the file afterwards does not reach the machine.
    std::fs::remove_file(&file)?;
    let traces = Traces::of(vm.info()?);
    vm.destroy()?;
    drop(vm);
    traces.assert_gone(PATIENCE)
}

fn no_image() -> TestResult {
    let tmp = tempfile::tempdir()?;
    let path = |name: &str| tmp.path().join(name).display().to_string();
    std::fs::write(path("empty"), "")?;
    std::fs::write(path("page"), "<!DOCTYPE html><html><body>404</body></html>")?;
    for (image, words) in [
        (path("missing"), "missing"),
        (path("empty"), "empty"),
        (path("page"), "page"),
        (tmp.path().display().to_string(), "folder"),
        ("no-such-alias".to_owned(), "no-such-alias"),
    ] {
        let name = unique("none");
        let e = Vm::start(Vm::builder(&name).image(&image)).unwrap_err();
        let story = chain(&e);
        assert_eq!(e.kind(), ErrorKind::Image, "{story}");
        assert!(story.contains(words), "{image}: {story}");
        assert!(!home().join("clusters").join(&name).exists(), "nothing half-made is left");
    }
    Ok(())
}
