//! Deaths at random moments, and many machines at once.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use fleetbox::StartOptions;
use fleetbox::blocking::start_n;
use fleetbox_os::process::PidFd;
use libtest_mimic::Trial;

use crate::clusters::holders;
use crate::deaths::leftovers;
use crate::support::{
    Home, Isolated, Owner, PATIENCE, PROMISE, TestResult, ended, processes_with, trial, trial_in,
};

/// How often something is killed, each time at another moment.
const ROUNDS: u64 = 30;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("owner_of_three_killed_thirty_times_at_random_leaves_nothing", owner_killed),
        trial("holder_of_three_killed_thirty_times_at_random_and_the_next_call_cleans", holder_killed),
        trial_in(
            "two_hundred_machines_from_eight_processes_do_not_collide",
            Isolated { namespace: true, env: &[("FLEETBOX_MEMORY", "1000000")] },
            many,
        ),
    ]
}

/// Numbers that are the same again for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn seeded(test: &str) -> Self {
        let seed = match std::env::var("FLEETBOX_TEST_SEED") {
            Ok(text) => text.parse().unwrap(),
            Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64,
        };
        eprintln!("{test}: FLEETBOX_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Takes some 600 ms to come up on a host that does nothing else.
const SLOW: &str = r#"{"launch_delay_ms":100}"#;

fn owner_killed(home: &Home) -> TestResult {
    let mut random = Random::seeded("owner_killed");
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let name = format!("r{round}");
        let owner = Owner::spawn(home, &name, "trio", SLOW);
        let after = random.below(1200);
        std::thread::park_timeout(Duration::from_millis(after));
        owner.kill();
        let killed = Instant::now();
        fleetbox_testkit::wait_for("nothing to be left", PROMISE, || nothing_of(home, &name))
            .map_err(|e| format!("round {round}, killed after {after} ms: {e}"))?;
        slowest = slowest.max(killed.elapsed());
    }
    eprintln!("owner_killed: everything was gone after {} ms at the most", slowest.as_millis());
    Ok(())
}

fn nothing_of(home: &Home, cluster: &str) -> Result<(), String> {
    let left = leftovers(home, cluster);
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

fn holder_killed(home: &Home) -> TestResult {
    let mut random = Random::seeded("holder_killed");
    for round in 0..ROUNDS {
        let name = format!("r{round}");
        let mut owner = Owner::spawn(home, &name, "trio", SLOW);
        let holder = fleetbox_testkit::wait_for("the holder", PATIENCE, || {
            holders(home).first().copied().ok_or("there is none yet")
        })?;
        let after = random.below(1000);
        std::thread::park_timeout(Duration::from_millis(after));
        // It has ended by itself only if its owner could not go on, which the owner tells.
        PidFd::open(holder)?.kill()?;
        let _said = owner.line();
        owner.kill();
        let at = || format!("round {round}, killed after {after} ms");
        // A process that exits shows no environment any more while it still has its taps: so it is asked for by its id.
        ended(holder, PATIENCE).map_err(|e| format!("{}: {e}", at()))?;
        // The kernel ends the VMMs.
        let alone = || match processes_with(home.path()) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        };
        fleetbox_testkit::wait_for("the VMMs' end", PROMISE, alone).map_err(|e| format!("{}: {e}", at()))?;
        let undone = home.prune()?;
        // A holder that was just being started when its owner was killed ends by itself.
        fleetbox_testkit::wait_for("nothing to be left", PROMISE, || nothing_of(home, &name))
            .map_err(|e| format!("{}: {e}; undone: {undone}", at()))?;
        let bridges = std::fs::read_dir("/sys/class/net")?.flatten();
        let made = home.bridge_name(&name);
        assert!(!bridges.into_iter().any(|l| l.file_name() == *made), "{}: bridge {made}", at());
    }
    Ok(())
}

const PROCESSES: usize = 8;
const EACH: u32 = 10;
const MANY: &str = "FLEETBOX_TEST_MANY";

/// Starts every eighth cluster, tells its machines, and waits for the end of its input.
pub(crate) fn become_one_of_many_if_asked() -> bool {
    let Ok(orders) = std::env::var(MANY) else { return false };
    let (index, clusters) = orders.split_once(' ').unwrap();
    let (index, clusters): (usize, usize) = (index.parse().unwrap(), clusters.parse().unwrap());
    let home = std::env::var("FLEETBOX_TEST_HOME").unwrap();
    let mut all = Vec::new();
    for cluster in (index..clusters).step_by(PROCESSES) {
        let options = StartOptions::new().home(&home).memory_mib(128).ephemeral();
        match start_n(&format!("c{cluster}"), EACH, options) {
            Ok(vms) => all.extend(vms),
            Err(e) => println!("failed {}", crate::support::chain(&e)),
        }
    }
    for vm in &all {
        println!("{} {}", vm.name(), vm.ip());
    }
    println!("done");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    for vm in all {
        vm.destroy().unwrap();
    }
    true
}

fn many(home: &Home) -> TestResult {
    let clusters: usize = std::env::var("FLEETBOX_TEST_CLUSTERS").map_or(20, |n| n.parse().unwrap());
    let began = Instant::now();
    let mut children: Vec<(Child, BufReader<_>)> = (0..PROCESSES)
        .map(|index| {
            let mut child = Command::new("/proc/self/exe")
                .env(MANY, format!("{index} {clusters}"))
                .env("FLEETBOX_TEST_HOME", home.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let said = BufReader::new(child.stdout.take().unwrap());
            (child, said)
        })
        .collect();
    let mut machines = Vec::new();
    for (_, said) in &mut children {
        for line in said.lines() {
            match line? {
                line if line == "done" => break,
                line => machines.push(line),
            }
        }
    }
    let up = began.elapsed();
    let (count, memory) = (machines.len(), pss_kib(home));
    let addresses: BTreeSet<&str> = machines.iter().filter_map(|m| Some(m.split_once(' ')?.1)).collect();
    let subnets: BTreeSet<&str> = addresses.iter().filter_map(|a| Some(a.rsplit_once('.')?.0)).collect();
    assert!(!machines.iter().any(|m| m.starts_with("failed")), "{machines:?}");
    assert_eq!(
        (count, addresses.len(), subnets.len()),
        (clusters * EACH as usize, clusters * EACH as usize, clusters)
    );
    assert_eq!(holders(home).len(), clusters);
    let ending = Instant::now();
    for (mut child, _) in children {
        drop(child.stdin.take());
        assert!(child.wait()?.success());
    }
    fleetbox_testkit::wait_for("all processes to end", PATIENCE, || match processes_with(home.path()) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{} processes", left.len())),
    })?;
    eprintln!(
        "many: {count} machines in {clusters} clusters: up after {} ms, gone after {} ms, holders have {} KiB, {} KiB for each machine",
        up.as_millis(),
        ending.elapsed().as_millis(),
        memory,
        memory / count as u64,
    );
    // In a namespace of its own, so all that is there was made here.
    let links: Vec<_> =
        std::fs::read_dir("/proc/thread-self/net/dev_snmp6")?.flatten().map(|e| e.file_name()).collect();
    assert_eq!(links, ["lo"]);
    let rules = Command::new("nft").args(["list", "ruleset"]).output()?;
    assert_eq!(String::from_utf8(rules.stdout)?, "");
    let left: Vec<_> = ["run", "journal", "clusters"]
        .iter()
        .flat_map(|dir| std::fs::read_dir(home.file(dir)).unwrap().flatten())
        .filter(|e| !e.file_name().to_string_lossy().starts_with("probe-"))
        .map(|e| e.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// What the holders of a home use of memory that nobody else uses, and their part of what is shared.
fn pss_kib(home: &Home) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        text.lines().find_map(|l| l.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
    };
    holders(home).into_iter().filter_map(of).sum()
}
