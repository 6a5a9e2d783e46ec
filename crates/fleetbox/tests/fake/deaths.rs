//! Owners, holders and VMMs that die, at every point of a machine's life.

use std::time::Duration;

use fleetbox::{ErrorKind, State};
use fleetbox_os::process::PidFd;
use libtest_mimic::Trial;

use crate::support::{Home, Owner, PATIENCE, PROMISE, TestResult, Traces, ended, trial, wait_state};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("owner_killed_while_running_leaves_only_the_disk", owner_killed_running),
        trial("owner_killed_with_an_ephemeral_machine_leaves_nothing", owner_killed_ephemeral),
        trial("owner_killed_at_any_moment_leaves_nothing_running", owner_killed_anywhere),
        trial("holder_killed_takes_the_vmm_and_the_next_call_the_rest", holder_killed),
        trial("holder_of_a_detached_machine_killed", holder_of_detached_killed),
        trial("a_vmm_killed_from_outside_is_a_failure", vmm_killed),
        trial("a_guest_panic_is_a_failure", panics),
        trial("a_vmm_that_does_not_start_is_told_with_its_words", launch_fails),
        trial("a_signal_to_the_owners_group_does_not_reach_the_holder", group_signal),
    ]
}

fn owner_killed_running(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "named", "{}");
    let traces = Traces::of(home, owner.up()?);
    owner.kill();
    home.assert_gone(&traces, PROMISE)?;
    assert!(home.machine_dir("web").join("disk.raw").exists());
    // And it boots from that disk as the machine it was.
    let vm = home.start("web")?;
    assert_eq!(vm.info()?.host_key, traces.info.host_key);
    Ok(vm.destroy()?)
}

fn owner_killed_ephemeral(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "ephemeral", "{}");
    let traces = Traces::of(home, owner.up()?);
    owner.kill();
    home.assert_gone(&traces, PROMISE)?;
    assert!(!home.file("clusters/web").exists());
    Ok(())
}

/// Kills at times spread over a start of some 400 ms.
fn owner_killed_anywhere(home: &Home) -> TestResult {
    for i in 0..12u64 {
        let name = format!("m{i}");
        let owner = Owner::spawn(home, &name, "ephemeral", r#"{"launch_delay_ms":200}"#);
        std::thread::park_timeout(Duration::from_millis(10 + i * 40));
        owner.kill();
        fleetbox_testkit::wait_for("nothing to be left", PATIENCE, || {
            let left: Vec<_> = leftovers(home, &name);
            if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
        })
        .map_err(|e| format!("killed after {} ms: {e}", 10 + i * 40))?;
    }
    Ok(())
}

pub(crate) fn leftovers(home: &Home, name: &str) -> Vec<String> {
    let mut left = Vec::new();
    for dir in ["run", "journal"] {
        let entries = std::fs::read_dir(home.file(dir)).into_iter().flatten().flatten();
        left.extend(entries.map(|e| e.path().display().to_string()));
    }
    if home.file("clusters").join(name).exists() {
        left.push(format!("clusters/{name}"));
    }
    let mine = format!("FLEETBOX_TEST_HOME={}", home.path().display());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|&b| b == 0).any(|v| v == mine.as_bytes()) {
            left.push(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    left
}

fn holder_killed(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    let traces = Traces::of(home, vm.info()?);
    PidFd::open(traces.info.holder_pid.unwrap_or(0))?.kill()?;
    ended(traces.info.vmm_pid.unwrap_or(0), PROMISE)?;
    assert_eq!(vm.state().unwrap_err().kind(), ErrorKind::Holder);
    drop(vm);
    // The next call of any fleetbox process clears the rest away; a start is one, and it boots the same machine.
    let again = home.start("web")?;
    assert_eq!(again.info()?.host_key, traces.info.host_key);
    let traces = Traces::of(home, again.info()?);
    again.destroy()?;
    drop(again);
    home.assert_gone(&traces, PATIENCE)
}

fn holder_of_detached_killed(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "detached", "{}");
    let traces = Traces::of(home, owner.up()?);
    assert!(owner.finish().success());
    assert!(
        fleetbox_os::process::stat(traces.info.vmm_pid.unwrap_or(0)).is_ok(),
        "detached: it outlives its owner"
    );
    PidFd::open(traces.info.holder_pid.unwrap_or(0))?.kill()?;
    for pid in [traces.info.holder_pid, traces.info.vmm_pid].into_iter().flatten() {
        ended(pid, PROMISE)?;
    }
    let other = home.start("other")?;
    other.destroy()?;
    drop(other);
    home.assert_gone(&traces, PATIENCE)
}

fn vmm_killed(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    PidFd::open(vm.info()?.vmm_pid.unwrap_or(0))?.kill()?;
    wait_state(&vm, State::Failed)?;
    let failure = vm.info()?.failure.unwrap_or_default();
    assert!(failure.contains("signal 9"), "{failure}");
    vm.start_again()?;
    assert_eq!((vm.state()?, vm.info()?.failure), (State::Running, None));
    Ok(vm.destroy()?)
}

fn panics(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "detached", r#"{"panic_after_ms":400}"#);
    owner.up()?;
    assert!(owner.finish().success());
    let record = home.machine_dir("web").join("machine.json");
    fleetbox_testkit::wait_for("the failure to be kept", PATIENCE, || {
        let text = std::fs::read_to_string(&record).unwrap_or_default();
        if text.contains("panic") { Ok(()) } else { Err(text) }
    })?;
    Ok(())
}

fn launch_fails(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "named", r#"{"fail_launch":"no such luck"}"#);
    let said = owner.up().unwrap_err();
    assert!(said.starts_with("Vmm could not start the VMM of machine web"), "{said}");
    assert!(said.contains("no such luck"), "{said}");
    owner.finish();
    Ok(())
}

fn group_signal(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "detached", "{}");
    let traces = Traces::of(home, owner.up()?);
    // What Ctrl-C on a terminal, or a test runner's group kill, does.
    let group = rustix_pid(owner.pid());
    rustix::process::kill_process_group(group, rustix::process::Signal::INT)?;
    ended(owner.pid(), PATIENCE)?;
    let vm = home.start("web")?;
    assert_eq!(vm.info()?.vmm_pid, traces.info.vmm_pid);
    vm.destroy()?;
    owner.kill();
    Ok(())
}

fn rustix_pid(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}
