//! One machine of the fake: a task that plays the guest, and the handle to it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fleetbox_spec::MachineName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::FakeOptions;
use crate::process::VmmProcess;
use crate::{Machine, MachineEvent, VmmError, VmmExit};

/// What the handle asks of the task.
#[derive(Debug, Clone, Copy)]
enum Command {
    PowerButton,
    Quit,
    Pause,
    Resume,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::PowerButton => "power button",
            Self::Quit => "quit",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

type Request = (Command, oneshot::Sender<()>);

#[derive(Debug)]
struct FakeMachine {
    name: MachineName,
    process: Arc<VmmProcess>,
    requests: mpsc::UnboundedSender<Request>,
    console_start: u64,
}

/// Starts the task and returns the handle. `keep` is what keeps the process running.
pub(super) fn start(
    name: MachineName,
    options: FakeOptions,
    process: VmmProcess,
    keep: OwnedFd,
    serial: File,
    console_start: u64,
    events: mpsc::UnboundedSender<MachineEvent>,
) -> Arc<dyn Machine> {
    let process = Arc::new(process);
    let (requests, receiver) = mpsc::unbounded_channel();
    let guest = Guest {
        deeds: deeds(&options, Instant::now()),
        ignore_power_button: options.ignore_power_button,
        keep: Some(keep),
        serial,
        events,
        paused: false,
        button_pressed: false,
    };
    tokio::spawn(play(guest, Arc::clone(&process), receiver));
    Arc::new(FakeMachine { name, process, requests, console_start })
}

/// What the guest, or the VMM, does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Exit,
    Panic,
    PowerOff,
    Reboot,
}

/// The deeds that are due, the latest first.
fn deeds(options: &FakeOptions, now: Instant) -> Vec<(Instant, Deed)> {
    let mut all: Vec<(Instant, Deed)> = [
        (options.panic_after_ms, Deed::Panic),
        (options.power_off_after_ms, Deed::PowerOff),
        (options.reboot_after_ms, Deed::Reboot),
        (options.exit_after_ms, Deed::Exit),
    ]
    .into_iter()
    .filter_map(|(ms, deed)| Some((now + Duration::from_millis(ms?), deed)))
    .collect();
    all.sort_by_key(|&(at, _)| std::cmp::Reverse(at));
    all
}

struct Guest {
    deeds: Vec<(Instant, Deed)>,
    ignore_power_button: bool,
    /// Taken when the VMM shall end by itself.
    keep: Option<OwnedFd>,
    serial: File,
    events: mpsc::UnboundedSender<MachineEvent>,
    paused: bool,
    button_pressed: bool,
}

async fn play(mut guest: Guest, process: Arc<VmmProcess>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let exit = loop {
        let next = guest.deeds.last().copied();
        tokio::select! {
            // The end comes first: nothing is done by a process that is gone.
            biased;
            exit = process.ended() => break exit,
            request = requests.recv() => match request {
                Some((command, answer)) => {
                    guest.obey(command);
                    let _ = answer.send(());
                }
                // The last handle is gone and has killed the process.
                None => break process.ended().await,
            },
            () = sleep_until(next), if guest.keep.is_some() => {
                if let Some((_, deed)) = guest.deeds.pop() {
                    guest.act(deed);
                }
            }
        }
    };
    let exit = exit.unwrap_or_else(|error| {
        let _ = process.kill();
        VmmExit { code: None, signal: None, stderr_tail: format!("its end could not be watched: {error}") }
    });
    let _ = guest.events.send(MachineEvent::Exited(exit));
}

async fn sleep_until(next: Option<(Instant, Deed)>) {
    match next {
        Some((at, _)) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Guest {
    fn obey(&mut self, command: Command) {
        match command {
            Command::PowerButton => {
                self.button_pressed = true;
                self.look_at_button();
            }
            Command::Quit => self.keep = None,
            Command::Pause if !self.paused => {
                self.paused = true;
                self.tell(MachineEvent::Paused);
            }
            Command::Resume if self.paused => {
                self.paused = false;
                self.tell(MachineEvent::Resumed);
                self.look_at_button();
            }
            Command::Pause | Command::Resume => {}
        }
    }

    /// A paused guest sees its button when it runs again.
    fn look_at_button(&mut self) {
        if self.button_pressed && !self.paused && !self.ignore_power_button {
            self.act(Deed::PowerOff);
        }
    }

    fn act(&mut self, deed: Deed) {
        if self.keep.is_none() {
            return;
        }
        match deed {
            Deed::Exit => self.keep = None,
            Deed::Panic => {
                self.print("Kernel panic - not syncing: fake");
                self.tell(MachineEvent::GuestPanicked);
            }
            Deed::PowerOff => {
                self.print("reboot: Power down");
                self.tell(MachineEvent::GuestPoweredOff);
                self.keep = None;
            }
            Deed::Reboot => {
                self.print("reboot: Restarting system");
                self.tell(MachineEvent::GuestRebooted);
                self.keep = None;
            }
        }
    }

    fn print(&mut self, line: &str) {
        // A console that cannot be written to, say on a full disk, does not stop a guest.
        if let Err(error) = writeln!(self.serial, "{line}") {
            tracing::warn!(%error, "the fake could not write to its serial log");
        }
    }

    fn tell(&self, event: MachineEvent) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }
}

impl FakeMachine {
    async fn ask(&self, command: Command) -> Result<(), VmmError> {
        let gone = || VmmError::Gone { machine: self.name.clone(), command: command.name().to_owned() };
        let (answer, answered) = oneshot::channel();
        self.requests.send((command, answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn pid(&self) -> Option<u32> {
        Some(self.process.pid())
    }

    async fn power_button(&self) -> Result<(), VmmError> {
        self.ask(Command::PowerButton).await
    }

    async fn quit(&self) -> Result<(), VmmError> {
        self.ask(Command::Quit).await
    }

    fn terminate(&self) -> std::io::Result<()> {
        self.process.terminate()
    }

    fn kill(&self) -> std::io::Result<()> {
        self.process.kill()
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.ask(Command::Pause).await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.ask(Command::Resume).await
    }

    fn console_start(&self) -> u64 {
        self.console_start
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        // The task reaps it; when the runtime is gone, dropping the task's own reference does.
        let _ = self.process.kill();
    }
}
