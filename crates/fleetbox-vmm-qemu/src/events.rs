//! What QEMU's events mean for a machine.

use fleetbox_vmm::MachineEvent;
use serde_json::Value;

use crate::qmp::Event;

/// Translates events in their order.
#[derive(Debug, Default)]
pub(crate) struct Translator {
    paused: bool,
}

impl Translator {
    /// The machine's event, if QEMU's is of any interest.
    ///
    /// Names and reasons: QEMU's `qapi/run-state.json`.
    pub(crate) fn translate(&mut self, event: &Event) -> Option<MachineEvent> {
        let text = |key| event.data.get(key).and_then(Value::as_str).unwrap_or("?");
        match event.name.as_str() {
            // With `-action reboot=shutdown`, a reboot ends the VMM too; only the reason tells them apart. Reasons
            // of the host's (host-qmp-quit, host-signal, ...) are the owner's own doing.
            "SHUTDOWN" => match text("reason") {
                "guest-shutdown" => Some(MachineEvent::GuestPoweredOff),
                "guest-reset" => Some(MachineEvent::GuestRebooted),
                _ => None,
            },
            "GUEST_PANICKED" => Some(MachineEvent::GuestPanicked),
            // RESUME is said at the start of the guest, too, where nothing was paused.
            "STOP" if !self.paused => {
                self.paused = true;
                Some(MachineEvent::Paused)
            }
            "RESUME" if self.paused => {
                self.paused = false;
                Some(MachineEvent::Resumed)
            }
            "BLOCK_IO_ERROR" => {
                let (device, action, reason) = (text("qom-path"), text("action"), text("reason"));
                tracing::warn!(device, action, reason, "the host could not read or write a machine's disk");
                None
            }
            name => {
                tracing::debug!(name, data = %event.data, "VMM event");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_guests_own_doings_are_told() {
        let one =
            |name: &str, data: Value| Translator::default().translate(&Event { name: name.into(), data });
        let shutdown = |reason: &str| one("SHUTDOWN", json!({"guest": true, "reason": reason}));
        assert_eq!(shutdown("guest-shutdown"), Some(MachineEvent::GuestPoweredOff));
        assert_eq!(shutdown("guest-reset"), Some(MachineEvent::GuestRebooted));
        assert_eq!(shutdown("host-qmp-quit"), None);
        assert_eq!(shutdown("host-signal"), None);
        assert_eq!(one("SHUTDOWN", Value::Null), None);
        assert_eq!(one("GUEST_PANICKED", json!({"action": "run"})), Some(MachineEvent::GuestPanicked));
        // A guest with kdump handles its crash itself.
        assert_eq!(one("GUEST_CRASHLOADED", json!({"action": "run"})), None);
        assert_eq!(one("BLOCK_IO_ERROR", json!({"action": "stop"})), None);
        assert_eq!(one("POWERDOWN", Value::Null), None);
    }

    #[test]
    fn pauses_and_resumes_alternate() {
        let mut t = Translator::default();
        let told: Vec<_> = ["RESUME", "STOP", "STOP", "RESUME", "RESUME", "STOP"]
            .iter()
            .map(|name| t.translate(&Event { name: (*name).into(), data: Value::Null }))
            .collect();
        let (paused, resumed) = (Some(MachineEvent::Paused), Some(MachineEvent::Resumed));
        assert_eq!(told, [None, paused.clone(), None, resumed, None, paused]);
    }
}
