//! Three machines on one network: names, addresses, comings and goings, and a quorum.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use fleetbox::blocking::{Cluster, Vm};
use fleetbox::{ErrorKind, Members, State};
use fleetbox_testkit::wait_for;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::{PATIENCE, TestResult, Traces, chain, trial, unique};

/// The image of this test's machines, with a distributed program from Debian's packages.
pub(crate) const IMAGE: &str = "bootstrap:bookworm?packages=etcd-server,etcd-client";
pub(crate) const NAME: &str = "three_members_resolve_reach_and_elect";

/// A round trip to a machine that two emulated CPUs share with two others.
const ROUND_TRIP: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(NAME, three_members)]
}

fn three_members() -> TestResult {
    let base = unique("raft");
    let name = |n: u8| format!("{base}-{n}");
    let cluster = Cluster::create(Cluster::builder(&base).image(IMAGE).memory_mib(512))?;
    assert!(cluster.supports_clustering() && cluster.vms().is_empty());
    let mut members = add_together(&cluster, &[name(1), name(2)])?;
    // Asked for before it is there, so that an answer somebody had kept would be noticed.
    for member in &members {
        assert!(!knows(member, &name(3))?, "{} knows a member that is not there", member.vm.name());
        // Names come from the network's DNS server and from nowhere else.
        let scopes = member.vm.ssh("resolvectl status eth0 | grep Scopes")?;
        assert_eq!(scopes.trim(), "Current Scopes: DNS", "{}", member.vm.name());
    }
    members.extend(add_together(&cluster, &[name(3)])?);
    let all: Vec<String> = cluster.vms().iter().map(|vm| vm.name().to_owned()).collect();
    assert!(all.len() == 3 && all[2] == name(3), "{all:?}");
    all_reach_all(&members, &cluster)?;
    keeps_its_address(&members, &cluster)?;
    let dead = elects_again(&members)?;
    ends(members, &cluster, dead)
}

/// A machine, and what it has on the network.
struct Member {
    vm: Vm,
    ip: IpAddr,
    ip6: Ipv6Addr,
}

impl Member {
    fn of(vm: Vm) -> Result<Self> {
        let ip6 = ipv6(&vm)?;
        Ok(Self { ip: vm.ip(), ip6, vm })
    }
}

/// The one IPv6 address that is not just the link's.
fn ipv6(vm: &Vm) -> Result<Ipv6Addr> {
    let text = vm.ssh("ip -6 -json addr show dev eth0 scope global")?;
    let json: Value = serde_json::from_str(&text)?;
    let all: Vec<&str> =
        json[0]["addr_info"].as_array().into_iter().flatten().filter_map(|a| a["local"].as_str()).collect();
    let [one] = all[..] else { return Err(format!("{}: IPv6 addresses {all:?}", vm.name()).into()) };
    Ok(one.parse()?)
}

fn add_together(cluster: &Cluster, names: &[String]) -> Result<Vec<Member>> {
    let add = |name: &String| {
        let (cluster, name) = (cluster.clone(), name.clone());
        std::thread::spawn(move || cluster.add(name))
    };
    let threads: Vec<_> = names.iter().map(add).collect();
    // All are waited for before any failure is told.
    let added: Vec<_> = threads.into_iter().map(|t| t.join().map_err(|_| "a thread panicked")).collect();
    added.into_iter().map(|vm| Member::of(vm??)).collect()
}

/// Whether a name resolves on a machine. Any answer but yes and no is an error.
fn knows(member: &Member, name: &str) -> Result<bool> {
    let out = member.vm.exec(format!("getent hosts {name}").as_str())?;
    match out.status().code() {
        Some(0) => Ok(true),
        // getent(1): a key that could not be found.
        Some(2) => Ok(false),
        other => Err(format!("getent on {}: {other:?}", member.vm.name()).into()),
    }
}

/// By address and by name, over IPv4 and IPv6, from each other and from the host. Nothing here is tried twice.
fn all_reach_all(members: &[Member], cluster: &Cluster) -> TestResult {
    for from in members {
        for to in members.iter().filter(|m| m.vm.name() != from.vm.name()) {
            reaches(from, to, cluster)?;
        }
    }
    for member in members {
        for address in [member.ip, member.ip6.into()] {
            let socket = SocketAddr::new(address, 22);
            let story = |e: std::io::Error| format!("from the host to {} at {socket}: {e}", member.vm.name());
            let mut stream = TcpStream::connect_timeout(&socket, ROUND_TRIP).map_err(story)?;
            stream.set_read_timeout(Some(ROUND_TRIP))?;
            let mut banner = [0; 4];
            stream.read_exact(&mut banner).map_err(story)?;
            assert_eq!(&banner, b"SSH-", "{socket}");
        }
    }
    Ok(())
}

fn reaches(from: &Member, to: &Member, cluster: &Cluster) -> TestResult {
    let name = to.vm.name();
    let full = format!("{name}.{}.test", cluster.name());
    let ping = |family: u8, to: &str| format!("ping -{family} -q -c1 -W{} {to} >&2", ROUND_TRIP.as_secs());
    let script = [
        "set -e".to_owned(),
        ping(4, &to.ip.to_string()),
        ping(6, &to.ip6.to_string()),
        ping(4, name),
        ping(6, name),
        format!("getent hosts {name}"),
        format!("getent ahosts {full} | cut -d' ' -f1 | sort -u"),
        format!("getent hosts {}", to.ip),
        format!("getent hosts {}", to.ip6),
    ]
    .join("\n");
    let text =
        from.vm.ssh(&script).map_err(|e| format!("from {} to {name}: {}", from.vm.name(), chain(&e)))?;
    let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    let (ip, ip6) = (to.ip.to_string(), to.ip6.to_string());
    let mut both = [vec![ip.as_str()], vec![ip6.as_str()]];
    both.sort();
    let want = [
        // The C library asks for IPv6 first (getent(1)).
        vec![ip6.as_str(), &full],
        both[0].clone(),
        both[1].clone(),
        vec![&ip, &full],
        vec![&ip6, &full],
    ];
    // After the canonical name come the aliases, among them the name asked for.
    let seen: Vec<_> = words.iter().map(|w| w.iter().copied().take(2).collect::<Vec<_>>()).collect();
    assert_eq!(seen, want, "from {}: {text}", from.vm.name());
    Ok(())
}

/// Stopped, a member is not found any more; started again, it is where it was.
fn keeps_its_address(members: &[Member], cluster: &Cluster) -> TestResult {
    let [first, _, last] = members else { return Err("three members".into()) };
    let key = last.vm.info()?.host_key;
    last.vm.stop()?;
    assert!(!knows(first, last.vm.name())?, "a stopped machine still has a name");
    last.vm.start_again()?;
    let info = last.vm.info()?;
    assert_eq!((info.ip, info.host_key), (Some(last.ip), key));
    assert_eq!(ipv6(&last.vm)?, last.ip6);
    reaches(first, last, cluster)?;
    reaches(last, first, cluster)
}

/// etcd on all three: a leader, a value, the leader's machine killed, another leader, the same value.
/// Answers which one is dead.
fn elects_again(members: &[Member]) -> Result<usize> {
    let all: Vec<String> = members.iter().map(|m| format!("{0}=http://{0}:2380", m.vm.name())).collect();
    for member in members {
        let name = member.vm.name();
        // What Debian starts by itself is a cluster of one. By names, so that the members find each other as a user's
        // would; times that an emulated CPU can keep.
        member.vm.ssh(&format!(
            "sudo systemctl stop etcd && sudo systemd-run --quiet --unit raft --uid etcd --property \
             StateDirectory=raft etcd --name {name} --data-dir /var/lib/raft --listen-peer-urls http://[::]:2380 \
             --listen-client-urls http://[::]:2379 --initial-advertise-peer-urls http://{name}:2380 \
             --advertise-client-urls http://{name}:2379 --initial-cluster {} --initial-cluster-state new \
             --heartbeat-interval 1000 --election-timeout 10000",
            all.join(",")
        ))?;
    }
    let everyone: Vec<&Member> = members.iter().collect();
    let (leader, at) = leader_of(&everyone)?;
    let survivors: Vec<&Member> =
        members.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, m)| m).collect();
    let [one, other] = survivors[..] else { return Err("three members, one of them the leader".into()) };
    etcdctl(one, &[one], "put where 'over the wall'")?;
    members[at].vm.kill()?;
    assert_eq!(members[at].vm.state()?, State::Stopped);

    let (next, _) = wait_for("another leader", PATIENCE, || match leader_of_now(&survivors) {
        Ok((next, _)) if next == leader => Err("the dead one still counts as the leader".to_owned()),
        other => other,
    })?;
    assert_ne!(next, leader);
    // Read from each, and agreed upon by both: a read is answered by a quorum (etcd, "linearizable").
    for survivor in [one, other] {
        assert_eq!(etcdctl(survivor, &[survivor], "get where --print-value-only")?, "over the wall");
    }
    etcdctl(other, &[other], "put where 'back again'")?;
    assert_eq!(etcdctl(one, &[one], "get where --print-value-only")?, "back again");
    Ok(at)
}

fn leader_of(members: &[&Member]) -> Result<(u64, usize)> {
    Ok(wait_for("all members to have one leader", PATIENCE, || leader_of_now(members))?)
}

/// The leader's number, and which of these it is: all must say the same. Only survivors may lead, or the one that
/// was killed would be the answer.
fn leader_of_now(members: &[&Member]) -> std::result::Result<(u64, usize), String> {
    let asked = members.first().ok_or("nobody to ask")?;
    let text = etcdctl(asked, members, "endpoint status -w json").map_err(|e| chain(&*e))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    let all: Vec<&Value> = json.as_array().into_iter().flatten().map(|m| &m["Status"]).collect();
    let leaders: BTreeSet<u64> = all.iter().filter_map(|s| s["leader"].as_u64()).collect();
    let ids: Vec<Option<u64>> = all.iter().map(|s| s["header"]["member_id"].as_u64()).collect();
    let leader = leaders.first().copied().filter(|l| *l != 0 && leaders.len() == 1);
    let at = leader.and_then(|l| ids.iter().position(|id| *id == Some(l)));
    match (leader, at) {
        (Some(leader), Some(at)) if ids.len() == members.len() => Ok((leader, at)),
        _ => Err(text),
    }
}

fn etcdctl(on: &Member, endpoints: &[&Member], what: &str) -> Result<String> {
    let endpoints: Vec<String> = endpoints.iter().map(|m| format!("{}:2379", m.vm.name())).collect();
    let limits = "--dial-timeout 20s --command-timeout 60s";
    let out =
        on.vm.ssh(&format!("ETCDCTL_API=3 etcdctl {limits} --endpoints {} {what}", endpoints.join(",")));
    out.map_err(|e| {
        // What etcd itself has to say about it.
        let log = on.vm.ssh("sudo journalctl --no-pager -q -o cat -n 15 -u raft").unwrap_or_default();
        format!("etcdctl {what} on {}: {}\n{log}", on.vm.name(), chain(&e)).into()
    })
}

/// One is destroyed; the others stay and reach each other. Then the cluster is closed.
fn ends(mut members: Vec<Member>, cluster: &Cluster, dead: usize) -> TestResult {
    let gone = members.remove(dead);
    gone.vm.destroy()?;
    let [one, other] = &members[..] else { return Err("two members".into()) };
    assert!(!knows(one, gone.vm.name())?, "a destroyed machine still has a name");
    for vm in [&one.vm, &other.vm] {
        assert_eq!(vm.state()?, State::Running);
    }
    assert_eq!(cluster.vms().len(), 2);
    reaches(one, other, cluster)?;
    reaches(other, one, cluster)?;
    let home = crate::support::home().join("clusters").join(cluster.name());
    assert!(!home.join(gone.vm.name()).exists() && home.join(one.vm.name()).exists());

    let refused = cluster.close().unwrap_err();
    let story = chain(&refused);
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{story}");
    assert!(story.contains(one.vm.name()) && story.contains(other.vm.name()), "{story}");
    assert_eq!((one.vm.state()?, other.vm.state()?), (State::Running, State::Running));
    one.vm.destroy()?;
    let traces = Traces::of(other.vm.info()?);
    cluster.close_with(Members::Destroy)?;
    cluster.close()?;
    traces.assert_gone(PATIENCE)?;
    assert!(!home.exists());
    Ok(())
}
