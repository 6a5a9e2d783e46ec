//! What this host can do.

use fleetbox_holder::host::HostReport;
pub use fleetbox_holder::host::{Mark, ReportLine};

use crate::error::Result;
use crate::vm::open_store;

/// What this host can do: which VMM, with hardware virtualization or without, and what is missing.
///
/// ```no_run
/// let host = fleetbox::Host::capabilities()?;
/// println!("{}", host.to_json());
/// # Ok::<(), fleetbox::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    report: HostReport,
}

impl Host {
    /// Looks at this host. Takes well under a second; what costs most, the KVM probe, is kept until the next boot.
    ///
    /// # Errors
    /// When the fleetbox home cannot be made.
    pub fn capabilities() -> Result<Self> {
        Ok(Self { report: HostReport::gather(Some(&open_store(None)?)) })
    }

    /// Whether machines can be run here.
    #[must_use]
    pub fn can_run_machines(&self) -> bool {
        self.report.can_run_machines()
    }

    /// How guest code would be executed; `None` where machines cannot be run.
    #[must_use]
    pub fn accel(&self) -> Option<fleetbox_spec::Accel> {
        self.report.accel()
    }

    /// The whole report as JSON; fields may be added in later versions.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.report).unwrap_or_default()
    }

    /// The report as lines for a person: how each is meant, and its text.
    #[must_use]
    pub fn lines(&self) -> Vec<ReportLine> {
        self.report.lines()
    }
}
