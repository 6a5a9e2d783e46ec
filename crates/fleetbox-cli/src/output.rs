//! Writing to stdout and stderr.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};

use crate::error::{CliError, Result, render};

/// Writes a text to stdout.
///
/// # Errors
/// [`CliError::ReaderGone`] when whoever read it has gone away.
pub(crate) fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to stdout as they are.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::Output(e),
    })
}

/// Writes a line to stderr. Nobody is left to be told when that fails.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes an error to stderr.
pub(crate) fn report(error: &CliError, hint: Option<&str>) {
    let text = render(error, hint, colors(&io::stderr()));
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether a stream may get colours.
pub(crate) fn colors(stream: &impl IsTerminal) -> bool {
    wants_colors(
        stream.is_terminal(),
        std::env::var_os("NO_COLOR").as_deref(),
        std::env::var_os("TERM").as_deref(),
    )
}

/// Whether a stream is a terminal that can move its cursor.
pub(crate) fn can_animate(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !is_dumb(std::env::var_os("TERM").as_deref())
}

fn wants_colors(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    // The convention (no-color.org): set to anything but nothing.
    terminal && !is_dumb(term) && no_color.is_none_or(OsStr::is_empty)
}

fn is_dumb(term: Option<&OsStr>) -> bool {
    term.is_none_or(|t| t.is_empty() || t == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_there_are_colours() {
        let os = |s: &'static str| Some(OsStr::new(s));
        assert!(wants_colors(true, None, os("xterm")));
        assert!(wants_colors(true, os(""), os("xterm")));
        assert!(!wants_colors(true, os("1"), os("xterm")));
        assert!(!wants_colors(true, None, os("dumb")));
        assert!(!wants_colors(true, None, None));
        assert!(!wants_colors(false, None, os("xterm")));
    }
}
