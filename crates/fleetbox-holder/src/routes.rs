//! The API's routes, each a thin call into the orchestrator.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use fleetbox_api::{
    API_VERSION, ApiError, CloseRequest, HolderInfo, StopRequest, StreamResult, VersionInfo, routes,
};
use fleetbox_orchestrator::{CloseHow, Orchestrator, OrchestratorError};
use fleetbox_spec::{Capabilities, ErrorKind, LeaseKind, MachineInfo, MachineName, MachineSpec};
use tokio::sync::{mpsc, watch};

use crate::stream::{HangUp, answer, to_api};

/// What keeps this holder alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) kind: LeaseKind,
    pub(crate) owner_pid: u32,
}

/// What the routes work on.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    orchestrator: Arc<Orchestrator>,
    lease: watch::Sender<Lease>,
    end: mpsc::Sender<()>,
    /// Slow calls under way.
    busy: watch::Sender<usize>,
}

impl Serving {
    pub(crate) fn new(
        orchestrator: Arc<Orchestrator>,
        lease: watch::Sender<Lease>,
        end: mpsc::Sender<()>,
    ) -> Self {
        Self { orchestrator, lease, end, busy: watch::channel(0).0 }
    }

    pub(crate) fn busy(&self) -> watch::Sender<usize> {
        self.busy.clone()
    }

    /// Counts as a call under way until dropped.
    fn guard(&self) -> BusyGuard {
        self.busy.send_modify(|n| *n += 1);
        BusyGuard(self.busy.clone())
    }

    async fn info(&self) -> HolderInfo {
        let lease = *self.lease.borrow();
        let network = self.orchestrator.network();
        HolderInfo {
            pid: std::process::id(),
            cluster: self.orchestrator.cluster().clone(),
            lease: lease.kind,
            owner_pid: (lease.kind == LeaseKind::Bound).then_some(lease.owner_pid),
            subnet: network.as_ref().map(|n| format!("{}/24", n.subnet)),
            bridge: network.map(|n| n.bridge),
            capabilities: self.orchestrator.capabilities(),
            damage: self.orchestrator.damage().await,
        }
    }
}

#[derive(Debug)]
struct BusyGuard(watch::Sender<usize>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

pub(crate) fn router(serving: Serving) -> Router {
    Router::new()
        .route(routes::VERSION, get(version))
        .route(routes::HOLDER, get(holder))
        .route(routes::CAPABILITIES, get(capabilities))
        .route(routes::NETWORK, post(network))
        .route(routes::MACHINES, get(machines).post(start))
        .route(routes::MACHINE, get(machine).delete(destroy))
        .route(routes::STOP, post(stop))
        .route(routes::PAUSE, post(pause))
        .route(routes::RESUME, post(resume))
        .route(routes::RESET, post(reset))
        .route(routes::DETACH, post(detach))
        .route(routes::CLOSE, post(close))
        .route(routes::EVENTS, get(events))
        .fallback(|| async {
            Failure(StatusCode::NOT_FOUND, invalid("there is no such path in this API")).into_response()
        })
        .with_state(serving)
}

/// An error with its HTTP status.
struct Failure(StatusCode, ApiError);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError { kind: ErrorKind::InvalidInput, message: message.into(), causes: Vec::new(), console: None }
}

fn failure(error: &OrchestratorError) -> Failure {
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Held => StatusCode::CONFLICT,
        ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure(status, to_api(error))
}

fn parse_name(name: &str) -> Result<MachineName, Failure> {
    MachineName::new(name)
        .map_err(|e| Failure(StatusCode::BAD_REQUEST, ApiError::new(ErrorKind::InvalidInput, &e)))
}

/// A body that is no JSON of the type is answered in this API's own words.
fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Failure> {
    body.map(|Json(b)| b).map_err(|e| Failure(StatusCode::BAD_REQUEST, invalid(e.body_text())))
}

async fn version() -> Json<VersionInfo> {
    Json(VersionInfo {
        api_version: API_VERSION,
        fleetbox_version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    })
}

async fn holder(State(s): State<Serving>) -> Json<HolderInfo> {
    Json(s.info().await)
}

async fn capabilities(State(s): State<Serving>) -> Result<Json<Capabilities>, Failure> {
    let _guard = s.guard();
    s.orchestrator.choose_backend().await.map(Json).map_err(|e| failure(&e))
}

async fn network(State(s): State<Serving>) -> Response {
    let guard = s.guard();
    answer(s.orchestrator.events(), None, HangUp::IsIgnored, async move {
        let _guard = guard;
        s.orchestrator.open_network().await.map_err(Arc::new)?;
        Ok(StreamResult::Nothing)
    })
}

async fn machines(State(s): State<Serving>) -> Json<Vec<MachineInfo>> {
    Json(s.orchestrator.list())
}

async fn machine(State(s): State<Serving>, Path(name): Path<String>) -> Result<Json<MachineInfo>, Failure> {
    let name = parse_name(&name)?;
    s.orchestrator.get(&name).map(Json).map_err(|e| failure(&e))
}

async fn start(
    State(s): State<Serving>,
    spec: Result<Json<MachineSpec>, JsonRejection>,
) -> Result<Response, Failure> {
    let spec = body(spec)?;
    let (events, name) = (s.orchestrator.events(), spec.name.clone());
    let guard = s.guard();
    Ok(answer(events, Some(name), HangUp::Cancels, async move {
        let _guard = guard;
        s.orchestrator.start(spec).await.map(|m| StreamResult::Machine(Box::new(m)))
    }))
}

async fn stop(
    State(s): State<Serving>,
    Path(name): Path<String>,
    how: Result<Json<StopRequest>, JsonRejection>,
) -> Result<Response, Failure> {
    let name = parse_name(&name)?;
    let StopRequest { immediate, grace_s } = body(how)?;
    let guard = s.guard();
    Ok(answer(s.orchestrator.events(), Some(name.clone()), HangUp::IsIgnored, async move {
        let _guard = guard;
        let stopped = s.orchestrator.stop(&name, immediate, grace_s.map(Duration::from_secs)).await;
        stopped.map(|m| StreamResult::Machine(Box::new(m)))
    }))
}

async fn destroy(State(s): State<Serving>, Path(name): Path<String>) -> Result<Response, Failure> {
    let name = parse_name(&name)?;
    let guard = s.guard();
    Ok(answer(s.orchestrator.events(), Some(name.clone()), HangUp::IsIgnored, async move {
        let _guard = guard;
        s.orchestrator.destroy(&name).await.map(|()| StreamResult::Nothing)
    }))
}

async fn pause(State(s): State<Serving>, Path(name): Path<String>) -> Result<Json<MachineInfo>, Failure> {
    let name = parse_name(&name)?;
    s.orchestrator.pause(&name).await.map(Json).map_err(|e| failure(&e))
}

async fn resume(State(s): State<Serving>, Path(name): Path<String>) -> Result<Json<MachineInfo>, Failure> {
    let name = parse_name(&name)?;
    s.orchestrator.resume(&name).await.map(Json).map_err(|e| failure(&e))
}

async fn reset(State(s): State<Serving>, Path(name): Path<String>) -> Result<Response, Failure> {
    let name = parse_name(&name)?;
    let guard = s.guard();
    // Hanging up is no wish to leave the machine without power.
    Ok(answer(s.orchestrator.events(), Some(name.clone()), HangUp::IsIgnored, async move {
        let _guard = guard;
        s.orchestrator.reset(&name).await.map(|m| StreamResult::Machine(Box::new(m)))
    }))
}

async fn detach(State(s): State<Serving>) -> Json<HolderInfo> {
    s.lease.send_modify(|l| l.kind = LeaseKind::Detached);
    Json(s.info().await)
}

async fn close(
    State(s): State<Serving>,
    how: Result<Json<CloseRequest>, JsonRejection>,
) -> Result<Response, Failure> {
    let CloseRequest { stop_members, destroy } = body(how)?;
    let how = match (destroy, stop_members) {
        (true, _) => CloseHow::Destroy,
        (false, true) => CloseHow::StopMembers,
        (false, false) => CloseHow::IfIdle,
    };
    let guard = s.guard();
    Ok(answer(s.orchestrator.events(), None, HangUp::IsIgnored, async move {
        let _guard = guard;
        s.orchestrator.close(how).await.map_err(Arc::new)?;
        // The process ends once this answer is out.
        let _ = s.end.try_send(());
        Ok(StreamResult::Nothing)
    }))
}

async fn events(State(s): State<Serving>) -> Response {
    answer(s.orchestrator.events(), None, HangUp::Cancels, std::future::pending())
}
