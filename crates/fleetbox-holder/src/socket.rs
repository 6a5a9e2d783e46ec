//! The holder's socket: who may connect, and that it goes with the holder.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fleetbox_api::ApiError;
use fleetbox_orchestrator::{Orchestrator, OrchestratorError};
use fleetbox_spec::ErrorKind;
use fleetbox_store::{Store, StoreError};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};

/// A bound socket that is removed with its holder.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl OwnSocket {
    /// Binds the cluster's socket. The cluster's lock is held, so a socket that is there already is a dead holder's.
    pub(crate) fn bind(store: &Store, orchestrator: &Orchestrator) -> Result<Self, OrchestratorError> {
        let failed = |source| OrchestratorError::Store {
            action: "open the socket",
            cluster: orchestrator.cluster().clone(),
            source: Box::new(source),
        };
        let path = store.socket(orchestrator.cluster()).map_err(failed)?;
        fleetbox_store::remove_if_there(&path).map_err(failed)?;
        // A socket file outlives a killed holder, so it is journalled like everything else that does.
        orchestrator.record_path(&path)?;
        let listener = listen(&path).map_err(failed)?;
        store.give_to_owner(&path).map_err(failed)?;
        Ok(Self { path, listener })
    }

    /// The listener, which turns away every user but root, the holder's own, and the one who called sudo.
    pub(crate) fn listener(&self, sudo_uid: Option<u32>) -> CheckedListener {
        let own = fleetbox_os::host::effective_uid();
        let allowed = [Some(0), Some(own), sudo_uid].into_iter().flatten().collect();
        CheckedListener { inner: self.listener.try_clone().and_then(UnixListener::from_std), allowed }
    }

    pub(crate) fn remove(&self, orchestrator: &Orchestrator) {
        if let Err(e) = fleetbox_store::remove_if_there(&self.path) {
            tracing::warn!(error = %e, "socket");
        } else if let Err(e) = orchestrator.strike_path(&self.path) {
            tracing::warn!(error = %e, "socket's journal record");
        }
    }
}

fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener, StoreError> {
    let io = |source| StoreError::Io { action: "bind the socket", path: path.to_owned(), source };
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(io)?;
    listener.set_nonblocking(true).map_err(io)?;
    // Only the socket's user and root may talk.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    Ok(listener)
}

/// Accepts connections and looks at who makes them.
#[derive(Debug)]
pub(crate) struct CheckedListener {
    inner: io::Result<UnixListener>,
    allowed: Vec<u32>,
}

impl axum::serve::Listener for CheckedListener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let accepted = match &self.inner {
                Ok(listener) => listener.accept().await,
                Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
            };
            match accepted {
                Ok((stream, addr)) => match stream.peer_cred() {
                    Ok(cred) if self.allowed.contains(&cred.uid()) => return (stream, addr),
                    Ok(cred) => {
                        tracing::warn!(uid = cred.uid(), "turned away");
                        tokio::spawn(turn_away(stream, cred.uid()));
                    }
                    Err(e) => tracing::warn!(error = %e, "peer credentials"),
                },
                Err(e) => {
                    tracing::error!(error = %e, "accept");
                    // Out of descriptors: give those in use a moment to go.
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.inner {
            Ok(listener) => listener.local_addr(),
            Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
        }
    }
}

/// Says why before hanging up. Written by hand: no request of a stranger is ever parsed.
async fn turn_away(mut stream: UnixStream, uid: u32) {
    let error = ApiError {
        kind: ErrorKind::Held,
        message: format!("this holder belongs to another user than uid {uid}"),
        causes: Vec::new(),
        console: None,
    };
    let body = serde_json::to_string(&error).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
