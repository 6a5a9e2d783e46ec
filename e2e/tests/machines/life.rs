//! A machine's life when all goes well.

use std::time::Duration;

use fleetbox::blocking::Vm;
use fleetbox::{Command, State};
use libtest_mimic::Trial;

use crate::support::{PATIENCE, TestResult, Traces, builder, trial, unique};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("start_exec_stop_start_destroy", whole_life)]
}

fn whole_life() -> TestResult {
    let name = unique("life");
    let vm = Vm::start(builder(&name).cpus(2).memory_mib(768).disk_gib(12).wait_cloud_init())?;
    let traces = Traces::of(vm.info()?);
    is_what_was_asked_for(&vm, &name)?;
    commands(&vm)?;
    // Starting what runs returns it.
    let again = Vm::start(builder(&name))?;
    assert_eq!(again.info()?.vmm_pid, traces.info.vmm_pid);

    vm.pause()?;
    assert_eq!(vm.state()?, State::Paused);
    vm.resume()?;
    assert_eq!(vm.ssh("echo awake")?, "awake");

    vm.ssh("echo kept > ~/kept; sync")?;
    let boot = vm.ssh("cat /proc/sys/kernel/random/boot_id")?;
    vm.stop()?;
    assert_eq!(vm.state()?, State::Stopped);
    vm.start_again()?;
    let second = vm.info()?;
    assert_eq!((second.ip, &second.host_key), (traces.info.ip, &traces.info.host_key));
    assert_eq!(vm.ssh("cat ~/kept")?, "kept");
    assert_ne!(vm.ssh("cat /proc/sys/kernel/random/boot_id")?, boot);

    let traces = Traces::of(second);
    vm.destroy()?;
    drop((vm, again));
    traces.assert_gone(PATIENCE)?;
    assert!(!crate::support::home().join("clusters").join(&name).exists());
    Ok(())
}

fn is_what_was_asked_for(vm: &Vm, name: &str) -> TestResult {
    assert_eq!(vm.ssh("hostname")?, name);
    assert_eq!(vm.ssh("id -un")?, "fleetbox");
    assert_eq!(vm.ssh("sudo -n id -u")?, "0");
    assert_eq!(vm.ssh("nproc")?, "2");
    assert_eq!(vm.ssh("systemctl is-system-running --wait")?, "running");
    let kib: u64 = vm.ssh("awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
    assert!((600 * 1024..768 * 1024).contains(&kib), "{kib} KiB of memory");
    // The disk has grown to what was asked for: what `df` calls 12 GiB is a little less.
    let gib: u64 = vm.ssh("df --output=size -B1G / | tail -n 1 | tr -d ' '")?.parse()?;
    assert!((11..=12).contains(&gib), "{gib} GiB of disk");
    let ip = vm.ip().to_string();
    assert!(vm.ssh("ip -4 -o addr")?.contains(&format!("inet {ip}/24")));
    // The system's own ssh, with nothing but what is generated for it.
    let access = vm.ssh_access()?;
    let out = std::process::Command::new("ssh").args(access.ssh_args()).args(["echo", "ssh"]).output()?;
    assert_eq!(
        String::from_utf8_lossy(&out.stdout).trim(),
        "ssh",
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

fn commands(vm: &Vm) -> TestResult {
    let out = vm.exec("echo out; echo err >&2; exit 7")?;
    assert_eq!((out.text().as_ref(), out.stderr(), out.status().code()), ("out", &b"err\n"[..], Some(7)));
    let failed = vm.ssh("echo no >&2; false").unwrap_err();
    assert!(failed.to_string().contains("exit code 1: no"), "{failed}");
    let out = vm.exec(Command::args(["printf", "%s", "a b'c\"$d\n"]))?;
    assert_eq!(out.stdout(), b"a b'c\"$d\n");
    let bytes: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
    assert_eq!(vm.exec(Command::shell("cat").stdin(bytes.clone()))?.stdout(), &bytes[..]);
    let out = vm.exec("kill -TERM $$")?;
    assert!(!out.success(), "{:?}", out.status());

    // A command that takes too long is gone with its children, root's included.
    let mark = "31415926";
    let command =
        Command::shell(format!("sleep {mark} & sudo sleep {mark}")).timeout(Duration::from_secs(10));
    let late = vm.exec(command).unwrap_err();
    assert_eq!(late.kind(), fleetbox::ErrorKind::Ssh);
    fleetbox_testkit::wait_for("the sleeps to be gone", Duration::from_secs(60), || {
        match vm.ssh(&format!("pgrep -xfc 'sleep {mark}' || true")) {
            Ok(count) if count == "0" => Ok(()),
            Ok(count) => Err(format!("{count} still sleep")),
            Err(e) => Err(crate::support::chain(&e)),
        }
    })?;

    // More at once than sshd gives one connection.
    let vms: Vec<_> = (0..16).map(|_| vm.clone()).collect();
    let threads: Vec<_> = vms
        .into_iter()
        .enumerate()
        .map(|(i, vm)| std::thread::spawn(move || vm.ssh(&format!("sleep 1; echo {i}"))))
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        let text = thread.join().map_err(|_| "a thread panicked")??;
        assert_eq!(text, i.to_string());
    }
    Ok(())
}
