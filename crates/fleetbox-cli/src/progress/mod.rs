//! How far a start has come: on stderr, as a spinner on a terminal and as plain lines elsewhere.

mod plain;
mod terminal;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fleetbox::Event;

use crate::output;
use plain::Plains;
use terminal::Terminals;

pub(crate) use terminal::Spinner;

/// Shows the events of a start, of one machine or of several side by side.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    show: Mutex<Show>,
}

#[derive(Debug)]
enum Show {
    Terminal(Terminals),
    Plain(Plains),
}

impl Progress {
    /// Looks at stderr, and begins.
    pub(crate) fn new(names: &[String]) -> Self {
        let stderr = io::stderr();
        let show = if output::can_animate(&stderr) {
            Show::Terminal(Terminals::new(names, output::colors(&stderr)))
        } else {
            Show::Plain(Plains::new(names))
        };
        Self { started: Instant::now(), show: Mutex::new(show) }
    }

    /// Shows what happened.
    pub(crate) fn event(&self, event: &Event) {
        match &mut *self.show() {
            Show::Terminal(terminal) => terminal.event(event),
            Show::Plain(plain) => {
                let elapsed = self.started.elapsed();
                if let Some(line) = plain.line(elapsed, event) {
                    output::note(&stamped(elapsed, &line));
                }
            }
        }
    }

    /// Shows that the start was given up, and what is done now.
    pub(crate) fn interrupted(&self, what: &str) {
        match &mut *self.show() {
            Show::Terminal(terminal) => terminal.interrupted(what),
            Show::Plain(_) => output::note(&stamped(self.started.elapsed(), &format!("interrupted: {what}"))),
        }
    }

    /// Clears away what moves. What is shown afterwards is shown by others.
    pub(crate) fn finish(&self) {
        if let Show::Terminal(terminal) = &mut *self.show() {
            terminal.finish();
        }
    }

    /// The last line: what it has come to, and after how long.
    pub(crate) fn summary(&self, what: &str) {
        let elapsed = self.started.elapsed();
        match &*self.show() {
            Show::Terminal(_) => output::note(&format!("{what} after {}", seconds(elapsed))),
            Show::Plain(_) => output::note(&stamped(elapsed, what)),
        }
    }

    fn show(&self) -> MutexGuard<'_, Show> {
        self.show.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands before what is said of a machine: nothing for a single one.
fn label(names: &[String], name: &str) -> String {
    match names {
        [] | [_] => String::new(),
        several => {
            let width = several.iter().map(String::len).max().unwrap_or(0);
            format!("{name:<width$}  ")
        }
    }
}

fn stamped(elapsed: Duration, line: &str) -> String {
    format!("[{:>6}] {line}", seconds(elapsed))
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// How much is done, in words: `12.0 of 300.5 MiB`, `3 of 70 packages`.
fn amount(progress: &fleetbox::Progress) -> String {
    let fleetbox::Progress { done, total, unit, rate, left_s } = progress;
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let (number, unit): (&dyn Fn(u64) -> String, _) =
        if unit == "bytes" { (&mib, "MiB") } else { (&|n| n.to_string(), unit.as_str()) };
    let mut text = match total {
        Some(total) => format!("{} of {} {unit}", number(*done), number(*total)),
        None => format!("{} {unit}", number(*done)),
    };
    if let Some(rate) = rate {
        text += &format!(", {} {unit}/s", number(*rate));
    }
    if let Some(left) = left_s {
        text += &format!(", {}:{:02} left", left / 60, left % 60);
    }
    text
}

/// What a phase is at, with how much of it is done.
fn detail(text: &str, progress: Option<&fleetbox::Progress>) -> String {
    match progress {
        Some(p) if text.is_empty() => amount(p),
        Some(p) => format!("{text} ({})", amount(p)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        let amount = |done, total, unit: &str| amount(&fleetbox::Progress::new(done, total, unit));
        assert_eq!(amount(3 << 20, Some(6 << 20), "bytes"), "3.0 of 6.0 MiB");
        assert_eq!(amount(3, None, "packages"), "3 packages");
        let download = fleetbox::Progress::new(100 << 20, Some(400 << 20), "bytes").at_rate(Some(4 << 20));
        assert_eq!(super::amount(&download), "100.0 of 400.0 MiB, 4.0 MiB/s, 1:15 left");
    }

    #[test]
    fn only_several_are_named() {
        let names = ["web-1".to_owned(), "web-10".to_owned()];
        assert_eq!(
            (label(&names[..1], "web-1"), label(&names, "web-1")),
            (String::new(), "web-1   ".to_owned())
        );
    }

    #[test]
    fn stamps_line_up() {
        assert_eq!(stamped(Duration::from_millis(3210), "x"), "[  3.2s] x");
        assert_eq!(stamped(Duration::from_millis(123_456), "x"), "[123.5s] x");
    }
}
