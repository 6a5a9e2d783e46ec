//! One task owns one machine: it takes requests and happenings one at a time, asks [`crate::core`] what
//! they mean, and does it. Requests carry a oneshot for their answer; a start whose callers have all hung
//! up is cancelled.

mod actions;
mod handle;
mod view;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fleetbox_spec::{BootStage, MachineInfo, MachineName, MachineSpec};
use fleetbox_store::{Lock, LockKind, MachineRecord, write_json};
use fleetbox_vmm::stop::StopStep;
use fleetbox_vmm::{Launched, Machine, MachineEvent};
use tokio::sync::{mpsc, watch};

use crate::boot::{ConsoleNews, ConsoleWatch, NotUp, boot_error};
use crate::core::{Action, Input, Phase, Refused, step};
use crate::disk_kernel::Kernel;
use crate::error::step_error;
use crate::prepare::{Equipment, check_image, lacks_cloud_init, load_record};
use crate::room::Taken;
use crate::shared::Shared;
use crate::{OrchestratorError, Result, SharedResult};

use handle::Answer;
pub(crate) use handle::{Handle, Request, Seen};

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

/// A VMM that was started, and what it took on the host.
struct Up {
    launched: Launched,
    memory: Taken,
    turn: Taken,
    /// The kernel that was found on the disk, where one was looked for.
    kernel: Option<Kernel>,
}

struct Task {
    shared: Arc<Shared>,
    name: MachineName,
    info: watch::Sender<Seen>,
    phase: Phase,
    spec: MachineSpec,
    /// Held from the first start to the end of the task: never two VMMs on one disk.
    lock: Option<Lock>,
    record: Option<MachineRecord>,
    equipment: Option<Equipment>,
    preparing: Option<Work<Result<Equipment>>>,
    launching: Option<Work<Result<Up>>>,
    booting: Option<Work<Result<(), NotUp>>>,
    vm: Option<Vm>,
    /// Its memory, from before its VMM is started until that has ended; kept over a guest's reboot.
    memory: Option<Taken>,
    /// Its turn to boot, until it has booted.
    turn: Option<Taken>,
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
    Launched(Result<Box<Up>>),
    Booted(Result<(), NotUp>),
    Escalate,
    Abandoned,
}

impl Task {
    fn new(shared: Arc<Shared>, name: MachineName, info: watch::Sender<Seen>) -> Self {
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
            memory: None,
            turn: None,
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
                self.info.send_replace(Seen::default());
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
            r = work(&mut self.launching) => Wake::Launched(r.map(Box::new)),
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
                if let Some(Err(e)) =
                    self.record.as_ref().map(|record| check_image(&self.shared, &spec, record))
                {
                    let _ = answer.send(Err(Arc::new(e)));
                    return;
                }
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
        // That the name is taken tells more than who has its lock.
        self.check_name()?;
        let lock = Lock::try_take(&self.shared.store, LockKind::Machine, self.name.as_str())
            .map_err(step_error("take the lock", &self.name))?;
        // Under the lock nobody else can be making a machine of this name.
        self.check_name()?;
        self.record = load_record(&self.shared, &self.name)?;
        self.lock = Some(lock);
        Ok(())
    }

    fn check_name(&self) -> Result<()> {
        let other =
            self.shared.store.cluster_of(&self.name).map_err(step_error("look for the name", &self.name))?;
        match other.filter(|c| *c != self.shared.cluster) {
            Some(other) => Err(OrchestratorError::NameTaken { name: self.name.clone(), other }),
            None => Ok(()),
        }
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

    async fn launched(&mut self, result: Result<Box<Up>>) {
        self.launching = None;
        let input = match result {
            Ok(up) => {
                let Up { launched, memory, turn, kernel } = *up;
                (self.memory, self.turn) = (Some(memory), Some(turn));
                if let Some(kernel) = kernel {
                    self.note_kernel(kernel);
                }
                let log = self.shared.store.machine_dir(&self.shared.cluster, &self.name).serial_log();
                let start = launched.machine.console_start();
                let console = ConsoleWatch::start(Arc::clone(&self.shared), self.name.clone(), log, start);
                self.vm = Some(Vm { machine: launched.machine, events: launched.events, console });
                Input::Launched
            }
            Err(e) => {
                // When its end was decided before, that is the reason, not this.
                if self.phase == Phase::Launching {
                    self.failure = Some(Arc::new(e));
                }
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
                let mute = self.equipment.as_ref().is_some_and(|e| lacks_cloud_init(&e.image));
                self.failure = Some(Arc::new(boot_error(&self.name, console, mute, not_up)));
                Input::BootFailed
            }
        };
        self.apply(input).await;
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
            self.turn = None;
        }
        if !self.phase.has_vmm() {
            self.memory = None;
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

    fn answer_start(&mut self, answer: SharedResult<MachineInfo>) {
        for waiter in std::mem::take(&mut self.start_waiters) {
            let _ = waiter.send(answer.clone());
        }
    }

    fn tail(&self) -> String {
        self.vm.as_ref().map(|vm| vm.console.tail()).unwrap_or_default()
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
