//! The KVM verdict, made once in a boot.

use std::fs::OpenOptions;
use std::path::Path;

use fleetbox_os::kvm::{self, KvmVerdict};
use fleetbox_store::{Store, Versioned, read_json, write_json};
use serde::{Deserialize, Serialize};

use super::KvmFact;

/// The device.
pub(super) const DEVICE: &str = "/dev/kvm";

/// What is kept of the probe for the rest of this boot.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    kvm: KvmVerdict,
}

impl Versioned for Kept {
    const VERSION: u32 = 1;
}

/// Whether KVM runs guest code: from the store when the probe has run in this boot, else by running it.
///
/// Takes at most some 0.3 s the first time and well under a millisecond afterwards.
#[must_use]
pub fn kvm_verdict(store: Option<&Store>) -> KvmFact {
    // The device may have gone, or be another user's to open: that costs nothing to find out each time.
    let openable = OpenOptions::new().read(true).write(true).open(DEVICE).is_ok();
    let device = openable || Path::new(DEVICE).exists();
    let boot_id = fleetbox_os::process::boot_id().ok();
    let place = store.zip(boot_id);
    if openable && let Some(kvm) = place.as_ref().and_then(|(store, boot_id)| load(store, boot_id)) {
        return KvmFact { verdict: kvm, device, cached: true };
    }
    let verdict = kvm::probe();
    if let Some((store, boot_id)) = place.filter(|_| worth_keeping(&verdict)) {
        let path = store.probe_cache(&boot_id);
        let kept = Kept { boot_id, kvm: verdict.clone() };
        if let Err(e) = write_json(&path, &kept, 0o644).and_then(|()| store.give_to_owner(&path)) {
            tracing::debug!(error = &e as &dyn std::error::Error, "the KVM verdict was not kept");
        }
    }
    KvmFact { verdict, device, cached: false }
}

fn load(store: &Store, boot_id: &str) -> Option<KvmVerdict> {
    match read_json::<Kept>(&store.probe_cache(boot_id)) {
        Ok(kept) if kept.boot_id == boot_id => Some(kept.kvm),
        Ok(_) => None,
        Err(e) => {
            // None yet, or one that cannot be read: either way the probe says.
            tracing::debug!(error = &e as &dyn std::error::Error, "no KVM verdict of this boot");
            None
        }
    }
}

/// A refusal that came at once (another hypervisor has the processor's extensions, say) may pass within this
/// boot and costs nothing to see again. Emulation does not pass, and costs time.
fn worth_keeping(verdict: &KvmVerdict) -> bool {
    match verdict {
        KvmVerdict::Usable { .. } => true,
        KvmVerdict::Unusable { micros, .. } => u128::from(*micros) >= kvm::LIMIT.as_micros(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_costly_or_lasts() {
        assert!(worth_keeping(&KvmVerdict::Usable { micros: 800 }));
        assert!(worth_keeping(&KvmVerdict::Unusable { micros: 260_000, why: String::new() }));
        assert!(!worth_keeping(&KvmVerdict::Unusable { micros: 90, why: String::new() }));
        assert!(!worth_keeping(&KvmVerdict::Absent { why: String::new() }));
    }

    #[test]
    fn another_boots_or_a_damaged_verdict_is_not_believed() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let kept = Kept { boot_id: "one".into(), kvm: KvmVerdict::Usable { micros: 1 } };
        write_json(&store.probe_cache("one"), &kept, 0o644).unwrap();
        assert_eq!(load(&store, "one"), Some(KvmVerdict::Usable { micros: 1 }));
        assert_eq!(load(&store, "two"), None);
        std::fs::copy(store.probe_cache("one"), store.probe_cache("two")).unwrap();
        assert_eq!(load(&store, "two"), None);
        std::fs::write(store.probe_cache("one"), "{").unwrap();
        assert_eq!(load(&store, "one"), None);
    }
}
