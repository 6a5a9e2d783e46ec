use std::io;
use std::path::PathBuf;

use crate::{LockHolder, LockKind};

/// What went wrong with a file of fleetbox's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is neither FLEETBOX_HOME nor a home folder.
    #[error("could not find a home folder for fleetbox: set FLEETBOX_HOME or HOME")]
    NoHome,
    /// A path in the environment is not absolute.
    #[error("FLEETBOX_HOME must be an absolute path, not {0:?}")]
    RelativeHome(PathBuf),
    /// A file operation failed.
    #[error("could not {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A JSON file does not hold what it should; it is left as it is.
    #[error("{path} is damaged and was left as it is")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// A file was written by a newer fleetbox; it is left as it is.
    #[error(
        "{path} was written by a newer fleetbox (version {found}, this one knows up to {known}) and was left as it is"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// A lock is held by another process.
    #[error("{kind} {name:?} is held by {holder}")]
    Locked {
        /// What is locked.
        kind: LockKind,
        /// Its name.
        name: String,
        /// Who holds it.
        holder: LockHolder,
    },
    /// A unix socket's path is longer than the kernel takes.
    #[error("socket path {path} has {len} bytes; at most 107 fit: choose a shorter FLEETBOX_HOME")]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether it means that the file or folder is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
