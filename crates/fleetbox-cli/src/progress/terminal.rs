//! A line that moves: the phase under way, what it is at, and for how long; phases that are done stay above it.

use std::time::Duration;

use fleetbox::{Event, Phase};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{detail, label, seconds};
use crate::output;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

fn spinner() -> ProgressBar {
    let bar = ProgressBar::no_length();
    // Fixed text, and the default would do.
    let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:>5}  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

/// The starts of several machines on a terminal, a line for each.
#[derive(Debug)]
pub(super) struct Terminals(Vec<(String, Terminal)>);

impl Terminals {
    pub(super) fn new(names: &[String], color: bool) -> Self {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let line = |name: &String| (name.clone(), Terminal::new(&lines, label(names, name), color));
        Self(names.iter().map(line).collect())
    }

    pub(super) fn event(&mut self, event: &Event) {
        let name = event.machine().as_str();
        if let Some((_, terminal)) = self.0.iter_mut().find(|(n, _)| n == name) {
            terminal.event(event);
        }
    }

    /// One line stays, and says so.
    pub(super) fn interrupted(&mut self, what: &str) {
        let mut all = self.0.iter_mut().map(|(_, terminal)| terminal);
        if let Some(first) = all.next() {
            first.interrupted(what);
        }
        all.for_each(|t| t.finish());
    }

    pub(super) fn finish(&self) {
        self.0.iter().for_each(|(_, terminal)| terminal.finish());
    }
}

/// A machine's start on a terminal.
#[derive(Debug)]
struct Terminal {
    bar: ProgressBar,
    /// What stands before all that is said of it.
    label: String,
    color: bool,
    /// What is said of the phase under way.
    said: String,
}

impl Terminal {
    fn new(lines: &MultiProgress, label: String, color: bool) -> Self {
        let bar = lines.add(spinner());
        bar.enable_steady_tick(TICK);
        let terminal = Self { bar, label, color, said: String::new() };
        terminal.prefix(&Phase::Holder.to_string());
        terminal
    }

    fn prefix(&self, what: &str) {
        self.bar.set_prefix(format!("{}{what:<10}", self.label));
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, detail, .. } => {
                self.bar.reset_elapsed();
                self.prefix(&phase.to_string());
                self.say(detail.clone());
            }
            Event::PhaseProgress { detail: text, progress, .. } => {
                // What moves is shown in passing; what is kept of the phase is what it began with.
                self.bar.set_message(detail(text, progress.as_ref()));
            }
            Event::PhaseFinished { timing, .. } => {
                let time = seconds(Duration::from_millis(timing.ms));
                let line = finished(timing.phase, &time, &self.said);
                self.bar.println(format!("{} {}{line}", self.paint("32", "✓"), self.label));
                self.say(String::new());
            }
            Event::BootStageReached { stage, .. } => self.say(stage.to_string()),
            Event::Warning { message, .. } => {
                self.bar.println(format!("{} {}{message}", self.paint("33", "warning:"), self.label))
            }
            _ => {}
        }
    }

    fn interrupted(&mut self, what: &str) {
        self.bar.println("interrupted");
        self.bar.reset_elapsed();
        self.bar.set_prefix("cancel    ");
        self.say(what.to_owned());
    }

    fn finish(&self) {
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
