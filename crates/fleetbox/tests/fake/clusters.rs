//! Clusters: machines that share a network and a holder.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleetbox::blocking::{Cluster, Vm, start_cluster, start_n};
use fleetbox::{ClusterBuilder, Error, ErrorKind, Event, MachineInfo, Members, StartOptions, State};
use fleetbox_os::process::PidFd;
use libtest_mimic::Trial;

use crate::support::{
    Home, Isolated, Owner, PATIENCE, TestResult, chain, ended, processes_with, trial, trial_in, wait_state,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("create_boots_nothing_and_close_releases_the_network", create),
        trial("twenty_members_at_once_have_twenty_addresses_and_one_holder", twenty),
        trial("members_are_told_in_the_order_added", order),
        trial("close_refuses_while_members_run_and_names_them", close_refuses),
        trial("closing_twice_is_fine_and_adding_afterwards_is_not", closed),
        trial("adding_while_the_cluster_is_being_closed_is_refused", add_while_closing),
        trial("an_explicit_network_stays_while_it_is_empty", explicit_stays),
        trial("a_cluster_comes_back_with_its_subnet_addresses_and_macs", comes_back),
        trial("a_name_in_use_elsewhere_is_refused_with_its_cluster", name_elsewhere),
        trial("adding_a_member_twice_gives_the_same_machine", same_twice),
        trial("dropping_the_last_handle_ends_the_cluster", drop_ends),
        trial("start_n_is_in_order_and_on_one_network", start_n_order),
        trial("a_failed_start_n_puts_back_what_there_was", start_n_fails),
        trial("machines_of_different_clusters_are_not_started_together", different_clusters),
        trial("what_somebody_deletes_is_told_and_close_succeeds", damage),
        trial("closing_by_name_also_what_nobody_holds", close_by_name),
        trial_in(
            "a_second_member_without_clustering_is_refused_before_anything_is_prepared",
            Isolated { env: &[("FLEETBOX_FAKE", r#"{"clustering":false}"#)], ..Isolated::default() },
            no_clustering,
        ),
        trial_in(
            "a_subnet_taken_meanwhile_gives_new_addresses",
            Isolated { namespace: true, ..Isolated::default() },
            renumbered,
        ),
        trial_in(
            "memory_is_waited_for_across_holders_and_given_up_with_names",
            Isolated { namespace: true, env: &[("FLEETBOX_MEMORY", "2500")] },
            memory,
        ),
        trial_in(
            "no_more_machines_boot_at_once_than_there_are_turns",
            Isolated {
                namespace: true,
                env: &[("FLEETBOX_BOOTS", "2"), ("FLEETBOX_FAKE", r#"{"launch_delay_ms":400}"#)],
            },
            turns,
        ),
    ]
}

fn builder(home: &Home, name: &str) -> ClusterBuilder {
    Cluster::builder(name).home(home.path())
}

fn cluster(home: &Home, name: &str) -> fleetbox::Result<Cluster> {
    Cluster::create(builder(home, name))
}

fn options(home: &Home) -> StartOptions {
    StartOptions::new().home(home.path())
}

fn has_link(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// The holders of a home, by their command line.
pub(crate) fn holders(home: &Home) -> Vec<u32> {
    let is_holder = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("fleetbox-holder")
    };
    processes_with(home.path()).into_iter().filter(is_holder).collect()
}

fn run(command: &str) -> Result<String, Box<dyn std::error::Error>> {
    let out = Command::new("sh").args(["-ec", command]).output()?;
    if out.status.success() {
        return Ok(String::from_utf8(out.stdout)?);
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&out.stderr)).into())
}

fn create(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    assert_eq!((raft.name(), raft.vms().len(), raft.supports_clustering()), ("raft", 0, true));
    let bridge = home.bridge("raft");
    assert!(has_link(&bridge));
    assert_eq!(raft.damage()?, [""; 0]);
    assert_eq!(processes_with(home.path()), holders(home), "a holder and nothing else");
    assert_eq!(holders(home).len(), 1);
    raft.close()?;
    assert!(!has_link(&bridge) && holders(home).is_empty());
    assert!(!home.file("clusters/raft").exists());
    Ok(())
}

fn twenty(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    let all: Vec<MachineInfo> = std::thread::scope(|s| {
        let adds: Vec<_> = (1..=20)
            .map(|n| {
                s.spawn({
                    let raft = &raft;
                    move || raft.add(format!("node-{n}")).and_then(|vm| vm.info())
                })
            })
            .collect();
        adds.into_iter().map(|a| a.join().unwrap()).collect::<fleetbox::Result<_>>()
    })?;
    let addresses: BTreeSet<IpAddr> = all.iter().filter_map(|i| i.ip).collect();
    let macs: BTreeSet<&str> = all.iter().map(|i| i.mac.as_str()).collect();
    let holders: BTreeSet<_> = all.iter().map(|i| i.holder_pid).collect();
    assert_eq!((addresses.len(), macs.len(), holders.len(), raft.vms().len()), (20, 20, 1, 20));
    Ok(raft.close_with(Members::Destroy)?)
}

fn order(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    for name in ["c", "a", "d", "b"] {
        raft.add(name)?;
    }
    let names = || raft.vms().iter().map(|v| v.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(), ["c", "a", "d", "b"]);
    raft.vms()[1].destroy()?;
    raft.vms()[0].stop()?;
    assert_eq!(names(), ["c", "d", "b"], "what is destroyed is no member, what is stopped still is");
    raft.add("a")?;
    assert_eq!(names(), ["c", "d", "b", "a"]);
    Ok(raft.close_with(Members::Destroy)?)
}

fn close_refuses(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    for name in ["a", "b", "c"] {
        raft.add(name)?;
    }
    raft.vms()[1].stop()?;
    let error = raft.close().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(chain(&error), "cluster raft has members that run: a, c");
    assert_eq!(raft.vms()[0].state()?, State::Running, "nothing was done");
    raft.add("b")?;
    raft.close_with(Members::Stop)?;
    assert!(holders(home).is_empty());
    for name in ["a", "b", "c"] {
        assert!(home.file(&format!("clusters/raft/{name}/disk.raw")).exists());
    }
    cluster(home, "raft")?.close_with(Members::Destroy)?;
    assert!(!home.file("clusters/raft").exists());
    Ok(())
}

fn closed(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    raft.close()?;
    raft.close()?;
    raft.close_with(Members::Destroy)?;
    let error = raft.add("a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closing);
    assert_eq!(error.to_string(), "cluster raft is closed: starting machine a needs it");
    // Not even by way of a later cluster of that name.
    let again = cluster(home, "raft")?;
    assert_eq!(raft.add("a").unwrap_err().kind(), ErrorKind::Closing);
    again.close()?;
    Ok(())
}

fn add_while_closing(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    raft.add("a")?;
    let refused = std::thread::scope(|s| {
        let adds = s.spawn(|| {
            let mut n = 0;
            loop {
                n += 1;
                if let Err(e) = raft.add(format!("m{n}")) {
                    return e;
                }
            }
        });
        raft.close_with(Members::Destroy)?;
        Ok::<_, Error>(adds.join().unwrap())
    })?;
    assert!(
        matches!(refused.kind(), ErrorKind::Closing | ErrorKind::Cancelled),
        "{:?} {}",
        refused.kind(),
        chain(&refused)
    );
    assert!(holders(home).is_empty());
    assert!(!home.file("clusters/raft").exists());
    Ok(())
}

fn explicit_stays(home: &Home) -> TestResult {
    let mut owner = Owner::spawn(home, "raft", "detached-cluster", "{}");
    assert_eq!(owner.line(), "up");
    assert!(owner.finish().success());
    let bridge = home.bridge("raft");
    let before = holders(home);
    // Found, not made anew.
    let raft = cluster(home, "raft")?;
    raft.add("a")?.destroy()?;
    drop(raft);
    // Longer than a detached holder stays for nothing.
    std::thread::park_timeout(Duration::from_millis(700));
    assert!(has_link(&bridge));
    assert_eq!(holders(home), before);
    // A machine that comes by its own way is on it, and leaves it there.
    Vm::start(Vm::builder("b").cluster("raft").home(home.path()))?.destroy()?;
    let raft = cluster(home, "raft")?;
    raft.close()?;
    assert!(!has_link(&bridge) && holders(home).is_empty());
    Ok(())
}

fn place(info: &MachineInfo) -> (Option<IpAddr>, String, String) {
    (info.ip, info.mac.clone(), info.host_key.clone())
}

fn comes_back(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    let names = ["a", "b", "c"];
    let before: Vec<_> =
        names.iter().map(|n| raft.add(*n)?.info()).map(|i| i.map(|i| place(&i))).collect::<Result<_, _>>()?;
    raft.close_with(Members::Stop)?;
    let record = std::fs::read_to_string(home.file("clusters/raft/network.json"))?;
    // Another cluster in between does not take what this one comes back to.
    let other = cluster(home, "other")?;
    let raft = cluster(home, "raft")?;
    let after: Vec<_> = names
        .iter()
        .rev()
        .map(|n| raft.add(*n)?.info())
        .map(|i| i.map(|i| place(&i)))
        .collect::<Result<_, _>>()?;
    assert_eq!(before, after.into_iter().rev().collect::<Vec<_>>());
    let subnet = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["subnet"].clone();
    assert_eq!(subnet(&record), subnet(&std::fs::read_to_string(home.file("clusters/raft/network.json"))?));
    other.close()?;
    Ok(raft.close_with(Members::Destroy)?)
}

fn name_elsewhere(home: &Home) -> TestResult {
    let (one, two) = (cluster(home, "one")?, cluster(home, "two")?);
    one.add("web")?;
    let error = two.add("web").unwrap_err();
    assert_eq!(
        (error.kind(), chain(&error).as_str()),
        (ErrorKind::Conflict, "machine web exists already, in cluster one")
    );
    one.vms()[0].stop()?;
    assert_eq!(two.add("web").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(two.vms().len(), 0);
    // Without a cluster being named, it is the one that it is in.
    assert_eq!(home.start("web")?.info()?.cluster.as_str(), "one");
    two.close()?;
    Ok(one.close_with(Members::Destroy)?)
}

fn same_twice(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    let (one, two) = std::thread::scope(|s| {
        let two = s.spawn(|| raft.add("a"));
        (raft.add("a"), two.join().unwrap())
    });
    let (one, two) = (one?, two?);
    let pid = one.info()?.vmm_pid;
    assert_eq!((pid, raft.vms().len()), (two.info()?.vmm_pid, 1));
    // Each of them is a handle of the one machine, which ends with the last.
    drop(two);
    assert_eq!(raft.add("a")?.info()?.vmm_pid, pid);
    std::thread::park_timeout(Duration::from_millis(100));
    assert_eq!((one.state()?, one.info()?.vmm_pid), (State::Running, pid));
    Ok(raft.close_with(Members::Destroy)?)
}

fn drop_ends(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    let infos = [raft.add("a")?.info()?, raft.add_with("b", |m| m.ephemeral())?.info()?];
    let (bridge, holder) = (home.bridge("raft"), holders(home)[0]);
    let kept = raft.clone();
    drop(raft);
    assert_eq!(kept.vms()[0].state()?, State::Running);
    drop(kept);
    ended(holder, PATIENCE)?;
    for info in infos {
        ended(info.vmm_pid.unwrap_or(0), PATIENCE)?;
    }
    assert!(!has_link(&bridge));
    assert!(home.file("clusters/raft/a/disk.raw").exists() && !home.file("clusters/raft/b").exists());
    cluster(home, "raft")?.close_with(Members::Destroy)?;
    Ok(())
}

fn start_n_order(home: &Home) -> TestResult {
    assert_eq!(start_n("node", 0, options(home))?.len(), 0);
    let nodes = start_n("node", 3, options(home))?;
    let names: Vec<&str> = nodes.iter().map(Vm::name).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3"]);
    let infos = nodes.iter().map(Vm::info).collect::<Result<Vec<_>, _>>()?;
    let (clusters, pids): (BTreeSet<_>, BTreeSet<_>) =
        infos.iter().map(|i| (i.cluster.as_str(), i.holder_pid)).unzip();
    assert_eq!((clusters, pids.len()), (BTreeSet::from(["node"]), 1));
    // What runs is returned as it is.
    let more = start_n("node", 4, options(home))?;
    for (a, b) in infos.iter().zip(&more) {
        assert_eq!(a.vmm_pid, b.info()?.vmm_pid);
    }
    drop(nodes);
    assert_eq!(more[0].state()?, State::Running);
    for vm in more {
        vm.destroy()?;
    }
    assert_eq!(start_n("no name", 1, options(home)).unwrap_err().kind(), ErrorKind::InvalidInput);
    let twice = start_cluster(&["a", "b", "a"], options(home)).unwrap_err();
    assert_eq!(
        (twice.kind(), twice.to_string().as_str()),
        (ErrorKind::InvalidInput, "machine a is named twice")
    );
    Ok(())
}

fn start_n_fails(home: &Home) -> TestResult {
    let with = |image: &'static str| options(home).cluster("node").image(image);
    // node-1: stopped; node-2: stopped and of another image, so it fails; node-3: runs; node-4: does not exist.
    let [one, three] = &start_cluster(&["node-1", "node-3"], with("bootstrap:trixie"))?[..] else { panic!() };
    let two = start_cluster(&["node-2"], with("bootstrap:bookworm"))?.remove(0);
    one.stop()?;
    two.stop()?;
    let before = three.info()?;
    let error = start_n("node", 4, with("bootstrap:trixie")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(chain(&error).contains("node-2 was made from image bootstrap:bookworm"), "{}", chain(&error));
    assert_eq!((one.state()?, two.state()?), (State::Stopped, State::Stopped));
    for name in ["node-1", "node-2"] {
        assert!(home.file(&format!("clusters/node/{name}/disk.raw")).exists());
    }
    let after = three.info()?;
    assert_eq!((after.state, after.vmm_pid), (State::Running, before.vmm_pid));
    assert!(!home.file("clusters/node/node-4").exists());
    for vm in [one, &two, three] {
        vm.destroy()?;
    }
    Ok(())
}

fn different_clusters(home: &Home) -> TestResult {
    let (a, b) = (home.start("a")?, home.start("b")?);
    let error = start_cluster(&["c", "a", "b"], options(home)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.to_string(), "machines a and b cannot share a network: a is in cluster a, b in b");
    assert!(!home.file("clusters/c").exists());
    b.destroy()?;
    // What exists says where the others go.
    let [c, _] = &start_cluster(&["c", "a"], options(home))?[..] else { panic!() };
    assert_eq!(c.info()?.cluster.as_str(), "a");
    c.destroy()?;
    Ok(a.destroy()?)
}

fn damage(home: &Home) -> TestResult {
    let table = |bridge: &str| format!("nft list tables | grep {bridge} | head -1");
    type Deed = fn(&str) -> String;
    let deeds: [(Deed, &str); 3] = [
        (|bridge| format!("ip link delete {bridge}"), "is gone"),
        (|bridge| format!("nft delete $(nft list tables | grep {bridge} | head -1)"), "firewall rules lack"),
        (
            |bridge| format!("ip link delete $(ip -o link show master {bridge} | head -1 | cut -d: -f2)"),
            "of machine a is gone",
        ),
    ];
    for (deed, words) in deeds {
        let raft = cluster(home, "raft")?;
        raft.add("a")?;
        assert_eq!(raft.damage()?, [""; 0]);
        let bridge = home.bridge("raft");
        assert!(!run(&table(&bridge))?.is_empty());
        run(&deed(&bridge))?;
        let told = raft.damage()?;
        assert!(told.iter().any(|d| d.contains(words)), "{words}: {told:?}");
        raft.close_with(Members::Destroy)?;
        assert!(!has_link(&bridge));
        assert_eq!(run(&table(&bridge))?, "");
    }
    Ok(())
}

fn close_by_name(home: &Home) -> TestResult {
    // By name is in the default home only, so another process of this program does it.
    let mut owner = Owner::spawn(home, "raft", "named", "{}");
    owner.up()?;
    let said = close_in_child(home, "raft");
    assert!(said.starts_with("Held "), "{said}");
    assert!(owner.finish().success());
    assert_eq!(close_in_child(home, "raft"), "closed");
    assert!(!home.file("clusters/raft").exists());
    assert!(close_in_child(home, "raft").starts_with("NotFound there is no cluster raft"));
    let mut owner = Owner::spawn(home, "raft", "detached", "{}");
    owner.up()?;
    assert!(owner.finish().success());
    assert_eq!(close_in_child(home, "raft"), "closed");
    assert!(holders(home).is_empty());
    Ok(())
}

fn close_in_child(home: &Home, cluster: &str) -> String {
    let mut closer = Owner::spawn(home, cluster, "close", "{}");
    let line = closer.line();
    closer.finish();
    line
}

fn no_clustering(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    assert!(!raft.supports_clustering());
    let a = raft.add("a")?;
    let error = raft.add("b").unwrap_err();
    assert!(matches!(error, Error::ClustersUnsupported(_)), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(!home.file("clusters/raft/b").exists());
    assert_eq!(raft.vms().len(), 1);
    // The one that is there can be stopped, started, and make room for another.
    a.stop()?;
    raft.add("b")?;
    assert_eq!(a.start_again().unwrap_err().kind(), ErrorKind::Unsupported);
    raft.close_with(Members::Destroy)?;
    // Of several that start at once one comes first.
    let error = start_n("node", 3, options(home)).unwrap_err();
    assert!(matches!(error, Error::ClustersUnsupported(_)), "{error:?}");
    assert!(!home.file("clusters/node/node-1").exists());
    Ok(())
}

fn renumbered(home: &Home) -> TestResult {
    let raft = cluster(home, "raft")?;
    let before = raft.add("a")?.info()?;
    raft.close_with(Members::Stop)?;
    let ip = before.ip.ok_or("no address")?;
    run(&format!("ip link add taken type bridge; ip address add {ip}/24 dev taken; ip link set taken up"))?;
    let warned = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&warned);
    let raft = Cluster::create(builder(home, "raft").on_event(move |event| {
        if let Event::Warning { message, .. } = event {
            listener.lock().unwrap().push(message);
        }
    }))?;
    let after = raft.add("a")?.info()?;
    assert_ne!(before.ip, after.ip);
    assert_eq!((before.mac, before.host_key), (after.mac, after.host_key));
    let said = warned.lock().unwrap().clone();
    assert!(said.iter().any(|m| m.contains(&format!("its address {ip} is not free any more"))), "{said:?}");
    raft.close_with(Members::Destroy)?;
    run("ip link delete taken")?;
    Ok(())
}

/// What was said of waiting.
fn waits(home: &Home, name: &str) -> (ClusterBuilder, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&said);
    let builder = builder(home, name).on_event(move |event| {
        if let Event::PhaseStarted { detail, .. } | Event::PhaseProgress { detail, .. } = event
            && detail.starts_with("waiting")
        {
            listener.lock().unwrap().push(detail);
        }
    });
    (builder, said)
}

fn memory(home: &Home) -> TestResult {
    let one = cluster(home, "one")?;
    let a = one.add("a")?;
    one.add("b")?;
    let (builder, said) = waits(home, "two");
    let two = Cluster::create(builder)?;
    // Given up after its boot's time, and it says who has the memory.
    let error = two.add_with("c", |m| m.boot_timeout(Duration::from_secs(1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    let text = chain(&error);
    assert!(text.contains("waited 1 s for 1024 MiB") && text.contains("a (1024 MiB, holder "), "{text}");
    // What can never be had is not waited for.
    let error = two.add_with("d", |m| m.memory_mib(2600)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    assert!(chain(&error).contains("2600 MiB of memory, but this host has 2500 MiB"), "{}", chain(&error));
    // Had, as soon as another gives it up ...
    said.lock().unwrap().clear();
    let wait_said = || {
        fleetbox_testkit::wait_for("word of the wait", PATIENCE, || match said.lock().unwrap().last() {
            Some(_) => Ok(()),
            None => Err("silence"),
        })
    };
    std::thread::scope(|s| {
        let c = s.spawn(|| two.add("c"));
        wait_said()?;
        a.stop()?;
        c.join().unwrap()?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    // ... or its holder is killed.
    said.lock().unwrap().clear();
    std::thread::scope(|s| {
        let d = s.spawn(|| two.add("d"));
        wait_said()?;
        PidFd::open(one.vms()[1].info()?.holder_pid.unwrap_or(0))?.kill()?;
        d.join().unwrap()?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    two.close_with(Members::Destroy)?;
    one.close()?;
    cluster(home, "one")?.close_with(Members::Destroy)?;
    Ok(())
}

fn turns(home: &Home) -> TestResult {
    let (builder, said) = waits(home, "raft");
    let raft = Cluster::create(builder)?;
    std::thread::scope(|s| {
        let adds: Vec<_> = (0..6)
            .map(|n| {
                s.spawn({
                    let raft = &raft;
                    move || raft.add(format!("m{n}"))
                })
            })
            .collect();
        adds.into_iter().map(|a| a.join().unwrap()).collect::<fleetbox::Result<Vec<_>>>()
    })?;
    for vm in raft.vms() {
        wait_state(&vm, State::Running)?;
    }
    let said = said.lock().unwrap().clone();
    assert!(
        said.iter()
            .any(|w| w == "waiting for its turn to boot: at most 2 machines boot at once on this host"),
        "{said:?}"
    );
    Ok(raft.close_with(Members::Destroy)?)
}
