//! Owners and holders that are killed, at each stage of a real machine's life.

use fleetbox::blocking::Vm;
use fleetbox_os::process::PidFd;
use libtest_mimic::Trial;

use crate::support::{IMAGE, Owner, PROMISE, TestResult, Traces, builder, ended, home, trial, unique};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("owner_and_holder_killed", owner_and_holder), trial("owner_killed_while_booting", booting)]
}

fn owner_and_holder() -> TestResult {
    let name = unique("death");
    let mut owner = Owner::spawn(&name, IMAGE);
    let traces = Traces::of(owner.up()?);
    let ip = traces.info.ip.ok_or("no address")?;
    let access = fleetbox::blocking::ssh_access(&name)?;
    let out =
        std::process::Command::new("ssh").args(access.ssh_args()).arg("echo kept > kept; sync").status()?;
    assert!(out.success(), "{ip}");
    owner.kill();
    traces.assert_gone(PROMISE)?;

    // The named machine's disk is intact, and boots as the machine it was.
    let disk = home().join("clusters").join(&name).join(&name).join("disk.qcow2");
    let checked = std::process::Command::new("qemu-img").arg("check").arg("-q").arg(&disk).status()?;
    assert!(checked.success());
    let vm = Vm::start(builder(&name))?;
    assert_eq!(vm.ssh("cat kept")?, "kept");
    assert_eq!(vm.info()?.host_key, traces.info.host_key);

    // A killed holder takes its VMM along at once; the rest goes with the next call.
    let traces = Traces::of(vm.info()?);
    PidFd::open(traces.info.holder_pid.unwrap_or(0))?.kill()?;
    ended(traces.info.vmm_pid, PROMISE)?;
    drop(vm);
    fleetbox::blocking::prune()?;
    assert_eq!(traces.left(), Vec::<String>::new());
    Ok(fleetbox::blocking::remove(&name, true)?)
}

fn booting() -> TestResult {
    let name = unique("unborn");
    let mut owner = Owner::spawn(&name, IMAGE);
    owner.says("stage kernel")?;
    let info = fleetbox::blocking::inspect(&name)?;
    let traces = Traces::of(info);
    owner.kill();
    traces.assert_gone(PROMISE)?;
    // It has a name, so it has a disk; nobody but `rm` takes that away.
    fleetbox::blocking::remove(&name, false)?;
    assert!(!home().join("clusters").join(&name).exists());
    Ok(())
}
