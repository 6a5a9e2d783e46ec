//! Owners that are killed at random points, and what the next process makes of what they left.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fleetbox_net::{Journal, NetError, Network, Resource, bridge_name, reconcile};
use fleetbox_store::Store;
use libtest_mimic::Trial;

use crate::support::{
    Host, assert_unchanged, cluster, internet, machine, second_uplink, setting, sh, state, trial,
};

/// Set for the child that plays the owner: the store's folder.
pub(crate) const OWNER: &str = "FLEETBOX_NET_TEST_OWNER";

/// Set together with [`OWNER`] and a PATH where `nft` is not as it should be: opening a network fails.
const FAILING: &str = "FLEETBOX_NET_TEST_FAILING";

pub(crate) fn add(trials: &mut Vec<Trial>) {
    trials.extend([
        trial("crash::killed_at_random_points", killed_at_random_points),
        trial("crash::journals_that_are_not_ours_to_undo", journals_left_alone),
        trial("crash::an_earlier_boots_files_are_deleted", earlier_boot),
        trial("crash::without_nft", without_nft),
        trial("crash::a_lost_journal_does_not_keep_forwarding_on", lost_journal),
        trial("crash::a_living_owner_is_left_alone", living_owner),
    ]);
}

/// Opens, uses and closes networks until it is killed.
pub(crate) fn be_an_owner(store: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = Store::open(store).unwrap();
    if std::env::var_os(FAILING).is_some() {
        let c = cluster("web");
        let journal = Arc::new(Journal::open(&store, &c).unwrap());
        let err = runtime.block_on(Network::open(&store, &c, None, journal.clone())).unwrap_err();
        let cause = std::error::Error::source(&err).map(|c| format!(": {c}")).unwrap_or_default();
        println!("{err}{cause}");
        assert!(journal.resources().is_empty());
        journal.finish().unwrap();
        return ExitCode::SUCCESS;
    }
    runtime.block_on(async {
        println!("ready");
        for round in 0.. {
            let c = cluster(&format!("c{}", round % 3));
            let journal = Arc::new(Journal::open(&store, &c).unwrap());
            let half = store.cluster_dir(&c).join("half");
            journal.record(Resource::Path { path: half.clone() }).unwrap();
            std::fs::create_dir_all(&half).unwrap();
            std::fs::write(half.join("disk"), "x").unwrap();
            let net = Network::open(&store, &c, None, journal.clone()).await.unwrap().network;
            let mut taps = Vec::new();
            for m in ["a", "b"].map(machine) {
                let ip = net.address_for(&m, None, &[]).unwrap();
                taps.push(net.attach(&m, ip, [0x52, 0x54, 0, 1, 2, 3]).await.unwrap());
            }
            net.detach(&machine("a")).await.unwrap();
            net.close().await.unwrap();
            std::fs::remove_dir_all(&half).unwrap();
            journal.strike(&Resource::Path { path: half }).unwrap();
            journal.finish().unwrap();
        }
    });
    ExitCode::SUCCESS
}

async fn lost_journal(host: Host) {
    let _internet = internet();
    // What a killed owner leaves whose store was a test's temporary folder: a bridge that names the uplink.
    let pid_ns = fleetbox_os::process::namespace_inode("pid").unwrap();
    sh("ip link add fb0000dead type bridge; echo 1 > /proc/sys/net/ipv4/conf/up0/forwarding");
    sh(&format!("ip link set fb0000dead alias 'fleetbox 999999999 1 {pid_ns} up0=0'"));
    let (net, _journal) = host.open("web").await;
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
    net.close().await.unwrap();
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "0");
    // One of another PID namespace may live: it is waited for.
    sh(
        "echo 1 > /proc/sys/net/ipv4/conf/up0/forwarding; ip link set fb0000dead alias 'fleetbox 999999999 1 1 up0=0'",
    );
    let (net, _journal) = host.open("db").await;
    net.close().await.unwrap();
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
}

async fn without_nft(host: Host) {
    let before = state();
    let empty = host.store.root().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = opened_with_path(&host.store, &empty);
    assert!(text.contains("install the package nftables"), "{text}");
    // A kernel without nf_tables: this is what nft says there.
    let nft = empty.join("nft");
    std::fs::write(
        &nft,
        "#!/bin/sh\necho 'Error: cache initialization failed: Protocol not supported' >&2\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(&nft, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = opened_with_path(&host.store, &empty);
    assert!(text.contains("with nft: Error: cache initialization failed: Protocol not supported"), "{text}");
    assert_unchanged(&before, "");
}

/// What opening a network fails with, in a process with that PATH.
fn opened_with_path(store: &Store, path: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let out = command.env(OWNER, store.root()).env(FAILING, "1").env("PATH", path).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn start_owner(store: &Store) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(OWNER, store.root())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    (child, out)
}

/// splitmix64: small, and the same for the same seed everywhere.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

async fn killed_at_random_points(host: Host) {
    let seed = std::env::var("FLEETBOX_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("FLEETBOX_TEST_SEED={seed}");
    let mut random = Random(seed);
    // All that an owner can touch: an uplink that was off, one that was on, another firewall's chains.
    let _internet = internet();
    let _second = second_uplink();
    sh(
        "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
    );
    sh(
        "nft add table inet own; nft add chain inet own in '{ type filter hook input priority 0; policy drop; }'",
    );
    let before = state();
    let mut left_something = 0;
    for round in 0..30 {
        let (mut owner, _out) = start_owner(&host.store);
        let micros = random.next() % 900_000;
        tokio::time::sleep(Duration::from_micros(micros)).await;
        owner.kill().unwrap();
        owner.wait().unwrap();
        let report = reconcile(&host.store).await.unwrap();
        let what = format!("seed {seed}, round {round}, killed after {micros} µs: {report:?}");
        assert!(report.failed.is_empty() && report.foreign.is_empty(), "{what}");
        left_something += usize::from(!report.undone.is_empty());
        assert_unchanged(&before, &what);
        let left = sh(&format!(
            "find {0}/journal {0}/clusters -mindepth 1 -not -empty -o -type f",
            host.store.root().display()
        ));
        assert_eq!(left, "", "{what}");
        let again = reconcile(&host.store).await.unwrap();
        assert!(again.undone.is_empty() && again.failed.is_empty(), "{again:?}");
    }
    assert!(left_something > 0, "no kill of 30 hit an owner that had anything: the test tests nothing");
}

async fn living_owner(host: Host) {
    let before = state();
    let (mut owner, _out) = start_owner(&host.store);
    for _ in 0..20 {
        let report = reconcile(&host.store).await.unwrap();
        assert!(report.undone.is_empty() && report.failed.is_empty(), "{report:?}");
        assert!(owner.try_wait().unwrap().is_none(), "the owner lost what it needs");
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    reconcile(&host.store).await.unwrap();
    assert_unchanged(&before, "");
}

/// Rewrites the owner in a cluster's journal.
fn edit_owner(store: &Store, name: &str, edit: impl Fn(&mut serde_json::Value)) {
    let file = store.journal_file(&cluster(name));
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    edit(&mut value["owner"]);
    std::fs::write(file, value.to_string()).unwrap();
}

async fn journals_left_alone(host: Host) {
    let journal = host.journal("foreign");
    journal.record(Resource::Bridge { name: "fb00000001".into() }).unwrap();
    drop(journal);
    // A dead process of the namespace that this test's process was started in, and whose first thread is there still.
    let outside = std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
    let inode: u64 = outside.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    edit_owner(&host.store, "foreign", |o| {
        o["start_time"] = 1.into();
        o["net_ns"] = inode.into();
    });
    std::fs::write(host.store.journal_file(&cluster("broken")), "{\"version\": 1, \"own").unwrap();
    std::fs::write(host.store.journal_file(&cluster("newer")), "{\"version\": 99}").unwrap();
    sh("ip link add fb00000001 type bridge");
    let before = (state(), sh(&format!("cat {}/journal/*", host.store.root().display())));
    let report = reconcile(&host.store).await.unwrap();
    assert_eq!(report.undone, []);
    assert_eq!(report.foreign, [(cluster("foreign"), Resource::Bridge { name: "fb00000001".into() })]);
    let failed: Vec<_> = report.failed.iter().map(|(c, e)| (c.as_str(), e.to_string())).collect();
    assert!(
        matches!(&failed[..], [("broken", a), ("newer", b)] if a.contains("damaged") && b.contains("newer")),
        "{failed:?}"
    );
    assert_eq!((state(), sh(&format!("cat {}/journal/*", host.store.root().display()))), before);
    let err = Journal::open(&host.store, &cluster("foreign")).unwrap_err();
    assert!(matches!(err, NetError::ForeignNamespace { .. }), "{err}");
}

async fn earlier_boot(host: Host) {
    let c = cluster("web");
    let journal = host.journal("web");
    let bridge = bridge_name(&host.store, &c);
    let half = host.store.cluster_dir(&c).join("half");
    let kept = host.store.cluster_dir(&c).join("kept");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::create_dir_all(&kept).unwrap();
    journal.record(Resource::Bridge { name: bridge.clone() }).unwrap();
    journal.record(Resource::Path { path: half.clone() }).unwrap();
    drop(journal);
    edit_owner(&host.store, "web", |o| o["boot_id"] = "an earlier one".into());
    // A bridge of that name in this boot is none of the record's business.
    sh(&format!("ip link add {bridge} type bridge"));
    let report = reconcile(&host.store).await.unwrap();
    assert!(report.failed.is_empty() && report.undone.len() == 2, "{report:?}");
    assert!(!half.exists() && kept.exists() && !host.store.journal_file(&c).exists());
    sh(&format!("ip link show {bridge}"));
}
