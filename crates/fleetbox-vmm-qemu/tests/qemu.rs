//! The backend against the real QEMU, without an operating system in the guest: firmware and, where the guest
//! has to do something, a boot sector of a few instructions. TCG serves, so any host with QEMU will do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use fleetbox_spec::{Accel, Arch};
use fleetbox_vmm::{Backend, Boot, MachineEvent, VmmError, VmmExit};
use fleetbox_vmm_qemu::{QemuBackend, QemuConfig, find};
use libtest_mimic::{Arguments, Trial};
use support::{
    DEADLINE, Host, block_on, kill_9, next, prompt, rest, signal_stop, stat_dead, users_of, wait_for,
    wait_within,
};

type Test = fn(&Host);

const TESTS: &[(&str, Test)] = &[
    ("runs_pauses_resumes_and_quits", runs_pauses_resumes_and_quits),
    ("a_kill_from_outside_is_told", a_kill_from_outside_is_told),
    ("terminate_and_kill_end_it", terminate_and_kill_end_it),
    ("a_stopped_vmm_is_told_by_deadline_and_killed", a_stopped_vmm_is_told_by_deadline_and_killed),
    ("the_guests_own_reboot_and_power_off_are_told", the_guests_own_reboot_and_power_off_are_told),
    ("a_missing_program_is_told", a_missing_program_is_told),
    ("the_last_words_of_a_failed_start_are_told", the_last_words_of_a_failed_start_are_told),
    ("two_vmms_never_share_a_disk", two_vmms_never_share_a_disk),
    ("a_start_that_hangs_is_given_up", a_start_that_hangs_is_given_up),
    ("a_cancelled_launch_leaves_no_process", a_cancelled_launch_leaves_no_process),
    ("a_cancelled_command_disturbs_no_other", a_cancelled_command_disturbs_no_other),
    ("a_dropped_machine_leaves_no_process", a_dropped_machine_leaves_no_process),
    ("only_named_descriptors_are_inherited", only_named_descriptors_are_inherited),
    ("it_dies_with_its_owner", it_dies_with_its_owner),
    ("a_file_that_is_missing_is_named", a_file_that_is_missing_is_named),
    ("the_bios_speaks_on_the_console", the_bios_speaks_on_the_console),
];

fn main() {
    if let Some(dir) = std::env::var_os(support::OWNER_VARIABLE) {
        support::own_a_machine(dir.as_ref());
    }
    let args = Arguments::from_args();
    let found = block_on(find(Arch::Amd64));
    let skip = found.as_ref().err().map(ToString::to_string);
    if let Some(reason) = &skip {
        prompt(&format!("skipped: all tests with the real QEMU: {reason}"));
    }
    let host = found.ok().map(|found| Host::new(QemuConfig::new(found, Arch::Amd64, Accel::Tcg)));
    let host = host.map(std::sync::Arc::new);
    let trial = |name: &str, test: Test, skip: bool| {
        let host = host.clone();
        let run = move || {
            test(host.as_deref().ok_or("there is no QEMU here")?);
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(skip)
    };
    let mut trials: Vec<Trial> =
        TESTS.iter().map(|&(name, test)| trial(name, test, skip.is_some())).collect();
    let no_tap = support::why_no_tap();
    if let (Some(reason), None) = (&no_tap, &skip) {
        prompt(&format!("skipped: a_tap_is_passed_by_descriptor: {reason}"));
    }
    let no_tap = no_tap.is_some() || skip.is_some();
    trials.push(trial("a_tap_is_passed_by_descriptor", a_tap_is_passed_by_descriptor, no_tap));
    let no_efi = !fleetbox_vmm_qemu::has_efi(Arch::Amd64);
    if no_efi {
        prompt("skipped: uefi_speaks_on_the_console_and_keeps_its_variables: no OVMF (Debian package ovmf)");
    }
    let no_efi = no_efi || skip.is_some();
    trials.push(trial("uefi_speaks_on_the_console_and_keeps_its_variables", uefi, no_efi));
    libtest_mimic::run(&args, trials).exit();
}

fn the_bios_speaks_on_the_console(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let config = host.firmware(dir.path());
    let log = config.serial_log.clone();
    block_on(async {
        let launched = host.backend().launch(config).await.unwrap();
        let said = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        wait_for("SeaBIOS to look at the disk", || {
            said().contains("SeaBIOS") && said().contains("Hard Disk")
        })
        .await;
        drop(launched);
    });
}

fn uefi(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let vars = dir.path().join("efi-vars.fd");
    let log = dir.path().join("serial.log");
    block_on(async {
        for _ in 0..2 {
            let mut config = host.firmware(dir.path());
            config.memory_mib = 256;
            config.boot = Boot::Efi { vars: vars.clone() };
            let launched = host.backend().launch(config).await.unwrap();
            let began = usize::try_from(launched.machine.console_start()).unwrap();
            let said = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()[began..]).into_owned();
            wait_for("UEFI to look for something to boot", || said().contains("BdsDxe")).await;
            drop(launched);
        }
    });
    // What it has found out is its own, and not readable for others.
    use std::os::unix::fs::PermissionsExt;
    let meta = vars.metadata().unwrap();
    assert!(meta.len() > 0 && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
}

fn signal(exit: &MachineEvent) -> Option<i32> {
    match exit {
        MachineEvent::Exited(VmmExit { signal, .. }) => *signal,
        other => panic!("{other:?} instead of the end"),
    }
}

fn code(exit: &MachineEvent) -> Option<i32> {
    match exit {
        MachineEvent::Exited(VmmExit { code, .. }) => *code,
        other => panic!("{other:?} instead of the end"),
    }
}

fn runs_pauses_resumes_and_quits(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let config = host.firmware(dir.path());
    std::fs::write(&config.serial_log, "the boot before\n").unwrap();
    block_on(async {
        let mut launched = host.backend().launch(config).await.unwrap();
        let machine = &launched.machine;
        assert_eq!(machine.console_start(), 16);
        machine.pause().await.unwrap();
        // Twice is fine, and told once.
        machine.pause().await.unwrap();
        machine.resume().await.unwrap();
        machine.resume().await.unwrap();
        // Nobody in the guest listens to its button.
        machine.power_button().await.unwrap();
        machine.quit().await.unwrap();
        let events = rest(&mut launched).await;
        assert_eq!(events[..2], [MachineEvent::Paused, MachineEvent::Resumed]);
        assert_eq!(code(&events[2]), Some(0), "{events:?}");
        assert_eq!(events.len(), 3);
        // Afterwards nothing hangs or strikes another process.
        let machine = &launched.machine;
        machine.quit().await.unwrap();
        assert!(matches!(machine.pause().await, Err(VmmError::Gone { .. })));
        machine.terminate().unwrap();
        machine.kill().unwrap();
    });
}

fn a_kill_from_outside_is_told(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut launched = host.backend().launch(host.firmware(dir.path())).await.unwrap();
        let pid = launched.machine.pid().unwrap();
        kill_9(pid);
        assert_eq!(signal(&next(&mut launched).await.unwrap()), Some(9));
        assert_eq!(next(&mut launched).await, None);
        assert!(fleetbox_os::process::stat(pid).is_err(), "it is reaped before its end is told");
    });
}

fn terminate_and_kill_end_it(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut launched = host.backend().launch(host.firmware(dir.path())).await.unwrap();
        launched.machine.terminate().unwrap();
        // QEMU handles SIGTERM and leaves by itself.
        assert_eq!(code(&next(&mut launched).await.unwrap()), Some(0));
        let mut launched = host.backend().launch(host.firmware(dir.path())).await.unwrap();
        launched.machine.kill().unwrap();
        assert_eq!(signal(&next(&mut launched).await.unwrap()), Some(9));
    });
}

fn a_stopped_vmm_is_told_by_deadline_and_killed(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let patience = QemuConfig { command_deadline: Duration::from_millis(300), ..host.qemu().clone() };
    block_on(async {
        let mut launched = QemuBackend::new(patience).launch(host.firmware(dir.path())).await.unwrap();
        signal_stop(launched.machine.pid().unwrap());
        for _ in 0..3 {
            let error = launched.machine.pause().await.unwrap_err();
            assert_eq!(error.to_string(), "the VMM of machine web did not answer stop within 1 s");
        }
        launched.machine.kill().unwrap();
        assert_eq!(signal(&next(&mut launched).await.unwrap()), Some(9));
    });
}

fn the_guests_own_reboot_and_power_off_are_told(host: &Host) {
    // out 0x64, 0xfe: the keyboard controller pulls the reset line.
    let reboot: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    // outw 0x604, 0x2000: ACPI S5, at the place SeaBIOS gives q35's power management registers.
    let power_off: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4];
    for (end, event) in [(reboot, MachineEvent::GuestRebooted), (power_off, MachineEvent::GuestPoweredOff)] {
        let dir = tempfile::tempdir().unwrap();
        // outb 0x3f8, 'F': one character on the serial console first.
        let code_before = [0xba, 0xf8, 0x03, 0xb0, b'F', 0xee];
        let config = host.boot_sector(dir.path(), &[&code_before, end].concat());
        let serial = config.serial_log.clone();
        block_on(async {
            let mut launched = host.backend().launch(config).await.unwrap();
            let events = rest(&mut launched).await;
            assert_eq!(events.len(), 2, "{events:?}");
            assert_eq!(events[0], event);
            assert_eq!(code(&events[1]), Some(0), "{events:?}");
        });
        // After what the firmware writes there.
        assert_eq!(std::fs::read(serial).unwrap().last(), Some(&b'F'));
    }
}

fn a_missing_program_is_told(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let missing = QemuConfig { program: "/nonexistent/qemu".into(), ..host.qemu().clone() };
    let error = block_on(QemuBackend::new(missing).launch(host.firmware(dir.path()))).unwrap_err();
    let VmmError::Spawn { source, program, .. } = error else { panic!("{error:?}") };
    assert_eq!(
        (source.kind(), program.as_os_str()),
        (std::io::ErrorKind::NotFound, "/nonexistent/qemu".as_ref())
    );
}

fn the_last_words_of_a_failed_start_are_told(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = host.firmware(dir.path());
    config.disks[0].path = dir.path().join("no,such,disk");
    let log = config.vmm_log.clone();
    let error = block_on(host.backend().launch(config)).unwrap_err();
    assert!(matches!(&error, VmmError::DiedAtStart { exit, .. } if exit.code == Some(1)), "{error:?}");
    assert!(error.to_string().contains("no,such,disk': No such file or directory"), "{error}");
    assert_eq!(users_of(&log), Vec::<u32>::new());
}

fn two_vmms_never_share_a_disk(host: &Host) {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    block_on(async {
        let config = host.firmware(first.path());
        let disks = config.disks.clone();
        let _launched = host.backend().launch(config).await.unwrap();
        let mut config = host.firmware(second.path());
        config.disks = disks;
        let error = host.backend().launch(config).await.unwrap_err();
        assert!(error.to_string().contains("Failed to get \"write\" lock"), "{error}");
    });
}

fn a_start_that_hangs_is_given_up(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let config = host.firmware(dir.path());
    let log = config.vmm_log.clone();
    let hangs = QemuConfig {
        program: host.program_that_hangs(),
        start_deadline: Duration::from_millis(300),
        ..host.qemu().clone()
    };
    let error = block_on(QemuBackend::new(hangs).launch(config)).unwrap_err();
    assert!(matches!(error, VmmError::NoAnswer { .. }), "{error:?}");
    assert_eq!(users_of(&log), Vec::<u32>::new());
}

fn a_cancelled_launch_leaves_no_process(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let config = host.firmware(dir.path());
    let log = config.vmm_log.clone();
    let hangs = QemuConfig { program: host.program_that_hangs(), ..host.qemu().clone() };
    let backend = QemuBackend::new(hangs);
    block_on(async {
        tokio::select! {
            launched = backend.launch(config) => panic!("it does not hang: {launched:?}"),
            () = wait_for("its process", || !users_of(&log).is_empty()) => {}
        }
        assert_eq!(users_of(&log), Vec::<u32>::new());
    });
}

fn a_cancelled_command_disturbs_no_other(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut launched = host.backend().launch(host.firmware(dir.path())).await.unwrap();
        for _ in 0..20 {
            // Polled once, which sends it, and dropped.
            tokio::select! {
                biased;
                _ = launched.machine.pause() => {}
                () = std::future::ready(()) => {}
            }
            let (a, b) = tokio::join!(launched.machine.resume(), launched.machine.power_button());
            a.unwrap();
            b.unwrap();
        }
        launched.machine.kill().unwrap();
        let events = rest(&mut launched).await;
        let (last, before) = events.split_last().unwrap();
        assert_eq!(signal(last), Some(9));
        let pairs = before.chunks(2).all(|pair| pair == [MachineEvent::Paused, MachineEvent::Resumed]);
        assert!(pairs, "{events:?}");
    });
}

fn a_dropped_machine_leaves_no_process(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let pid = block_on(async {
        let mut launched = host.backend().launch(host.firmware(dir.path())).await.unwrap();
        let second = launched.machine.clone();
        let pid = second.pid().unwrap();
        drop(second);
        launched.machine.pause().await.unwrap();
        assert_eq!(next(&mut launched).await, Some(MachineEvent::Paused));
        let fleetbox_vmm::Launched { machine, mut events } = launched;
        drop(machine);
        let end = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
        assert_eq!(signal(&end), Some(9));
        pid
    });
    assert!(fleetbox_os::process::stat(pid).is_err());
    // A runtime that ends with machines in it takes them along.
    let launched = block_on(async { host.backend().launch(host.firmware(dir.path())).await.unwrap() });
    let pid = launched.machine.pid().unwrap();
    drop(launched);
    assert!(fleetbox_os::process::stat(pid).is_err());
}

fn only_named_descriptors_are_inherited(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    // Inheritable by accident, as other code in a user's process may leave them.
    let (leak, _other_end) = fleetbox_os::fd::pipe().unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let config = host.firmware(dir.path());
    let mut expected: Vec<String> = ["/dev/null", "socket"].map(str::to_owned).into();
    expected.extend(
        [&config.vmm_log, &config.vmm_log, &config.serial_log, &config.disks[0].path]
            .map(|p| p.to_str().unwrap().to_owned()),
    );
    expected.sort();
    block_on(async {
        let launched = host.backend().launch(config).await.unwrap();
        let pid = launched.machine.pid().unwrap();
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = fds
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()?.into_os_string().into_string().ok());
        // Event and signal descriptors are QEMU's own making; sockets and pipes are told without their inode.
        let mut open: Vec<String> = links
            .filter(|to| !to.starts_with("anon_inode:"))
            .map(|to| to.split(":[").next().unwrap_or_default().to_owned())
            .collect();
        open.sort();
        assert_eq!(open, expected);
    });
}

fn it_dies_with_its_owner(_: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .env(support::OWNER_VARIABLE, dir.path())
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let told = dir.path().join("vmm-pid");
    let vmm = block_on(async {
        wait_for("the owner's machine", || told.exists()).await;
        std::fs::read_to_string(&told).unwrap().parse::<u32>().unwrap()
    });
    assert!(!stat_dead(vmm));
    assert_eq!(fleetbox_os::process::stat(vmm).unwrap().ppid, owner.id());
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The time that fleetbox promises.
    block_on(wait_within(Duration::from_secs(2), "the VMM's end", || stat_dead(vmm)));
}

fn a_file_that_is_missing_is_named(host: &Host) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = host.firmware(dir.path());
    config.serial_log = dir.path().join("no-such-folder/serial.log");
    let error = block_on(host.backend().launch(config)).unwrap_err();
    assert_eq!(error.to_string(), "could not prepare the serial log for the VMM of machine web");
}

fn a_tap_is_passed_by_descriptor(host: &Host) {
    fleetbox_os::netns::enter_new().unwrap();
    let tap = fleetbox_os::tap::create("fbtest0", true).unwrap();
    let link = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("fbtest0");
    assert!(link());
    let dir = tempfile::tempdir().unwrap();
    let mut config = host.firmware(dir.path());
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    config.nic = Some(fleetbox_vmm::Nic { tap, mac, ip: [10, 0, 0, 2].into() });
    block_on(async {
        let mut launched = host.backend().launch(config).await.unwrap();
        let fd = std::fs::read_link(format!("/proc/{}/fd/4", launched.machine.pid().unwrap())).unwrap();
        assert_eq!(fd.as_os_str(), "/dev/net/tun");
        assert!(link(), "the VMM's descriptor is the only one left, and keeps the link");
        launched.machine.kill().unwrap();
        rest(&mut launched).await;
        wait_for("the link's end", || !link()).await;
    });
}
