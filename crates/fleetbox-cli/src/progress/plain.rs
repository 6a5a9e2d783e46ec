//! Lines for logs: one when a phase begins, few while it goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use fleetbox::{Event, Phase};

use super::{detail, label, seconds};

/// A phase that goes on says so at most this often.
const BETWEEN: Duration = Duration::from_secs(2);
/// The end of a phase is worth a line from this long on.
const LONG_PHASE_MS: u64 = 1000;

/// The lines of each machine.
#[derive(Debug)]
pub(super) struct Plains {
    names: Vec<String>,
    each: BTreeMap<String, Plain>,
}

impl Plains {
    pub(super) fn new(names: &[String]) -> Self {
        Self { names: names.to_vec(), each: BTreeMap::new() }
    }

    /// The line that an event is worth, if it is worth one.
    pub(super) fn line(&mut self, elapsed: Duration, event: &Event) -> Option<String> {
        let name = event.machine().as_str();
        let line = self.each.entry(name.to_owned()).or_default().line(elapsed, event)?;
        Some(label(&self.names, name) + &line)
    }
}

/// Chooses which events of a machine are worth a line.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// When the last line on this phase's progress was written, and what it said.
    last: Option<(Phase, Duration, String)>,
}

impl Plain {
    /// The line that an event is worth, if it is worth one.
    pub(super) fn line(&mut self, elapsed: Duration, event: &Event) -> Option<String> {
        match event {
            Event::PhaseStarted { phase, detail, .. } => {
                self.last = Some((*phase, elapsed, detail.clone()));
                Some(format!("{phase}: {detail}"))
            }
            Event::PhaseProgress { phase, detail: text, progress, .. } => {
                let text = detail(text, progress.as_ref());
                if let Some((last, at, said)) = &self.last
                    && last == phase
                    && (*said == text || elapsed < *at + BETWEEN)
                {
                    return None;
                }
                self.last = Some((*phase, elapsed, text.clone()));
                Some(format!("{phase}: {text}"))
            }
            Event::PhaseFinished { timing, .. } if timing.ms >= LONG_PHASE_MS => {
                Some(format!("{}: done in {}", timing.phase, seconds(Duration::from_millis(timing.ms))))
            }
            Event::BootStageReached { stage, .. } => Some(format!("{}: {stage}", Phase::Boot)),
            Event::Warning { message, .. } => Some(format!("warning: {message}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetbox::{BootStage, MachineName, PhaseTiming, Progress};

    #[test]
    fn lines_of_a_start() {
        let machine = || MachineName::new("web").unwrap();
        let started =
            |phase, detail: &str| Event::PhaseStarted { machine: machine(), phase, detail: detail.into() };
        let packages = |done| Event::PhaseProgress {
            machine: machine(),
            phase: Phase::Image,
            detail: "installing".into(),
            progress: Some(Progress::new(done, Some(9), "packages")),
        };
        let finished =
            |phase, ms| Event::PhaseFinished { machine: machine(), timing: PhaseTiming { phase, ms } };
        let mut plain = Plain::default();
        let events = [
            (0, started(Phase::Probe, "choosing a backend")),
            (9, finished(Phase::Probe, 9)),
            (10, Event::Warning { machine: machine(), message: "slow".into() }),
            (20, started(Phase::Image, "bootstrap:bookworm")),
            (500, packages(1)),
            (3000, packages(2)),
            (3100, packages(3)),
            (9000, packages(2)),
            (9100, finished(Phase::Image, 9080)),
            (9200, Event::BootStageReached { machine: machine(), stage: BootStage::Kernel, ms: 100 }),
        ];
        let lines: Vec<String> =
            events.iter().filter_map(|(ms, e)| plain.line(Duration::from_millis(*ms), e)).collect();
        assert_eq!(
            lines,
            [
                "probe: choosing a backend",
                "warning: slow",
                "image: bootstrap:bookworm",
                "image: installing (2 of 9 packages)",
                "image: done in 9.1s",
                "boot: kernel",
            ]
        );
    }
}
