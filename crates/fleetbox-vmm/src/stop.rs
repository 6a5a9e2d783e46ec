//! How a machine is stopped: an escalation, as data.
//!
//! ```text
//! power button --grace--> VMM's own quit --grace--> SIGTERM --grace--> SIGKILL
//! ```
//! The plan only says what to do next and how long to wait for the VMM's end; whoever owns the machine
//! carries it out and keeps answering questions meanwhile.

use std::time::Duration;

/// One means of ending a machine, from the gentlest to the surest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopMethod {
    /// The ACPI power button: the guest shuts down by itself and its disks are clean.
    PowerButton,
    /// The VMM's own quit command: the guest is cut off, the VMM flushes its disk files.
    Quit,
    /// SIGTERM to the VMM.
    Terminate,
    /// SIGKILL to the VMM's process group.
    Kill,
}

impl std::fmt::Display for StopMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::PowerButton => "power button",
            Self::Quit => "VMM quit",
            Self::Terminate => "SIGTERM",
            Self::Kill => "SIGKILL",
        })
    }
}

/// A means and how long it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopStep {
    /// The means.
    pub method: StopMethod,
    /// How long to wait for the VMM's end before the next step.
    pub grace: Duration,
}

/// The steps of a stop, in order. The last one is always [`StopMethod::Kill`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopPlan {
    steps: Vec<StopStep>,
}

impl StopPlan {
    /// A graceful stop: the guest gets `guest_grace` to shut down, then the VMM is ended.
    #[must_use]
    pub fn graceful(guest_grace: Duration) -> Self {
        let step = |method, secs| StopStep { method, grace: Duration::from_secs(secs) };
        Self {
            steps: vec![
                StopStep { method: StopMethod::PowerButton, grace: guest_grace },
                step(StopMethod::Quit, 3),
                step(StopMethod::Terminate, 2),
                step(StopMethod::Kill, 5),
            ],
        }
    }

    /// No questions asked: SIGKILL. What the death of an owner does, too.
    #[must_use]
    pub fn immediate() -> Self {
        Self { steps: vec![StopStep { method: StopMethod::Kill, grace: Duration::from_secs(5) }] }
    }

    /// The steps that are left when the machine cannot react to a power button (it is paused or failed).
    #[must_use]
    pub fn without_guest(mut self) -> Self {
        self.steps.retain(|s| s.method != StopMethod::PowerButton);
        self
    }

    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[StopStep] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_escalates_and_ends_with_kill() {
        let graceful = StopPlan::graceful(Duration::from_secs(60));
        for plan in [graceful.clone(), graceful.without_guest(), StopPlan::immediate()] {
            assert!(plan.steps().is_sorted_by_key(|s| s.method), "{plan:?}");
            assert_eq!(plan.steps().last().unwrap().method, StopMethod::Kill);
        }
    }
}
