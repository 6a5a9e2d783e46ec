//! Who may talk to a holder, and what a holder must not hold on to.

use std::io::Read;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;

use crate::support::{Home, Owner, PATIENCE, TestResult, ended, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("another_user_is_refused", another_user),
        trial("a_stranger_let_in_by_file_mode_is_turned_away", stranger),
        trial("a_detached_holder_does_not_keep_its_owners_pipe_open", pipe_is_closed),
        trial("the_holder_has_no_descriptor_it_was_not_given", descriptors),
    ]
}

fn socket(home: &Home) -> std::path::PathBuf {
    let entries = std::fs::read_dir(home.file("run")).unwrap();
    let mut sockets =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "sock"));
    sockets.next().unwrap()
}

/// What a process of user nobody gets when it asks for the version.
fn as_nobody(home: &Home) -> std::io::Result<String> {
    // A copy where that user can reach it.
    let program = home.file("stranger");
    std::fs::copy("/proc/self/exe", &program)?;
    let out = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(program)
        .env(crate::support::STRANGER, socket(home))
        .output()?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

fn open_the_way(home: &Home) -> TestResult {
    use std::os::unix::fs::PermissionsExt;
    // The home's own folder is the temporary one, 0700; the socket itself is what shall refuse.
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn another_user(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    open_the_way(home)?;
    assert_eq!(as_nobody(home)?.trim(), "denied");
    Ok(vm.destroy()?)
}

fn stranger(home: &Home) -> TestResult {
    use std::os::unix::fs::PermissionsExt;
    let vm = home.start("web")?;
    open_the_way(home)?;
    // Somebody opened the socket's mode: the peer's credentials still tell.
    std::fs::set_permissions(socket(home), std::fs::Permissions::from_mode(0o666))?;
    let answer = as_nobody(home)?;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("another user than uid 65534"), "{answer}");
    Ok(vm.destroy()?)
}

/// `cargo test | cat` must end with the test, not with the machine.
fn pipe_is_closed(home: &Home) -> TestResult {
    let mut child = Command::new("/proc/self/exe")
        .env("FLEETBOX_TEST_OWNER", "web detached")
        .env("FLEETBOX_TEST_HOME", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut out, mut err) = (String::new(), String::new());
    // Would wait for ever if the holder or the VMM had them.
    child.stdout.take().ok_or("no stdout")?.read_to_string(&mut out)?;
    child.stderr.take().ok_or("no stderr")?.read_to_string(&mut err)?;
    assert!(child.wait()?.success(), "{err}");
    assert!(out.starts_with("up "), "{out} {err}");
    Ok(home.start("web")?.destroy()?)
}

fn descriptors(home: &Home) -> TestResult {
    // An inheritable descriptor, as a careless program has them.
    let leak = std::fs::File::open("/etc/hostname")?;
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty())?;
    let mut owner = Owner::spawn(home, "web", "named", "{}");
    let info = owner.up()?;
    for pid in [info.holder_pid, info.vmm_pid].into_iter().flatten() {
        let links: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))?
            .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
            .map(|p| p.display().to_string())
            .collect();
        assert!(!links.iter().any(|l| l == "/etc/hostname"), "{links:?}");
        assert!(
            !std::fs::read_to_string(format!("/proc/{pid}/environ"))?.contains("FLEETBOX_HOLDER_CONFIG=")
                || info.holder_pid == Some(pid)
        );
    }
    // A VMM is started by a process that has forgotten that it was told to be a holder.
    let environ = std::fs::read(format!("/proc/{}/environ", info.vmm_pid.unwrap_or(0)))?;
    assert!(!String::from_utf8_lossy(&environ).contains("FLEETBOX_HOLDER_CONFIG="));
    owner.kill();
    ended(info.holder_pid.unwrap_or(0), PATIENCE)
}
