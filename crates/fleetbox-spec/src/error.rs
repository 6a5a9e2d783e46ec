//! What kind of thing went wrong, as told across the holder's wire and by the public error's `kind()`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of an error: what a program may want to tell apart, and what the CLI's exit code and hint follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A name, size or option that can never work.
    InvalidInput,
    /// Root, or a capability that root has, is needed.
    NotRoot,
    /// No such machine, cluster, image or file.
    NotFound,
    /// It contradicts what is there: another image, a name used elsewhere, a state that does not allow it.
    Conflict,
    /// The cluster is being closed; what is asked of it can be asked of its successor in a moment.
    Closing,
    /// Another process holds the machine or its cluster.
    Held,
    /// The image cannot be had.
    Image,
    /// No VMM that works on this host, or the VMM failed.
    Vmm,
    /// The backend cannot do this.
    Unsupported,
    /// The host network could not be set up.
    Network,
    /// The guest did not come up in its time.
    BootTimeout,
    /// The guest panicked or fell into an emergency shell.
    GuestFailed,
    /// The host lacks memory, disk or another resource for it.
    Resources,
    /// A file of fleetbox's could not be read or written.
    Store,
    /// The SSH connection or a command over it failed.
    Ssh,
    /// The command ran and exited with a status other than 0.
    CommandFailed,
    /// A wait was given up at its deadline.
    Timeout,
    /// It was cancelled by its caller.
    Cancelled,
    /// The holder process could not be started, reached or understood.
    Holder,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InvalidInput => "invalid-input",
            Self::NotRoot => "not-root",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Closing => "closing",
            Self::Held => "held",
            Self::Image => "image",
            Self::Vmm => "vmm",
            Self::Unsupported => "unsupported",
            Self::Network => "network",
            Self::BootTimeout => "boot-timeout",
            Self::GuestFailed => "guest-failed",
            Self::Resources => "resources",
            Self::Store => "store",
            Self::Ssh => "ssh",
            Self::CommandFailed => "command-failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Holder => "holder",
        })
    }
}
