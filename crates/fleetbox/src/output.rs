use std::borrow::Cow;

use fleetbox_ssh::ExitStatus;

/// What a command on a machine wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Output {
    /// How it ended: an exit code, or the signal that killed it.
    #[must_use]
    pub fn status(&self) -> &ExitStatus {
        &self.status
    }

    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Its standard output, byte for byte.
    #[must_use]
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// Its standard error, byte for byte.
    #[must_use]
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// Its standard output as text without the final line end; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        let bytes = self.stdout.strip_suffix(b"\n").unwrap_or(&self.stdout);
        String::from_utf8_lossy(bytes)
    }
}

impl From<fleetbox_ssh::Output> for Output {
    fn from(o: fleetbox_ssh::Output) -> Self {
        Self { status: o.status, stdout: o.stdout, stderr: o.stderr }
    }
}
