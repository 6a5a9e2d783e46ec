//! What guests do to themselves, and what happens to VMMs.

use std::time::Duration;

use fleetbox::blocking::Vm;
use fleetbox::{ErrorKind, State};
use fleetbox_os::process::PidFd;
use fleetbox_testkit::wait_for;
use libtest_mimic::Trial;

use crate::support::{IMAGE, PATIENCE, TestResult, builder, chain, home, trial, unique, wait_state};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("reboot_panic_poweroff_and_a_killed_vmm", misfortunes),
        trial("a_missing_root_device_names_the_initramfs", root_missing),
    ]
}

fn misfortunes() -> TestResult {
    let vm = Vm::start(builder(&unique("misfortune")))?;
    let first = vm.info()?;
    vm.ssh("echo kept | sudo tee /var/kept; sudo sync")?;

    // A guest's own reboot comes back as the same machine in a new VMM.
    let _ = vm.exec("sudo systemctl reboot");
    wait_for("the rebooted machine", PATIENCE, || match vm.info() {
        Ok(i) if i.state == State::Running && i.vmm_pid != first.vmm_pid => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    assert_eq!(vm.ssh("cat /var/kept")?, "kept");
    let second = vm.info()?;
    assert_eq!((second.ip, second.host_key), (first.ip, first.host_key));

    // A panic is a failure within seconds, with what the console showed.
    let _ = vm.exec(
        fleetbox::Command::shell("echo c | sudo tee /proc/sysrq-trigger").timeout(Duration::from_secs(20)),
    );
    wait_state(&vm, State::Failed, Duration::from_secs(5))?;
    wait_for("the VMM's end", Duration::from_secs(10), || match vm.info() {
        Ok(i) if i.vmm_pid.is_none() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let failure = vm.info()?.failure.unwrap_or_default();
    assert!(failure.contains("panic") && failure.contains("sysrq"), "{failure}");

    // It starts again; its disk lost nothing that was synced.
    vm.start_again()?;
    assert_eq!(vm.ssh("cat /var/kept")?, "kept");
    PidFd::open(vm.info()?.vmm_pid.unwrap_or(0))?.kill()?;
    wait_state(&vm, State::Failed, Duration::from_secs(5))?;
    let failure = vm.info()?.failure.unwrap_or_default();
    assert!(failure.contains("ended unasked: signal 9"), "{failure}");

    vm.start_again()?;
    let _ = vm.exec("sudo systemctl poweroff");
    wait_state(&vm, State::Stopped, PATIENCE)?;
    assert_eq!(vm.info()?.failure, None);
    Ok(vm.destroy()?)
}

/// The image as it is, but for a root= that names nothing.
fn root_missing() -> TestResult {
    let broken = tempfile::Builder::new().prefix("fb").tempdir()?;
    let images = broken.path().join("images");
    std::fs::create_dir_all(&images)?;
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg("--reflink=auto")
        .arg("--sparse=always")
        .arg(home().join("images/."))
        .arg(&images)
        .status()?;
    assert!(copied.success());
    for entry in std::fs::read_dir(&images)? {
        let meta = entry?.path().join("meta.json");
        let Ok(text) = std::fs::read_to_string(&meta) else { continue };
        let mut json: serde_json::Value = serde_json::from_str(&text)?;
        json["root_args"] = "root=UUID=00000000-dead-dead-dead-000000000000 ro rootdelay=5".into();
        std::fs::write(&meta, json.to_string())?;
    }
    let wanted = Vm::builder("rootless").image(IMAGE).home(broken.path());
    let e = Vm::start(wanted).unwrap_err();
    let story = chain(&e);
    assert_eq!(e.kind(), ErrorKind::GuestFailed, "{story}");
    assert!(story.contains("initramfs") && story.contains("00000000-dead-dead-dead"), "{story}");
    Ok(())
}
