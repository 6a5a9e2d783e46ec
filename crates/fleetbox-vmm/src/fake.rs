//! A backend without guests, for tests of everything above the backend contract.
//!
//! Each of its machines is a real child process (a `cat` that waits for the end of its input), so that
//! pids, kills from outside and leaks are real. There is no guest: the console gets one line, and what
//! a guest would do by itself happens as [`FakeOptions`] says.

mod machine;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fleetbox_os::child::Spawn;
use fleetbox_spec::{Accel, Capabilities, MachineName};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::process::{VmmProcess, open_log};
use crate::{Backend, Boot, LaunchConfig, Launched, VmmError};

/// How the fake behaves. As JSON, any field may be left out: `{"clustering": false, "panic_after_ms": 50}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FakeOptions {
    /// How long the VMM takes to answer after its process was started.
    pub launch_delay_ms: u64,
    /// Every VMM ends while starting, with exit code 1 and these last words.
    pub fail_launch: Option<String>,
    /// The guest does nothing when its power button is pressed.
    pub ignore_power_button: bool,
    /// Whether several machines can share a network.
    pub clustering: bool,
    /// Whether disks may be qcow2 overlays.
    pub qcow2_overlay: bool,
    /// The VMM ends by itself, with exit code 0 and no word of its guest.
    pub exit_after_ms: Option<u64>,
    /// The guest panics; its VMM lives on.
    pub panic_after_ms: Option<u64>,
    /// The guest powers itself off.
    pub power_off_after_ms: Option<u64>,
    /// The guest reboots itself, on the first launch of each name only: otherwise it would for ever.
    pub reboot_after_ms: Option<u64>,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            launch_delay_ms: 0,
            fail_launch: None,
            ignore_power_button: false,
            clustering: true,
            qcow2_overlay: false,
            exit_after_ms: None,
            panic_after_ms: None,
            power_off_after_ms: None,
            reboot_after_ms: None,
        }
    }
}

impl FakeOptions {
    /// The environment variable in which a test passes these options as JSON to a process it starts.
    pub const VARIABLE: &str = "FLEETBOX_FAKE";

    /// Reads the options from JSON.
    ///
    /// # Errors
    /// When it is not JSON, or has a field that is not an option.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Starts machines that have a process and no guest.
#[derive(Debug)]
pub struct FakeBackend {
    options: FakeOptions,
    capabilities: Capabilities,
    launched: Mutex<BTreeSet<MachineName>>,
}

impl FakeBackend {
    /// A fake that behaves as `options` say.
    #[must_use]
    pub fn new(options: FakeOptions) -> Self {
        let capabilities = Capabilities {
            backend: "fake".to_owned(),
            accel: Accel::None,
            clustering: options.clustering,
            pause: true,
            firmware_boot: true,
            qcow2_overlay: options.qcow2_overlay,
        };
        Self { options, capabilities, launched: Mutex::new(BTreeSet::new()) }
    }
}

#[async_trait]
impl Backend for FakeBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn launch(&self, config: LaunchConfig) -> Result<Launched, VmmError> {
        let name = config.name.clone();
        let prepare = |what: &str| {
            let (machine, what) = (config.name.clone(), what.to_owned());
            move |source| VmmError::Prepare { machine, what, source }
        };
        let vmm_log = open_log(&config.vmm_log, false).map_err(prepare("the VMM log"))?;
        let mut serial = open_log(&config.serial_log, true).map_err(prepare("the serial log"))?;
        let console_start = serial.metadata().map_err(prepare("the serial log"))?.len();

        // Its input: as long as somebody holds the other end, `cat` waits; then it exits with code 0.
        let (input, keep) = fleetbox_os::fd::pipe().map_err(prepare("a pipe"))?;
        let mut spawn = match &self.options.fail_launch {
            None => Spawn::new("cat"),
            Some(words) => Spawn::new("sh").args(["-c", "printf '%s\\n' \"$1\" >&2; exit 1", "fake", words]),
        };
        spawn.stdin = Some(input);
        spawn.stderr = Some(vmm_log.into());
        let program = spawn.program.clone();
        let child =
            spawn.spawn().map_err(|source| VmmError::Spawn { machine: name.clone(), program, source })?;
        // From here on a cancelled launch drops the process, which kills and reaps it.
        let process = VmmProcess::new(child, config.vmm_log.clone());

        let watch = || prepare("a watch on its process");
        if self.options.fail_launch.is_some() {
            let exit = process.ended().await.map_err(watch())?;
            return Err(VmmError::DiedAtStart { machine: name, exit });
        }
        tokio::select! {
            exit = process.ended() => {
                let exit = exit.map_err(watch())?;
                return Err(VmmError::DiedAtStart { machine: name, exit });
            }
            () = tokio::time::sleep(Duration::from_millis(self.options.launch_delay_ms)) => {}
        }
        let by = match &config.boot {
            Boot::Kernel { cmdline, .. } => format!("kernel with {cmdline}"),
            Boot::Bios => "BIOS".to_owned(),
            Boot::Efi { .. } => "UEFI".to_owned(),
        };
        // What a guest's own console would tell: how it was booted.
        let lines = format!("fake: no guest\nfake: booted by {by}\n");
        std::io::Write::write_all(&mut serial, lines.as_bytes()).map_err(prepare("the serial log"))?;

        let mut options = self.options.clone();
        if !self.launched.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            options.reboot_after_ms = None;
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let machine = machine::start(name, options, process, keep, serial, console_start, events);
        Ok(Launched { machine, events: receiver })
    }
}

#[cfg(test)]
mod tests;
