//! What happened when: as lines while it happens, as a table afterwards.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fleetbox::{BootStage, Event, Phase, PhaseTiming};

/// A phase that goes on says so at most this often.
const BETWEEN: Duration = Duration::from_secs(2);

/// Events with their times.
#[derive(Debug)]
pub(crate) struct Timeline {
    began: Instant,
    phases: Vec<PhaseTiming>,
    /// Each with the milliseconds since the VMM was started.
    stages: Vec<(BootStage, u64)>,
    /// The last line on a phase's progress, and when it was said.
    last: Option<(Phase, Instant)>,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), phases: Vec::new(), stages: Vec::new(), last: None }
    }

    /// Takes an event in; answers with the line that it is worth, if it is worth one.
    pub(crate) fn event(&mut self, event: &Event) -> Option<String> {
        let text = match event {
            Event::PhaseStarted { phase, detail, .. } => {
                self.last = Some((*phase, Instant::now()));
                format!("{phase}: {detail}")
            }
            Event::PhaseProgress { phase, detail, progress, .. } => {
                if self.last.is_some_and(|(last, at)| last == *phase && at.elapsed() < BETWEEN) {
                    return None;
                }
                self.last = Some((*phase, Instant::now()));
                match progress {
                    Some(p) if p.unit == "bytes" => format!("{phase}: {detail}"),
                    Some(p) => {
                        let of = p.total.map(|t| format!(" of {t}")).unwrap_or_default();
                        format!("{phase}: {detail} ({}{of} {})", p.done, p.unit)
                    }
                    None => format!("{phase}: {detail}"),
                }
            }
            Event::PhaseFinished { timing, .. } => {
                self.phases.push(timing.clone());
                return None;
            }
            Event::BootStageReached { stage, ms, .. } => {
                self.stages.push((*stage, *ms));
                format!("boot: {stage}")
            }
            Event::Warning { message, .. } => format!("warning: {message}"),
            _ => return None,
        };
        Some(format!("{:7.1} s  {text}", self.began.elapsed().as_secs_f64()))
    }

    /// Where the time went.
    pub(crate) fn table(&self, up: Duration, commands: &[(&str, Duration)], destroyed: Duration) -> String {
        let mut text = String::from("Where the time went:\n");
        let mut row = |indent: usize, what: &str, seconds: f64| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{:indent$}{what:<width$} {seconds:8.3} s", "", width = 46 - indent);
        };
        let mut told = 0;
        for PhaseTiming { phase, ms } in &self.phases {
            row(2, &phase.to_string(), seconds(*ms));
            told += ms;
            if *phase == Phase::Boot {
                if let Some((_, first)) = self.stages.first() {
                    row(4, "power-on", seconds(*first));
                }
                for (index, (stage, at)) in self.stages.iter().enumerate() {
                    // The last one ends when sshd answers, which is the phase's end.
                    let until = self.stages.get(index + 1).map_or(*ms, |(_, next)| *next);
                    row(4, &stage.to_string(), seconds(until.saturating_sub(*at)));
                }
            }
        }
        let rest = up.as_secs_f64() - seconds(told);
        row(2, "holder process, and what is between the phases", rest.max(0.0));
        row(0, "from nothing to the first login", up.as_secs_f64());
        for (command, took) in commands {
            row(0, command, took.as_secs_f64());
        }
        row(0, "destroying it", destroyed.as_secs_f64());
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "times of a boot fit a float's 52 bits in milliseconds")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
