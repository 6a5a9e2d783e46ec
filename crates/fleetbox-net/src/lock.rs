//! Locks for what is shared by all fleetbox processes of a host, whatever their FLEETBOX_HOME.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use fleetbox_store::{Lock, LockKind, Store, StoreError};

use crate::NetError;

/// How long a process waits for another's short work on the host's network.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// A lock on something of the host's network, such as the choice of a subnet.
///
/// The lock file of the store tells who holds it but reaches only processes of the same store. So there is
/// a second one: an abstract unix socket (unix(7)), which exists once in each network namespace, as
/// subnets and forwarding do, and goes with its process however that ends.
#[derive(Debug)]
pub(crate) struct HostLock {
    _host: UnixListener,
    _store: Lock,
}

impl HostLock {
    pub(crate) async fn take(store: &Store, kind: LockKind) -> Result<Self, NetError> {
        let name = match kind {
            LockKind::Forwarding => "forwarding",
            _ => "subnet",
        };
        let store = take(store, kind, "host").await?;
        let started = Instant::now();
        let failed = |source| NetError::Proc { action: "make the socket of a machine-wide lock", source };
        let address =
            SocketAddr::from_abstract_name(format!("fleetbox/{name}").as_bytes()).map_err(failed)?;
        let mut pause = Duration::from_millis(1);
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(host) => return Ok(Self { _host: host, _store: store }),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                    if started.elapsed() > WAIT {
                        return Err(NetError::HostLock { name, after: WAIT, pid: holder(&address) });
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

fn holder(address: &SocketAddr) -> Option<u32> {
    let stream = UnixStream::connect_addr(address).ok()?;
    stream.set_nonblocking(true).ok()?;
    let pid = tokio::net::UnixStream::from_std(stream).ok()?.peer_cred().ok()?.pid()?;
    u32::try_from(pid).ok()
}

/// Takes a lock of the store without blocking the thread: two tasks of one runtime may want it.
pub(crate) async fn take(store: &Store, kind: LockKind, name: &str) -> Result<Lock, NetError> {
    let deadline = Instant::now() + WAIT;
    let mut pause = Duration::from_millis(1);
    loop {
        match Lock::try_take(store, kind, name) {
            Err(StoreError::Locked { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            r => return Ok(r?),
        }
    }
}
