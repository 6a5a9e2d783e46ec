//! Names, as a guest asks for them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fleetbox_net::{Network, ResolvConf};
use libtest_mimic::Trial;

use crate::support::{FAR, Guest, Host, Ns, cluster, internet, machine, sh, trial};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;

pub(crate) fn add(trials: &mut Vec<Trial>) {
    trials.extend([
        trial("dns::members_resolve_and_come_and_go", members),
        trial("dns::the_rest_goes_to_the_hosts_resolvers", forwarded),
        trial("dns::no_resolver_is_an_answer_at_once", no_resolver),
        trial("dns::port_53_is_taken", port_taken),
    ]);
}

/// An answer, as far as the tests look: code, and the data of its records.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) data: Vec<Vec<u8>>,
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut out = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

fn read(query: &[u8], answer: &[u8]) -> Answer {
    assert_eq!((answer[0], answer[1], answer[2] & 0x80), (0xab, 0xcd, 0x80), "an answer to this query");
    assert_eq!(answer[12..query.len()], query[12..], "the question is repeated");
    let (mut at, mut data) = (query.len(), Vec::new());
    for _ in 0..u16::from_be_bytes([answer[6], answer[7]]) {
        assert_eq!(answer[at..at + 2], [0xc0, 12], "the name is the question's");
        let len = usize::from(u16::from_be_bytes([answer[at + 10], answer[at + 11]]));
        data.push(answer[at + 12..at + 12 + len].to_vec());
        at += 12 + len;
    }
    Answer { code: answer[3] & 0xf, data }
}

fn over_udp(to: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(8)))?;
    socket.connect(to)?;
    socket.send(query)?;
    let mut buffer = vec![0; 4096];
    let len = socket.recv(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

fn over_tcp(to: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(8))?;
    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], query].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Asks from inside a namespace, by UDP and by TCP, which must say the same.
pub(crate) async fn ask(ns: &Ns, server: Ipv4Addr, name: &str, kind: u16) -> Option<Answer> {
    let (to, query) = (SocketAddr::from((server, 53)), query(name, kind));
    let handle = ns.spawn(move || {
        let (udp, tcp) = (over_udp(to, &query).ok()?, over_tcp(to, &query).ok()?);
        let answer = read(&query, &udp);
        assert_eq!(answer, read(&query, &tcp));
        Some(answer)
    });
    while !handle.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    handle.join().unwrap()
}

fn address(ip: impl Into<IpAddr>) -> Answer {
    let data = match ip.into() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    };
    Answer { code: NO_ERROR, data: vec![data] }
}

fn empty(code: u8) -> Answer {
    Answer { code, data: vec![] }
}

async fn members(host: Host) {
    let (net, _journal) = host.open("raft").await;
    let guest = Guest::new(&net, 9);
    let ask = |name: &'static str, kind| ask(&guest.ns, net.gateway(), name, kind);
    assert_eq!(net.domain(), "raft.test");
    assert_eq!(ask("node-2", A).await, Some(empty(NAME_ERROR)));
    // Added to a network that guests are on already, it resolves at once.
    let ip = net.address_for(&machine("node-2"), None, &[guest.ip]).unwrap();
    let port = net.attach(&machine("node-2"), ip, MAC).await.unwrap();
    assert_eq!(ask("node-2", A).await, Some(address(ip)));
    assert_eq!(ask("NODE-2.raft.test", A).await, Some(address(ip)));
    assert_eq!(ask("node-2", AAAA).await, Some(address(net.ipv6_for(ip).unwrap())));
    assert_eq!(ask("node-3.raft.test", A).await, Some(empty(NAME_ERROR)));
    let [a, b, c, d] = ip.octets();
    let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    let name = b"\x06node-2\x04raft\x04test\x00".to_vec();
    let got = crate::dns::ask(&guest.ns, net.gateway(), &reverse, PTR).await;
    assert_eq!(got, Some(Answer { code: NO_ERROR, data: vec![name] }));
    net.set_member(&machine("extra"), guest.ip);
    assert_eq!(ask("extra", A).await, Some(address(guest.ip)));
    net.remove_member(&machine("extra"));
    assert_eq!(ask("extra", A).await, Some(empty(NAME_ERROR)));
    drop(port);
    net.detach(&machine("node-2")).await.unwrap();
    assert_eq!(ask("node-2", A).await, Some(empty(NAME_ERROR)));
    guest.remove();
    net.close().await.unwrap();
}

/// A resolver that knows one answer to everything.
fn resolver(ns: &Ns) {
    fn answer(query: &[u8]) -> Vec<u8> {
        let mut out = query.to_vec();
        out[2] |= 0x80;
        out[7] = 1;
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
        out
    }
    ns.spawn(|| {
        let udp = UdpSocket::bind("203.0.113.1:53").unwrap();
        let tcp = TcpListener::bind("203.0.113.1:53").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((len, from)) = udp.recv_from(&mut buffer) {
                // First some rubbish, as a forger would send it: another number, another question.
                let mut forged = answer(&buffer[..len]);
                forged[0] ^= 1;
                udp.send_to(&forged, from).unwrap();
                forged[0] ^= 1;
                forged[13] ^= 1;
                udp.send_to(&forged, from).unwrap();
                udp.send_to(&answer(&buffer[..len]), from).unwrap();
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let mut len = [0; 2];
                let mut buffer = [0; 4096];
                stream.read_exact(&mut len).unwrap();
                let len = usize::from(u16::from_be_bytes(len));
                stream.read_exact(&mut buffer[..len]).unwrap();
                let out = answer(&buffer[..len]);
                stream.write_all(&[&(out.len() as u16).to_be_bytes()[..], &out].concat()).unwrap();
            }
        });
    })
    .join()
    .unwrap();
}

async fn open_with(host: &Host, resolv_conf: &str, resolved: &str) -> Network {
    let at = |name: &str| host.store.root().join(name);
    std::fs::write(at("resolv.conf"), resolv_conf).unwrap();
    std::fs::write(at("resolved.conf"), resolved).unwrap();
    let files = ResolvConf { resolv_conf: at("resolv.conf"), resolved: at("resolved.conf") };
    let journal = host.journal("web");
    Network::open_with(&host.store, &cluster("web"), None, journal, files).await.unwrap().network
}

async fn forwarded(host: Host) {
    let far = internet();
    resolver(&far);
    // A stub of systemd-resolved that is not there, the real one behind it; before it one that refuses.
    let net =
        open_with(&host, "nameserver 127.0.0.53\n", &format!("nameserver 198.51.100.1\nnameserver {FAR}\n"))
            .await;
    let guest = Guest::new(&net, 2);
    let known = Some(address(Ipv4Addr::new(192, 0, 2, 99)));
    assert_eq!(ask(&guest.ns, net.gateway(), "example.org", A).await, known);
    // Ours are not asked there.
    assert_eq!(ask(&guest.ns, net.gateway(), "node-1.web.test", A).await, Some(empty(NAME_ERROR)));
    assert_eq!(ask(&guest.ns, net.gateway(), "node-1", A).await, Some(empty(NAME_ERROR)));
    // The host moves to another network: its resolvers are read anew.
    std::fs::write(host.store.root().join("resolved.conf"), "").unwrap();
    assert_eq!(ask(&guest.ns, net.gateway(), "example.org", A).await, Some(empty(SERVER_FAILURE)));
    std::fs::write(host.store.root().join("resolv.conf"), format!("nameserver {FAR}\n")).unwrap();
    assert_eq!(ask(&guest.ns, net.gateway(), "example.org", A).await, known);
    guest.remove();
    net.close().await.unwrap();
}

async fn no_resolver(host: Host) {
    // None named; then one that no route leads to.
    for resolv_conf in ["# nothing\n", "nameserver 203.0.113.1\n"] {
        let net = open_with(&host, resolv_conf, "").await;
        let guest = Guest::new(&net, 2);
        assert_eq!(ask(&guest.ns, net.gateway(), "example.org", A).await, Some(empty(SERVER_FAILURE)));
        guest.remove();
        net.close().await.unwrap();
    }
}

async fn port_taken(host: Host) {
    // A resolver of the host's on every address, as Docker publishes one.
    let _udp = UdpSocket::bind("0.0.0.0:53").unwrap();
    let _tcp = TcpListener::bind("0.0.0.0:53").unwrap();
    sh(
        "nft add table inet own; nft add chain inet own in '{ type filter hook input priority 0; policy drop; }'",
    );
    let net = open_with(&host, "", "").await;
    let guest = Guest::new(&net, 2);
    net.set_member(&machine("m"), guest.ip);
    assert_eq!(ask(&guest.ns, net.gateway(), "m", A).await, Some(address(guest.ip)));
    guest.remove();
    net.close().await.unwrap();
}
