//! The one place that knows concrete backends.

use std::sync::Arc;

use fleetbox_spec::{Accel, Arch};
use fleetbox_store::Store;
use fleetbox_vmm::Backend;
use fleetbox_vmm::fake::{FakeBackend, FakeOptions};
use fleetbox_vmm_qemu::{QemuBackend, QemuConfig};

use crate::host::{self, VmmFound};
use crate::{OrchestratorError, Result};

/// The variable that chooses a backend by hand: `qemu`, or `fake` in fleetbox's own tests.
pub const VARIABLE: &str = "FLEETBOX_BACKEND";

/// A backend and what to tell about the choice.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Why it will be slow, if it will.
    pub warning: Option<String>,
}

/// Chooses how machines are run here: by hand through [`VARIABLE`], else by what the host can do.
///
/// # Errors
/// [`OrchestratorError::NoBackend`] says what is missing and how to get it.
pub async fn choose(store: &Store) -> Result<Chosen> {
    match std::env::var(VARIABLE).ok().as_deref() {
        Some("fake") => return fake(),
        None | Some("" | "qemu") => {}
        Some(other) => {
            return Err(OrchestratorError::BadBackendChoice(format!(
                "{VARIABLE} names the backend {other:?}; there are: qemu"
            )));
        }
    }
    // Only what the choice needs: `doctor` looks at everything, a start has no time for that.
    let kvm = host::kvm_verdict(Some(store)).verdict;
    let arch = Arch::host().ok_or(OrchestratorError::UnknownArch)?;
    let found = fleetbox_vmm_qemu::find(arch).await;
    let vmm = match &found {
        Ok(qemu) => VmmFound {
            name: "qemu".into(),
            path: qemu.program.clone(),
            version: Some(qemu.version.to_string()),
            usable: true,
            why_not: None,
        },
        Err(e) => VmmFound {
            name: "qemu".into(),
            path: "qemu-system".into(),
            version: None,
            usable: false,
            why_not: Some(e.to_string()),
        },
    };
    let choice = host::choose(&kvm, &[vmm]).map_err(OrchestratorError::NoBackend)?;
    let found = found.map_err(OrchestratorError::NoQemu)?;
    let backend = QemuBackend::new(QemuConfig::new(found, arch, choice.accel));
    Ok(Chosen { backend: Arc::new(backend), warning: choice.warning })
}

fn fake() -> Result<Chosen> {
    let options = match std::env::var(FakeOptions::VARIABLE) {
        Ok(text) => FakeOptions::from_json(&text).map_err(|e| {
            OrchestratorError::BadBackendChoice(format!("{} is damaged: {e}", FakeOptions::VARIABLE))
        })?,
        Err(_) => FakeOptions::default(),
    };
    Ok(Chosen { backend: Arc::new(FakeBackend::new(options)), warning: None })
}

/// How much longer everything in a guest takes than on hardware: what timeouts are multiplied by.
#[must_use]
pub fn slowness(accel: Accel) -> u32 {
    match accel {
        Accel::Tcg => host::EMULATION_TIMEOUT_FACTOR,
        _ => 1,
    }
}
