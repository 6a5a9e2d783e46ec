//! Watching a guest come up: its console, its sshd, its cloud-init.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleetbox_os::ready::FileWatch;
use fleetbox_spec::{Accel, BootStage, Event, MachineName, Phase};
use fleetbox_ssh::{Client, Options, Target};
use fleetbox_store::MachineRecord;
use fleetbox_vmm::console::{Classifier, Signal};
use tokio::sync::mpsc;

use crate::backends::slowness;
use crate::shared::Shared;
use crate::{OrchestratorError, Result};

/// How long a boot may take on hardware; times [`slowness`] elsewhere.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// Lines of the console that go into an error.
const TAIL_LINES: usize = 20;

/// Between two reads of a console that is being written to. Each read costs the holder two wake-ups.
const CONSOLE_PAUSE: Duration = Duration::from_millis(100);

/// Something the console told that decides a boot.
#[derive(Debug, Clone)]
pub(crate) enum ConsoleNews {
    /// The kernel panicked.
    Panic(String),
    /// No login can come of this boot: an emergency shell, a root device that never comes.
    Hopeless(String),
}

/// Follows a machine's console as long as it is kept.
#[derive(Debug)]
pub(crate) struct ConsoleWatch {
    classifier: Arc<Mutex<Classifier>>,
    pub(crate) news: mpsc::UnboundedReceiver<ConsoleNews>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ConsoleWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ConsoleWatch {
    /// Starts to follow `log` from byte `start` on.
    pub(crate) fn start(shared: Arc<Shared>, machine: MachineName, log: PathBuf, start: u64) -> Self {
        let classifier = Arc::new(Mutex::new(Classifier::new()));
        let (tx, news) = mpsc::unbounded_channel();
        let follower = Follower { shared, machine, log, at: start, began: Instant::now(), tx };
        let task = tokio::spawn(follower.run(Arc::clone(&classifier)));
        Self { classifier, news, task }
    }

    /// The last lines, how far the boot came, and in words where it stands.
    pub(crate) fn tail(&self) -> String {
        self.with(|c| c.tail(TAIL_LINES))
    }

    pub(crate) fn stage(&self) -> BootStage {
        self.with(Classifier::stage)
    }

    pub(crate) fn explain(&self) -> String {
        self.with(|c| c.explain().to_string())
    }

    fn with<T>(&self, f: impl FnOnce(&Classifier) -> T) -> T {
        f(&self.classifier.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Follower {
    shared: Arc<Shared>,
    machine: MachineName,
    log: PathBuf,
    at: u64,
    began: Instant,
    tx: mpsc::UnboundedSender<ConsoleNews>,
}

impl Follower {
    async fn run(mut self, classifier: Arc<Mutex<Classifier>>) {
        let opened = FileWatch::new(&self.log).and_then(|watch| Ok((watch, std::fs::File::open(&self.log)?)));
        let (watch, file) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                self.shared.warn(&self.machine, format!("its console cannot be followed: {e}"));
                return;
            }
        };
        loop {
            // Read after the watch stands, so that no write between the two is missed.
            if let Err(e) = self.read_on(&file, &classifier) {
                self.shared.warn(&self.machine, format!("its console cannot be read: {e}"));
                return;
            }
            if watch.changed().await.is_err() {
                return;
            }
            // A booting kernel writes line by line; reading each by itself would cost more than it tells.
            tokio::time::sleep(CONSOLE_PAUSE).await;
            // What was written meanwhile is read now, and is no reason to wake up once more.
            if watch.forget().is_err() {
                return;
            }
        }
    }

    fn read_on(&mut self, file: &std::fs::File, classifier: &Mutex<Classifier>) -> std::io::Result<()> {
        let mut buffer = [0u8; 16 * 1024];
        loop {
            let n = file.read_at(&mut buffer, self.at)?;
            if n == 0 {
                return Ok(());
            }
            self.at += n as u64;
            let signals = classifier.lock().unwrap_or_else(PoisonError::into_inner).feed(&buffer[..n]);
            for signal in signals {
                self.tell(signal);
            }
        }
    }

    fn tell(&self, signal: Signal) {
        let news = match signal {
            Signal::Stage(stage) => {
                let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.shared.emit(Event::BootStageReached { machine: self.machine.clone(), stage, ms });
                return;
            }
            Signal::Panic { line } => ConsoleNews::Panic(line),
            Signal::EmergencyShell { line }
            | Signal::RootMissing { line }
            | Signal::NoBootDevice { line }
            | Signal::InitFrozen { line } => ConsoleNews::Hopeless(line),
            other => {
                tracing::info!(machine = %self.machine, signal = ?other, "console");
                return;
            }
        };
        // The receiver goes with the machine.
        let _ = self.tx.send(news);
    }
}

/// A boot that did not end in a login.
#[derive(Debug)]
pub(crate) struct NotUp {
    pub(crate) seconds: u64,
    pub(crate) source: Option<fleetbox_ssh::Error>,
}

/// What a boot is waited for with.
#[derive(Debug)]
pub(crate) struct BootWait {
    pub(crate) client: Client,
    pub(crate) limit: Duration,
    pub(crate) cloud_init: Option<String>,
}

/// How long a boot may take.
pub(crate) fn boot_limit(accel: Accel, asked_s: Option<u64>) -> Duration {
    asked_s.map_or_else(|| BOOT_TIMEOUT * slowness(accel), Duration::from_secs)
}

impl BootWait {
    pub(crate) async fn new(
        shared: &Shared,
        record: &MachineRecord,
        accel: Accel,
        limit_s: Option<u64>,
        cloud_init: bool,
    ) -> Result<Self> {
        let step = |e| crate::error::step_error("get ready to log in", &record.name)(e);
        let key = shared.key().await.map_err(step)?.clone();
        let host_key = fleetbox_ssh::parse_public_line(&record.host_key).map_err(|e| step(e.into()))?;
        let target = Target {
            addr: SocketAddr::new(record.ip.into(), 22),
            user: fleetbox_seed::DEFAULT_USER.into(),
            host_key,
        };
        Ok(Self {
            client: Client::new(target, key, Options::default()),
            limit: boot_limit(accel, limit_s),
            cloud_init: cloud_init.then(|| record.instance_id.clone()),
        })
    }

    /// Waits for the first verified login, then for cloud-init where that was asked for.
    pub(crate) async fn wait(self, shared: Arc<Shared>, machine: MachineName) -> Result<(), NotUp> {
        let deadline = Instant::now() + self.limit;
        let seconds = self.limit.as_secs();
        let phase = |phase, detail: &str| {
            shared.emit(Event::PhaseStarted { machine: machine.clone(), phase, detail: detail.into() });
            Instant::now()
        };
        let began = phase(Phase::Boot, "waiting for the guest's sshd");
        let mut sshd_at = None;
        let login = self.client.wait_ready(deadline, |attempt| {
            // The first sign of sshd ends the boot; what follows is the login.
            if sshd_at.is_none() && attempt.stage > fleetbox_ssh::Stage::Unreachable {
                shared.phase_done(&machine, Phase::Boot, began);
                sshd_at = Some(Instant::now());
            }
        });
        let result = login.await;
        result.map_err(|e| NotUp { seconds, source: Some(e) })?;
        shared.phase_done(&machine, Phase::Login, sshd_at.unwrap_or(began));
        if let Some(instance) = &self.cloud_init {
            let began = phase(Phase::CloudInit, "waiting for cloud-init");
            let waited = self.client.wait_cloud_init(instance, deadline).await;
            waited.map_err(|e| NotUp { seconds, source: Some(e) })?;
            shared.phase_done(&machine, Phase::CloudInit, began);
        }
        // The client on the other side makes its own connection; this one is not needed any more.
        self.client.disconnect();
        Ok(())
    }
}

/// Turns what a failed wait and the console know into one error.
pub(crate) fn boot_error(
    machine: &MachineName,
    console: Option<&ConsoleWatch>,
    lacks_cloud_init: bool,
    not_up: NotUp,
) -> OrchestratorError {
    let mut stuck = console.map_or_else(|| "its console showed nothing".to_owned(), ConsoleWatch::explain);
    if lacks_cloud_init {
        stuck.push_str(
            "; its image has no cloud-init, so nothing in it took the user, key and address that it was given",
        );
    }
    OrchestratorError::BootTimeout {
        name: machine.clone(),
        seconds: not_up.seconds,
        stuck,
        console: console.map(ConsoleWatch::tail).unwrap_or_default(),
        source: not_up.source.map(Box::new),
    }
}
