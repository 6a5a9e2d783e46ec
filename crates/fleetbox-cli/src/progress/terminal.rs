//! A line that moves: the phase under way, what it is at, and for how long; phases that are done stay above it.

use std::time::Duration;

use fleetbox::{Event, Phase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{detail, seconds};
use crate::output;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // Fixed text, and the default would do.
    let style = ProgressStyle::with_template("{spinner} {prefix:<10} {elapsed:>5}  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(TICK);
    bar
}

/// A start on a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    bar: ProgressBar,
    color: bool,
    /// What is said of the phase under way.
    said: String,
}

impl Terminal {
    pub(super) fn new(color: bool) -> Self {
        let bar = spinner();
        bar.set_prefix(Phase::Holder.to_string());
        Self { bar, color, said: String::new() }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, detail, .. } => {
                self.bar.reset_elapsed();
                self.bar.set_prefix(phase.to_string());
                self.say(detail.clone());
            }
            Event::PhaseProgress { detail: text, progress, .. } => {
                // What moves is shown in passing; what is kept of the phase is what it began with.
                self.bar.set_message(detail(text, progress.as_ref()));
            }
            Event::PhaseFinished { timing, .. } => {
                let time = seconds(Duration::from_millis(timing.ms));
                let line = finished(timing.phase, &time, &self.said);
                self.bar.println(format!("{} {line}", self.paint("32", "✓")));
                self.say(String::new());
            }
            Event::BootStageReached { stage, .. } => self.say(stage.to_string()),
            Event::Warning { message, .. } => {
                self.bar.println(format!("{} {message}", self.paint("33", "warning:")))
            }
            _ => {}
        }
    }

    pub(super) fn interrupted(&mut self, what: &str) {
        self.bar.println("interrupted");
        self.bar.reset_elapsed();
        self.bar.set_prefix("cancel");
        self.say(what.to_owned());
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn say(&mut self, what: String) {
        self.said.clone_from(&what);
        self.bar.set_message(what);
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn finished(phase: Phase, time: &str, said: &str) -> String {
    format!("{phase:<10} {time:>6}  {said}").trim_end().to_owned()
}

/// A wait without known steps. On anything but a terminal it is silent.
#[derive(Debug)]
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    /// Begins to turn.
    pub(crate) fn new(what: String) -> Self {
        Self(output::can_animate(&std::io::stderr()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {elapsed:>4}  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(what);
            bar.enable_steady_tick(TICK);
            bar
        }))
    }

    /// Writes a line to stderr, above the spinner.
    pub(crate) fn note(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.println(line),
            None => output::note(line),
        }
    }

    /// Lets something else write to stderr meanwhile.
    pub(crate) async fn suspend<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(bar) = &self.0 else { return work.await };
        bar.disable_steady_tick();
        bar.set_draw_target(ProgressDrawTarget::hidden());
        let result = work.await;
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(TICK);
        result
    }

    /// Stops turning, and leaves no trace.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_phases_line_up() {
        assert_eq!(
            finished(Phase::Image, "12.3s", "bootstrap:bookworm"),
            "image       12.3s  bootstrap:bookworm"
        );
        assert_eq!(finished(Phase::CloudInit, "0.1s", ""), "cloud-init   0.1s");
    }
}
