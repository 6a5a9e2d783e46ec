//! Other programs: found, run with a deadline, their last lines kept.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use fleetbox_os::child::Spawn;

use crate::ImageError;
use crate::task::Task;

/// A program that comes in a package.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) const QEMU_IMG: Tool = Tool { name: "qemu-img", package: "qemu-utils" };

impl Tool {
    /// Where it is: PATH, then the folders that a user's PATH often lacks.
    pub(crate) fn find(self, purpose: &'static str) -> Result<PathBuf, ImageError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(self.name))
            .find(|p| p.is_file())
            .ok_or(ImageError::ToolMissing { tool: self.name, package: self.package, purpose })
    }
}

/// How long a program may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Without a line of output.
    pub(crate) silence: Duration,
    /// In all.
    pub(crate) total: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) tail: Tail,
}

/// The last lines of an output.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    const LINES: usize = 20;

    fn push(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.0.len() == Self::LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    pub(crate) fn text(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// Splits a stream into lines. A line longer than the limit is cut into several: nothing here grows without bound.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    const MAX: usize = 16 * 1024;

    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &b in bytes {
            // Progress meters end their lines with a carriage return.
            if b == b'\n' || b == b'\r' || self.0.len() == Self::MAX {
                each(&String::from_utf8_lossy(&self.0));
                self.0.clear();
            }
            if b != b'\n' && b != b'\r' {
                self.0.push(b);
            }
        }
    }

    fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.0.is_empty() {
            each(&String::from_utf8_lossy(&self.0));
            self.0.clear();
        }
    }
}

/// Runs a program to its end, handing each line of its output and errors to `on_line`.
///
/// On cancellation, silence or a failing `on_line` the program's process group is killed before this returns.
pub(crate) fn run(
    tool: Tool,
    mut spawn: Spawn,
    limits: Limits,
    task: &Task,
    mut on_line: impl FnMut(&str) -> Result<(), ImageError>,
) -> Result<Ended, ImageError> {
    task.check()?;
    let start = |source| ImageError::ToolStart { tool: tool.name, source };
    let (read, write) = fleetbox_os::fd::pipe().map_err(start)?;
    spawn.stderr = Some(write.try_clone().map_err(start)?);
    spawn.stdout = Some(write);
    // Declared after the child in spirit: on every way out the child is killed and reaped by its drop.
    let mut child = spawn.spawn().map_err(start)?;
    let mut out = std::fs::File::from(read);
    let begun = Instant::now();
    let (mut lines, mut tail, mut result) = (Lines::default(), Tail::default(), Ok(()));
    let mut buffer = [0u8; 8192];
    loop {
        let left = limits.total.saturating_sub(begun.elapsed());
        if !task.readable(out.as_fd(), limits.silence.min(left))? {
            let (after, lacking) = match left.is_zero() || limits.total <= begun.elapsed() {
                true => (limits.total, "coming to an end"),
                false => (limits.silence, "output"),
            };
            return Err(ImageError::ToolStalled {
                tool: tool.name,
                after_s: after.as_secs(),
                lacking,
                tail: tail.text(),
            });
        }
        let n = out.read(&mut buffer).map_err(start)?;
        if n == 0 {
            break;
        }
        lines.feed(&buffer[..n], |line| {
            tail.push(line);
            if result.is_ok() {
                result = on_line(line);
            }
        });
        std::mem::replace(&mut result, Ok(()))?;
    }
    lines.finish(|line| {
        tail.push(line);
        result = on_line(line);
    });
    result?;
    // The output is closed, so it has ended, or is about to; what it left running is not waited for.
    let status = loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            break status;
        }
        if begun.elapsed() > limits.total {
            return Err(ImageError::ToolStalled {
                tool: tool.name,
                after_s: limits.total.as_secs(),
                lacking: "coming to an end",
                tail: tail.text(),
            });
        }
        task.readable(child.pidfd().as_fd(), Duration::from_secs(1))?;
    };
    Ok(Ended { status, tail })
}

/// Runs a short program that works on one file and must succeed; gives back its output.
pub(crate) fn run_on_file(
    tool: Tool,
    args: impl IntoIterator<Item = std::ffi::OsString>,
    action: &'static str,
    path: &Path,
    limits: Limits,
    task: &Task,
) -> Result<String, ImageError> {
    let spawn = Spawn::new(tool.find(action)?).args(args);
    let mut output = String::new();
    let ended = run(tool, spawn, limits, task, |line| {
        output.push_str(line);
        output.push('\n');
        Ok(())
    })?;
    if ended.status.success() {
        return Ok(output);
    }
    Err(ImageError::ToolFailed {
        tool: tool.name,
        action,
        path: path.to_owned(),
        status: ended.status.to_string(),
        tail: ended.tail.text(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SH: Tool = Tool { name: "sh", package: "dash" };
    const LONG: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(60) };

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_stream_is_cut(
            text in "[a-c\\n]{0,200}", cuts in proptest::collection::vec(1usize..20, 0..50)
        ) {
            let whole: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
            let (mut lines, mut got, mut rest) = (Lines::default(), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                lines.feed(now, |l| got.push(l.to_owned()));
                rest = later;
            }
            lines.feed(rest, |l| got.push(l.to_owned()));
            lines.finish(|l| got.push(l.to_owned()));
            got.retain(|l| !l.is_empty());
            prop_assert_eq!(got, whole);
        }
    }

    #[test]
    fn an_endless_line_does_not_grow() {
        let (mut lines, mut count) = (Lines::default(), 0);
        lines.feed(&vec![b'x'; 10 * Lines::MAX], |_| count += 1);
        assert_eq!(count, 9);
        assert!(lines.0.len() <= Lines::MAX);
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let tool = Tool { name: "no-such-tool-here", package: "some-package" };
        let text = tool.find("make images").unwrap_err().to_string();
        assert!(text.contains("no-such-tool-here") && text.contains("some-package"), "{text}");
    }

    #[test]
    fn silence_and_length_have_limits() {
        let (task, _hang_up) = crate::task::for_tests();
        let run = |script: &str, limits| {
            run(SH, Spawn::new("sh").args(["-c", script]), limits, &task, |_| Ok(())).map(|e| e.status.code())
        };
        assert_eq!(run("echo x; exit 3", LONG).unwrap(), Some(3));
        let short = Duration::from_millis(300);
        let err = run("echo last; sleep 1000", Limits { silence: short, ..LONG }).unwrap_err();
        assert!(
            matches!(&err, ImageError::ToolStalled { lacking: "output", tail, .. } if tail == "last"),
            "{err}"
        );
        let err = run("while :; do echo x; sleep 0.01; done", Limits { total: short, ..LONG }).unwrap_err();
        assert!(matches!(&err, ImageError::ToolStalled { lacking: "coming to an end", .. }), "{err}");
    }
}
