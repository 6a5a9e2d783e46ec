//! How machines are run here.

use fleetbox_os::kvm::KvmVerdict;
use fleetbox_spec::Accel;
use serde::{Deserialize, Serialize};

use super::VmmFound;

/// Under emulation a boot takes about ten times as long as with hardware virtualization, so timeouts do too.
pub const EMULATION_TIMEOUT_FACTOR: u32 = 10;

/// How machines are run: with which backend, executing guest code how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The backend's name.
    pub backend: String,
    /// How it executes guest code.
    pub accel: Accel,
    /// What the user must be told: emulation is never silent.
    pub warning: Option<String>,
    /// By how much timeouts that are meant for hardware virtualization are to be multiplied.
    pub timeout_factor: u32,
}

/// Why no machine can be run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChooseError {
    /// No virtual machine monitor is installed.
    #[error(
        "could not find a virtual machine monitor on this host: install QEMU (`fleetbox doctor` says how)"
    )]
    NoVmm,
    /// Those that are installed cannot be used.
    #[error("could not use any virtual machine monitor of this host: {}", reasons(.0))]
    NoneUsable(Vec<VmmFound>),
}

fn reasons(vmms: &[VmmFound]) -> String {
    let one = |v: &VmmFound| format!("{} ({})", v.path.display(), v.why_not.as_deref().unwrap_or("unusable"));
    vmms.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Chooses from what was found: KVM if it works, else emulation with a warning.
///
/// Only QEMU is chosen: it is the one backend there is, and the one that can emulate.
///
/// # Errors
/// [`ChooseError`] when there is no virtual machine monitor to run anything with.
pub fn choose(kvm: &KvmVerdict, vmms: &[VmmFound]) -> Result<Choice, ChooseError> {
    if vmms.is_empty() {
        return Err(ChooseError::NoVmm);
    }
    let qemu = vmms
        .iter()
        .find(|v| v.name == "qemu" && v.usable)
        .ok_or_else(|| ChooseError::NoneUsable(vmms.to_vec()))?;
    let backend = qemu.name.clone();
    Ok(match kvm {
        KvmVerdict::Usable { .. } => Choice { backend, accel: Accel::Kvm, warning: None, timeout_factor: 1 },
        KvmVerdict::Unusable { why, .. } => emulated(backend, &format!("KVM cannot be used here: {why}")),
        KvmVerdict::Absent { why } => emulated(backend, &format!("there is no KVM here: {why}")),
        other => emulated(backend, &format!("KVM was not found usable: {other:?}")),
    })
}

fn emulated(backend: String, why: &str) -> Choice {
    Choice {
        backend,
        accel: Accel::Tcg,
        warning: Some(format!("machines are emulated, about ten times slower: {why}")),
        timeout_factor: EMULATION_TIMEOUT_FACTOR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmm(name: &str, usable: bool) -> VmmFound {
        VmmFound {
            name: name.into(),
            path: format!("/usr/bin/{name}").into(),
            version: None,
            usable,
            why_not: (!usable).then(|| "too old".into()),
        }
    }

    #[test]
    fn the_table() {
        let works = KvmVerdict::Usable { micros: 900 };
        let slow = KvmVerdict::Unusable { micros: 260_000, why: "guest code is emulated".into() };
        let none = KvmVerdict::Absent { why: "no such file".into() };
        let qemu = [vmm("qemu", true)];
        let both = [vmm("cloud-hypervisor", true), vmm("qemu", true)];
        type Expected = Result<(Accel, u32, Option<&'static str>), &'static str>;
        let table: [(&KvmVerdict, &[VmmFound], Expected); 8] = [
            (&works, &qemu, Ok((Accel::Kvm, 1, None))),
            (&works, &both, Ok((Accel::Kvm, 1, None))),
            (&slow, &qemu, Ok((Accel::Tcg, 10, Some("guest code is emulated")))),
            (&slow, &both, Ok((Accel::Tcg, 10, Some("guest code is emulated")))),
            (&none, &qemu, Ok((Accel::Tcg, 10, Some("no such file")))),
            (&works, &[], Err("install QEMU")),
            (&slow, &[vmm("cloud-hypervisor", true)], Err("cloud-hypervisor")),
            (&none, &[vmm("qemu", false)], Err("/usr/bin/qemu (too old)")),
        ];
        for (kvm, vmms, expected) in table {
            match (choose(kvm, vmms), expected) {
                (Ok(choice), Ok((accel, factor, warning))) => {
                    assert_eq!(
                        (choice.backend.as_str(), choice.accel, choice.timeout_factor),
                        ("qemu", accel, factor)
                    );
                    match warning {
                        Some(part) => assert!(choice.warning.unwrap().contains(part), "{kvm:?}"),
                        None => assert_eq!(choice.warning, None),
                    }
                }
                (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{e}"),
                (got, expected) => panic!("{kvm:?} with {vmms:?}: {got:?} instead of {expected:?}"),
            }
        }
    }
}
