//! What this host can do.

use fleetbox_holder::host::HostReport;
pub use fleetbox_holder::host::{Mark, ReportLine};

use crate::error::{Error, Result};
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

/// Whether machines can be on one network here: asked of the backend that would run them, whichever that is.
///
/// # Errors
/// When machines cannot be run here.
///
/// ```no_run
/// # async fn f() -> fleetbox::Result<()> {
/// if fleetbox::supports_clustering().await? {
///     fleetbox::start_n("node", 3, fleetbox::StartOptions::new()).await?;
/// }
/// # Ok(()) }
/// ```
pub async fn supports_clustering() -> Result<bool> {
    let store = open_store(None)?;
    fleetbox_holder::capabilities(&store).await.map(|c| c.clustering).map_err(Error::from_api)
}

/// Whether machines can run machines of their own with hardware virtualization: KVM runs guest code here, and its module
/// has nesting switched on.
#[must_use]
pub fn nested_virt_supported() -> bool {
    let on = |module: &str| {
        let switch = std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"));
        switch.is_ok_and(|s| matches!(s.trim(), "Y" | "y" | "1"))
    };
    ["kvm_intel", "kvm_amd"].iter().any(|module| on(module))
        && fleetbox_holder::host::kvm_verdict(open_store(None).ok().as_ref()).verdict.is_usable()
}
