use std::sync::Arc;

use fleetbox_spec::{Arch, ClusterName, ErrorKind, ImageRef, MachineName, SpecError, State};

use crate::host::ChooseError;

/// A result of this crate.
pub type Result<T, E = OrchestratorError> = std::result::Result<T, E>;
/// A result that several callers wait for.
pub type SharedResult<T> = std::result::Result<T, Arc<OrchestratorError>>;

/// What went wrong with a machine or its cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrchestratorError {
    /// The spec can never work.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// There is no such machine here.
    #[error("cluster {cluster} has no machine {name}")]
    UnknownMachine {
        /// The cluster.
        cluster: ClusterName,
        /// The machine.
        name: MachineName,
    },
    /// Machine names are unique in one store.
    #[error("machine {name} exists already, in cluster {other}")]
    NameTaken {
        /// The machine.
        name: MachineName,
        /// The cluster it is in.
        other: ClusterName,
    },
    /// A disk is not thrown away because another image is asked for.
    #[error("machine {name} was made from image {has}; it cannot be started from {asked}")]
    ImageDiffers {
        /// The machine.
        name: MachineName,
        /// The image its disk is of.
        has: ImageRef,
        /// The image asked for.
        asked: ImageRef,
    },
    /// The image that the disk is an overlay on was removed by other means than fleetbox's.
    #[error(
        "the disk of machine {name} cannot be read any more: it holds only what differs from image {image}, which is not \
         in the store any more (digest {digest})"
    )]
    ImageGone {
        /// The machine.
        name: MachineName,
        /// The image, as the machine was made from it.
        image: ImageRef,
        /// Its digest's first digits.
        digest: String,
    },
    /// The image holds a system for another processor.
    #[error(
        "machine {name} cannot be made from image {image}: it holds a system for {}, and this host is {}",
        found.debian(), host.debian()
    )]
    WrongArch {
        /// The machine.
        name: MachineName,
        /// The image.
        image: ImageRef,
        /// What its system is for.
        found: Arch,
        /// What this host is.
        host: Arch,
    },
    /// A boot without firmware needs a kernel, and none was found.
    #[error("machine {name} cannot be booted without firmware: no kernel was found in image {image}")]
    NoKernel {
        /// The machine.
        name: MachineName,
        /// The image.
        image: ImageRef,
    },
    /// A BIOS was asked for where there is none.
    #[error("machine {name} cannot be booted through a BIOS: there is none for {}", arch.debian())]
    NoBios {
        /// The machine.
        name: MachineName,
        /// Its architecture.
        arch: Arch,
    },
    /// A machine stays with the backend it was made with.
    #[error("machine {name} was made with backend {has}, but this host would now use {now}")]
    BackendDiffers {
        /// The machine.
        name: MachineName,
        /// The backend it was made with.
        has: String,
        /// The backend chosen now.
        now: String,
    },
    /// The host does not have that much memory.
    #[error(
        "machine {name} asks for {asked_mib} MiB of memory, but this host has {host_mib} MiB for machines"
    )]
    TooMuchMemory {
        /// The machine.
        name: MachineName,
        /// What was asked for.
        asked_mib: u64,
        /// What the host has, less its own share.
        host_mib: u64,
    },
    /// Other machines had the memory for the whole wait.
    #[error(
        "machine {name} waited {seconds} s for {asked_mib} MiB of memory: of {budget_mib} MiB for machines, {held}"
    )]
    NoMemory {
        /// The machine.
        name: MachineName,
        /// What was asked for.
        asked_mib: u64,
        /// What all machines of this host may have together.
        budget_mib: u64,
        /// The time it waited.
        seconds: u64,
        /// Who has how much, in words.
        held: String,
    },
    /// Other machines booted for the whole wait.
    #[error(
        "machine {name} waited {seconds} s for its turn to boot: at most {boots} boot at once on this host"
    )]
    NoTurn {
        /// The machine.
        name: MachineName,
        /// How many may boot at once.
        boots: u32,
        /// The time it waited.
        seconds: u64,
    },
    /// A limit in the environment is no number.
    #[error("{variable} is {value:?}; it takes a whole number above 0")]
    BadLimit {
        /// The variable.
        variable: &'static str,
        /// What it is set to.
        value: String,
    },
    /// The disk would be smaller than what is on it.
    #[error(
        "machine {name} asks for a disk of {asked_gib} GiB, but {what} has {least_gib} GiB; disks never shrink"
    )]
    DiskTooSmall {
        /// The machine.
        name: MachineName,
        /// What was asked for.
        asked_gib: u64,
        /// What is larger: the image, or the disk there is.
        what: &'static str,
        /// Its size, rounded up.
        least_gib: u64,
    },
    /// The machine's state does not allow the request.
    #[error("machine {name} is {state}: it cannot be {request}")]
    WrongState {
        /// The machine.
        name: MachineName,
        /// Its state.
        state: State,
        /// What was asked, as a participle.
        request: &'static str,
    },
    /// The guest did not come up in its time.
    #[error("machine {name} did not come up within {seconds} s: {stuck}")]
    BootTimeout {
        /// The machine.
        name: MachineName,
        /// The time it was given.
        seconds: u64,
        /// The stage it is stuck in, in words.
        stuck: String,
        /// The console's last lines.
        console: String,
        /// What the last attempt to log in met.
        #[source]
        source: Option<Box<fleetbox_ssh::Error>>,
    },
    /// The guest's boot, or the guest, came to an end that no waiting mends.
    #[error("machine {name} failed: {what}")]
    GuestFailed {
        /// The machine.
        name: MachineName,
        /// What the console or the VMM told.
        what: String,
        /// The console's last lines.
        console: String,
    },
    /// The guest powered itself off before anybody could log in.
    #[error("machine {name} powered itself off while booting")]
    PoweredOff {
        /// The machine.
        name: MachineName,
        /// The console's last lines.
        console: String,
    },
    /// The VMM ended without being asked.
    #[error("the VMM of machine {name} ended unasked: {how}")]
    VmmDied {
        /// The machine.
        name: MachineName,
        /// How.
        how: String,
        /// The console's last lines.
        console: String,
    },
    /// The start was given up: stopped, destroyed, or nobody waits for it any more.
    #[error("the start of machine {name} was cancelled")]
    Cancelled {
        /// The machine.
        name: MachineName,
    },
    /// A step of the bring-up failed.
    #[error("could not {action} of machine {name}")]
    Step {
        /// What was attempted.
        action: &'static str,
        /// The machine.
        name: MachineName,
        /// Why.
        #[source]
        source: Box<StepError>,
    },
    /// The cluster's network or journal failed.
    #[error("could not {action} the network of cluster {cluster}")]
    Network {
        /// What was attempted.
        action: &'static str,
        /// The cluster.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: Box<fleetbox_net::NetError>,
    },
    /// What dead owners left could not be looked at.
    #[error("could not finish what ended processes left behind")]
    Reconcile(#[source] Box<fleetbox_net::NetError>),
    /// Half-built images could not be looked for.
    #[error("could not remove half-built images")]
    Sweep(#[source] Box<fleetbox_image::ImageError>),
    /// A file of the cluster failed.
    #[error("could not {action} of cluster {cluster}")]
    Store {
        /// What was attempted.
        action: &'static str,
        /// The cluster.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: Box<fleetbox_store::StoreError>,
    },
    /// No way to run machines on this host.
    #[error("could not choose a way to run machines on this host")]
    NoBackend(#[source] ChooseError),
    /// This program was built for an architecture that fleetbox runs no machines on.
    #[error("fleetbox runs machines on amd64 and arm64 hosts only, not on {}", std::env::consts::ARCH)]
    UnknownArch,
    /// QEMU is not there, or of no use.
    #[error("could not find a QEMU to run machines with")]
    NoQemu(#[source] fleetbox_vmm_qemu::FindError),
    /// `FLEETBOX_BACKEND` names none, or its settings are damaged.
    #[error("{0}")]
    BadBackendChoice(String),
    /// The backend's machines share no network.
    #[error("backend {backend} cannot put a second machine on the network of cluster {cluster}")]
    ClustersUnsupported {
        /// The backend.
        backend: String,
        /// The cluster.
        cluster: ClusterName,
    },
    /// The cluster is being closed.
    #[error("cluster {cluster} is being closed")]
    Closing {
        /// The cluster.
        cluster: ClusterName,
    },
    /// The cluster cannot be closed while members run.
    #[error("cluster {cluster} has members that run: {}", names(members))]
    MembersRunning {
        /// The cluster.
        cluster: ClusterName,
        /// The members.
        members: Vec<MachineName>,
    },
    /// The task that owns the machine has ended.
    #[error("machine {name} is being taken down with its holder")]
    TaskGone {
        /// The machine.
        name: MachineName,
    },
}

/// Why a step of a bring-up failed, by the part that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error(transparent)]
pub enum StepError {
    /// Files and locks.
    Store(#[from] fleetbox_store::StoreError),
    /// The image or the disk.
    Image(#[from] fleetbox_image::ImageError),
    /// The network.
    Net(#[from] fleetbox_net::NetError),
    /// The seed.
    Seed(#[from] fleetbox_seed::SeedError),
    /// Keys and logins.
    Ssh(#[from] fleetbox_ssh::Error),
    /// The VMM.
    Vmm(#[from] fleetbox_vmm::VmmError),
    /// Anything the system answered directly.
    Io(#[from] std::io::Error),
}

fn names(members: &[MachineName]) -> String {
    members.iter().map(MachineName::as_str).collect::<Vec<_>>().join(", ")
}

impl OrchestratorError {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        use fleetbox_store::StoreError;
        match self {
            Self::Spec(_)
            | Self::DiskTooSmall { .. }
            | Self::BadBackendChoice(_)
            | Self::BadLimit { .. }
            | Self::NoBios { .. } => ErrorKind::InvalidInput,
            Self::ImageGone { .. } | Self::WrongArch { .. } | Self::NoKernel { .. } => ErrorKind::Image,
            Self::UnknownMachine { .. } => ErrorKind::NotFound,
            Self::NameTaken { .. }
            | Self::ImageDiffers { .. }
            | Self::BackendDiffers { .. }
            | Self::WrongState { .. }
            | Self::MembersRunning { .. } => ErrorKind::Conflict,
            Self::Closing { .. } | Self::TaskGone { .. } => ErrorKind::Closing,
            Self::TooMuchMemory { .. } | Self::NoMemory { .. } | Self::NoTurn { .. } => ErrorKind::Resources,
            Self::BootTimeout { .. } => ErrorKind::BootTimeout,
            Self::GuestFailed { .. } | Self::PoweredOff { .. } => ErrorKind::GuestFailed,
            Self::VmmDied { .. } | Self::NoBackend(_) | Self::NoQemu(_) | Self::UnknownArch => ErrorKind::Vmm,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::ClustersUnsupported { .. } => ErrorKind::Unsupported,
            Self::Network { source, .. } | Self::Reconcile(source) => net_kind(source),
            Self::Sweep(_) => ErrorKind::Image,
            Self::Store { source, .. } => match **source {
                StoreError::Locked { .. } => ErrorKind::Held,
                _ => ErrorKind::Store,
            },
            Self::Step { source, .. } => match &**source {
                StepError::Net(source) => net_kind(source),
                StepError::Store(StoreError::Locked { .. }) => ErrorKind::Held,
                StepError::Image(_) => ErrorKind::Image,
                StepError::Vmm(_) => ErrorKind::Vmm,
                StepError::Ssh(_) => ErrorKind::Ssh,
                StepError::Seed(_) => ErrorKind::InvalidInput,
                StepError::Store(_) | StepError::Io(_) => ErrorKind::Store,
            },
        }
    }

    /// The console's last lines, where the guest is what failed.
    #[must_use]
    pub fn console(&self) -> Option<&str> {
        match self {
            Self::BootTimeout { console, .. }
            | Self::GuestFailed { console, .. }
            | Self::PoweredOff { console, .. }
            | Self::VmmDied { console, .. } => Some(console.as_str()).filter(|c| !c.is_empty()),
            _ => None,
        }
    }

    /// The whole story in one text: message, causes, console.
    #[must_use]
    pub fn story(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(e) = source {
            text.push_str(": ");
            text.push_str(&e.to_string());
            source = e.source();
        }
        if let Some(console) = self.console() {
            text.push_str("\nthe console's last lines:\n");
            text.push_str(console);
        }
        text
    }
}

fn net_kind(error: &fleetbox_net::NetError) -> ErrorKind {
    if matches!(error, fleetbox_net::NetError::NotRoot { .. }) {
        ErrorKind::NotRoot
    } else {
        ErrorKind::Network
    }
}

/// Puts a step's failure into words.
pub(crate) fn step_error<E: Into<StepError>>(
    action: &'static str,
    name: &MachineName,
) -> impl FnOnce(E) -> OrchestratorError {
    let name = name.clone();
    move |e| OrchestratorError::Step { action, name, source: Box::new(e.into()) }
}
