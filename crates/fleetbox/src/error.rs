use std::fmt;
use std::path::PathBuf;

use fleetbox_api::{ApiError, ClientError};
use fleetbox_spec::{ErrorKind, ImageRefError, NameError, SpecError};
use fleetbox_store::StoreError;

use crate::Output;

/// A result of fleetbox.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message says what was attempted on which thing; the cause is its
/// [`source`](std::error::Error::source) and is not part of the message.
///
/// ```
/// # async fn f() {
/// match fleetbox::Vm::builder("no such name!").start().await {
///     Err(e) if e.kind() == fleetbox::ErrorKind::InvalidInput => println!("{e}"),
///     other => println!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name breaks the rules for names.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An image is named in no form that fleetbox knows.
    #[error(transparent)]
    ImageName(#[from] ImageRefError),
    /// A size can never work.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Root is needed and not there.
    #[error("{what} needs bridges and taps, and those need root; this is uid {uid}")]
    NotRoot {
        /// The machine or the cluster.
        what: String,
        /// This process's user.
        uid: u32,
    },
    /// No machine of that name exists.
    #[error("there is no machine {name}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// No cluster of that name exists.
    #[error("there is no cluster {name}")]
    NoCluster {
        /// The name.
        name: String,
    },
    /// The cluster was closed, or its holder has ended.
    #[error("cluster {cluster} is closed: {attempted} needs it")]
    ClusterClosed {
        /// The cluster.
        cluster: String,
        /// What was attempted.
        attempted: String,
    },
    /// The backend's machines cannot share a network, and one runs already.
    #[error(transparent)]
    ClustersUnsupported(Box<Remote>),
    /// Machines that shall be started together are in different clusters.
    #[error(
        "machines {one} and {other} cannot share a network: {one} is in cluster {of_one}, {other} in {of_other}"
    )]
    DifferentClusters {
        /// A machine.
        one: String,
        /// Its cluster.
        of_one: String,
        /// Another machine.
        other: String,
        /// That one's cluster.
        of_other: String,
    },
    /// A machine was named twice where each is to be another.
    #[error("machine {name} is named twice")]
    NamedTwice {
        /// The name.
        name: String,
    },
    /// The machine runs, and force was not asked for.
    #[error("machine {name} is {state}: stop it first, or remove it with force")]
    Running {
        /// The name.
        name: String,
        /// Its state.
        state: fleetbox_spec::State,
    },
    /// The cluster is held by another process, for itself alone.
    #[error("cluster {cluster} is held by pid {pid}")]
    Held {
        /// The cluster.
        cluster: String,
        /// Who holds it.
        pid: u32,
    },
    /// The holder process could not be started.
    #[error("could not start the holder process of cluster {cluster} (its log is {log})")]
    HolderStart {
        /// The cluster.
        cluster: String,
        /// Its log.
        log: PathBuf,
        /// Why.
        #[source]
        source: Box<HolderStartError>,
    },
    /// The holder could not be reached or understood.
    #[error("could not {action}")]
    Holder {
        /// What was attempted.
        action: String,
        /// Why.
        #[source]
        source: Box<ClientError>,
    },
    /// The holder tried and failed.
    #[error(transparent)]
    Machine(Box<Remote>),
    /// A file of fleetbox's could not be read or written.
    #[error("could not {action}")]
    Store {
        /// What was attempted.
        action: String,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// A command could not be carried out, or its connection broke.
    #[error("could not run a command on machine {machine}")]
    Ssh {
        /// The machine.
        machine: String,
        /// Why.
        #[source]
        source: Box<fleetbox_ssh::Error>,
    },
    /// A command ran and did not succeed.
    #[error("{command:?} on machine {machine} ended with {}{}", output.status(), tail(output))]
    CommandFailed {
        /// The machine.
        machine: String,
        /// The command, cut after 200 characters.
        command: String,
        /// What it wrote.
        output: Box<Output>,
    },
    /// An image could not be had, looked at or removed.
    #[error(transparent)]
    Image(Box<fleetbox_holder::image::ImageError>),
    /// A list of packages for an image is wrong.
    #[error(transparent)]
    Packages(#[from] fleetbox_spec::PackageError),
    /// What dead owners left could not be looked at.
    #[error("could not clear away what ended processes left behind")]
    Prune(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn tail(output: &Output) -> String {
    let text = String::from_utf8_lossy(output.stderr()).trim_end().to_owned();
    match text.lines().last() {
        Some(last) => format!(": {last}"),
        None => String::new(),
    }
}

/// Why a holder process did not come to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HolderStartError {
    /// The program could not be started.
    #[error("could not start {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// It ended, or was silent, before it said anything.
    #[error("it ended without a word")]
    Silent,
    /// It said nothing within its time.
    #[error("it said nothing within {seconds} s")]
    Slow {
        /// The time it was given.
        seconds: u64,
    },
    /// It said something that is not its protocol.
    #[error("it said something unintelligible")]
    Unintelligible(#[source] serde_json::Error),
}

/// An error that happened in the holder, as it told it.
#[derive(Debug, Clone)]
pub struct Remote {
    kind: ErrorKind,
    message: String,
    source: Option<Box<Remote>>,
    console: Option<String>,
}

impl Remote {
    fn from_api(error: ApiError) -> Self {
        let source = error.causes.into_iter().rev().fold(None, |source, message| {
            Some(Box::new(Self { kind: error.kind, message, source, console: None }))
        });
        Self { kind: error.kind, message: error.message, source, console: error.console }
    }

    /// The console's last lines, where the guest is what failed.
    #[must_use]
    pub fn console(&self) -> Option<&str> {
        self.console.as_deref()
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Remote {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

impl Error {
    /// Its kind, for programs to tell errors apart by.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_)
            | Self::ImageName(_)
            | Self::Spec(_)
            | Self::NamedTwice { .. }
            | Self::Packages(_) => ErrorKind::InvalidInput,
            Self::NotRoot { .. } => ErrorKind::NotRoot,
            Self::NotFound { .. } | Self::NoCluster { .. } => ErrorKind::NotFound,
            Self::Running { .. } | Self::DifferentClusters { .. } => ErrorKind::Conflict,
            Self::ClusterClosed { .. } => ErrorKind::Closing,
            Self::ClustersUnsupported(_) => ErrorKind::Unsupported,
            Self::Held { .. } => ErrorKind::Held,
            Self::Holder { source, .. } if matches!(**source, ClientError::Denied { .. }) => ErrorKind::Held,
            Self::HolderStart { .. } | Self::Holder { .. } => ErrorKind::Holder,
            Self::Machine(remote) => remote.kind,
            Self::Store { .. } => ErrorKind::Store,
            Self::Ssh { .. } => ErrorKind::Ssh,
            Self::CommandFailed { .. } => ErrorKind::CommandFailed,
            Self::Image(e) => image_kind(e),
            Self::Prune(_) => ErrorKind::Network,
        }
    }

    /// The console's last lines, where a guest's boot is what failed.
    #[must_use]
    pub fn console(&self) -> Option<&str> {
        match self {
            Self::Machine(remote) => remote.console(),
            _ => None,
        }
    }

    /// What may help, where something is known to.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self.kind() {
            ErrorKind::NotRoot => Some(
                "run it as root; for tests: CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E' cargo test".into(),
            ),
            ErrorKind::Vmm => Some("`fleetbox doctor` says what this host lacks and how to get it".into()),
            ErrorKind::BootTimeout | ErrorKind::GuestFailed => {
                Some("`fleetbox logs NAME` shows the whole console; a longer boot can be allowed with boot_timeout".into())
            }
            ErrorKind::Held => Some("the machine ends with that process, or ask it to".into()),
            _ => None,
        }
    }

    pub(crate) fn from_client(action: impl Into<String>, error: ClientError) -> Self {
        match error {
            ClientError::Api(api) => Self::Machine(Box::new(Remote::from_api(api))),
            source => Self::Holder { action: action.into(), source: Box::new(source) },
        }
    }

    /// As [`Error::from_client`], for a start: the one thing a backend can be unable to do there is a second machine.
    pub(crate) fn from_start(action: impl Into<String>, error: ClientError) -> Self {
        match error {
            ClientError::Api(api) if api.kind == ErrorKind::Unsupported => {
                Self::ClustersUnsupported(Box::new(Remote::from_api(api)))
            }
            e => Self::from_client(action, e),
        }
    }

    pub(crate) fn from_api(error: ApiError) -> Self {
        Self::Machine(Box::new(Remote::from_api(error)))
    }

    pub(crate) fn image(error: fleetbox_holder::image::ImageError) -> Self {
        Self::Image(Box::new(error))
    }

    pub(crate) fn store(action: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { action: action.into(), source: Box::new(source) }
    }
}

fn image_kind(error: &fleetbox_holder::image::ImageError) -> ErrorKind {
    use fleetbox_holder::image::ImageError as E;
    match error {
        E::UnknownImage(_) | E::NoSuchImage { .. } => ErrorKind::NotFound,
        E::AmbiguousImage { .. } => ErrorKind::InvalidInput,
        E::ImageInUse { .. } | E::UseUnknown { .. } => ErrorKind::Conflict,
        E::ImageBusy { .. } | E::Store(StoreError::Locked { .. }) => ErrorKind::Held,
        E::Store(_) => ErrorKind::Store,
        E::NotRoot(_) => ErrorKind::NotRoot,
        E::NoSpace { .. } | E::ToolMissing { .. } => ErrorKind::Resources,
        E::Cancelled => ErrorKind::Cancelled,
        _ => ErrorKind::Image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn causes_cross_the_wire_in_order_and_once() {
        let api = ApiError {
            kind: ErrorKind::Image,
            message: "top".into(),
            causes: vec!["middle".into(), "bottom".into()],
            console: None,
        };
        let e = Error::from_api(api);
        assert_eq!((e.kind(), e.to_string()), (ErrorKind::Image, "top".to_owned()));
        let middle = e.source().unwrap();
        assert_eq!(middle.to_string(), "middle");
        assert_eq!(middle.source().unwrap().to_string(), "bottom");
        assert!(middle.source().unwrap().source().is_none());
    }
}
