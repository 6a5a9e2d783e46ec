//! The built command where it needs neither root nor a holder.

mod support;

use std::process::Stdio;

use support::{Fleet, text};

#[test]
fn version() {
    let fleet = Fleet::without_machines();
    let out = fleet.ok(&["version"]);
    assert_eq!(out, format!("fleetbox {} (linux, {})\n", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH));
    let json: serde_json::Value = serde_json::from_str(&fleet.ok(&["version", "--json"])).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(fleet.ok(&["--version"]).starts_with("fleetbox "));
}

#[test]
fn completion_for_every_shell() {
    let fleet = Fleet::without_machines();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = fleet.ok(&["completion", shell]);
        assert!(script.contains("fleetbox") && script.contains("ssh-config"), "{shell}");
        assert!(!script.contains("\x1b["), "{shell}");
    }
    assert_eq!(fleet.run(&["completion", "cmd"]).status.code(), Some(2));
}

#[test]
fn usage_errors_exit_with_2() {
    let fleet = Fleet::without_machines();
    for args in [
        &[][..],
        &["nonsense"],
        &["up"],
        &["up", "web", "--memory", "2X"],
        &["up", "web", "--timeout", "0"],
        &["up", "web", "--cpus", "many"],
        &["ls", "--json", "-q"],
        &["down"],
        &["rm", "--force"],
        // Names and sizes that the library refuses.
        &["up", "Web"],
        &["up", "a/b"],
        &["up", ".."],
        &["up", ""],
        &["up", "web", "--cpus", "0"],
        &["up", "web", "--memory", "1M"],
        &["up", "web", "--cluster", "-x-"],
        &["up", "web", "--image", "bootstrap:../x"],
        &["ssh", "a/b"],
        &["logs", "..", "-f"],
    ] {
        let out = fleet.run(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty() && !out.stderr.is_empty(), "{args:?}");
    }
    let long = fleet.run(&["up", &"x".repeat(64)]);
    assert_eq!(long.status.code(), Some(2));
    assert!(text(&long.stderr).contains("64"), "{}", text(&long.stderr));
}

#[test]
fn unknown_machines_exit_with_3() {
    let fleet = Fleet::without_machines();
    for args in [
        &["ssh", "web"][..],
        &["ssh-config", "web"],
        &["logs", "web"],
        &["down", "web"],
        &["rm", "web"],
        &["pause", "web"],
        &["resume", "web"],
        &["reset", "web"],
        &["ssh", "web", "--", "true"],
    ] {
        let out = fleet.run(args);
        assert_eq!(out.status.code(), Some(3), "{args:?}");
        assert_eq!(
            text(&out.stderr),
            "error: there is no machine web\nhint: `fleetbox ls` shows all machines\n",
            "{args:?}"
        );
    }
    // As with rm(1), asking for it by force is asking that it be gone.
    assert_eq!(fleet.run(&["rm", "-f", "web"]).status.code(), Some(0));
}

#[test]
fn an_empty_home() {
    let fleet = Fleet::without_machines();
    assert_eq!(fleet.ok(&["ls", "--json"]), "[]\n");
    assert_eq!(fleet.ok(&["ls", "-q"]), "");
    let table = fleet.run(&["ls"]);
    assert!(table.stdout.is_empty() && text(&table.stderr).contains("no machines"));
    assert_eq!(fleet.ok(&["ssh-config"]), "");
    assert_eq!(fleet.ok(&["prune"]), "");
}

/// The machines whose records can be read are shown, and the others told of.
#[test]
fn a_damaged_machine_does_not_hide_the_others() {
    let fleet = Fleet::without_machines();
    fleet.ok(&["ls"]);
    fleet.write_record("good", &support::record("good"));
    fleet.write_record("half", &support::record("half")[..40]);
    fleet.write_record("late", &support::record("late").replace("\"version\":1", "\"version\":999"));
    for (args, shown) in [(&["ls"][..], "good "), (&["ls", "-q"], "good\n"), (&["ls", "--json"], "\"good\"")]
    {
        let out = fleet.run(args);
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(8), "{args:?}: {stderr}");
        assert!(
            stdout.contains(shown) && !stdout.contains("half") && !stdout.contains("late"),
            "{args:?}: {stdout}"
        );
        assert!(stderr.contains("half") && stderr.contains("damaged"), "{stderr}");
        assert!(stderr.contains("late") && stderr.contains("newer fleetbox"), "{stderr}");
    }
    // What is asked of one is answered, whatever the others are.
    let one = fleet.run(&["ssh", "good"]);
    assert_eq!(one.status.code(), Some(4), "{}", text(&one.stderr));
    assert!(text(&one.stderr).contains("machine good is stopped"));
    assert_eq!(fleet.run(&["ssh", "half"]).status.code(), Some(8));
}

#[test]
fn near_names_are_offered() {
    let fleet = Fleet::without_machines();
    fleet.ok(&["ls"]);
    fleet.write_record("webserver", &support::record("webserver"));
    let out = fleet.run(&["ssh", "websever"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("did you mean webserver?"), "{}", text(&out.stderr));
}

/// `fleetbox ls | head -0`
#[test]
fn a_reader_that_has_gone_is_no_error() {
    let fleet = Fleet::without_machines();
    fleet.ok(&["ls"]);
    fleet.write_record("web", &support::record("web"));
    for args in [
        &["ls"][..],
        &["ls", "--json"],
        &["completion", "bash"],
        &["version"],
        &["cli-reference"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = fleet.command(args).stdout(Stdio::from(writer)).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn no_colours_and_no_spinners_but_on_a_terminal() {
    let fleet = Fleet::without_machines();
    for args in [&["ssh", "web"][..], &["--help"], &["nonsense"], &["doctor"]] {
        let out = fleet.run(args);
        assert!(!text(&out.stdout).contains('\x1b') && !text(&out.stderr).contains('\x1b'), "{args:?}");
    }
}

/// On a terminal, which script(1) makes.
#[test]
fn colours_on_a_terminal_unless_declined() {
    let fleet = Fleet::without_machines();
    let on_terminal = |set: &[(&str, &str)]| {
        let mut script = std::process::Command::new("script");
        script.args(["-qec", concat!(env!("CARGO_BIN_EXE_fleetbox"), " ssh web"), "/dev/null"]);
        script
            .env("FLEETBOX_HOME", fleet.home())
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .stdin(Stdio::null());
        script.envs(set.iter().copied());
        script.output()
    };
    let Ok(plain) = on_terminal(&[]) else { fleetbox_testkit::skip!("there is no script(1) here") };
    assert!(text(&plain.stdout).contains("\x1b[1;31merror:\x1b[0m there is no machine web"), "{plain:?}");
    assert_eq!(plain.status.code(), Some(3));
    for declined in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let out = text(&on_terminal(&[declined]).unwrap().stdout);
        assert!(
            out.contains("error: there is no machine web") && !out.contains('\x1b'),
            "{declined:?}: {out:?}"
        );
    }
}

#[test]
fn a_home_that_cannot_be_is_told() {
    let fleet = Fleet::without_machines();
    let out = fleet.command(&["ls"]).env("FLEETBOX_HOME", "relative").output().unwrap();
    assert_eq!(out.status.code(), Some(8));
    assert!(
        text(&out.stderr).contains("caused by: FLEETBOX_HOME must be an absolute path"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn doctors_verdict_is_its_exit_code() {
    let fleet = Fleet::without_machines();
    let out = fleet.run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let blocked = report["would_use"].is_null()
        || report["missing"].as_array().unwrap().iter().any(|m| m["blocks"] == serde_json::Value::Bool(true));
    assert_eq!(out.status.code(), Some(if blocked { 6 } else { 0 }), "{}", text(&out.stderr));
}
