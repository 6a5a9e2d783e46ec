//! The life of a holder process.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fleetbox_api::{API_VERSION, ApiError};
use fleetbox_orchestrator::{
    CloseHow, Orchestrator, OrchestratorConfig, OrchestratorError, undo_dead_owners,
};
use fleetbox_os::{daemon, fd, ready};
use fleetbox_spec::{ErrorKind, Event, LeaseKind};
use fleetbox_store::{Lock, LockKind, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::{HolderConfig, Ready, VARIABLE};
use crate::routes::{self, Lease, Serving};
use crate::socket::OwnSocket;

/// How long a holder waits for a predecessor of the same cluster that is still tearing down.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(5);
/// How long answers under way may take once everything is torn down.
const DRAIN: Duration = Duration::from_secs(1);
/// How long nothing may be held before a detached holder ends itself.
const IDLE: Duration = Duration::from_millis(200);

/// Becomes a holder, and never returns, when this process was started as one. Otherwise does nothing.
///
/// Must be called before any other thread exists: the façade does so from an initializer that runs before
/// `main`, so that it works in any program and any test binary.
pub fn enter_if_asked() {
    let Some(config) = std::env::var_os(VARIABLE) else { return };
    // First of all: no child of this process may take it for an order to become a holder.
    daemon::remove_env(VARIABLE);
    let code = match config.to_str().and_then(|text| serde_json::from_str::<HolderConfig>(text).ok()) {
        Some(config) => run(config),
        None => 64,
    };
    #[expect(clippy::disallowed_methods, reason = "the program this was started from must not run")]
    std::process::exit(code);
}

fn run(config: HolderConfig) -> i32 {
    let Ok((owner, mut ready)) = isolate(&config) else { return 70 };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let error = ApiError::new(ErrorKind::Holder, &e);
            say(&mut ready, &Ready::Failed(error));
            return 70;
        }
    };
    match runtime.block_on(hold(config, owner, &mut ready)) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(?error, "could not hold");
            say(&mut ready, &Ready::Failed(error));
            1
        }
    }
}

/// Cuts every tie to the owner but the two pipes.
fn isolate(config: &HolderConfig) -> std::io::Result<(OwnedFd, std::fs::File)> {
    daemon::close_other_descriptors(&[config.owner_fd, config.ready_fd])?;
    let owner = fd::take_inherited(config.owner_fd)?;
    let ready = std::fs::File::from(fd::take_inherited(config.ready_fd)?);
    daemon::new_session()?;
    daemon::ignore_sigpipe()?;
    daemon::ignore_terminal_signals()?;
    daemon::no_core_dumps()?;
    std::env::set_current_dir("/")?;
    let log = config.home.join("logs").join(format!("holder-{}.log", config.cluster));
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir)?;
    }
    rotate(&log);
    daemon::redirect_stdio(&log)?;
    std::panic::set_hook(Box::new(|info| tracing::error!(%info, "panic")));
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEETBOX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,fleetbox=debug,russh=warn"));
    // A subscriber is set once; nobody else is in this process to have set one.
    let _ = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    Ok((owner, ready))
}

/// Keeps a log from growing without end: beyond 4 MiB the old one is put aside once.
fn rotate(log: &std::path::Path) {
    if std::fs::metadata(log).is_ok_and(|m| m.len() > 4 << 20) {
        let _ = std::fs::rename(log, log.with_extension("log.1"));
    }
}

fn say(ready: &mut std::fs::File, message: &Ready) {
    use std::io::Write;
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        // An owner that is gone is noticed through its pipe.
        let _ = ready.write_all(&line);
    }
}

fn api_error(error: &OrchestratorError) -> ApiError {
    ApiError::new(error.kind(), error)
}

/// Sets up, serves until the end is called for, and tears down.
async fn hold(config: HolderConfig, owner: OwnedFd, ready: &mut std::fs::File) -> Result<(), ApiError> {
    if config.api_version != API_VERSION {
        return Err(ApiError {
            kind: ErrorKind::Holder,
            message: format!(
                "the holder program speaks API version {API_VERSION}, its owner version {}",
                config.api_version
            ),
            causes: Vec::new(),
            console: None,
        });
    }
    let store = Store::open(&config.home).map_err(|e| ApiError::new(ErrorKind::Store, &e))?;
    let lock = Lock::take(&store, LockKind::Cluster, config.cluster.as_str(), PREDECESSOR_WAIT)
        .map_err(|e| ApiError::new(ErrorKind::Held, &e))?;
    // What a dead owner left is cleared away before anything new is made: a stale bridge would be in the way.
    undo_dead_owners(&store).await.map_err(|e| api_error(&e))?;

    let orchestrator =
        Orchestrator::open(OrchestratorConfig { store: store.clone(), cluster: config.cluster.clone() })
            .map_err(|e| api_error(&e))?;
    let orchestrator = Arc::new(orchestrator);
    let socket = OwnSocket::bind(&store, &orchestrator).map_err(|e| api_error(&e))?;

    let (lease, lease_rx) = watch::channel(Lease { kind: config.lease, owner_pid: config.owner_pid });
    let (end_tx, mut end) = mpsc::channel(1);
    let serving = Serving::new(Arc::clone(&orchestrator), lease, end_tx);
    let busy = serving.busy();
    let (stop_tx, stop_rx) = tokio::sync::oneshot::channel::<()>();
    let listener = socket.listener(fleetbox_os::host::sudo_caller().map(|(uid, _)| uid));
    let server = tokio::spawn(async move {
        let serve = axum::serve(listener, routes::router(serving)).with_graceful_shutdown(async {
            let _ = stop_rx.await;
        });
        if let Err(e) = serve.await {
            tracing::error!(error = %e, "server");
        }
    });
    tracing::info!(cluster = %config.cluster, lease = %config.lease, "serving");
    say(ready, &Ready::Serving { pid: std::process::id() });

    let why = tokio::select! {
        how = end.recv() => Why::Closed(how),
        () = owner_death(owner, lease_rx.clone()) => Why::OwnerDied,
        () = terminated() => Why::Terminated,
        () = idle(&orchestrator, lease_rx, &busy) => Why::Idle,
    };
    tracing::info!(?why, "ending");
    let result = match why {
        // The close call has carried it out and waits to answer.
        Why::Closed(_) => Ok(()),
        Why::OwnerDied => orchestrator.close(CloseHow::OwnerDied).await,
        Why::Terminated => orchestrator.close(CloseHow::StopMembers).await,
        Why::Idle => orchestrator.close(CloseHow::IfIdle).await,
    };
    if let Err(e) = &result {
        tracing::error!(error = %e.story(), "teardown");
    }
    socket.remove(&orchestrator);
    if let Err(e) = orchestrator.finish() {
        tracing::error!(error = %e.story(), "journal");
    }
    let _ = stop_tx.send(());
    let _ = tokio::time::timeout(DRAIN, server).await;
    // Last: whoever gets the lock next finds everything undone.
    drop(lock);
    Ok(())
}

#[derive(Debug)]
enum Why {
    Closed(#[expect(dead_code, reason = "logged")] Option<()>),
    OwnerDied,
    Terminated,
    Idle,
}

/// Ends when the owner is dead and the lease is bound to it.
async fn owner_death(owner: OwnedFd, mut lease: watch::Receiver<Lease>) {
    if let Err(e) = ready::end_of_pipe(owner).await {
        tracing::error!(error = %e, "owner pipe");
    }
    // Detached meanwhile: its end means nothing any more.
    if lease.borrow_and_update().kind != LeaseKind::Bound {
        std::future::pending::<()>().await;
    }
}

async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut s) => {
            s.recv().await;
        }
        Err(e) => {
            tracing::error!(error = %e, "SIGTERM handler");
            std::future::pending::<()>().await;
        }
    }
}

/// Ends when nothing is held any more under a detached lease: no VMM, no network that was asked for, no call under
/// way.
async fn idle(orchestrator: &Orchestrator, mut lease: watch::Receiver<Lease>, busy: &watch::Sender<usize>) {
    let mut events = orchestrator.events();
    let mut busy = busy.subscribe();
    loop {
        let held = lease.borrow_and_update().kind != LeaseKind::Detached
            || *busy.borrow_and_update() > 0
            || !orchestrator.is_idle();
        if !held {
            // Between a stop and the start that follows it lie a few milliseconds.
            tokio::time::sleep(IDLE).await;
            if *busy.borrow_and_update() == 0 && orchestrator.is_idle() {
                return;
            }
            continue;
        }
        tokio::select! {
            _ = lease.changed() => {}
            _ = busy.changed() => {}
            event = events.recv() => match event {
                Ok(Event::StateChanged { .. }) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Ok(_) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
            },
        }
    }
}
