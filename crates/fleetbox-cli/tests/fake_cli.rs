//! The built command over the fake backend: real holder processes and networks, no guests.

mod support;

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Child;
use std::time::Duration;

use fleetbox_testkit::wait_for;
use rustix::process::Signal;
use support::{Fleet, PATIENCE, signal, text};

/// How long everything of a dead owner may take to be gone by itself.
const PROMISE: Duration = Duration::from_secs(2);

#[expect(clippy::unwrap_used, reason = "only tests call this")]
/// Begins a start that takes a while, and returns once the VMM is being started.
fn slow_start(fleet: &mut Fleet) -> Child {
    fleet.fake(r#"{"launch_delay_ms": 60000}"#);
    let mut child = fleet.spawn(&["up", "web"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("vmm:") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended without starting the VMM");
    }
    child.stderr = Some(stderr.into_inner());
    wait_for("the VMM", PATIENCE, || match fleet.processes() {
        all if all.iter().any(|(_, c)| c.starts_with("cat")) => Ok(()),
        all => Err(format!("{all:?}")),
    })
    .unwrap();
    fleet.fake("{}");
    child
}

#[test]
fn fake_a_machines_life() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    let up = fleet.run(&["up", "web", "--memory", "512M", "--disk", "3G", "--cpus", "1"]);
    let (stdout, stderr) = (text(&up.stdout), text(&up.stderr));
    assert!(up.status.success(), "{stderr}");
    // Progress in lines, each with its time, and nothing of it on stdout.
    assert!(stderr.lines().all(|l| l.starts_with('[')) && stderr.contains("] network: "), "{stderr}");

    let all = fleet.list();
    let [machine] = &all[..] else { panic!("{all:?}") };
    let keys: Vec<&str> = machine.as_object().unwrap().keys().map(String::as_str).collect();
    let mut want = [
        "name",
        "cluster",
        "state",
        "ip",
        "cpus",
        "memory_mib",
        "disk_gib",
        "image",
        "backend",
        "accel",
        "holder_pid",
        "vmm_pid",
        "created_at",
        "boot",
    ];
    want.sort_unstable();
    assert_eq!(keys, want);
    assert_eq!(machine["state"], "running");
    assert_eq!([&machine["cpus"], &machine["memory_mib"], &machine["disk_gib"]], [1, 512, 3]);
    let ip = machine["ip"].as_str().unwrap();
    assert_eq!(stdout, format!("web {ip} (fleetbox ssh web)\n"));
    let pids: Vec<u32> = fleet.processes().into_iter().map(|(pid, _)| pid).collect();
    for key in ["holder_pid", "vmm_pid"] {
        assert!(pids.iter().any(|p| machine[key] == *p), "{key} {machine} {pids:?}");
    }

    // One that runs is returned as it is.
    assert_eq!(fleet.ok(&["start", "web"]), stdout);
    assert_eq!(fleet.list(), all);
    assert_eq!(fleet.ok(&["ls", "-q"]), "web\n");
    assert!(fleet.ok(&["logs", "web"]).contains("fake: no guest"));
    let config = fleet.ok(&["ssh-config"]);
    assert!(
        config.starts_with("Host web web.web.test\n") && config.contains(&format!("HostName {ip}\n")),
        "{config}"
    );

    let refused = fleet.fails(4, &["rm", "web"]);
    assert!(refused.contains("fleetbox rm -f web"), "{refused}");

    fleet.ok(&["pause", "web"]);
    assert_eq!(fleet.state("web").unwrap(), "paused");
    fleet.ok(&["resume", "web"]);
    fleet.ok(&["reset", "web"]);
    assert_eq!(fleet.state("web").unwrap(), "running");

    fleet.ok(&["down", "web"]);
    let stopped = fleet.list();
    assert_eq!(stopped[0]["state"], "stopped");
    assert!(stopped[0]["holder_pid"].is_null() && stopped[0]["vmm_pid"].is_null());
    assert_eq!(stopped[0]["created_at"], machine["created_at"]);
    // The last one down takes the network with it before the command returns.
    assert_eq!(fleet.running(), [""; 0]);
    fleet.ok(&["stop", "web"]);
    for args in [&["pause", "web"][..], &["resume", "web"], &["reset", "web"], &["ssh", "web", "--", "true"]]
    {
        let error = fleet.fails(4, args);
        assert!(error.contains("machine web is stopped") && error.contains("fleetbox up web"), "{error}");
    }

    assert_eq!(fleet.ok(&["up", "web"]), stdout, "it keeps its address");
    fleet.ok(&["rm", "--force", "web"]);
    assert_eq!(fleet.list(), [serde_json::Value::Null; 0]);
    assert_eq!(fleet.running(), [""; 0]);
    assert!(!fleet.home().join("clusters/web").exists());
}

#[test]
fn fake_a_stopped_machine_is_removed_without_force() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "web"]);
    fleet.ok(&["halt", "--now", "web"]);
    fleet.ok(&["rm", "web"]);
    fleet.fails(3, &["rm", "web"]);
    assert_eq!(fleet.running(), [""; 0]);
}

#[test]
fn fake_several_at_once() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "node-1"]);
    fleet.ok(&["up", "node-2"]);
    fleet.ok(&["up", "web"]);
    assert_eq!(fleet.ok(&["ls", "-q"]), "node-1\nnode-2\nweb\n");
    assert_eq!(fleet.list()[1]["cluster"], "node");
    // What can be done is done; what cannot is told, and decides the code.
    let error = fleet.fails(3, &["down", "node-1", "nodd-2", "web"]);
    assert!(error.contains("no machine nodd-2") && error.contains("did you mean node-2"), "{error}");
    let states = ["node-1", "node-2", "web"].map(|n| fleet.state(n).unwrap());
    assert_eq!(states, ["stopped", "running", "stopped"]);
    fleet.ok(&["delete", "-f", "node-1", "node-2", "web"]);
    assert_eq!(fleet.running(), [""; 0]);
}

#[test]
fn fake_a_cluster_by_its_name() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    let up = fleet.run(&["up", "web", "-n", "3", "--memory", "512M"]);
    let (stdout, stderr) = (text(&up.stdout), text(&up.stderr));
    assert!(up.status.success(), "{stderr}");
    let names: Vec<&str> = stdout.lines().filter_map(|l| l.split_once(' ')).map(|(name, _)| name).collect();
    assert_eq!(names, ["web-1", "web-2", "web-3"]);
    // Side by side, so each line says whose it is.
    for name in names {
        assert!(stderr.lines().any(|l| l.contains(&format!("] {name}  network: "))), "{name}: {stderr}");
    }
    assert!(stderr.contains("] 3 machines are up"), "{stderr}");
    // One more joins the network of its siblings.
    fleet.ok(&["up", "web-4"]);
    let all = fleet.list();
    let field = |key: &str| all.iter().map(|m| m[key].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(
        (all.len(), field("cluster").len(), field("holder_pid").len(), field("ip").len()),
        (4, 1, 1, 4)
    );

    let error = fleet.fails(4, &["rm", "web"]);
    assert!(error.contains("cluster web has members that run: web-1, web-2, web-3, web-4"), "{error}");
    fleet.ok(&["down", "web-2"]);
    let out = fleet.run(&["down", "web"]);
    assert!(out.status.success());
    assert_eq!(text(&out.stderr), "cluster web is closed: web-1, web-2, web-3, web-4 stopped\n");
    assert_eq!(fleet.running(), [""; 0]);
    fleet.ok(&["up", "web", "-n", "2"]);
    assert_eq!(["web-1", "web-3"].map(|n| fleet.state(n).unwrap()), ["running", "stopped"]);
    fleet.ok(&["rm", "-f", "web"]);
    assert_eq!(fleet.list(), [serde_json::Value::Null; 0]);
    assert_eq!(fleet.running(), [""; 0]);
    assert!(!fleet.home().join("clusters/web").exists());
    fleet.fails(3, &["down", "web"]);
}

#[test]
fn fake_several_names_share_a_network() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "a", "b", "c"]);
    let all = fleet.list();
    assert!(all.iter().all(|m| m["cluster"] == "a" && m["holder_pid"] == all[0]["holder_pid"]), "{all:?}");
    fleet.ok(&["up", "x"]);
    // Not split over two networks without a word.
    let error = fleet.fails(4, &["up", "b", "x"]);
    assert!(error.contains("b is in cluster a, x in x"), "{error}");
    fleet.fails(4, &["up", "b", "--cluster", "x"]);
    fleet.fails(2, &["up", "a", "b", "-n", "2"]);
    fleet.fails(2, &["up", "d", "d"]);
    fleet.ok(&["down", "--now", "a", "b", "c", "x"]);
    assert_eq!(fleet.running(), [""; 0]);
}

#[test]
fn fake_ls_tells_what_somebody_took_from_a_network() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "web"]);
    let told = || text(&fleet.run(&["ls"]).stderr);
    assert_eq!(told(), "");
    let shell = |line: &str| {
        assert!(std::process::Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
    };
    shell("nft delete $(nft list tables | grep fleetbox_fb | head -1)");
    let warning = told();
    assert!(warning.contains("network of cluster web is damaged: firewall rules lack"), "{warning}");
    // What can be put back is, by the next machine that joins.
    fleet.ok(&["up", "web-2"]);
    assert_eq!(told(), "");
    shell("ip link delete $(ip -o link show type bridge | grep -o 'fb[0-9a-f]*' | head -1)");
    let warning = told();
    assert!(warning.contains("is gone"), "{warning}");
    fleet.ok(&["down", "web", "web-2"]);
    fleet.ok(&["up", "web"]);
    assert_eq!(told(), "");
    fleet.ok(&["rm", "-f", "web", "web-2"]);
}

#[test]
fn fake_a_failed_start_of_several_leaves_nothing_of_it() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "web-2"]);
    fleet.ok(&["down", "web-2"]);
    fleet.fake(r#"{"fail_launch": "no such machine type"}"#);
    let error = fleet.fails(6, &["up", "web", "-n", "3"]);
    assert!(error.contains("could not start the VMM of machine web-"), "{error}");
    assert_eq!(fleet.running(), [""; 0]);
    assert_eq!(fleet.ok(&["ls", "-q"]), "web-2\n");
}

#[test]
fn fake_ctrl_c_cancels_the_start_of_several() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    fleet.fake(r#"{"launch_delay_ms": 60000}"#);
    let child = fleet.spawn(&["up", "web", "-n", "3"]);
    wait_for("the VMMs", PATIENCE, || {
        match fleet.processes().iter().filter(|(_, c)| c.starts_with("cat")).count() {
            3 => Ok(()),
            n => Err(format!("{n}")),
        }
    })
    .unwrap();
    signal(&child, Signal::INT);
    let out = child.wait_with_output().unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(130), "{said}");
    assert_eq!(fleet.running(), [""; 0]);
    for n in 1..=3 {
        assert!(said.contains(&format!("`fleetbox rm web-{n}` deletes it")), "{said}");
    }
}

#[test]
fn fake_doctor_tells_what_was_left_behind() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    let told = || {
        let report: serde_json::Value =
            serde_json::from_str(&text(&fleet.run(&["doctor", "--json"]).stdout)).unwrap();
        report["left"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["what"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    fleet.ok(&["up", "web"]);
    assert_eq!(told(), [""; 0], "a living holder's things are no leftovers");
    let holder = fleet.processes().into_iter().find(|(_, c)| c.contains("fleetbox-holder")).unwrap().0;
    let holder = rustix::process::Pid::from_raw(i32::try_from(holder).unwrap()).unwrap();
    rustix::process::kill_process(holder, Signal::KILL).unwrap();
    wait_for("the dead holder's things to be told", PATIENCE, || match told() {
        all if all.iter().any(|l| l.starts_with("bridge fb") && l.contains("whose holder has ended")) => {
            Ok(())
        }
        all => Err(format!("{all:?}")),
    })
    .unwrap();
    assert!(fleet.ok(&["prune"]).contains("cleared: web: bridge fb"));
    assert_eq!(told(), [""; 0]);
    let made =
        std::process::Command::new("ip").args(["link", "add", "fb00000000", "type", "bridge"]).status();
    assert!(made.unwrap().success());
    assert_eq!(told(), ["bridge fb00000000: no record of this FLEETBOX_HOME names it"]);
}

#[test]
fn fake_two_starts_of_one_name() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    fleet.fake(r#"{"launch_delay_ms": 300}"#);
    let both = [fleet.spawn(&["up", "web"]), fleet.spawn(&["up", "web"])];
    let both = both.map(|c| c.wait_with_output().unwrap());
    let codes = both.each_ref().map(|o| o.status.code());
    let said = both.each_ref().map(|o| text(&o.stderr));
    assert!(codes.contains(&Some(0)), "{codes:?} {said:?}");
    for (code, said) in codes.iter().zip(&said).filter(|(c, _)| **c != Some(0)) {
        assert_eq!(*code, Some(4), "{said}");
        assert!(said.contains("held by pid"), "{said}");
    }
    // One machine, one VMM, one holder.
    assert_eq!(fleet.list().len(), 1);
    assert_eq!(fleet.processes().len(), 2, "{:?}", fleet.processes());
}

#[test]
fn fake_a_vmm_that_does_not_start() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    fleet.fake(r#"{"fail_launch": "no such machine type"}"#);
    let error = fleet.fails(6, &["up", "web"]);
    let cause = error.find("  caused by: ").unwrap_or_else(|| panic!("{error}"));
    assert!(error.contains("error: could not start the VMM of machine web\n"), "{error}");
    assert_eq!(error.matches("no such machine type").count(), 1, "{error}");
    assert!(error.find("hint: ").is_some_and(|h| h > cause), "{error}");
    // Nothing of it is left when the command returns, so the next is not in its way.
    assert_eq!(fleet.running(), [""; 0]);
    fleet.fake("{}");
    fleet.ok(&["up", "web"]);
}

#[test]
fn fake_ctrl_c_cleans_up() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    let child = slow_start(&mut fleet);
    signal(&child, Signal::INT);
    let out = child.wait_with_output().unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(130), "{said}");
    assert!(out.stdout.is_empty());
    assert!(said.contains("interrupted: clearing away") && said.contains("error: interrupted\n"), "{said}");
    // At once, not after a while.
    assert_eq!(fleet.running(), [""; 0]);
    // Its disk was complete, so it is a machine: only `rm` deletes one.
    assert!(
        said.contains("machine web is stopped and keeps its disk; `fleetbox rm web` deletes it"),
        "{said}"
    );
    assert_eq!(fleet.state("web").unwrap(), "stopped");
    fleet.ok(&["rm", "web"]);
}

#[test]
fn fake_a_second_ctrl_c_leaves_at_once() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    let mut child = slow_start(&mut fleet);
    // The holder is stopped, so that its clearing away cannot be quicker than the second key.
    let holder = fleet.processes().into_iter().find(|(_, c)| c.contains("fleetbox-holder")).unwrap().0;
    let holder = rustix::process::Pid::from_raw(i32::try_from(holder).unwrap()).unwrap();
    rustix::process::kill_process(holder, Signal::STOP).unwrap();
    signal(&child, Signal::INT);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("interrupted: ") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended at the first one");
    }
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    assert!(said.contains("left at once") && said.contains("fleetbox prune"), "{said}");
    // It really did not wait: the holder is there still.
    assert!(!fleet.running().is_empty());
    rustix::process::kill_process(holder, Signal::CONT).unwrap();
    fleet.assert_quiet(PATIENCE);
}

#[test]
fn fake_a_killed_start_is_cleared_away_by_itself() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    let mut child = slow_start(&mut fleet);
    assert!(!fleet.running().is_empty());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    fleet.assert_quiet(PROMISE);
    // And the next start of that name goes ahead at once, with the disk that there is.
    fleet.ok(&["up", "web"]);
}

#[test]
fn fake_a_start_right_after_a_killed_one() {
    let Some(mut fleet) = Fleet::of_fakes() else { return };
    let mut child = slow_start(&mut fleet);
    child.kill().unwrap();
    child.wait().unwrap();
    // The dead one's holder may be at its clearing away yet.
    fleet.ok(&["up", "web"]);
    assert_eq!(fleet.state("web").unwrap(), "running");
}

#[test]
fn fake_a_running_machine_does_not_keep_the_commands_pipes_open() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    // Reading to the end ends, though the holder and the VMM live on.
    let out = fleet.spawn(&["up", "web"]).wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(fleet.state("web").unwrap(), "running");
}

#[test]
fn fake_a_damaged_sibling_of_a_running_machine_is_told_of() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "node-1"]);
    fleet.ok(&["up", "node-2"]);
    fleet.ok(&["down", "node-2"]);
    let dir = fleet.home().join("clusters/node/node-2");
    fleet.ok(&["down", "node-1"]);
    std::fs::write(dir.join("machine.json"), "{").unwrap();
    fleet.ok(&["up", "node-1"]);
    // A start of it is refused, and takes nothing away.
    fleet.fails(8, &["up", "node-2"]);
    assert!(dir.join("disk.raw").exists());
    let out = fleet.run(&["ls"]);
    assert_eq!(out.status.code(), Some(8));
    assert!(text(&out.stdout).contains("node-1") && text(&out.stderr).contains("node-2"), "{out:?}");
    // It can be got rid of, and only by force: nobody knows what it is.
    fleet.fails(8, &["rm", "node-2"]);
    assert!(dir.exists());
    fleet.ok(&["rm", "-f", "node-2"]);
    assert!(!dir.exists());
    assert_eq!(fleet.ok(&["ls", "-q"]), "node-1\n");
}

/// There is no sshd in a fake, so another program stands in for ssh and tells what it was run with.
#[test]
fn fake_ssh_gets_the_command_stdin_and_the_say_on_the_exit_code() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "web"]);
    let ip = fleet.list()[0]["ip"].as_str().unwrap().to_owned();
    let bin = fleet.home().join("bin");
    let script = "#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done\necho\ncat\nexit 7\n";
    std::fs::write(bin.join("ssh"), script).unwrap();
    std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths(
        std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    let ssh = |args: &[&str]| {
        let (stdin, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"from stdin\n").unwrap();
        drop(writer);
        let out = fleet.command(args).env("PATH", &path).stdin(stdin).output().unwrap();
        assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
        let said = text(&out.stdout);
        let (args, stdin) = said.split_once('\n').unwrap();
        assert_eq!(stdin, "from stdin\n");
        args.to_owned()
    };
    // Several words arrive as they are, one is shell text; neither is an option of ssh's.
    let several = ssh(&["ssh", "web", "--", "echo", "a b", "$HOME", "it's"]);
    assert!(several.ends_with(&format!(r"<{ip}><--><echo 'a b' '$HOME' 'it'\''s'>")), "{several}");
    let one = ssh(&["shell", "web", "--", "-x | wc"]);
    assert!(one.ends_with(&format!("<{ip}><--><-x | wc>")), "{one}");
    for part in ["<StrictHostKeyChecking=yes>", "<User=fleetbox>", "/known_hosts>", "</dev/null>"] {
        assert!(one.contains(part), "{part}: {one}");
    }
    // No terminal, so none is asked for.
    let login = ssh(&["ssh", "web"]);
    assert!(login.ends_with(&format!("<{ip}>")) && !login.contains("<-t>"), "{login}");
    let none = fleet.command(&["ssh", "web"]).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(none.status.code(), Some(6));
    assert!(text(&none.stderr).contains("could not run ssh"), "{}", text(&none.stderr));
}

#[test]
fn fake_logs_are_followed_until_the_machine_is_removed() {
    let Some(fleet) = Fleet::of_fakes() else { return };
    fleet.ok(&["up", "web"]);
    let mut child = fleet.spawn(&["logs", "web", "-f"]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "fake: no guest\n");
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("fake: booted by kernel"), "{line}");
    let log = fleet.home().join("clusters/web/web/serial.log");
    let mut file = std::fs::OpenOptions::new().append(true).open(log).unwrap();
    std::io::Write::write_all(&mut file, b"something new\n").unwrap();
    line.clear();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "something new\n");
    fleet.ok(&["rm", "-f", "web"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
