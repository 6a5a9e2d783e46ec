//! What a machine's life looks like from the API.

use fleetbox::blocking::Vm;
use fleetbox::{ErrorKind, State};
use libtest_mimic::Trial;

use crate::support::{Home, Owner, PATIENCE, TestResult, Traces, ended, trial, wait_state};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_stopped_machine_comes_back_as_it_was", comes_back),
        trial("start_of_a_running_machine_returns_it", start_twice),
        trial("destroy_leaves_nothing_and_is_idempotent", destroy),
        trial("pause_and_resume_and_their_refusals", pause),
        trial("dropping_the_last_handle_ends_the_machine", drop_ends),
        trial("dropping_an_ephemeral_machine_deletes_it", drop_deletes),
        trial("a_name_can_be_used_again", name_again),
        trial("a_guest_that_ignores_the_power_button_is_stopped", escalates),
        trial("a_guest_reboot_boots_again", reboots),
        trial("a_guest_poweroff_is_a_stop", powers_off),
        trial("two_members_share_a_holder", siblings),
    ]
}

fn comes_back(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    let first = vm.info()?;
    assert_eq!((first.state, first.backend.as_str()), (State::Running, "fake"));
    vm.stop()?;
    let stopped = vm.info()?;
    assert_eq!((stopped.state, stopped.vmm_pid), (State::Stopped, None));
    vm.start_again()?;
    let again = vm.info()?;
    assert_eq!(again.state, State::Running);
    assert_ne!(again.vmm_pid, first.vmm_pid);
    assert_eq!(
        (again.ip, &again.mac, &again.host_key, &again.created_at),
        (first.ip, &first.mac, &first.host_key, &first.created_at)
    );
    Ok(vm.destroy()?)
}

fn start_twice(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    let second = home.start("web")?;
    assert_eq!(vm.info()?.vmm_pid, second.info()?.vmm_pid);
    // Dropping one of two handles of the machine must end nothing ... but each was given by a start of its own.
    Ok(vm.destroy()?)
}

fn destroy(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    let traces = Traces::of(home, vm.info()?);
    vm.destroy()?;
    vm.destroy()?;
    assert!(!home.machine_dir("web").exists());
    assert_eq!(vm.state().unwrap_err().kind(), ErrorKind::NotFound);
    drop(vm);
    home.assert_gone(&traces, PATIENCE)?;
    assert!(!home.file("clusters/web").exists(), "an implicit network goes with its last machine");
    Ok(())
}

fn pause(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    vm.pause()?;
    vm.pause()?;
    assert_eq!(vm.state()?, State::Paused);
    vm.resume()?;
    vm.resume()?;
    assert_eq!(vm.state()?, State::Running);
    vm.stop()?;
    for refused in [vm.pause(), vm.resume(), vm.reset()] {
        let e = refused.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict);
        assert!(e.to_string().starts_with("machine web is stopped: it cannot be "), "{e}");
    }
    Ok(vm.destroy()?)
}

fn drop_ends(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    let traces = Traces::of(home, vm.info()?);
    drop(vm);
    home.assert_gone(&traces, PATIENCE)?;
    assert!(home.machine_dir("web").join("disk.raw").exists(), "a named machine keeps its disk");
    Ok(())
}

fn drop_deletes(home: &Home) -> TestResult {
    let vm = Vm::start(Vm::builder("web").home(home.path()).ephemeral())?;
    let traces = Traces::of(home, vm.info()?);
    drop(vm);
    home.assert_gone(&traces, PATIENCE)?;
    assert!(!home.file("clusters/web").exists());
    Ok(())
}

fn name_again(home: &Home) -> TestResult {
    let first = home.start("web")?;
    let before = first.info()?;
    first.destroy()?;
    let second = home.start("web")?;
    assert_ne!(before.host_key, second.info()?.host_key, "a new machine has a host key of its own");
    Ok(second.destroy()?)
}

fn escalates(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "named", r#"{"ignore_power_button":true}"#);
    let info = owner.up()?;
    // Another process may look, but not touch.
    assert_eq!(home.start("web").unwrap_err().kind(), ErrorKind::Held);
    let traces = Traces::of(home, info);
    assert!(owner.finish().success());
    home.assert_gone(&traces, PATIENCE)
}

fn reboots(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "detached", r#"{"reboot_after_ms":300}"#);
    let first = owner.up()?;
    assert!(owner.finish().success());
    let vm = find(home, "web")?;
    fleetbox_testkit::wait_for("a new VMM", PATIENCE, || match vm.info() {
        Ok(i) if i.state == State::Running && i.vmm_pid != first.vmm_pid => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let traces = Traces::of(home, vm.info()?);
    vm.destroy()?;
    home.assert_gone(&traces, PATIENCE)
}

fn powers_off(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "named", r#"{"power_off_after_ms":500}"#);
    let info = owner.up()?;
    let record = home.machine_dir("web").join("machine.json");
    ended(info.vmm_pid.unwrap_or(0), PATIENCE)?;
    assert!(owner.finish().success());
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(record)?)?;
    assert_eq!(json["failure"], serde_json::Value::Null, "a guest that powers itself off has not failed");
    Ok(())
}

fn siblings(home: &Home) -> TestResult {
    let one = home.start("node-1")?;
    let two = home.start("node-2")?;
    let (a, b) = (one.info()?, two.info()?);
    assert_eq!((a.cluster.as_str(), a.holder_pid), ("node", b.holder_pid));
    assert_ne!(a.ip, b.ip);
    one.destroy()?;
    assert_eq!(two.state()?, State::Running);
    wait_state(&two, State::Running)?;
    Ok(two.destroy()?)
}

/// `Vm::find` looks in the default home; here it is the test's own.
pub(crate) fn find(home: &Home, name: &str) -> fleetbox::Result<Vm> {
    // Starting a machine that runs returns it, and attaches to its detached holder.
    home.start(name)
}
