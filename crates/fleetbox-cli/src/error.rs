//! What can go wrong in the command, and how it is told.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use fleetbox::State;

use crate::exit::Exit;

/// A result of the command.
pub(crate) type Result<T = Exit, E = CliError> = std::result::Result<T, E>;

/// Why a command failed. Most is the library's to tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The library failed.
    #[error(transparent)]
    Fleetbox(Box<fleetbox::Error>),
    /// The machine exists and does not run.
    #[error("machine {name} is {state}")]
    NotRunning { name: String, state: State },
    /// Names beside a count, which makes names itself.
    #[error("--count makes machines of one name: NAME-1, NAME-2 and so on; give one NAME")]
    CountOfSeveral,
    /// A start was given up on Ctrl-C. What became of the machine is told before.
    #[error("interrupted")]
    Interrupted,
    /// A start was given up on Ctrl-C, and its remains are not gone yet.
    #[error("interrupted, and what the start of machine {name} had made was not gone within {seconds} s")]
    InterruptedUnfinished { name: String, seconds: u64 },
    /// A program of the host's could not be run.
    #[error("could not run {program}")]
    Program {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    /// A console log could not be read.
    #[error("could not read the console log {path}")]
    ConsoleLog {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Whoever reads the output has gone away, which is no error: `fleetbox ls | head -1`.
    #[error("nobody reads the output any more")]
    ReaderGone,
    /// The output could not be written.
    #[error("could not write to standard output")]
    Output(#[source] io::Error),
    /// A value could not be put into JSON.
    #[error("could not write JSON")]
    Json(#[source] serde_json::Error),
    /// The process itself could not be set up.
    #[error("could not start the event loop")]
    Runtime(#[source] io::Error),
    /// Ctrl-C could not be listened for.
    #[error("could not listen for Ctrl-C")]
    Signal(#[source] io::Error),
}

impl From<fleetbox::Error> for CliError {
    fn from(e: fleetbox::Error) -> Self {
        Self::Fleetbox(Box::new(e))
    }
}

impl CliError {
    /// The exit code it ends with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Fleetbox(e) => e.kind().into(),
            Self::NotRunning { .. } => Exit::Conflict,
            Self::CountOfSeveral => Exit::Usage,
            Self::Interrupted | Self::InterruptedUnfinished { .. } => Exit::Interrupted,
            Self::Program { .. } => Exit::Host,
            Self::ConsoleLog { .. } => Exit::Store,
            Self::ReaderGone => Exit::Ok,
            Self::Output(_) | Self::Json(_) | Self::Runtime(_) | Self::Signal(_) => Exit::Failure,
        }
    }

    fn console(&self) -> Option<&str> {
        match self {
            Self::Fleetbox(e) => e.console(),
            _ => None,
        }
    }
}

/// An error as it is printed: message, causes, console, hint.
pub(crate) fn render(error: &CliError, hint: Option<&str>, color: bool) -> String {
    let paint = |code: &str, text: &str| {
        if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let message = error.to_string();
    let mut text = format!("{} {}\n", paint("1;31", "error:"), indented(&message));
    let mut said = vec![message];
    let mut source = error.source();
    while let Some(e) = source {
        let message = e.to_string();
        // Some libraries repeat their cause in their own message.
        if !said.iter().any(|s| s.contains(&message)) {
            text += &format!("  {} {}\n", paint("2", "caused by:"), indented(&message));
            said.push(message);
        }
        source = e.source();
    }
    if let Some(console) = error.console().map(printable).filter(|c| !c.trim().is_empty()) {
        text += &format!("  {}\n", paint("2", "last lines of the console:"));
        for line in console.lines() {
            text += format!("    {line}").trim_end();
            text.push('\n');
        }
    }
    if let Some(hint) = hint {
        text += &format!("{} {}\n", paint("1;36", "hint:"), indented(hint));
    }
    text
}

/// Further lines of a text stand out less than what follows it.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

/// A console's text without what would move the cursor or change colours.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                // A control sequence ends with a byte from '@' to '~'.
                while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                chars.next();
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("top: could not: no space")]
    struct Talkative(#[source] io::Error);

    #[test]
    fn message_causes_and_hint() {
        let error = CliError::Program { program: "ssh", source: io::Error::other("no\nsuch file") };
        assert_eq!(
            render(&error, Some("install it"), false),
            "error: could not run ssh\n  caused by: no\n    such file\nhint: install it\n"
        );
        assert!(render(&error, None, true).starts_with("\x1b[1;31merror:\x1b[0m could"));
    }

    #[test]
    fn a_cause_is_told_once() {
        let source = io::Error::other(Talkative(io::Error::other("no space")));
        let text = render(&CliError::Runtime(source), None, false);
        assert_eq!(text.matches("no space").count(), 1, "{text}");
    }

    #[test]
    fn a_console_cannot_touch_the_terminal() {
        assert_eq!(printable("a\x1b[1;31mred\x1b[0m\r\nb\x07\tc\x1b"), "ared\nb\tc");
    }

    #[test]
    fn the_librarys_kind_decides() {
        let not_found = fleetbox::Error::NotFound { name: "web".into() };
        let error = CliError::from(not_found);
        assert_eq!(error.exit(), Exit::NotFound);
        assert_eq!(render(&error, None, false), "error: there is no machine web\n");
    }
}
