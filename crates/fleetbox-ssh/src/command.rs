//! What to run, and how it becomes one command line for the login shell.

use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::marker;

/// Linux's limit of one argument (`MAX_ARG_STRLEN`): the login shell gets the command line as one.
const MAX_LINE: usize = 128 * 1024 - 1;
/// Default of [`Command::output_limit`], in bytes for each stream.
const DEFAULT_OUTPUT_LIMIT: usize = 64 * 1024 * 1024;
/// Characters of a command that messages show.
const LABEL_CHARS: usize = 80;

/// A command for a machine: text for its login shell, or a program with arguments.
///
/// ```
/// use std::time::Duration;
/// use fleetbox_ssh::Command;
///
/// let text = Command::shell("cd /var/log && wc -l < syslog").timeout(Duration::from_secs(10));
/// let plain = Command::args(["grep", "it's", "/etc/motd"]).env("LC_ALL", "C").cwd("/");
/// assert_eq!(text.to_string(), "cd /var/log && wc -l < syslog");
/// assert_eq!(plain.to_string(), r"grep 'it'\''s' /etc/motd");
/// ```
#[derive(Clone)]
pub struct Command {
    body: Body,
    env: Vec<(String, Vec<u8>)>,
    cwd: Option<Vec<u8>>,
    pub(crate) stdin: Option<Bytes>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) output_limit: usize,
}

#[derive(Clone)]
enum Body {
    Shell(Vec<u8>),
    Args(Vec<Vec<u8>>),
}

impl Command {
    /// Text for the login shell, exactly as `ssh HOST TEXT` would run it: pipes, `cd`, several lines and
    /// heredocs work.
    #[must_use]
    pub fn shell(text: impl Into<Vec<u8>>) -> Self {
        Self::new(Body::Shell(text.into()))
    }

    /// A program and its arguments, which no shell interprets. The program is looked up in `PATH`; what
    /// only a shell knows (`cd`, `ulimit`) is not found. Its end is reported exactly, signals too.
    #[must_use]
    pub fn args<A: Into<Vec<u8>>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::new(Body::Args(args.into_iter().map(Into::into).collect()))
    }

    fn new(body: Body) -> Self {
        let output_limit = DEFAULT_OUTPUT_LIMIT;
        Self { body, env: Vec::new(), cwd: None, stdin: None, timeout: None, output_limit }
    }

    /// Limits the whole call: waiting for a connection, running, collecting the output. When it passes,
    /// the command's session is killed and the call fails with [`Error::Timeout`], as soon as the machine
    /// confirms the kill or [`Options::kill_timeout`](crate::Options::kill_timeout) has passed too.
    /// Default: no limit.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Bytes for its standard input, followed by end of file. Without this, an executed command has an
    /// empty standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Bytes>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets an environment variable. The name has to be a shell identifier. It becomes part of the
    /// command line, which the machine's users can read in the process list.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it in this directory. If it cannot be entered, the command fails with the shell's message on
    /// standard error and the status of `cd`. A relative path starts at the user's home.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<Vec<u8>>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// Bytes that may be collected of each output stream; in a [`Session`](crate::Session): that may
    /// wait there unread. More kills its session and is [`Error::OutputTooLarge`]. Default 64 MiB.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// The command line for sshd. The user's text comes last, on a line of its own, so that nothing in it
    /// (an open heredoc, a comment, a backslash at the end) can swallow a part of ours, and the shell may
    /// run its last command in its own place, as it would without the lines before.
    pub(crate) fn line(&self, nonce: &str) -> Result<Vec<u8>> {
        let mut line = marker::announce(nonce).into_bytes();
        line.push(b'\n');
        for (name, value) in &self.env {
            if !is_identifier(name) {
                return Err(Error::InvalidCommand {
                    reason: "an environment variable's name is no identifier",
                });
            }
            line.extend_from_slice(b"export ");
            line.extend_from_slice(name.as_bytes());
            line.push(b'=');
            line.extend_from_slice(&quote(value));
            line.push(b'\n');
        }
        if let Some(directory) = &self.cwd {
            // An empty CDPATH: `cd` must not search elsewhere. "-" would mean the previous directory.
            line.extend_from_slice(b"CDPATH= cd -- ");
            let dash = directory.starts_with(b"-");
            line.extend_from_slice(&quote(&[if dash { b"./".as_slice() } else { b"" }, directory].concat()));
            line.extend_from_slice(b" || exit\n");
        }
        match &self.body {
            Body::Shell(text) => line.extend_from_slice(text),
            Body::Args(args) => {
                let Some(program) = args.first() else {
                    return Err(Error::InvalidCommand { reason: "no program given" });
                };
                if program.is_empty() || program.starts_with(b"-") {
                    return Err(Error::InvalidCommand {
                        reason: "the program's name is empty or begins with '-'",
                    });
                }
                line.extend_from_slice(b"exec ");
                line.extend_from_slice(&join(args));
            }
        }
        if line.contains(&0) {
            return Err(Error::InvalidCommand { reason: "it contains a NUL byte" });
        }
        if line.len() > MAX_LINE {
            return Err(Error::InvalidCommand {
                reason: "it is longer than 128 KiB; pass data on standard input",
            });
        }
        Ok(line)
    }

    /// The command for messages: its first line, cut to 80 characters.
    pub(crate) fn label(&self) -> String {
        let text = self.to_string();
        let first = text.trim().lines().next().unwrap_or_default();
        let mut label: String = first.chars().take(LABEL_CHARS).collect();
        if label.len() < text.trim().len() {
            label.push('…');
        }
        label
    }
}

/// The text, or the arguments as a shell would need them.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Shell(text) => f.write_str(&String::from_utf8_lossy(text)),
            Body::Args(args) => f.write_str(&String::from_utf8_lossy(&join(args))),
        }
    }
}

/// Without the values of the environment and the input, which may be secrets.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = String::new();
        self.env.iter().try_for_each(|(name, _)| write!(names, "{name} "))?;
        f.debug_struct("Command")
            .field("command", &self.label())
            .field("env", &names.trim_end())
            .field("stdin_len", &self.stdin.as_ref().map(Bytes::len))
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Shell text.
impl From<&str> for Command {
    fn from(text: &str) -> Self {
        Self::shell(text)
    }
}

/// Shell text.
impl From<String> for Command {
    fn from(text: String) -> Self {
        Self::shell(text)
    }
}

fn join(args: &[Vec<u8>]) -> Vec<u8> {
    args.iter().map(|arg| quote(arg)).collect::<Vec<_>>().join(&b' ')
}

fn is_identifier(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty() && name.bytes().all(word) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Quotes one word for a POSIX shell; a word that needs no quotes stays as it is.
///
/// ```
/// assert_eq!(fleetbox_ssh::quote(b"/tmp/a-b_c.1"), b"/tmp/a-b_c.1");
/// assert_eq!(fleetbox_ssh::quote(b"it's $HOME"), br"'it'\''s $HOME'");
/// ```
#[must_use]
pub fn quote(word: &[u8]) -> Vec<u8> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./:,+@%".contains(b);
    if !word.is_empty() && word.iter().all(plain) {
        return word.to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in word {
        if byte == b'\'' {
            quoted.extend_from_slice(br"'\''");
        } else {
            quoted.push(byte);
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Output;

    use proptest::prelude::*;

    use super::*;
    use crate::marker::MarkerFilter;

    /// Runs the composed line as sshd would, with each POSIX shell of this host.
    fn run(command: &Command) -> Vec<(&'static str, Output)> {
        let line = command.line("n0nce").unwrap();
        let shells =
            ["/bin/sh", "/bin/bash"].into_iter().filter(|shell| std::path::Path::new(shell).exists());
        shells
            .map(|shell| {
                let mut process = std::process::Command::new(shell);
                let mut output = process.arg("-c").arg(OsStr::from_bytes(&line)).output().unwrap();
                let mut filter = MarkerFilter::new("n0nce");
                let (pass, sid) = filter.push(output.stderr.into());
                assert!(sid.is_some(), "{shell} printed no marker for {command:?}");
                output.stderr = [pass, filter.finish()].concat();
                (shell, output)
            })
            .collect()
    }

    fn stdout_is(command: Command, expected: &[u8]) {
        for (shell, output) in run(&command) {
            assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(expected), "{shell}");
        }
    }

    #[test]
    fn text_that_could_swallow_a_wrapper() {
        stdout_is(Command::shell("echo a # trailing comment"), b"a\n");
        // Shells take a backslash at the end of all text for itself.
        stdout_is(Command::shell("echo a \\"), b"a \\\n");
        stdout_is(Command::shell("cat <<EOF\n$((1+1))\nEOF"), b"2\n");
        stdout_is(Command::shell("cat <<'EOF'\n$HOME \\\nEOF\n"), b"$HOME \\\n");
        stdout_is(Command::shell("# only a comment"), b"");
        stdout_is(Command::shell(""), b"");
        stdout_is(Command::shell("\n\n  echo 'a\nb'\n\n"), b"a\nb\n");
        stdout_is(Command::shell("cd /usr && pwd"), b"/usr\n");
        stdout_is(Command::shell("set -- x; echo \"$#\""), b"1\n");
    }

    #[test]
    fn a_syntax_error_is_the_shells_to_report() {
        for (shell, output) in run(&Command::shell("echo 'open")) {
            assert_eq!(output.status.code(), Some(2), "{shell}");
            assert!(!output.stderr.is_empty(), "{shell}");
        }
    }

    #[test]
    fn the_last_command_takes_the_shells_place() {
        // A program that a signal ends must be seen as such, not as the shell's 128 + n.
        for text in ["exec sh -c 'kill -9 $$'", "kill -9 $$"] {
            for (shell, output) in run(&Command::shell(text)) {
                assert_eq!(output.status.code(), None, "{shell}: {text}");
            }
        }
        for (shell, output) in run(&Command::args(["sh", "-c", "kill -9 $$"])) {
            assert_eq!(output.status.code(), None, "{shell}");
        }
    }

    #[test]
    fn cwd_and_env() {
        stdout_is(Command::shell("pwd").cwd("/usr/lib"), b"/usr/lib\n");
        stdout_is(Command::args(["printenv", "K"]).env("K", "a 'b'\n$c\\"), b"a 'b'\n$c\\\n");
        for (shell, output) in run(&Command::shell("echo ran").cwd("/no such")) {
            assert!(output.stdout.is_empty() && !output.status.success(), "{shell}");
        }
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let refused = |command: Command| matches!(command.line("n"), Err(Error::InvalidCommand { .. }));
        assert!(refused(Command::shell("a\0b")));
        assert!(refused(Command::args(Vec::<String>::new())));
        assert!(refused(Command::args([""])));
        assert!(refused(Command::args(["-x"])));
        assert!(refused(Command::shell("true").env("A B", "")));
        assert!(refused(Command::shell("true").env("1A", "")));
        assert!(refused(Command::shell("x".repeat(128 * 1024))));
        assert!(!refused(Command::shell("x".repeat(127 * 1024))));
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(Command::shell("echo 1\necho 2").label(), "echo 1…");
        assert_eq!(Command::shell("x".repeat(200)).label().chars().count(), LABEL_CHARS + 1);
        assert!(
            !format!("{:?}", Command::shell("x").env("TOKEN", "s3cret").stdin("s3cret")).contains("s3cret")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn arguments_arrive_byte_for_byte(
            args in proptest::collection::vec(proptest::collection::vec(1u8.., 0..12), 1..5),
        ) {
            let words = [b"printf".to_vec(), b"%s\\0".to_vec()].into_iter().chain(args.clone());
            let expected: Vec<u8> = args.iter().flat_map(|arg| [arg.as_slice(), b"\0"].concat()).collect();
            for (shell, output) in run(&Command::args(words)) {
                prop_assert_eq!(&output.stdout, &expected, "{}", shell);
            }
        }

        #[test]
        fn values_arrive_byte_for_byte(value in proptest::collection::vec(1u8.., 0..24)) {
            let command = Command::shell("printf %s \"$K\"").env("K", value.clone());
            for (shell, output) in run(&command) {
                prop_assert_eq!(&output.stdout, &value, "{}", shell);
            }
        }
    }
}
