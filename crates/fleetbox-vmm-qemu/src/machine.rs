//! One QEMU process: launched, watched, commanded.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fleetbox_os::child::Spawn;
use fleetbox_spec::MachineName;
use fleetbox_vmm::process::{VmmProcess, open_log};
use fleetbox_vmm::{Boot, LaunchConfig, Launched, Machine, MachineEvent, VmmError, VmmExit};
use tokio::sync::mpsc;

use crate::events::Translator;
use crate::qmp::{self, Event, Qmp, QmpError};
use crate::{QemuConfig, args, efi};

/// A VMM that has hung up is ending, and one that has ended has hung up: the other follows within milliseconds.
const AFTERMATH: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct QemuMachine {
    name: MachineName,
    process: Arc<VmmProcess>,
    qmp: Qmp,
    deadline: Duration,
    console_start: u64,
}

pub(crate) async fn launch(qemu: &QemuConfig, config: LaunchConfig) -> Result<Launched, VmmError> {
    let name = config.name.clone();
    let prepared = prepare(qemu, config)?;
    let console_start = prepared.console_start;
    let socket = qmp::socket(prepared.control).map_err(preparing(&name, "the control socket"))?;
    let spawned = prepared.spawn.spawn();
    let child = spawned.map_err(|source| VmmError::Spawn {
        machine: name.clone(),
        program: qemu.program.clone(),
        source,
    })?;
    // From here on the value owns the process: returning early or being cancelled drops it, which kills and reaps.
    let process = VmmProcess::new(child, prepared.vmm_log);

    let opening = tokio::time::timeout(qemu.start_deadline, Qmp::open(socket, qemu.start_deadline));
    let (qmp, qmp_events) = match opening.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(QmpError::Closed)) => match tokio::time::timeout(AFTERMATH, process.ended()).await {
            Ok(Ok(exit)) => return Err(VmmError::DiedAtStart { machine: name, exit }),
            Ok(Err(source)) => return Err(preparing(&name, "a watch on its process")(source)),
            Err(_) => return Err(no_answer(&name, "its start", AFTERMATH)),
        },
        Ok(Err(QmpError::NoAnswer(_))) | Err(_) => {
            return Err(no_answer(&name, "its start", qemu.start_deadline));
        }
        Ok(Err(error)) => return Err(failed(&name, "its start", error)),
    };

    let process = Arc::new(process);
    let (events, receiver) = mpsc::unbounded_channel();
    tokio::spawn(watch(Arc::clone(&process), qmp_events, events));
    let machine = QemuMachine { name, process, qmp, deadline: qemu.command_deadline, console_start };
    Ok(Launched { machine: Arc::new(machine), events: receiver })
}

struct Prepared {
    spawn: Spawn,
    /// Our end of the control socket.
    control: OwnedFd,
    vmm_log: std::path::PathBuf,
    console_start: u64,
}

fn prepare(qemu: &QemuConfig, config: LaunchConfig) -> Result<Prepared, VmmError> {
    let name = &config.name;
    let vmm_log = open_log(&config.vmm_log, false).map_err(preparing(name, "the VMM log"))?;
    // Made here, so that only its owner can read it and a folder that is missing is told as such.
    let serial_log = open_log(&config.serial_log, true).and_then(|f| f.metadata());
    let console_start = serial_log.map_err(preparing(name, "the serial log"))?.len();
    let (control, theirs) = fleetbox_os::fd::socket_pair().map_err(preparing(name, "the control socket"))?;

    let code = match &config.boot {
        Boot::Efi { vars } => Some(efi::prepare(qemu.arch, name, vars)?),
        Boot::Kernel { .. } | Boot::Bios => None,
    };
    let mut spawn = Spawn::new(&qemu.program).args(args::build(qemu, &config, code.as_deref()));
    spawn.stdout = Some(vmm_log.try_clone().map_err(preparing(name, "the VMM log"))?.into());
    spawn.stderr = Some(vmm_log.into());
    spawn.fds.push((theirs, args::QMP_FD));
    if let Some(nic) = config.nic {
        spawn.fds.push((nic.tap, args::TAP_FD));
    }
    Ok(Prepared { spawn, control, vmm_log: config.vmm_log, console_start })
}

pub(crate) fn preparing(name: &MachineName, what: &str) -> impl FnOnce(std::io::Error) -> VmmError + use<> {
    let (machine, what) = (name.clone(), what.to_owned());
    move |source| VmmError::Prepare { machine, what, source }
}

fn no_answer(name: &MachineName, command: &str, time: Duration) -> VmmError {
    // Rounded up: a time below a second is not "0 s".
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    VmmError::NoAnswer { machine: name.clone(), command: command.to_owned(), seconds }
}

fn failed(name: &MachineName, command: &str, error: QmpError) -> VmmError {
    let (machine, command) = (name.clone(), command.to_owned());
    match error {
        QmpError::Closed => VmmError::Gone { machine, command },
        QmpError::Protocol(what) => VmmError::Protocol { machine, what },
        QmpError::NoAnswer(time) => no_answer(&machine, &command, time),
        QmpError::Refused(answer) => VmmError::Refused { machine, command, answer },
    }
}

/// Tells the machine's events until its process has ended.
async fn watch(
    process: Arc<VmmProcess>,
    mut qmp_events: mpsc::UnboundedReceiver<Event>,
    events: mpsc::UnboundedSender<MachineEvent>,
) {
    let mut translator = Translator::default();
    let mut tell = |event: &Event| {
        if let Some(event) = translator.translate(event) {
            // Nobody has to listen.
            let _ = events.send(event);
        }
    };
    let mut connected = true;
    let exit = loop {
        tokio::select! {
            exit = process.ended() => break exit,
            event = qmp_events.recv(), if connected => match event {
                Some(event) => tell(&event),
                None => connected = false,
            },
        }
    };
    // What it said before it ended may still be in the socket; the connection's end follows at once.
    let drain = async {
        while let Some(event) = qmp_events.recv().await {
            tell(&event);
        }
    };
    if tokio::time::timeout(AFTERMATH, drain).await.is_err() {
        tracing::warn!(
            pid = process.pid(),
            "the VMM has ended, but its control socket is still open somewhere"
        );
    }
    let exit = exit.unwrap_or_else(|error| {
        // Unwatched, it must not live on. Dropping the last reference reaps it.
        let _ = process.kill();
        VmmExit { code: None, signal: None, stderr_tail: format!("its end could not be watched: {error}") }
    });
    let _ = events.send(MachineEvent::Exited(exit));
}

impl QemuMachine {
    async fn execute(&self, command: &'static str) -> Result<(), VmmError> {
        match self.qmp.execute(command, self.deadline).await {
            Ok(_) => Ok(()),
            Err(error) => Err(failed(&self.name, command, error)),
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn pid(&self) -> Option<u32> {
        Some(self.process.pid())
    }

    async fn power_button(&self) -> Result<(), VmmError> {
        self.execute("system_powerdown").await
    }

    async fn quit(&self) -> Result<(), VmmError> {
        match self.execute("quit").await {
            // It may be gone before its answer is out, or have been gone before: either way it has ended.
            Err(VmmError::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    fn terminate(&self) -> std::io::Result<()> {
        self.process.terminate()
    }

    fn kill(&self) -> std::io::Result<()> {
        self.process.kill()
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.execute("stop").await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.execute("cont").await
    }

    fn console_start(&self) -> u64 {
        self.console_start
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        // The watch reaps it; when the runtime is gone, dropping the watch's own reference does.
        if let Err(error) = self.process.kill() {
            tracing::warn!(machine = %self.name, %error, "could not kill the VMM of a dropped machine");
        }
    }
}
