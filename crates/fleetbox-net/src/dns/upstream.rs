//! The host's own resolvers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::{self, Query};

/// How long one server may take, and how often each is asked: as the resolver of libc (resolv.conf(5)), but
/// shorter, since the guest's own resolver tries again too.
const ANSWER: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// All of it: the guest's resolver gives up after 5 s.
const TOTAL: Duration = Duration::from_millis(4500);

/// Where the host's resolvers are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// What libc reads: `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// What systemd-resolved keeps for programs that want the real servers and not its stub, used when the other
    /// names loopback addresses only: `/run/systemd/resolve/resolv.conf`.
    pub resolved: PathBuf,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), resolved: "/run/systemd/resolve/resolv.conf".into() }
    }
}

/// Servers named in the text of a resolv.conf(5), in order. Pure.
fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
            // A scope such as %eth0 is of no use to a socket that knows no link.
            address.split('%').next()?.parse().ok()
        })
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect()
}

impl ResolvConf {
    /// The resolvers to ask now; read anew each time, as they change with the host's network. `ourselves` is left
    /// out, or a host that uses a machine's network for names would ask itself for ever.
    pub(crate) fn servers(&self, ourselves: IpAddr) -> Vec<IpAddr> {
        let read = |path: &Path| parse(&std::fs::read_to_string(path).unwrap_or_default());
        let mut servers = read(&self.resolv_conf);
        if !servers.is_empty() && servers.iter().all(IpAddr::is_loopback) {
            let real = read(&self.resolved);
            if !real.is_empty() {
                servers = real;
            }
        }
        servers.retain(|s| *s != ourselves);
        servers
    }
}

/// Asks the servers in turn; `None` when none of them answers, at once when there is none.
pub(crate) async fn ask(servers: &[IpAddr], query: &Query, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let all = async {
        for _ in 0..ROUNDS {
            let mut any_kept_silent = false;
            for &server in servers {
                let server = SocketAddr::new(server, 53);
                let one = async {
                    if tcp {
                        over_tcp(server, query, message).await
                    } else {
                        over_udp(server, query, message).await
                    }
                };
                match tokio::time::timeout(ANSWER, one).await {
                    Ok(Ok(answer)) => return Some(answer),
                    // Refused or unreachable: asking again will not help.
                    Ok(Err(e)) => tracing::debug!(%server, error = %e, "a resolver cannot be asked"),
                    Err(_) => any_kept_silent = true,
                }
            }
            if !any_kept_silent {
                break;
            }
        }
        None
    };
    tokio::time::timeout(TOTAL, all).await.ok().flatten()
}

async fn over_udp(server: SocketAddr, query: &Query, message: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each query, and connected: only the server's answers arrive.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if wire::answers(query, &buffer[..len]) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Query, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await?;
    let mut len = [0; 2];
    stream.read_exact(&mut len).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).await?;
    if wire::answers(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let text = "# nameserver 1.1.1.1\nsearch a.b\nnameserver 192.0.2.53\n nameserver\t2001:db8::53 # x\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\noptions edns0\n";
        let want: Vec<IpAddr> = ["192.0.2.53", "2001:db8::53"].map(|s| s.parse().unwrap()).into();
        assert_eq!(parse(text), want);
    }

    #[test]
    fn a_loopback_stub_gives_way_to_the_real_servers() {
        let tmp = tempfile::tempdir().unwrap();
        let files = ResolvConf { resolv_conf: tmp.path().join("a"), resolved: tmp.path().join("b") };
        let gateway: IpAddr = "10.70.3.1".parse().unwrap();
        let servers = || files.servers(gateway).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(servers(), [""; 0]);
        std::fs::write(&files.resolv_conf, "nameserver 127.0.0.53\n").unwrap();
        // A resolver on loopback with nothing behind it that is known is one all the same.
        assert_eq!(servers(), ["127.0.0.53"]);
        std::fs::write(&files.resolved, "nameserver 192.0.2.1\nnameserver 10.70.3.1\n").unwrap();
        assert_eq!(servers(), ["192.0.2.1"]);
        std::fs::write(&files.resolv_conf, "nameserver 192.0.2.7\nnameserver 127.0.0.1\n").unwrap();
        assert_eq!(servers(), ["192.0.2.7", "127.0.0.1"]);
    }
}
