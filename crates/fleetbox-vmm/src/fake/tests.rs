use std::path::Path;
use std::time::Duration;

use super::*;
use crate::{Boot, MachineEvent, VmmExit};

const DEADLINE: Duration = Duration::from_secs(20);

fn config(dir: &Path) -> LaunchConfig {
    LaunchConfig {
        name: MachineName::new("web").unwrap(),
        uuid: "12345678-1234-1234-1234-123456789abc".into(),
        cpus: 1,
        memory_mib: 128,
        boot: Boot::Bios,
        disks: Vec::new(),
        nic: None,
        serial_log: dir.join("serial.log"),
        vmm_log: dir.join("vmm.log"),
    }
}

fn exited(code: Option<i32>, signal: Option<i32>) -> MachineEvent {
    MachineEvent::Exited(VmmExit { code, signal, stderr_tail: String::new() })
}

/// All events until the channel ends.
async fn rest(launched: &mut Launched) -> Vec<MachineEvent> {
    let mut all = Vec::new();
    let drain = async {
        while let Some(event) = launched.events.recv().await {
            all.push(event);
        }
    };
    let ended = tokio::time::timeout(DEADLINE, drain).await;
    assert!(ended.is_ok(), "no end of the events; so far {all:?}");
    all
}

async fn run(options: &str, then: fn(&Launched)) -> Vec<MachineEvent> {
    let dir = tempfile::tempdir().unwrap();
    let backend = FakeBackend::new(FakeOptions::from_json(options).unwrap());
    let mut launched = backend.launch(config(dir.path())).await.unwrap();
    then(&launched);
    let pid = launched.machine.pid().unwrap();
    let events = rest(&mut launched).await;
    assert!(fleetbox_os::process::stat(pid).is_err(), "the process is reaped before Exited is told");
    events
}

#[tokio::test(flavor = "current_thread")]
async fn the_guest_does_as_it_is_told() {
    use MachineEvent::*;
    let nothing: fn(&Launched) = |_| {};
    assert_eq!(run(r#"{"exit_after_ms":5}"#, nothing).await, [exited(Some(0), None)]);
    assert_eq!(run(r#"{"power_off_after_ms":5}"#, nothing).await, [GuestPoweredOff, exited(Some(0), None)]);
    assert_eq!(run(r#"{"reboot_after_ms":5}"#, nothing).await, [GuestRebooted, exited(Some(0), None)]);
    let both = r#"{"panic_after_ms":1,"exit_after_ms":30}"#;
    assert_eq!(run(both, nothing).await, [GuestPanicked, exited(Some(0), None)]);
    assert_eq!(run("{}", |l| l.machine.kill().unwrap()).await, [exited(None, Some(9))]);
    assert_eq!(run("{}", |l| l.machine.terminate().unwrap()).await, [exited(None, Some(15))]);
}

#[tokio::test(flavor = "current_thread")]
async fn it_reboots_itself_once() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        FakeOptions { reboot_after_ms: Some(1), power_off_after_ms: Some(500), ..Default::default() };
    let backend = FakeBackend::new(options);
    let mut first = backend.launch(config(dir.path())).await.unwrap();
    assert_eq!(rest(&mut first).await[0], MachineEvent::GuestRebooted);
    let mut second = backend.launch(config(dir.path())).await.unwrap();
    assert_eq!(rest(&mut second).await[0], MachineEvent::GuestPoweredOff);
    let console = std::fs::read_to_string(dir.path().join("serial.log")).unwrap();
    let boot = &console[usize::try_from(second.machine.console_start()).unwrap()..];
    assert_eq!(boot, "fake: no guest\nfake: booted by BIOS\nreboot: Power down\n");
    assert!(console.len() > boot.len());
}

#[tokio::test(flavor = "current_thread")]
async fn a_paused_guest_sees_its_power_button_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut launched = FakeBackend::new(FakeOptions::default()).launch(config(dir.path())).await.unwrap();
    let machine = launched.machine.clone();
    machine.pause().await.unwrap();
    machine.pause().await.unwrap();
    machine.power_button().await.unwrap();
    machine.resume().await.unwrap();
    let expected =
        [MachineEvent::Paused, MachineEvent::Resumed, MachineEvent::GuestPoweredOff, exited(Some(0), None)];
    assert_eq!(rest(&mut launched).await, expected);
    assert!(matches!(machine.pause().await, Err(VmmError::Gone { .. })));
    machine.kill().unwrap();
    machine.terminate().unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn an_ignored_power_button_leaves_quit() {
    let dir = tempfile::tempdir().unwrap();
    let options = FakeOptions { ignore_power_button: true, ..Default::default() };
    let mut launched = FakeBackend::new(options).launch(config(dir.path())).await.unwrap();
    launched.machine.power_button().await.unwrap();
    launched.machine.quit().await.unwrap();
    assert_eq!(rest(&mut launched).await, [exited(Some(0), None)]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_launch_tells_the_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let options = FakeOptions { fail_launch: Some("no luck".into()), ..Default::default() };
    let error = FakeBackend::new(options).launch(config(dir.path())).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VMM of machine web ended while starting: exit code 1; its last words: no luck"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn dropping_the_machine_ends_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let launched = FakeBackend::new(FakeOptions::default()).launch(config(dir.path())).await.unwrap();
    let Launched { machine, mut events } = launched;
    let pid = machine.pid().unwrap();
    drop(machine);
    let event = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap();
    assert_eq!(event, Some(exited(None, Some(9))));
    assert!(fleetbox_os::process::stat(pid).is_err());
}

/// Other processes that have this file open.
fn users_of(file: &Path) -> Vec<u32> {
    let pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file))
    };
    pids.filter(|&pid| pid != std::process::id()).filter(has_it).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn a_cancelled_launch_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let log = config.vmm_log.clone();
    let slow = FakeBackend::new(FakeOptions { launch_delay_ms: 600_000, ..Default::default() });
    let started = async {
        while users_of(&log).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        launched = slow.launch(config) => panic!("not delayed: {launched:?}"),
        started = tokio::time::timeout(DEADLINE, started) => started.unwrap(),
    }
    assert_eq!(users_of(&log), Vec::<u32>::new());
}

#[test]
fn options_are_checked() {
    assert_eq!(FakeOptions::from_json("{}").unwrap(), FakeOptions::default());
    assert!(FakeOptions::from_json(r#"{"panik_after_ms":1}"#).is_err());
    let json = serde_json::to_string(&FakeOptions { exit_after_ms: Some(3), ..Default::default() }).unwrap();
    assert_eq!(FakeOptions::from_json(&json).unwrap().exit_after_ms, Some(3));
}
