//! What brings a machine up: the kernel its disk has now, or firmware. The fake tells on its console how it was booted,
//! and takes its disk for a text that tells what its guest has put there.

use std::sync::{Arc, Mutex};

use fleetbox::blocking::Vm;
use fleetbox::{BootVia, Event, FirmwareChoice, KernelSource, Phase, State};
use libtest_mimic::Trial;

use crate::support::{Home, Owner, PATIENCE, TestResult, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_new_kernel_on_the_disk_is_booted_by_the_next_start", next_start),
        trial("a_guests_own_reboot_boots_its_new_kernel", own_reboot),
        trial("a_disk_that_cannot_be_read_boots_the_last_kernel_and_says_so", damaged),
        trial("firmware_can_be_asked_for", firmware),
    ]
}

/// How each boot was, by the console.
fn boots(home: &Home) -> Vec<String> {
    let log = std::fs::read_to_string(home.machine_dir("web").join("serial.log")).unwrap();
    log.lines().filter_map(|l| l.strip_prefix("fake: booted by ")).map(str::to_owned).collect()
}

fn record(home: &Home) -> serde_json::Value {
    let text = std::fs::read_to_string(home.machine_dir("web").join("machine.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn write_disk(home: &Home, text: &str) {
    let disk = home.machine_dir("web").join("disk.raw");
    assert!(disk.exists());
    std::fs::write(disk, text).unwrap();
}

fn next_start(home: &Home) -> TestResult {
    let phases = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&phases);
    let builder = || {
        let seen = Arc::clone(&seen);
        Vm::builder("web").home(home.path()).on_event(move |event| {
            if let Event::PhaseStarted { phase, .. } = event {
                seen.lock().unwrap().push(phase);
            }
        })
    };
    let vm = Vm::start(builder())?;
    assert!(!phases.lock().unwrap().contains(&Phase::Kernel), "a new disk is not looked into");
    assert_eq!(vm.info()?.boot.unwrap().source, Some(KernelSource::Image));
    vm.stop()?;
    Vm::start(builder())?;
    assert!(phases.lock().unwrap().contains(&Phase::Kernel));
    let boot = vm.info()?.boot.unwrap();
    assert_eq!((boot.via, boot.source), (BootVia::Kernel, Some(KernelSource::Image)), "nothing has changed");
    vm.stop()?;
    write_disk(home, "root=new");
    vm.start_again()?;
    assert_eq!(vm.info()?.boot.unwrap().source, Some(KernelSource::Disk));
    assert_eq!(record(home)["kernel_args"]["root"], "root=new");
    let kernel = std::fs::read_to_string(home.machine_dir("web").join("boot/kernel"))?;
    assert_eq!(kernel, "kernel of root=new");
    // A reset is a boot like any other.
    write_disk(home, "root=newer");
    vm.reset()?;
    let boots = boots(home);
    let roots: Vec<&str> =
        boots.iter().map(|b| b.strip_prefix("kernel with ").unwrap().split(' ').next().unwrap()).collect();
    assert_eq!(roots, ["root=fake", "root=fake", "root=new", "root=newer"]);
    vm.destroy()?;
    assert!(!home.machine_dir("web").exists());
    Ok(())
}

fn own_reboot(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "web", "detached", r#"{"reboot_after_ms":2000}"#);
    let first = owner.up()?;
    write_disk(home, "root=new");
    assert!(owner.finish().success());
    let vm = home.start("web")?;
    fleetbox_testkit::wait_for("a new VMM", PATIENCE, || match vm.info() {
        Ok(i) if i.state == State::Running && i.vmm_pid != first.vmm_pid => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let boots = boots(home);
    assert!(boots.len() == 2 && boots[1].starts_with("kernel with root=new "), "{boots:?}");
    assert_eq!(vm.info()?.boot.unwrap().source, Some(KernelSource::Disk));
    assert_eq!(record(home)["boot"]["source"], "disk");
    Ok(vm.destroy()?)
}

fn damaged(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    write_disk(home, "root=new");
    vm.reset()?;
    write_disk(home, "damaged");
    vm.reset()?;
    let info = vm.info()?;
    let note = info.boot.clone().and_then(|b| b.note).unwrap_or_default();
    assert!(note.contains("a damaged disk"), "{info:?}");
    assert_eq!(info.state, State::Running);
    assert_eq!(record(home)["boot"]["note"], note.as_str());
    let last = boots(home).pop().unwrap();
    assert!(last.starts_with("kernel with root=new "), "{last}");
    // It is said as long as it is so.
    write_disk(home, "root=new");
    vm.reset()?;
    assert_eq!(vm.info()?.boot.unwrap().note, None);
    Ok(vm.destroy()?)
}

fn firmware(home: &Home) -> TestResult {
    let start = |choice: FirmwareChoice| Vm::start(Vm::builder("web").home(home.path()).firmware(choice));
    let vm = start(FirmwareChoice::Efi)?;
    assert_eq!(vm.info()?.boot.unwrap().via, BootVia::Efi);
    vm.stop()?;
    // What a machine was asked to be booted by stays ...
    vm.start_again()?;
    vm.stop()?;
    // ... until it is asked for something else.
    if std::env::consts::ARCH == "x86_64" {
        start(FirmwareChoice::Bios)?;
        vm.stop()?;
    } else {
        let error = start(FirmwareChoice::Bios).unwrap_err();
        assert_eq!(error.kind(), fleetbox::ErrorKind::InvalidInput, "{error}");
    }
    start(FirmwareChoice::Direct)?;
    let boots = boots(home);
    assert_eq!(boots[..2], ["UEFI", "UEFI"]);
    assert!(boots.last().unwrap().starts_with("kernel with root=fake "), "{boots:?}");
    assert_eq!(boots.contains(&"BIOS".to_owned()), std::env::consts::ARCH == "x86_64");
    Ok(vm.destroy()?)
}
