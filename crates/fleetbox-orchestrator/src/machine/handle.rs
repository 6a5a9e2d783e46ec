//! The way to a machine's task.

use std::sync::Arc;
use std::time::Duration;

use fleetbox_spec::{MachineInfo, MachineName, MachineSpec};
use tokio::sync::{mpsc, oneshot, watch};

use super::Task;
use crate::shared::Shared;
use crate::{OrchestratorError, SharedResult};

pub(super) type Answer = oneshot::Sender<SharedResult<MachineInfo>>;

/// What a machine can be asked for.
#[derive(Debug)]
pub(crate) enum Request {
    Start { spec: Box<MachineSpec>, answer: Answer },
    Stop { immediate: bool, grace: Option<Duration>, answer: Answer },
    Destroy { answer: Answer },
    Pause { answer: Answer },
    Resume { answer: Answer },
    Reset { answer: Answer },
}

/// The way to a machine's task.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    requests: mpsc::UnboundedSender<Request>,
    seen: watch::Receiver<Seen>,
}

/// What is to be seen of a machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// `None` until it has a record, and again when it is gone.
    pub(crate) info: Option<MachineInfo>,
    /// It has a VMM, or is on the way to one; also before it has a record.
    pub(crate) live: bool,
}

impl Handle {
    /// Starts the task of a machine, which need not exist yet.
    pub(crate) fn spawn(shared: Arc<Shared>, name: MachineName) -> Self {
        let (requests, rx) = mpsc::unbounded_channel();
        let (seen_tx, seen) = watch::channel(Seen::default());
        tokio::spawn(Task::new(shared, name, seen_tx).run(rx));
        Self { requests, seen }
    }

    /// Sends a request and waits for its answer. Dropping the future withdraws a start.
    pub(crate) async fn ask(
        &self,
        name: &MachineName,
        request: impl FnOnce(Answer) -> Request,
    ) -> SharedResult<MachineInfo> {
        let (tx, rx) = oneshot::channel();
        let gone = || Arc::new(OrchestratorError::TaskGone { name: name.clone() });
        self.requests.send(request(tx)).map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    }

    /// All that is known of it; `None` when there is no such machine (yet, or any more).
    pub(crate) fn info(&self) -> Option<MachineInfo> {
        self.seen.borrow().info.clone()
    }

    /// Whether it has a VMM, or is on the way to one.
    pub(crate) fn is_live(&self) -> bool {
        self.seen.borrow().live
    }

    /// Whether its task still takes requests.
    pub(crate) fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }
}
