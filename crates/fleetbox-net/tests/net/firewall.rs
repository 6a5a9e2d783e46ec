//! What gets through and what does not, and that the host's settings and rules come back.

use std::net::{IpAddr, SocketAddr};

use fleetbox_net::{Damage, Resource, orphans, reconcile};
use libtest_mimic::Trial;

use crate::support::{
    FAR, Guest, Host, Ns, assert_unchanged, connect, internet, machine, second_uplink, setting, sh, state,
    trial,
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

pub(crate) fn add(trials: &mut Vec<Trial>) {
    trials.extend([
        trial("firewall::egress_by_masquerade_and_no_new_inbound", egress_and_inbound),
        trial("firewall::members_reach_each_other_and_clusters_do_not", isolation),
        trial("firewall::the_host_is_no_router_for_others", no_router),
        trial("firewall::the_last_one_out_restores_forwarding", last_one_out),
        trial("firewall::forwarding_that_somebody_else_wants_stays", wanted_by_others),
        trial("firewall::a_bare_drop_policy_is_opened", bare_policies),
        trial("firewall::iptables_chains_are_opened", iptables_chains),
        trial("firewall::somebody_flushes_all_rules", flushed),
        trial("firewall::what_no_record_names_is_found", stray),
    ]);
}

/// Connects from the host, off this thread.
async fn from_host(to: impl Into<IpAddr>, port: u16) -> Option<String> {
    let to = SocketAddr::new(to.into(), port);
    // A thread started here is in this namespace.
    let handle = std::thread::spawn(move || connect(to));
    while !handle.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    handle.join().unwrap()
}

fn serve_here(port: u16) {
    Ns::here().serve(port);
}

async fn egress_and_inbound(host: Host) {
    let far = internet();
    far.serve(80);
    serve_here(8080);
    let before = state();
    assert_eq!((setting("ipv4/conf/up0/forwarding"), setting("ipv4/ip_forward")), ("0".into(), "0".into()));
    let (net, journal) = host.open("web").await;
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
    assert_eq!(setting("ipv4/ip_forward"), "0");
    assert!(journal.resources().contains(&Resource::Forwarding { link: "up0".into(), global: false }));
    let guest = Guest::new(&net, 2);
    guest.ns.serve(22);

    assert_eq!(guest.ns.connect(FAR, 80).await.as_deref(), Some("198.51.100.2"), "masqueraded");
    assert_eq!(guest.ns.connect(net.gateway(), 8080).await, Some(guest.ip.to_string()));
    assert_eq!(from_host(guest.ip, 22).await, Some(net.gateway().to_string()));
    let (ip6, gateway6) = (net.ipv6_for(guest.ip).unwrap(), net.ipv6_gateway().unwrap());
    assert_eq!(from_host(ip6, 22).await, Some(gateway6.to_string()));
    assert_eq!(guest.ns.connect(gateway6, 8080).await, Some(ip6.to_string()));
    assert_eq!(far.connect(guest.ip, 22).await, None, "new inbound");
    assert_eq!(far.connect(net.gateway(), 8080).await, None, "the gateway is the members' own");
    assert_eq!(net.health().await.unwrap(), []);

    // Without our table both would get in: it is the rules that keep them out.
    sh(&format!("nft delete table inet fleetbox_{}", net.bridge()));
    assert!(far.connect(guest.ip, 22).await.is_some());
    assert!(far.connect(net.gateway(), 8080).await.is_some());
    let damage = net.health().await.unwrap();
    assert!(matches!(&damage[..], [Damage::RulesMissing { .. }]), "{damage:?}");
    // The next machine puts them back.
    let ip = net.address_for(&machine("m"), None, &[guest.ip]).unwrap();
    let _port = net.attach(&machine("m"), ip, MAC).await.unwrap();
    assert_eq!(net.health().await.unwrap(), []);
    assert_eq!(far.connect(guest.ip, 22).await, None);
    assert!(guest.ns.connect(FAR, 80).await.is_some());

    guest.remove();
    net.close().await.unwrap();
    assert_eq!(journal.resources(), []);
    assert_unchanged(&before, "");
}

async fn isolation(host: Host) {
    let far = internet();
    far.serve(80);
    // The worst host: it forwards everything.
    sh("cd /proc/sys/net && echo 1 > ipv4/ip_forward && echo 1 > ipv6/conf/all/forwarding");
    let before = state();
    let (a, _ja) = host.open("a").await;
    let (b, _jb) = host.open("b").await;
    let (a2, a3, b2) = (Guest::new(&a, 2), Guest::new(&a, 3), Guest::new(&b, 2));
    for guest in [&a2, &a3, &b2] {
        guest.ns.serve(22);
    }
    let (a3_6, b2_6) = (a.ipv6_for(a3.ip).unwrap(), b.ipv6_for(b2.ip).unwrap());
    assert_eq!(a2.ns.connect(a3.ip, 22).await, Some(a2.ip.to_string()));
    assert!(a2.ns.connect(a3_6, 22).await.is_some());
    assert_eq!(a2.ns.connect(b2.ip, 22).await, None);
    assert_eq!(a2.ns.connect(b2_6, 22).await, None);
    assert_eq!(b2.ns.connect(a2.ip, 22).await, None);
    // Not each other's DNS server either.
    assert_eq!(a2.ns.connect(b.gateway(), 53).await, None);
    assert!(a2.ns.connect(FAR, 80).await.is_some() && b2.ns.connect(FAR, 80).await.is_some());
    // One table alone keeps its own members apart from the rest.
    sh(&format!("nft delete table inet fleetbox_{}", a.bridge()));
    assert_eq!(a2.ns.connect(b2.ip, 22).await, None);
    assert_eq!(b2.ns.connect(a2.ip, 22).await, None);
    sh(&format!("nft delete table inet fleetbox_{}", b.bridge()));
    assert!(a2.ns.connect(b2.ip, 22).await.is_some(), "it is the rules that keep them apart");
    assert!(a2.ns.connect(b2_6, 22).await.is_some(), "over IPv6 too");
    for guest in [a2, a3, b2] {
        guest.remove();
    }
    a.close().await.unwrap();
    b.close().await.unwrap();
    assert_unchanged(&before, "");
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
}

async fn no_router(host: Host) {
    let far = internet();
    // Another network of the host's, to which it did not route before.
    let inner = Ns::new();
    sh(&format!("ip link add lan0 type veth peer name eth0 netns {}", inner.path()));
    sh(
        "echo 1 > /proc/sys/net/ipv6/conf/lan0/disable_ipv6; ip addr add 10.200.0.1/24 dev lan0 && ip link set lan0 up",
    );
    inner.sh(
        "ip addr add 10.200.0.2/24 dev eth0 && ip link set eth0 up && ip route add default via 10.200.0.1",
    );
    inner.serve(22);
    assert_eq!(far.connect(std::net::Ipv4Addr::new(10, 200, 0, 2), 22).await, None);
    let (net, _journal) = host.open("web").await;
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
    assert_eq!(far.connect(std::net::Ipv4Addr::new(10, 200, 0, 2), 22).await, None);
    sh(&format!("nft delete table inet fleetbox_{}", net.bridge()));
    // The answers come in on lan0, which does not forward.
    sh("echo 1 > /proc/sys/net/ipv4/conf/lan0/forwarding");
    assert!(
        far.connect(std::net::Ipv4Addr::new(10, 200, 0, 2), 22).await.is_some(),
        "it is the rules that prevent it"
    );
    net.close().await.unwrap();
}

async fn last_one_out(host: Host) {
    let _far = internet();
    let _second = second_uplink();
    let before = state();
    let other_store = Host::at(tempfile::tempdir().unwrap());
    let now = || (setting("ipv4/conf/up0/forwarding"), setting("ipv4/conf/up1/forwarding"));
    let (on, was) = (("1".to_owned(), "1".to_owned()), ("0".to_owned(), "1".to_owned()));
    assert_eq!(now(), was);
    // First in, first out; and the last is of another store than the first.
    let (a, _ja) = host.open("a").await;
    let (b, _jb) = other_store.open("a").await;
    let (c, _jc) = host.open("c").await;
    for net in [&a, &c] {
        net.close().await.unwrap();
        assert_eq!(now(), on);
    }
    b.close().await.unwrap();
    assert_eq!(now(), was);
    assert_unchanged(&before, "");
    // Many at once, in any order.
    let nets: Vec<_> = (0..6).map(|i| format!("n{i}")).collect();
    let nets = futures_util::future::join_all(nets.iter().map(|n| host.open(n))).await;
    assert_eq!(now(), on);
    let closed = futures_util::future::join_all(nets.iter().map(|(n, _)| n.close())).await;
    assert!(closed.iter().all(Result::is_ok), "{closed:?}");
    assert_unchanged(&before, "");
}

async fn wanted_by_others(host: Host) {
    let _far = internet();
    let (net, _journal) = host.open("web").await;
    // Docker starts.
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    net.close().await.unwrap();
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
    // But a link that is off while the global switch is on was switched off by somebody.
    sh("echo 0 > /proc/sys/net/ipv4/conf/up0/forwarding");
    let (net, _journal) = host.open("db").await;
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "1");
    net.close().await.unwrap();
    assert_eq!(setting("ipv4/conf/up0/forwarding"), "0");
}

/// Everything works with these tables on the host, and they are as before afterwards.
async fn works_with(host: Host, rules: &str) {
    let far = internet();
    far.serve(80);
    for rule in rules.lines().map(str::trim).filter(|l| !l.is_empty()) {
        sh(&format!("nft '{rule}'"));
    }
    let before = state();
    let (net, journal) = host.open("web").await;
    let (a, b) = (Guest::new(&net, 2), Guest::new(&net, 3));
    b.ns.serve(22);
    assert!(a.ns.connect(FAR, 80).await.is_some(), "egress");
    // Bridged packets pass the forward hook too, where bridge-netfilter is on.
    assert!(a.ns.connect(b.ip, 22).await.is_some(), "member to member");
    assert!(a.ns.connect(net.ipv6_for(b.ip).unwrap(), 22).await.is_some(), "member to member over IPv6");
    assert!(from_host(b.ip, 22).await.is_some(), "host to member");
    assert!(from_host(net.ipv6_for(b.ip).unwrap(), 22).await.is_some(), "host to member over IPv6");
    let dns = crate::dns::ask(&a.ns, net.gateway(), "nobody", 1).await;
    assert_eq!(dns.map(|a| a.code), Some(3), "the DNS server");
    assert_eq!(far.connect(b.ip, 22).await, None, "new inbound");
    assert_eq!(net.health().await.unwrap(), []);
    // Somebody reloads their firewall.
    let opened: Vec<_> =
        journal.resources().into_iter().filter(|r| matches!(r, Resource::NftRules { .. })).collect();
    assert!(!opened.is_empty());
    if let Resource::NftRules { family, table, chain, .. } = &opened[0] {
        sh(&format!("nft flush chain {family} {table} {chain}"));
        let damage = net.health().await.unwrap();
        assert!(damage.iter().any(|d| matches!(d, Damage::FirewallClosed { .. })), "{damage:?}");
    }
    let ip = net.address_for(&machine("m"), None, &[a.ip, b.ip]).unwrap();
    let _port = net.attach(&machine("m"), ip, MAC).await.unwrap();
    assert_eq!(net.health().await.unwrap(), []);
    a.remove();
    b.remove();
    net.close().await.unwrap();
    // What was flushed above is not ours to put back.
    let rules = sh("nft list ruleset");
    assert!(!rules.contains("fleetbox"), "{rules}");
    assert_unchanged(&before.into_iter().filter(|(what, _)| *what != "rules").collect(), "");
}

async fn bare_policies(host: Host) {
    works_with(
        host,
        "
        add table inet own
        add chain inet own ahead { type filter hook forward priority 0; policy drop; }
        add chain inet own inward { type filter hook input priority 0; policy drop; }
        add rule inet own inward iifname \"lo\" accept
    ",
    )
    .await;
}

/// As Docker and ufw leave them: drop policies, and accepts for connections that are established.
async fn iptables_chains(host: Host) {
    let mut rules = String::new();
    for family in ["ip", "ip6"] {
        rules.push_str(&format!(
            "
            add table {family} filter
            add chain {family} filter FORWARD {{ type filter hook forward priority 0; policy drop; }}
            add chain {family} filter INPUT {{ type filter hook input priority 0; policy accept; }}
            add chain {family} filter DOCKER-USER
            add rule {family} filter FORWARD counter jump DOCKER-USER
            add rule {family} filter DOCKER-USER counter return
            add rule {family} filter INPUT ct state established,related counter accept
            add rule {family} filter INPUT iifname \"lo\" counter accept
            add rule {family} filter INPUT counter reject
        "
        ));
    }
    works_with(host, &rules).await;
}

async fn flushed(host: Host) {
    let before = state();
    let _far = internet();
    let (net, journal) = host.open("web").await;
    sh("nft flush ruleset; echo 0 > /proc/sys/net/ipv4/conf/up0/forwarding");
    let damage = net.health().await.unwrap();
    assert!(matches!(&damage[..], [Damage::RulesMissing { .. }, Damage::ForwardingOff { .. }]), "{damage:?}");
    sh(&format!("ip link set {} down", net.bridge()));
    let damage = net.health().await.unwrap();
    assert!(damage.contains(&Damage::BridgeDown { link: net.bridge().to_owned() }), "{damage:?}");
    sh(&format!("ip link del {}; ip link del up0", net.bridge()));
    let damage = net.health().await.unwrap();
    assert!(damage.contains(&Damage::BridgeGone { link: net.bridge().to_owned() }), "{damage:?}");
    net.close().await.unwrap();
    assert_eq!(journal.resources(), []);
    sh("echo 1 > /proc/sys/net/ipv6/conf/default/accept_dad");
    assert_unchanged(&before, "");
}

async fn stray(host: Host) {
    sh(
        "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
    );
    let other_store = Host::at(tempfile::tempdir().unwrap());
    let (a, _ja) = host.open("a").await;
    let (b, _jb) = other_store.open("b").await;
    assert_eq!(orphans(&host.store).await.unwrap(), []);
    sh("ip link add fb0000beef type bridge; nft add table inet fleetbox_fb0000beef");
    sh("nft insert rule ip filter FORWARD iifname fb0000beef accept comment '\"fleetbox fb0000beef\"'");
    sh("ip link add fb0 type bridge; nft add table inet fleetbox_other");
    let found = orphans(&host.store).await.unwrap();
    let what: Vec<_> = found.iter().map(|o| &o.resource).collect();
    assert!(
        matches!(what[..], [Resource::Bridge { .. }, Resource::NftRules { .. }, Resource::NftTable { .. }]),
        "{found:?}"
    );
    let report = reconcile(&host.store).await.unwrap();
    assert!(report.undone.is_empty(), "what no record names is only reported");
    sh(&format!("{} && {}", found[0].remedy, found[2].remedy));
    assert_eq!(orphans(&host.store).await.unwrap().len(), 1);
    a.close().await.unwrap();
    b.close().await.unwrap();
}
