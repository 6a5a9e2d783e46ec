//! Open, attach, detach, close; names and subnets that are taken.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use fleetbox_net::{NetError, Network, Resource, bridge_name, reconcile, tap_name};
use fleetbox_store::{NetworkRecord, write_json};
use libtest_mimic::Trial;

use crate::support::{Host, assert_unchanged, cluster, machine, sh, state, trial};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

pub(crate) fn add(trials: &mut Vec<Trial>) {
    trials.extend([
        trial("lifecycle::a_network_comes_and_goes", a_network_comes_and_goes),
        trial("lifecycle::a_stopped_cluster_comes_back_as_it_was", comes_back),
        trial("lifecycle::a_taken_subnet_is_left_to_its_taker", renumbered),
        trial("lifecycle::every_24_taken", every_24_taken),
        trial("lifecycle::names_that_are_taken", names_taken),
        trial("lifecycle::somebody_deletes_our_links", links_deleted),
        trial("lifecycle::many_clusters_at_once_get_different_subnets", many_at_once),
        trial("lifecycle::two_stores_share_a_host", two_stores),
    ]);
}

async fn a_network_comes_and_goes(host: Host) {
    let before = state();
    let (net, journal) = host.open("web").await;
    let bridge = net.bridge().to_owned();
    assert_eq!(bridge, bridge_name(&host.store, &cluster("web")));
    let gateway = net.gateway();
    assert_eq!(gateway.octets()[3], 1);
    let text = sh(&format!("ip -d -o link show {bridge}; ip -o -4 addr show {bridge}"));
    for want in ["stp_state 0", "forward_delay 0", "mcast_snooping 0", &format!("inet {gateway}/24"), ",UP"] {
        assert!(text.contains(want), "{want}: {text}");
    }

    let (a, b) = (machine("a"), machine("b"));
    let ip_a = net.address_for(&a, None, &[]).unwrap();
    let first = net.attach(&a, ip_a, MAC).await.unwrap();
    let ip_b = net.address_for(&b, None, &[]).unwrap();
    assert_ne!(ip_a, ip_b, "an attached machine's address is not given twice");
    assert_eq!(first.link, tap_name(&host.store, &cluster("web"), &a));
    assert!(sh(&format!("ip -o link show {}", first.link)).contains(&format!("master {bridge}")));
    assert!(first.tap.as_raw_fd() > 2);
    let named = journal.resources();
    assert!(named.contains(&Resource::Tap { name: first.link.clone() }), "{named:?}");

    assert!(matches!(net.attach(&a, ip_a, MAC).await, Err(NetError::AlreadyAttached { .. })));
    assert!(matches!(net.attach(&b, ip_a, MAC).await, Err(NetError::BadAddress { by: Some(_), .. })));
    assert!(matches!(net.attach(&b, gateway, MAC).await, Err(NetError::BadAddress { by: None, .. })));
    let second = net.attach(&b, ip_b, MAC).await.unwrap();

    net.detach(&a).await.unwrap();
    net.detach(&a).await.unwrap();
    assert!(!journal.resources().contains(&Resource::Tap { name: first.link.clone() }));
    assert!(!sh("ip -o link").contains(&first.link), "detached though its descriptor is still open");
    // The same machine again, on a tap of its own.
    let again = net.attach(&a, ip_a, MAC).await.unwrap();
    // Its VMM dies: the next start finds no tap and makes one.
    drop(again);
    let _again = net.attach(&a, ip_a, MAC).await.unwrap();

    net.close().await.unwrap();
    net.close().await.unwrap();
    assert!(matches!(net.attach(&a, ip_a, MAC).await, Err(NetError::Closed { .. })));
    assert_eq!(journal.resources(), []);
    journal.finish().unwrap();
    assert!(!host.store.journal_file(&cluster("web")).exists());
    drop(second);
    assert_unchanged(&before, "");
}

async fn comes_back(host: Host) {
    let (net, journal) = host.open("web").await;
    let record = NetworkRecord { explicit: true, ..net.record() };
    net.close().await.unwrap();
    // Another cluster must not take the subnet of a stopped one.
    std::fs::create_dir_all(host.store.cluster_dir(&cluster("web"))).unwrap();
    write_json(&host.store.network_file(&cluster("web")), &record, 0o644).unwrap();
    let wants_the_same = NetworkRecord { bridge: "x".into(), ..record.clone() };
    let other = host.journal("other");
    let opened = Network::open(&host.store, &cluster("other"), Some(wants_the_same), other).await.unwrap();
    assert!(opened.renumbered);
    assert_ne!(opened.network.record().subnet, record.subnet);

    let opened = Network::open(&host.store, &cluster("web"), Some(record.clone()), journal).await.unwrap();
    assert!(!opened.renumbered);
    assert_eq!(opened.network.record(), record);
    opened.network.close().await.unwrap();
}

async fn renumbered(host: Host) {
    let (net, journal) = host.open("web").await;
    let record = net.record();
    net.close().await.unwrap();
    let [a, b, c, _] = record.subnet.octets();
    // A route in a table of its own, as VPNs with policy routing have, to a part of the /24 only.
    sh(&format!(
        "ip link add dummy0 type veth peer name dummy1 && ip link set dummy0 up && ip route add {a}.{b}.{c}.128/25 dev dummy0 table 77"
    ));
    let opened =
        Network::open(&host.store, &cluster("web"), Some(record.clone()), journal.clone()).await.unwrap();
    assert!(opened.renumbered);
    assert_ne!(opened.network.record().subnet, record.subnet);
    let was = Ipv4Addr::new(a, b, c, 9);
    let ip = opened.network.address_for(&machine("m"), Some(was), &[]).unwrap();
    assert_eq!((ip.octets()[3], ip != was), (9, true));
    opened.network.close().await.unwrap();
    // The same when an address is in the way.
    sh("ip route flush table 77");
    sh(&format!("ip addr add {a}.{b}.{c}.77/32 dev dummy0"));
    let opened = Network::open(&host.store, &cluster("web"), Some(record), journal).await.unwrap();
    assert!(opened.renumbered);
    opened.network.close().await.unwrap();
}

async fn every_24_taken(host: Host) {
    sh(
        "ip route add blackhole 10.0.0.0/8; ip route add unreachable 172.16.0.0/12; ip route add blackhole 192.168.0.0/17",
    );
    sh("ip link add dummy0 type veth peer name dummy1; ip addr add 192.168.255.1/17 dev dummy0");
    let before = state();
    let journal = host.journal("web");
    let err = Network::open(&host.store, &cluster("web"), None, journal.clone()).await.unwrap_err();
    assert!(matches!(err, NetError::NoFreeSubnet { .. }), "{err}");
    assert_eq!(journal.resources(), []);
    assert_unchanged(&before, "");
    sh("ip route del unreachable 172.16.0.0/12");
    let opened = Network::open(&host.store, &cluster("web"), None, journal).await.unwrap();
    assert_eq!(opened.network.gateway().octets()[0], 172);
    opened.network.close().await.unwrap();
}

async fn names_taken(host: Host) {
    let bridge = bridge_name(&host.store, &cluster("web"));
    sh(&format!("ip link add {bridge} type bridge"));
    let before = state();
    let journal = host.journal("web");
    let err = Network::open(&host.store, &cluster("web"), None, journal.clone()).await.unwrap_err();
    assert!(err.to_string().contains(&bridge), "{err}");
    assert_eq!((journal.resources(), state()), (vec![], before));
    sh(&format!("ip link del {bridge}"));

    let (net, journal) =
        (Network::open(&host.store, &cluster("web"), None, journal.clone()).await.unwrap().network, journal);
    let m = machine("m");
    let tap = tap_name(&host.store, &cluster("web"), &m);
    sh(&format!("ip tuntap add dev {tap} mode tap"));
    let before = (state(), journal.resources());
    let ip = net.address_for(&m, None, &[]).unwrap();
    let err = net.attach(&m, ip, MAC).await.unwrap_err();
    assert!(matches!(&err, NetError::LinkExists { link } if *link == tap), "{err}");
    assert_eq!((state(), journal.resources()), before);
    sh(&format!("ip link del {tap}"));
    net.attach(&m, ip, MAC).await.unwrap();
    net.close().await.unwrap();
}

async fn links_deleted(host: Host) {
    let before = state();
    let (net, journal) = host.open("web").await;
    let m = machine("m");
    let ip = net.address_for(&m, None, &[]).unwrap();
    let port = net.attach(&m, ip, MAC).await.unwrap();
    sh(&format!("ip link del {}; ip link del {}", port.link, net.bridge()));
    let err = net.attach(&machine("n"), ip, MAC).await.unwrap_err();
    assert!(matches!(err, NetError::BadAddress { .. }), "{err}");
    let other = net.address_for(&machine("n"), None, &[]).unwrap();
    let err = net.attach(&machine("n"), other, MAC).await.unwrap_err();
    assert!(matches!(&err, NetError::LinkGone { link, .. } if link == net.bridge()), "{err}");
    net.detach(&m).await.unwrap();
    net.close().await.unwrap();
    assert_eq!(journal.resources(), []);
    assert_unchanged(&before, "");
}

async fn many_at_once(host: Host) {
    let before = state();
    let names: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
    let all = names.iter().map(|n| host.open(n));
    let all = futures_util::future::join_all(all).await;
    let subnets: std::collections::HashSet<_> = all.iter().map(|(n, _)| n.record().subnet).collect();
    assert_eq!(subnets.len(), 20);
    for (net, _) in &all {
        net.close().await.unwrap();
    }
    assert_unchanged(&before, "");
}

async fn two_stores(host: Host) {
    let tmp = tempfile::tempdir().unwrap();
    let second = Host::at(tmp);
    let (a, b) = tokio::join!(host.open("web"), second.open("web"));
    assert_ne!(a.0.bridge(), b.0.bridge());
    assert_ne!(a.0.gateway(), b.0.gateway());
    // Neither store's clean-up touches the other's.
    let report = reconcile(&second.store).await.unwrap();
    assert!(report.undone.is_empty() && report.failed.is_empty() && report.foreign.is_empty(), "{report:?}");
    sh(&format!("ip link show {} && ip link show {}", a.0.bridge(), b.0.bridge()));
    a.0.close().await.unwrap();
    b.0.close().await.unwrap();
}
