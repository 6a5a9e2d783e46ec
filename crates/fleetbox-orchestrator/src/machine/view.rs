//! What is to be seen of a machine from outside its task.

use std::sync::Arc;

use fleetbox_spec::{Event, MachineInfo, State};

use super::{Seen, Task};
use crate::core::{Phase, Then};
use crate::{OrchestratorError, SharedResult};

impl Task {
    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Stopped | Phase::Gone => State::Stopped,
            Phase::Preparing { .. } | Phase::Launching | Phase::Booting | Phase::Ending(Then::Boot) => {
                State::Starting
            }
            Phase::Running => State::Running,
            Phase::Paused => State::Paused,
            Phase::Ending(Then::Stop | Then::Delete) => State::Stopping,
            // That it has failed is known; that its VMM is being cleared away is a detail.
            Phase::Ending(Then::Fail) | Phase::Failed => State::Failed,
        }
    }

    pub(super) fn current(&self) -> SharedResult<MachineInfo> {
        let Some(record) = &self.record else {
            let (cluster, name) = (self.shared.cluster.clone(), self.name.clone());
            return Err(Arc::new(OrchestratorError::UnknownMachine { cluster, name }));
        };
        let state = self.state();
        let failure = self.failure.as_ref().map(|f| f.story()).or_else(|| record.failure.clone());
        Ok(MachineInfo {
            name: self.name.clone(),
            cluster: self.shared.cluster.clone(),
            state,
            ip: Some(record.ip.into()),
            mac: record.mac.clone(),
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            disk_gib: record.disk_gib,
            image: record.image.clone(),
            backend: record.backend.clone(),
            accel: record.accel,
            holder_pid: Some(std::process::id()),
            vmm_pid: self.vm.as_ref().and_then(|vm| vm.machine.pid()),
            created_at: record.created_at.clone(),
            ephemeral: record.ephemeral,
            host_key: record.host_key.clone(),
            boot_stage: self.vm.as_ref().map(|vm| vm.console.stage()).or(self.last_stage),
            boot: record.boot.clone(),
            failure: failure.filter(|_| state == State::Failed),
        })
    }

    /// Lets everybody see the machine as it is now.
    pub(super) fn publish(&self) {
        let info = self.current().ok();
        let (before, was_live) = {
            let seen = self.info.borrow();
            (seen.info.as_ref().map(|i| i.state), seen.live)
        };
        let state = info.as_ref().map(|i| i.state);
        let live = self.phase.has_vmm() || matches!(self.phase, Phase::Preparing { .. });
        self.info.send_replace(Seen { info, live });
        // A failed machine whose VMM is gone at last is told again: whoever waits for the end of VMMs wakes up.
        if let Some(state) = state.filter(|s| Some(*s) != before || live != was_live) {
            self.shared.emit(Event::StateChanged { machine: self.name.clone(), state });
        }
    }
}
