//! One task owns one machine: it takes requests and happenings one at a time, asks [`crate::core`] what
//! they mean, and does it. Requests carry a oneshot for their answer; a start whose callers have all hung
//! up is cancelled.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetbox_net::Resource;
use fleetbox_spec::{Accel, BootStage, Event, MachineInfo, MachineName, MachineSpec, State};
use fleetbox_store::{Lock, LockKind, MachineRecord, write_json};
use fleetbox_vmm::stop::{StopMethod, StopPlan, StopStep};
use fleetbox_vmm::{Launched, Machine, MachineEvent, VmmError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::backends::slowness;
use crate::boot::{BootWait, ConsoleNews, ConsoleWatch, NotUp, boot_error};
use crate::core::{Action, Input, Phase, Refused, Then, step};
use crate::error::step_error;
use crate::prepare::{Equipment, launch_config, load_record, prepare};
use crate::shared::Shared;
use crate::{OrchestratorError, Result, SharedResult};

/// How long a guest gets to shut down on hardware; times [`slowness`] elsewhere.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// How long a VMM whose guest has ended gets to end by itself before it is helped.
const VMM_END_GRACE: Duration = Duration::from_secs(3);

type Answer = oneshot::Sender<SharedResult<MachineInfo>>;

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
    /// `None` until something is known of it, and again when it is gone.
    pub(crate) info: watch::Receiver<Option<MachineInfo>>,
}

impl Handle {
    /// Starts the task of a machine, which need not exist yet.
    pub(crate) fn spawn(shared: Arc<Shared>, name: MachineName) -> Self {
        let (requests, rx) = mpsc::unbounded_channel();
        let (info_tx, info) = watch::channel(None);
        tokio::spawn(Task::new(shared, name, info_tx).run(rx));
        Self { requests, info }
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

    /// Its state, as last told.
    pub(crate) fn state(&self) -> Option<State> {
        self.info.borrow().as_ref().map(|i| i.state)
    }
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A VMM and what belongs to its life.
struct Vm {
    machine: Arc<dyn Machine>,
    events: mpsc::UnboundedReceiver<MachineEvent>,
    console: ConsoleWatch,
}

/// The steps of a stop that are still to come.
#[derive(Default)]
struct Escalation {
    steps: VecDeque<StopStep>,
    next: Option<tokio::time::Instant>,
}

struct Task {
    shared: Arc<Shared>,
    name: MachineName,
    info: watch::Sender<Option<MachineInfo>>,
    phase: Phase,
    spec: MachineSpec,
    /// Held from the first start to the end of the task: never two VMMs on one disk.
    lock: Option<Lock>,
    record: Option<MachineRecord>,
    equipment: Option<Equipment>,
    preparing: Option<Work<Result<Equipment>>>,
    launching: Option<Work<Result<Launched, VmmError>>>,
    booting: Option<Work<Result<(), NotUp>>>,
    vm: Option<Vm>,
    escalation: Escalation,
    stop_grace: Option<Duration>,
    start_waiters: Vec<Answer>,
    end_waiters: Vec<Answer>,
    failure: Option<Arc<OrchestratorError>>,
    last_stage: Option<BootStage>,
}

/// What woke the task.
enum Wake {
    Request(Option<Request>),
    Vmm(Option<MachineEvent>),
    Console(Option<ConsoleNews>),
    Prepared(Result<Box<Equipment>>),
    Launched(Result<Launched, VmmError>),
    Booted(Result<(), NotUp>),
    Escalate,
    Abandoned,
}

impl Task {
    fn new(shared: Arc<Shared>, name: MachineName, info: watch::Sender<Option<MachineInfo>>) -> Self {
        let mut task = Self {
            spec: MachineSpec::new(name.clone()),
            shared,
            info,
            phase: Phase::Stopped,
            lock: None,
            record: None,
            equipment: None,
            preparing: None,
            launching: None,
            booting: None,
            vm: None,
            escalation: Escalation::default(),
            stop_grace: None,
            start_waiters: Vec::new(),
            end_waiters: Vec::new(),
            failure: None,
            last_stage: None,
            name,
        };
        // A damaged record is told by the start; listing the machine must not fail for it.
        task.record = load_record(&task.shared, &task.name).ok().flatten();
        if task.record.as_ref().is_some_and(|r| r.failure.is_some()) {
            task.phase = Phase::Failed;
        }
        task.publish();
        task
    }

    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        loop {
            match self.wake(&mut requests).await {
                // The orchestrator is gone: dropping the VM kills and reaps its VMM.
                Wake::Request(None) => return,
                Wake::Request(Some(request)) => self.take(request).await,
                Wake::Vmm(event) => self.vmm_event(event).await,
                Wake::Console(news) => self.console_news(news).await,
                Wake::Prepared(result) => self.prepared(result).await,
                Wake::Launched(result) => self.launched(result).await,
                Wake::Booted(result) => self.booted(result).await,
                Wake::Escalate => self.escalate().await,
                Wake::Abandoned => {
                    self.start_waiters.clear();
                    self.apply(Input::Cancelled).await;
                }
            }
            if self.phase == Phase::Gone && requests.is_empty() {
                self.info.send_replace(None);
                return;
            }
        }
    }

    async fn wake(&mut self, requests: &mut mpsc::UnboundedReceiver<Request>) -> Wake {
        let (vmm, console) = match &mut self.vm {
            Some(vm) => (Some(&mut vm.events), Some(&mut vm.console.news)),
            None => (None, None),
        };
        tokio::select! {
            biased;
            // What has happened comes first: a request is then judged by what is true now.
            event = recv(vmm) => Wake::Vmm(event),
            news = recv(console) => Wake::Console(news),
            r = work(&mut self.preparing) => Wake::Prepared(r.map(Box::new)),
            r = work(&mut self.launching) => Wake::Launched(r),
            r = work(&mut self.booting) => Wake::Booted(r),
            () = sleep_until(self.escalation.next) => Wake::Escalate,
            request = requests.recv() => Wake::Request(request),
            // Last: a caller that is replaced by another in the same moment has not abandoned it.
            () = abandoned(&mut self.start_waiters) => Wake::Abandoned,
        }
    }

    async fn take(&mut self, request: Request) {
        match request {
            Request::Start { spec, answer } => {
                if matches!(self.phase, Phase::Stopped | Phase::Failed) {
                    if let Err(e) = self.take_lock() {
                        let _ = answer.send(Err(Arc::new(e)));
                        return;
                    }
                    self.spec = *spec;
                }
                self.failure = if self.phase == Phase::Failed { None } else { self.failure.take() };
                self.start_waiters.push(answer);
                let fresh = self.record.is_none();
                if self.try_apply(Input::Start { fresh }).await.is_err() {
                    let refusal = Arc::new(self.wrong_state("started"));
                    for waiter in std::mem::take(&mut self.start_waiters) {
                        let _ = waiter.send(Err(Arc::clone(&refusal)));
                    }
                }
            }
            Request::Stop { immediate, grace, answer } => {
                self.stop_grace = grace;
                self.end_waiters.push(answer);
                self.apply(Input::Stop { gentle: !immediate }).await;
            }
            Request::Destroy { answer } => {
                self.end_waiters.push(answer);
                self.apply(Input::Destroy).await;
            }
            Request::Pause { answer } => self.simple(Input::Pause, "paused", answer).await,
            Request::Resume { answer } => self.simple(Input::Resume, "resumed", answer).await,
            Request::Reset { answer } => match self.try_apply(Input::Reset).await {
                Ok(()) => self.start_waiters.push(answer),
                Err(Refused) => drop(answer.send(Err(Arc::new(self.wrong_state("reset"))))),
            },
        }
    }

    async fn simple(&mut self, input: Input, verb: &'static str, answer: Answer) {
        let machine = self.vm.as_ref().map(|vm| Arc::clone(&vm.machine));
        let result = match (step(self.phase, input), machine) {
            (Ok((_, actions)), Some(machine)) => {
                let done = match actions.first() {
                    Some(Action::PauseVmm) => machine.pause().await,
                    Some(Action::ResumeVmm) => machine.resume().await,
                    _ => Ok(()),
                };
                match done {
                    Ok(()) => {
                        // The VMM's own event follows; the answer shall already tell the new state.
                        let told = if input == Input::Pause { Input::DidPause } else { Input::DidResume };
                        self.apply(told).await;
                        self.current()
                    }
                    Err(e) => Err(Arc::new(step_error("change the run state", &self.name)(e))),
                }
            }
            _ => Err(Arc::new(self.wrong_state(verb))),
        };
        let _ = answer.send(result);
    }

    fn take_lock(&mut self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let lock = Lock::try_take(&self.shared.store, LockKind::Machine, self.name.as_str())
            .map_err(step_error("take the lock", &self.name))?;
        // Under the lock nobody else can be making a machine of this name.
        let other = self.shared.store.cluster_of(&self.name).map_err(step_error("look for the name", &self.name))?;
        if let Some(other) = other.filter(|c| *c != self.shared.cluster) {
            return Err(OrchestratorError::NameTaken { name: self.name.clone(), other });
        }
        self.record = load_record(&self.shared, &self.name)?;
        self.lock = Some(lock);
        Ok(())
    }

    fn wrong_state(&self, request: &'static str) -> OrchestratorError {
        OrchestratorError::WrongState { name: self.name.clone(), state: self.state(), request }
    }

    async fn vmm_event(&mut self, event: Option<MachineEvent>) {
        let Some(event) = event else {
            // The channel ends after Exited; without it the VMM's task has failed, and the VMM with it.
            self.vm = None;
            return self.apply(Input::Exited).await;
        };
        tracing::info!(machine = %self.name, ?event, phase = ?self.phase, "VMM event");
        let input = match event {
            MachineEvent::GuestPoweredOff => {
                if self.phase == Phase::Booting {
                    let (name, console) = (self.name.clone(), self.tail());
                    self.failure = Some(Arc::new(OrchestratorError::PoweredOff { name, console }));
                }
                Input::PoweredOff
            }
            MachineEvent::GuestRebooted => Input::Rebooted,
            MachineEvent::GuestPanicked => {
                self.note_guest_failure("its kernel panicked".into()).await;
                Input::Panicked
            }
            MachineEvent::Paused => Input::DidPause,
            MachineEvent::Resumed => Input::DidResume,
            MachineEvent::Exited(exit) => {
                if !matches!(self.phase, Phase::Ending(_)) {
                    let (name, how, console) = (self.name.clone(), exit.to_string(), self.tail());
                    self.failure = Some(Arc::new(OrchestratorError::VmmDied { name, how, console }));
                }
                self.last_stage = self.vm.as_ref().map(|vm| vm.console.stage());
                self.vm = None;
                Input::Exited
            }
            _ => return,
        };
        self.apply(input).await;
    }

    async fn console_news(&mut self, news: Option<ConsoleNews>) {
        match news {
            Some(ConsoleNews::Panic(line)) => {
                self.note_guest_failure(line).await;
                self.apply(Input::Panicked).await;
            }
            // Only while booting: later such a line is some program's talk.
            Some(ConsoleNews::Hopeless(line)) if self.phase == Phase::Booting => {
                self.note_guest_failure(line).await;
                self.apply(Input::BootFailed).await;
            }
            Some(ConsoleNews::Hopeless(_)) | None => {}
        }
    }

    async fn note_guest_failure(&mut self, what: String) {
        if matches!(self.failure.as_deref(), Some(OrchestratorError::GuestFailed { .. })) {
            return;
        }
        // The call trace follows the panic's first line within this time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (name, console) = (self.name.clone(), self.tail());
        // What the classifier makes of the line names the stage, too.
        let what = self.vm.as_ref().map_or(what, |vm| vm.console.explain());
        self.failure = Some(Arc::new(OrchestratorError::GuestFailed { name, what, console }));
    }

    async fn prepared(&mut self, result: Result<Box<Equipment>>) {
        self.preparing = None;
        let input = match result {
            Ok(equipment) => {
                self.record = Some(equipment.record.clone());
                self.equipment = Some(*equipment);
                Input::Prepared
            }
            Err(e) => {
                self.failure = Some(Arc::new(e));
                Input::PrepareFailed
            }
        };
        self.apply(input).await;
    }

    async fn launched(&mut self, result: Result<Launched, VmmError>) {
        self.launching = None;
        let input = match result {
            Ok(launched) => {
                let log = self.shared.store.machine_dir(&self.shared.cluster, &self.name).serial_log();
                let start = launched.machine.console_start();
                let console = ConsoleWatch::start(Arc::clone(&self.shared), self.name.clone(), log, start);
                self.vm = Some(Vm { machine: launched.machine, events: launched.events, console });
                Input::Launched
            }
            Err(e) => {
                self.failure = Some(Arc::new(step_error("start the VMM", &self.name)(e)));
                Input::LaunchFailed
            }
        };
        self.apply(input).await;
    }

    async fn booted(&mut self, result: Result<(), NotUp>) {
        self.booting = None;
        let input = match result {
            Ok(()) => Input::Ready,
            Err(not_up) => {
                let console = self.vm.as_ref().map(|vm| &vm.console);
                self.failure = Some(Arc::new(boot_error(&self.name, console, not_up)));
                Input::BootFailed
            }
        };
        self.apply(input).await;
    }

    /// The next step of a stop.
    async fn escalate(&mut self) {
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

    async fn apply(&mut self, input: Input) {
        // Only starts, pauses, resumes and resets can be refused; their callers use `try_apply`.
        let _ = self.try_apply(input).await;
    }

    async fn try_apply(&mut self, input: Input) -> Result<(), Refused> {
        let before = self.phase;
        let (next, actions) = step(before, input)?;
        self.phase = next;
        if before != next {
            tracing::info!(machine = %self.name, ?before, ?input, ?next, "phase");
        }
        self.settle(before);
        for action in actions {
            self.act(action).await;
        }
        self.publish();
        Ok(())
    }

    /// What a change of phase means for the task's own parts.
    fn settle(&mut self, before: Phase) {
        if self.phase != Phase::Booting {
            self.booting = None;
        }
        if before == Phase::Booting && self.phase == Phase::Running {
            self.failure = None;
        }
        if !self.phase.has_vmm() || self.phase == Phase::Launching {
            self.escalation = Escalation::default();
        }
        let failed = self.phase == Phase::Failed && before != Phase::Failed;
        let cleared = self.phase == Phase::Stopped && before == Phase::Failed;
        if failed || cleared {
            self.persist_failure(failed);
        }
    }

    fn persist_failure(&mut self, failed: bool) {
        let story = failed.then(|| self.failure.as_ref().map(|f| f.story())).flatten();
        let Some(record) = &mut self.record else { return };
        record.failure = story;
        let file = self.shared.store.machine_dir(&self.shared.cluster, &self.name).record();
        if let Err(e) = write_json(&file, record, 0o644) {
            tracing::warn!(machine = %self.name, error = %e, "could not keep why it failed");
        }
    }

    async fn act(&mut self, action: Action) {
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
            Action::EndVmm => {
                let plan = StopPlan::graceful(Duration::ZERO).without_guest();
                let first = match self.phase {
                    // It was not the guest that ended: there is nothing to wait for.
                    Phase::Ending(Then::Stop) if self.vm.is_some() && !self.end_waiters.is_empty() => Duration::ZERO,
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
        let Some(equipment) = &self.equipment else { return };
        let (config, chosen) = match (launch_config(&self.shared, equipment), self.shared.backend().await) {
            (Ok(config), Ok(chosen)) => (config, chosen),
            (Err(e), _) | (_, Err(e)) => {
                self.failure = Some(Arc::new(e));
                // Told through the same door as a VMM that does not start.
                let (machine, command) = (self.name.clone(), "start".to_owned());
                self.launching = Some(Box::pin(async move { Err(VmmError::Gone { machine, command }) }));
                return;
            }
        };
        let backend = Arc::clone(&chosen.backend);
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        self.launching = Some(Box::pin(async move {
            let phase = fleetbox_spec::Phase::Vmm;
            let detail = backend.capabilities().backend.clone();
            shared.emit(Event::PhaseStarted { machine: name.clone(), phase, detail });
            let began = Instant::now();
            let launched = backend.launch(config).await?;
            shared.phase_done(&name, phase, began);
            Ok(launched)
        }));
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
        if let Some(network) = self.shared.network_now() {
            if let Err(e) = network.detach(&self.name).await {
                self.shared.warn(&self.name, format!("its tap could not be taken down: {e}"));
            }
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

    fn answer_start(&mut self, answer: SharedResult<MachineInfo>) {
        for waiter in std::mem::take(&mut self.start_waiters) {
            let _ = waiter.send(answer.clone());
        }
    }

    fn tail(&self) -> String {
        self.vm.as_ref().map(|vm| vm.console.tail()).unwrap_or_default()
    }

    fn state(&self) -> State {
        match self.phase {
            Phase::Stopped | Phase::Gone => State::Stopped,
            Phase::Preparing { .. } | Phase::Launching | Phase::Booting | Phase::Ending(Then::Boot) => State::Starting,
            Phase::Running => State::Running,
            Phase::Paused => State::Paused,
            Phase::Ending(Then::Stop | Then::Delete) => State::Stopping,
            // That it has failed is known; that its VMM is being cleared away is a detail.
            Phase::Ending(Then::Fail) | Phase::Failed => State::Failed,
        }
    }

    fn current(&self) -> SharedResult<MachineInfo> {
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
            failure: failure.filter(|_| state == State::Failed),
        })
    }

    /// Lets everybody see the machine as it is now.
    fn publish(&self) {
        let now = self.current().ok();
        let before = self.info.borrow().as_ref().map(|i| i.state);
        let state = now.as_ref().map(|i| i.state);
        self.info.send_replace(now);
        if let Some(state) = state.filter(|s| Some(*s) != before) {
            self.shared.emit(Event::StateChanged { machine: self.name.clone(), state });
        }
    }
}

async fn recv<T>(rx: Option<&mut mpsc::UnboundedReceiver<T>>) -> Option<T> {
    match rx {
        // A console that is followed no more is silent, not the end of anything.
        Some(rx) if !(rx.is_closed() && rx.is_empty()) => rx.recv().await,
        _ => std::future::pending().await,
    }
}

async fn work<T>(slot: &mut Option<Work<T>>) -> T {
    match slot {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Ends when somebody waited and nobody does any more.
async fn abandoned(waiters: &mut [Answer]) {
    if waiters.is_empty() {
        return std::future::pending().await;
    }
    for waiter in waiters {
        waiter.closed().await;
    }
}
