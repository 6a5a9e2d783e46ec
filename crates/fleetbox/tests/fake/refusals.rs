//! Bad input: a clear error, nothing lost, nothing left.

use fleetbox::blocking::Vm;
use fleetbox::{ErrorKind, VmBuilder};
use libtest_mimic::Trial;

use crate::support::{Home, Owner, TestResult, chain, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("names_and_sizes_that_can_never_work", impossible),
        trial("another_image_is_refused_and_names_both", another_image),
        trial("a_smaller_disk_is_refused", smaller_disk),
        trial("a_damaged_record_is_left_as_it_is", damaged_record),
        trial("a_name_used_in_another_cluster_is_refused", name_elsewhere),
        trial("two_processes_at_the_same_moment_make_one_machine", race),
        trial("a_home_that_is_no_folder", home_is_a_file),
        trial("a_home_too_deep_for_a_socket", home_too_deep),
        trial("a_second_member_where_the_backend_cannot", no_clustering),
    ]
}

fn refusal(builder: VmBuilder, kind: ErrorKind, words: &str) {
    let e = Vm::start(builder).unwrap_err();
    assert_eq!(e.kind(), kind, "{e}");
    assert!(chain(&e).contains(words), "{words:?} is not in: {}", chain(&e));
}

fn impossible(home: &Home) -> TestResult {
    use ErrorKind::InvalidInput;
    let web = || Vm::builder("web").home(home.path());
    for (name, words) in [
        ("", "must not be empty"),
        ("a/b", "'/'"),
        ("..", "'.'"),
        ("Web", "'W'"),
        (&"x".repeat(64), "at most 63"),
    ] {
        refusal(Vm::builder(name).home(home.path()), InvalidInput, words);
    }
    refusal(web().cpus(0), InvalidInput, "0 CPUs");
    refusal(web().memory_mib(1), InvalidInput, "at least 128 MiB");
    refusal(web().disk_gib(0), InvalidInput, "0 GiB");
    refusal(web().image("bootstrap:No Such"), InvalidInput, "no Debian suite");
    refusal(web().cluster("Not A Name"), InvalidInput, "'N'");
    refusal(web().memory_gib(1 << 20), ErrorKind::Resources, "this host has");
    assert!(!home.file("clusters/web").exists());
    Ok(())
}

fn another_image(home: &Home) -> TestResult {
    let builder = |image| Vm::builder("web").home(home.path()).image(image);
    let vm = Vm::start(builder("bootstrap:bookworm"))?;
    vm.stop()?;
    refusal(builder("bootstrap:trixie"), ErrorKind::Conflict, "made from image bootstrap:bookworm");
    Vm::start(builder("bootstrap:bookworm"))?.destroy()?;
    Ok(())
}

fn smaller_disk(home: &Home) -> TestResult {
    let builder = |gib| Vm::builder("web").home(home.path()).disk_gib(gib);
    let vm = Vm::start(builder(20))?;
    vm.stop()?;
    refusal(builder(10), ErrorKind::InvalidInput, "disks never shrink");
    let grown = Vm::start(builder(30))?;
    assert_eq!(grown.info()?.disk_gib, 30);
    Ok(grown.destroy()?)
}

fn damaged_record(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    vm.stop()?;
    drop(vm);
    let record = home.machine_dir("web").join("machine.json");
    let good = std::fs::read_to_string(&record)?;
    for (bad, words) in [
        (good[..good.len() / 2].to_owned(), "is damaged"),
        (good.replacen("\"version\": 1", "\"version\": 9", 1), "written by a newer fleetbox"),
        (String::new(), "is damaged"),
    ] {
        fleetbox_testkit::wait_for("the holder's end", crate::support::PATIENCE, || {
            if std::fs::read_dir(home.file("journal")).unwrap().count() == 0 {
                Ok(())
            } else {
                Err("it holds on")
            }
        })?;
        std::fs::write(&record, &bad)?;
        refusal(Vm::builder("web").home(home.path()), ErrorKind::Store, words);
        assert_eq!(std::fs::read_to_string(&record)?, bad);
        assert!(home.machine_dir("web").join("disk.raw").exists());
    }
    std::fs::write(&record, good)?;
    Ok(home.start("web")?.destroy()?)
}

fn name_elsewhere(home: &Home) -> TestResult {
    let vm = home.start("web")?;
    let other = Vm::builder("web").home(home.path()).cluster("other");
    refusal(other, ErrorKind::Conflict, "machine web exists already, in cluster web");
    vm.stop()?;
    Ok(vm.destroy()?)
}

fn race(home: &Home) -> TestResult {
    let mut owners: Vec<_> =
        (0..4).map(|_| Owner::spawn(home, "web", "named", r#"{"launch_delay_ms":200}"#)).collect();
    let results: Vec<_> = owners.iter_mut().map(Owner::up).collect();
    let up = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(up, 1, "{results:?}");
    for refused in results.iter().filter_map(|r| r.as_ref().err()) {
        assert!(refused.starts_with("Held ") && refused.contains("held by pid"), "{refused}");
    }
    for owner in owners {
        owner.finish();
    }
    Ok(())
}

fn home_is_a_file(home: &Home) -> TestResult {
    let file = home.file("file");
    std::fs::write(&file, "")?;
    refusal(Vm::builder("web").home(&file), ErrorKind::Store, "create folder");
    refusal(Vm::builder("web").home("relative"), ErrorKind::Store, "absolute path");
    Ok(())
}

fn home_too_deep(home: &Home) -> TestResult {
    let deep = home.file(&"d".repeat(100));
    refusal(Vm::builder("web").home(deep), ErrorKind::Store, "choose a shorter FLEETBOX_HOME");
    Ok(())
}

fn no_clustering(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "node-1", "detached", r#"{"clustering":false}"#);
    owner.up()?;
    owner.finish();
    refusal(Vm::builder("node-2").home(home.path()), ErrorKind::Unsupported, "cannot put a second machine");
    assert!(!home.file("clusters/node/node-2").exists(), "refused before anything is prepared");
    Ok(home.start("node-1")?.destroy()?)
}
