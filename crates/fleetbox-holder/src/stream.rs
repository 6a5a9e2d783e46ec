//! Slow answers: newline-delimited JSON, as things happen.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fleetbox_api::{ApiError, StreamItem, StreamResult};
use fleetbox_orchestrator::OrchestratorError;
use fleetbox_spec::{Event, MachineName};
use tokio::sync::{broadcast, mpsc};

/// How often a silent stream shows that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// What a client that hangs up in the middle means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HangUp {
    /// The work is dropped, and thereby cancelled.
    Cancels,
    /// The work goes on: half a stop helps nobody.
    IsIgnored,
}

/// Answers with the events of `machine` (of all, when `None`) while `work` is under way, then with its result.
pub(crate) fn answer(
    events: broadcast::Receiver<Event>,
    machine: Option<MachineName>,
    hang_up: HangUp,
    work: impl Future<Output = Result<StreamResult, Arc<OrchestratorError>>> + Send + 'static,
) -> Response {
    let (tx, rx) = mpsc::channel::<Bytes>(64);
    tokio::spawn(pump(events, machine, hang_up, work, tx));
    let stream = futures_util::stream::unfold(rx, |mut rx| async move {
        let bytes = rx.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), rx))
    });
    ([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

async fn pump(
    mut events: broadcast::Receiver<Event>,
    machine: Option<MachineName>,
    hang_up: HangUp,
    work: impl Future<Output = Result<StreamResult, Arc<OrchestratorError>>> + Send + 'static,
    tx: mpsc::Sender<Bytes>,
) {
    let mut work = Box::pin(work);
    let mut alive = tokio::time::interval(SIGN_OF_LIFE);
    let mut listening = true;
    let mut told = true;
    let wanted = |e: &Event| machine.as_ref().is_none_or(|m| m == e.machine());
    let result = loop {
        tokio::select! {
            biased;
            // Events first, so that all that led to the result is told before it.
            event = events.recv(), if told => match event {
                Ok(event) if wanted(&event) => send(&tx, &StreamItem::Event(event)).await,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => told = false,
            },
            () = tx.closed(), if listening => {
                if hang_up == HangUp::Cancels {
                    return;
                }
                listening = false;
            }
            result = &mut work => break result,
            _ = alive.tick() => { let _ = tx.send(Bytes::from_static(b"\n")).await; }
        }
    };
    // What was emitted in the same moment as the result.
    while let Ok(event) = events.try_recv() {
        if wanted(&event) {
            send(&tx, &StreamItem::Event(event)).await;
        }
    }
    let last = match result {
        Ok(result) => StreamItem::Done(result),
        Err(e) => StreamItem::Failed(to_api(&e)),
    };
    send(&tx, &last).await;
}

async fn send(tx: &mpsc::Sender<Bytes>, item: &StreamItem) {
    match serde_json::to_vec(item) {
        Ok(mut line) => {
            line.push(b'\n');
            // A client that has hung up is noticed by `closed`.
            let _ = tx.send(line.into()).await;
        }
        Err(e) => tracing::error!(error = %e, "stream item"),
    }
}

/// An error as it crosses the wire.
pub(crate) fn to_api(error: &OrchestratorError) -> ApiError {
    let mut api = ApiError::new(error.kind(), error);
    api.console = error.console().map(str::to_owned);
    api
}
