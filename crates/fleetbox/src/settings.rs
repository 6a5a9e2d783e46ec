//! What can be said of a machine that shall be started: the part that all builders share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetbox_spec::{Event, FirmwareChoice, ImageRef, MachineName, MachineSpec};

use crate::error::Result;

pub(crate) type OnEvent = Arc<dyn Fn(Event) + Send + Sync>;

/// Settings of one machine or of several alike.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    pub(crate) image: Option<String>,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_mib: Option<u64>,
    pub(crate) disk_gib: Option<u64>,
    pub(crate) ephemeral: bool,
    pub(crate) wait_cloud_init: bool,
    pub(crate) boot_timeout: Option<Duration>,
    pub(crate) firmware: Option<FirmwareChoice>,
    pub(crate) detached: bool,
    pub(crate) home: Option<PathBuf>,
    pub(crate) on_event: Option<OnEvent>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("image", &self.image)
            .field("cpus", &self.cpus)
            .field("memory_mib", &self.memory_mib)
            .field("disk_gib", &self.disk_gib)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// What a machine of that name shall be, checked as far as that needs no host.
    pub(crate) fn spec(&self, name: MachineName) -> Result<MachineSpec> {
        let mut spec = MachineSpec::new(name);
        spec.image = self.image.as_deref().map(absolute_image).transpose()?;
        spec.cpus = self.cpus;
        spec.memory_mib = self.memory_mib;
        spec.disk_gib = self.disk_gib;
        spec.ephemeral = self.ephemeral;
        spec.wait_cloud_init = self.wait_cloud_init;
        spec.firmware = self.firmware;
        spec.boot_timeout_s = self.boot_timeout.map(|d| d.as_secs().max(1));
        spec.validate()?;
        Ok(spec)
    }

    pub(crate) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// Who is told what happens.
    pub(crate) fn listener(&self) -> OnEvent {
        self.on_event.clone().unwrap_or_else(|| Arc::new(log_event))
    }
}

/// Warnings and phases reach whoever listens to tracing when no callback was given.
pub(crate) fn log_event(event: Event) {
    match event {
        Event::Warning { machine, message } => tracing::warn!(%machine, "{message}"),
        other => tracing::debug!(event = ?other),
    }
}

/// A relative path means something only in this process's folder.
pub(crate) fn absolute_image(image: &str) -> Result<ImageRef> {
    Ok(match image.parse()? {
        ImageRef::File(path) if path.is_relative() => {
            ImageRef::File(std::path::absolute(&path).unwrap_or(path))
        }
        other => other,
    })
}

/// The methods that set them, for a builder with a field `settings`.
macro_rules! setters {
    () => {
        /// The image to make a new machine from: a name such as `debian-12`, an `http(s)` address, with
        /// `#sha256=<digest>` or without, `bootstrap:<suite>`, `bootstrap:<suite>?packages=a,b` with further Debian
        /// packages, or the path of a raw or qcow2 file.
        pub fn image(mut self, image: impl Into<String>) -> Self {
            self.settings.image = Some(image.into());
            self
        }

        /// Virtual CPUs. On a machine that exists it applies at the next boot.
        pub fn cpus(mut self, cpus: u32) -> Self {
            self.settings.cpus = Some(cpus);
            self
        }

        /// Memory in GiB. On a machine that exists it applies at the next boot.
        pub fn memory_gib(self, gib: u64) -> Self {
            self.memory_mib(gib.saturating_mul(1024))
        }

        /// Memory in MiB. On a machine that exists it applies at the next boot.
        pub fn memory_mib(mut self, mib: u64) -> Self {
            self.settings.memory_mib = Some(mib);
            self
        }

        /// Size of the disk in GiB. A disk grows at the next boot and never shrinks.
        pub fn disk_gib(mut self, gib: u64) -> Self {
            self.settings.disk_gib = Some(gib);
            self
        }

        /// Delete the machine, disk and all, when its owner is gone; otherwise its disk is kept.
        pub fn ephemeral(mut self) -> Self {
            self.settings.ephemeral = true;
            self
        }

        /// Return only when cloud-init has finished, not at the first login already.
        pub fn wait_cloud_init(mut self) -> Self {
            self.settings.wait_cloud_init = true;
            self
        }

        /// How long the boot may take, and the wait for memory before it; by default 90 s on hardware, ten times
        /// as long under emulation.
        pub fn boot_timeout(mut self, limit: std::time::Duration) -> Self {
            self.settings.boot_timeout = Some(limit);
            self
        }

        /// What brings its kernel up. By default the kernel is loaded directly where one was found in the image, and
        /// by the firmware that the disk is made for otherwise. On a machine that exists it applies at the next boot.
        pub fn firmware(mut self, choice: fleetbox_spec::FirmwareChoice) -> Self {
            self.settings.firmware = Some(choice);
            self
        }

        /// Let it outlive this process once it has come up. While it starts it is still bound to it.
        pub fn detached(mut self) -> Self {
            self.settings.detached = true;
            self
        }

        /// Another fleetbox home than `FLEETBOX_HOME` or `~/.fleetbox`. An absolute path.
        pub fn home(mut self, home: impl Into<std::path::PathBuf>) -> Self {
            self.settings.home = Some(home.into());
            self
        }

        /// Told what happens while a machine starts.
        pub fn on_event(mut self, f: impl Fn(fleetbox_spec::Event) + Send + Sync + 'static) -> Self {
            self.settings.on_event = Some(std::sync::Arc::new(f));
            self
        }
    };
}
pub(crate) use setters;
