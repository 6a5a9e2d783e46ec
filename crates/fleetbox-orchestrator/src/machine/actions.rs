//! What the task of a machine does when the transition core says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox_net::Resource;
use fleetbox_spec::{Accel, Arch, Event, MachineName};
use fleetbox_store::{MachineRecord, write_json};
use fleetbox_vmm::VmmError;
use fleetbox_vmm::stop::{StopMethod, StopPlan};

use super::{Task, Up};
use crate::backends::slowness;
use crate::boot::{BootWait, NotUp, boot_limit};
use crate::core::{Action, Phase, Then};
use crate::disk_kernel::{self, Kernel};
use crate::error::step_error;
use crate::firmware::Plan;
use crate::prepare::{launch_config, prepare};
use crate::room::{self, Limits, Taken};
use crate::shared::Shared;
use crate::{OrchestratorError, Result};

/// How long a guest gets to shut down on hardware; times [`slowness`] elsewhere.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// How long a VMM whose guest has ended gets to end by itself before it is helped.
const VMM_END_GRACE: Duration = Duration::from_secs(3);

impl Task {
    pub(super) async fn act(&mut self, action: Action) {
        match action {
            Action::Prepare => {
                let (shared, spec) = (Arc::clone(&self.shared), self.spec.clone());
                self.preparing = Some(Box::pin(async move { prepare(&shared, &spec).await }));
            }
            Action::AbortPrepare => {
                self.preparing = None;
                self.note_cancelled();
            }
            Action::Launch => self.launch().await,
            Action::AwaitBoot => self.await_boot().await,
            Action::EndGently => {
                let accel = self.record.as_ref().map_or(Accel::Kvm, |r| r.accel);
                let grace = self.stop_grace.unwrap_or(STOP_GRACE * slowness(accel));
                self.begin_escalation(StopPlan::graceful(grace), Duration::ZERO).await;
            }
            // Nothing answers yet, so there is nobody to ask.
            Action::Kill | Action::EndVmm if self.launching.is_some() => self.abort_launch(),
            Action::EndVmm => {
                let plan = StopPlan::graceful(Duration::ZERO).without_guest();
                let first = match self.phase {
                    // It was not the guest that ended: there is nothing to wait for.
                    Phase::Ending(Then::Stop) if self.vm.is_some() && !self.end_waiters.is_empty() => {
                        Duration::ZERO
                    }
                    _ => VMM_END_GRACE,
                };
                self.begin_escalation(plan, first).await;
            }
            Action::Kill => self.begin_escalation(StopPlan::immediate(), Duration::ZERO).await,
            // Done by `simple`, whose caller waits for the VMM's answer.
            Action::PauseVmm | Action::ResumeVmm => {}
            Action::Detach => self.detach().await,
            Action::Delete => self.delete(),
            Action::AnswerStarted => self.answer_start(self.current()),
            Action::AnswerStartFailed => {
                self.note_cancelled();
                if let Some(failure) = self.failure.clone() {
                    self.answer_start(Err(failure));
                }
            }
            Action::AnswerEnded => {
                // Whoever waits for the start of a machine that has ended would wait for ever.
                if !self.start_waiters.is_empty() {
                    self.note_cancelled();
                    if let Some(failure) = self.failure.clone() {
                        self.answer_start(Err(failure));
                    }
                }
                self.publish();
                let answer = self.current();
                for waiter in std::mem::take(&mut self.end_waiters) {
                    let _ = waiter.send(answer.clone());
                }
            }
        }
    }

    fn note_cancelled(&mut self) {
        if self.failure.is_none() {
            self.failure = Some(Arc::new(OrchestratorError::Cancelled { name: self.name.clone() }));
        }
    }

    async fn launch(&mut self) {
        self.vm = None;
        let Some(equipment) = &mut self.equipment else { return };
        // From its launch on, the guest has the disk.
        let look = std::mem::replace(&mut equipment.used_disk, true) && equipment.plan == Plan::Direct;
        let tap = equipment.attachment.tap.try_clone().map_err(step_error("pass on the tap", &self.name));
        let (tap, chosen) = match (tap, self.shared.backend().await) {
            (Ok(tap), Ok(chosen)) => (tap, chosen),
            (Err(e), _) | (_, Err(e)) => {
                self.failure = Some(Arc::new(e));
                // Told through the same door as a VMM that does not start.
                let gone = self.gone();
                self.launching = Some(Box::pin(async move { Err(gone) }));
                return;
            }
        };
        let backend = Arc::clone(&chosen.backend);
        let (accel, plan) = (equipment.capabilities.accel, equipment.plan.clone());
        let (record, image) = (equipment.record.clone(), equipment.image.clone());
        let limit = boot_limit(accel, self.spec.boot_timeout_s);
        let (shared, name, memory) = (Arc::clone(&self.shared), self.name.clone(), self.memory.take());
        self.launching = Some(Box::pin(async move {
            let kernel = match look {
                true => Some(disk_kernel(&shared, &record, image.arch, accel).await?),
                false => None,
            };
            let dir = shared.store.machine_dir(&shared.cluster, &name);
            let image = kernel.as_ref().map_or(image.clone(), |kernel| kernel.over(&image, &dir));
            let config = launch_config(&shared, &record, &image, &plan, accel, tap)?;
            let (memory, turn) = room(&shared, &name, memory, config.memory_mib, accel, limit).await?;
            let phase = fleetbox_spec::Phase::Vmm;
            let detail = backend.capabilities().backend.clone();
            shared.emit(Event::PhaseStarted { machine: name.clone(), phase, detail });
            let began = Instant::now();
            let launched = backend.launch(config).await.map_err(step_error("start the VMM", &name))?;
            shared.phase_done(&name, phase, began);
            Ok(Up { launched, memory, turn, kernel })
        }));
    }

    /// Keeps what the launch has found on the disk, for the next one and for whoever asks.
    pub(super) fn note_kernel(&mut self, kernel: Kernel) {
        let dir = self.shared.store.machine_dir(&self.shared.cluster, &self.name);
        if let Some(equipment) = &mut self.equipment {
            equipment.image = kernel.over(&equipment.image, &dir);
            kernel.note_in(&mut equipment.record);
        }
        if let Some(record) = &mut self.record {
            kernel.note_in(record);
        }
    }

    /// The future that waits for a VMM to answer owns its process: dropping it kills and reaps that.
    fn abort_launch(&mut self) {
        let gone = self.gone();
        // Told through the same door as a VMM that does not start.
        self.launching = Some(Box::pin(async move { Err(gone) }));
    }

    fn gone(&self) -> OrchestratorError {
        let (machine, command) = (self.name.clone(), "start".to_owned());
        step_error("start the VMM", &self.name)(VmmError::Gone { machine, command })
    }

    async fn await_boot(&mut self) {
        let Some(record) = self.record.clone() else { return };
        if record.accel == Accel::None {
            // No guest, no login: the fake is up when its process is.
            self.booting = Some(Box::pin(async { Ok(()) }));
            return;
        }
        let (limit, cloud_init) = (self.spec.boot_timeout_s, self.spec.wait_cloud_init);
        match BootWait::new(&self.shared, &record, record.accel, limit, cloud_init).await {
            Ok(wait) => {
                let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
                self.booting = Some(Box::pin(wait.wait(shared, name)));
            }
            Err(e) => {
                self.failure = Some(Arc::new(e));
                self.booting = Some(Box::pin(async { Err(NotUp { seconds: 0, source: None }) }));
            }
        }
    }

    async fn detach(&mut self) {
        self.equipment = None;
        self.shared.give_back_address(&self.name);
        if let Some(network) = self.shared.network_now()
            && let Err(e) = network.detach(&self.name).await
        {
            self.shared.warn(&self.name, format!("its tap could not be taken down: {e}"));
        }
    }

    fn delete(&mut self) {
        let dir = self.shared.store.machine_dir(&self.shared.cluster, &self.name);
        let done = fleetbox_store::remove_dir_if_there(dir.path());
        match done {
            Ok(()) => {
                let resource = Resource::Path { path: dir.path().to_owned() };
                if let Err(e) = self.shared.journal.strike(&resource) {
                    tracing::warn!(machine = %self.name, error = %e, "could not strike its folder off the journal");
                }
                self.record = None;
            }
            Err(e) => self.shared.warn(&self.name, format!("its folder could not be deleted: {e}")),
        }
    }

    /// The next step of a stop.
    pub(super) async fn escalate(&mut self) {
        self.escalation.next = None;
        let Some(now) = self.escalation.steps.pop_front() else { return };
        let Some(vm) = &self.vm else { return };
        let machine = Arc::clone(&vm.machine);
        tracing::info!(machine = %self.name, method = %now.method, grace = ?now.grace, "ending the VMM");
        let asked = match now.method {
            StopMethod::PowerButton => machine.power_button().await.map_err(|e| e.to_string()),
            StopMethod::Quit => machine.quit().await.map_err(|e| e.to_string()),
            StopMethod::Terminate => machine.terminate().map_err(|e| e.to_string()),
            StopMethod::Kill => machine.kill().map_err(|e| e.to_string()),
        };
        // A VMM that does not take a command gets the next, surer one at once.
        let grace = match asked {
            Ok(()) => now.grace,
            Err(error) => {
                tracing::warn!(machine = %self.name, method = %now.method, error, "the VMM does not take it");
                Duration::ZERO
            }
        };
        if now.method == StopMethod::Kill && self.escalation.steps.is_empty() {
            // SIGKILL cannot be refused, but a process stuck in the kernel ends late: ask again.
            self.escalation.steps.push_back(now);
        }
        self.escalation.next = Some(tokio::time::Instant::now() + grace.max(Duration::from_millis(10)));
    }

    async fn begin_escalation(&mut self, plan: StopPlan, first_after: Duration) {
        self.escalation.steps = plan.steps().iter().copied().collect();
        self.escalation.next = Some(tokio::time::Instant::now() + first_after);
        if first_after.is_zero() {
            self.escalate().await;
        }
    }
}

/// Finds the kernel that the disk boots now, and writes it into the machine's record: what the VMM is given is known
/// from then on, whatever becomes of the launch.
async fn disk_kernel(shared: &Shared, record: &MachineRecord, arch: Arch, accel: Accel) -> Result<Kernel> {
    let name = &record.name;
    let dir = shared.store.machine_dir(&shared.cluster, name);
    let inspector = disk_kernel::inspector(shared, accel);
    let look = disk_kernel::current(shared, &*inspector, &dir, record, arch);
    let phase = fleetbox_spec::Phase::Kernel;
    let kernel = shared.phase(name, phase, "looking for the disk's kernel", look).await?;
    let mut record = record.clone();
    kernel.note_in(&mut record);
    write_json(&dir.record(), &record, 0o644).map_err(step_error("write machine.json", name))?;
    Ok(kernel)
}

/// Waits for memory and for a turn to boot. What is waited for is told as progress of the VMM's phase.
async fn room(
    shared: &Shared,
    name: &MachineName,
    kept: Option<Taken>,
    mib: u64,
    accel: Accel,
    limit: Duration,
) -> Result<(Taken, Taken)> {
    let limits = Limits::of_host()?;
    let mut begun = false;
    let mut tell = |detail: String| {
        tracing::info!(machine = %name, detail, "no room yet");
        let (machine, phase) = (name.clone(), fleetbox_spec::Phase::Vmm);
        shared.emit(if std::mem::replace(&mut begun, true) {
            Event::PhaseProgress { machine, phase, detail, progress: None }
        } else {
            Event::PhaseStarted { machine, phase, detail }
        });
    };
    let memory = match kept {
        Some(memory) => memory,
        None => room::memory(name, mib, limits.memory_mib, limit, &mut tell).await?,
    };
    if accel != Accel::None
        && let Ok(host) = fleetbox_os::host::memory()
        && host.available_mib < mib
    {
        let available = host.available_mib;
        shared
            .warn(name, format!("it may use {mib} MiB of memory, and the host has {available} MiB to spare"));
    }
    let turn = room::turn(name, limits.boots, &mut tell).await?;
    Ok((memory, turn))
}
