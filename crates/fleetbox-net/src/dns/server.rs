//! The sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::upstream::{ResolvConf, ask};
use super::wire::{self, Query, Refusal, SERVER_FAILURE};
use super::zone::{Verdict, Zone};

/// Queries under way to the host's resolvers; more are answered with "server failure" at once.
const FORWARDED: usize = 256;
/// Open TCP connections.
const CONNECTIONS: usize = 64;
/// How long a TCP connection may be silent (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// A running DNS server. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    port: u16,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    zone: Arc<Mutex<Zone>>,
    files: ResolvConf,
    gateway: IpAddr,
    forwarded: Semaphore,
}

impl Server {
    /// Listens on the gateway, on port 53, or on another where somebody has port 53 of all addresses (a
    /// resolver of the host's, or Docker publishing one): see [`Server::port`].
    pub(crate) async fn start(
        gateway: Ipv4Addr,
        zone: Arc<Mutex<Zone>>,
        files: ResolvConf,
    ) -> io::Result<Self> {
        let (udp, tcp) = match bind(gateway, 53).await {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => bind(gateway, 0).await?,
            r => r?,
        };
        let port = udp.local_addr()?.port();
        let shared =
            Arc::new(Shared { zone, files, gateway: gateway.into(), forwarded: Semaphore::new(FORWARDED) });
        let tasks = vec![
            tokio::spawn(serve_udp(Arc::new(udp), shared.clone())),
            tokio::spawn(serve_tcp(tcp, shared)),
        ];
        Ok(Self { port, tasks })
    }

    /// Where it listens. If that is not 53, port 53 must be redirected to it.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it still serves.
    pub(crate) fn is_alive(&self) -> bool {
        self.tasks.iter().all(|t| !t.is_finished())
    }

    /// Ends it, and returns when its sockets are closed.
    pub(crate) async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // It was aborted, which is the one way it ends.
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The same port for UDP and TCP.
async fn bind(gateway: Ipv4Addr, port: u16) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind((gateway, port)).await?;
    let tcp = TcpListener::bind((gateway, udp.local_addr()?.port())).await?;
    Ok((udp, tcp))
}

/// Pauses after an error of a socket, which may last (out of descriptors, out of memory).
async fn pause(what: &str, e: &io::Error) {
    tracing::warn!(error = %e, "the DNS server could not {what}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 65_535];
    // They end with this task.
    let mut forwarding = JoinSet::new();
    loop {
        while forwarding.try_join_next().is_some() {}
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            Err(e) => {
                pause("receive", &e).await;
                continue;
            }
        };
        let message = buffer[..len].to_vec();
        match shared.at_once(&message) {
            Step::Answer(answer) => send(&socket, &answer, from).await,
            Step::Silence => {}
            Step::Forward(query) => {
                let (socket, shared) = (socket.clone(), shared.clone());
                // A slow resolver must not keep members from one another's names.
                forwarding.spawn(async move {
                    send(&socket, &shared.forward(&query, &message, false).await, from).await
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(e) = socket.send_to(answer, to).await {
        tracing::debug!(%to, error = %e, "a DNS answer could not be sent");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let shared = shared.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    // The peer's end or its silence ends it: nobody is left to tell.
                    let _ = connection(stream, &shared).await;
                });
            }
            Err(e) => pause("accept", &e).await,
        }
    }
}

async fn connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let mut len = [0; 2];
        tokio::time::timeout(IDLE, stream.read_exact(&mut len)).await??;
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        tokio::time::timeout(IDLE, stream.read_exact(&mut message)).await??;
        let answer = match shared.at_once(&message) {
            Step::Answer(answer) => answer,
            Step::Silence => return Ok(()),
            Step::Forward(query) => shared.forward(&query, &message, true).await,
        };
        let len = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let framed = [&len.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

enum Step {
    Answer(Vec<u8>),
    Forward(Query),
    Silence,
}

impl Shared {
    fn at_once(&self, message: &[u8]) -> Step {
        match wire::parse(message) {
            Ok(query) => match self.zone.lock().unwrap_or_else(PoisonError::into_inner).decide(&query) {
                Verdict::Here(code, records) => Step::Answer(wire::answer(&query, code, true, &records)),
                Verdict::Forward => Step::Forward(query),
            },
            Err(Refusal::Silence) => Step::Silence,
            Err(Refusal::Code(code)) => wire::refuse(message, code).map_or(Step::Silence, Step::Answer),
        }
    }

    async fn forward(&self, query: &Query, message: &[u8], tcp: bool) -> Vec<u8> {
        let failure = || wire::answer(query, SERVER_FAILURE, false, &[]);
        let Ok(_slot) = self.forwarded.try_acquire() else { return failure() };
        let servers = self.files.servers(self.gateway);
        ask(&servers, query, message, tcp).await.unwrap_or_else(failure)
    }
}
