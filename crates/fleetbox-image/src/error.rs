use std::io;
use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, ImageRef, ImageRefError, MachineName};
use fleetbox_store::StoreError;

use crate::{DownloadError, Qcow2Problem, UnpackLimit};

/// What went wrong with an image or with a disk made from one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The store could not be read or written, or a lock could not be had in time.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// The reference is one that only a later version can resolve.
    #[error("image {0} is of a kind that this version does not know")]
    NotYetSupported(ImageRef),
    /// The catalog has no image of this name.
    #[error("there is no image called {alias}; there are: {known} (a file of that name is ./{alias})")]
    UnknownAlias {
        /// The name.
        alias: String,
        /// The names that there are for this host.
        known: String,
    },
    /// The catalog has the image for other architectures only.
    #[error("image {alias} is not published for {arch}", arch = .arch.debian())]
    NotForArch {
        /// The name.
        alias: String,
        /// The architecture that it is wanted for.
        arch: Arch,
    },
    /// A catalog file contradicts itself.
    #[error("the image catalog {path} cannot be used: {reason}")]
    BadCatalog {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A variable that names another site for a vendor's images holds no address.
    #[error("the variable {variable} does not hold the address of a site")]
    BadMirror {
        /// The variable.
        variable: String,
        /// Why.
        #[source]
        source: ImageRefError,
    },
    /// The image could not be downloaded.
    #[error("could not download {url}")]
    Download {
        /// From where.
        url: String,
        /// Why.
        #[source]
        source: Box<DownloadError>,
    },
    /// No image of this digest is in the store.
    #[error("image {digest} is not in {dir}")]
    NoSuchImage {
        /// The digest.
        digest: String,
        /// The images' folder.
        dir: PathBuf,
    },
    /// A person named an image that is not in the store.
    #[error("there is no image {0} in the store")]
    UnknownImage(String),
    /// A person named several images at once.
    #[error("{name} could be any of {} images: {}", digests.len(), digests.join(", "))]
    AmbiguousImage {
        /// What was named.
        name: String,
        /// The digests of those that it could be.
        digests: Vec<String>,
    },
    /// Disks are overlays on the image and cannot be read without it.
    #[error("image {digest} cannot be removed: the disks of these machines need it: {}", names(machines))]
    ImageInUse {
        /// Its digest's first digits.
        digest: String,
        /// The machines, running or not.
        machines: Vec<MachineName>,
    },
    /// Somebody is at work with the image at this moment.
    #[error("image {digest} is being used by {by}")]
    ImageBusy {
        /// Its digest's first digits.
        digest: String,
        /// Who, in words.
        by: String,
    },
    /// Whether a disk needs the image cannot be told.
    #[error(
        "image {digest} was not removed: the disk of machine {machine}, which may need it, could not be read"
    )]
    UseUnknown {
        /// Its digest's first digits.
        digest: String,
        /// The machine.
        machine: MachineName,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A program that is needed is not installed.
    #[error("{tool} is needed to {purpose} and is not installed (Debian package {package})")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// What for.
        purpose: &'static str,
    },
    /// A program could not be started.
    #[error("could not start {tool}")]
    ToolStart {
        /// The program.
        tool: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{tool} could not {action} {path} ({status}): {tail}")]
    ToolFailed {
        /// The program.
        tool: &'static str,
        /// What it was to do.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// Its last lines.
        tail: String,
    },
    /// A program did not end, or said nothing, for too long; it was killed.
    #[error("{tool} was stopped after {after_s} s without {lacking}; its last lines:\n{tail}")]
    ToolStalled {
        /// The program.
        tool: &'static str,
        /// How long it was waited for, in seconds.
        after_s: u64,
        /// What was waited for: `output` or `coming to an end`.
        lacking: &'static str,
        /// Its last lines.
        tail: String,
    },
    /// Building needs privileges that this process lacks.
    #[error("building {0} needs root: file owners, device nodes and mounts of the new system")]
    NotRoot(ImageRef),
    /// This host's architecture is not one that images are built for.
    #[error("images for this host's architecture ({0}) are not supported")]
    UnsupportedHost(&'static str),
    /// The file system has too little room.
    #[error("{need_mib} MiB are needed in {path}, but only {free_mib} MiB are free")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// How much is needed, in MiB.
        need_mib: u64,
        /// How much there is, in MiB.
        free_mib: u64,
    },
    /// mmdebstrap or mke2fs failed.
    #[error("could not build {image}: the step {step:?} failed ({status}); its last lines:\n{tail}")]
    BuildFailed {
        /// What was to be built.
        image: ImageRef,
        /// The step: `start`, `packages`, `finish`, `clean` or `disk`.
        step: String,
        /// How the builder ended.
        status: String,
        /// Its last lines.
        tail: String,
    },
    /// The path is no regular file.
    #[error("image {path} is a {kind}, not a file")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is, such as `folder`.
        kind: &'static str,
    },
    /// The file has no content.
    #[error("image {0} is empty (0 bytes)")]
    Empty(PathBuf),
    /// The file is smaller than any system.
    #[error("image {path} has only {size} bytes; the smallest possible disk image has {min}")]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The least size accepted, in bytes.
        min: u64,
    },
    /// The file is something else than a disk image, or one in a format that is not supported.
    #[error("image {path} is not a raw or qcow2 disk image: {found}")]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do about it.
        found: &'static str,
    },
    /// The qcow2 file cannot be used.
    #[error("qcow2 image {path} cannot be used: {reason}")]
    BadQcow2 {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: Qcow2Problem,
    },
    /// What the image is packed in cannot be unpacked: it is damaged or cut short.
    #[error("could not unpack image {path} ({packing})")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What it is packed in, innermost first, such as `tar in gzip`.
        packing: String,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// The image unpacks to more than is taken. Nothing of it was kept.
    #[error("image {path} was not unpacked: {limit}")]
    UnpackLimit {
        /// The file.
        path: PathBuf,
        /// Which limit it exceeds.
        limit: UnpackLimit,
    },
    /// The disk is nearly full. Nothing of the image was kept.
    #[error(
        "unpacking image {path} was given up after {written_mib} MiB, as less than {reserve_mib} MiB are free in {dir}"
    )]
    UnpackSpace {
        /// The file.
        path: PathBuf,
        /// Where it was unpacked to.
        dir: PathBuf,
        /// How much had been written, in MiB.
        written_mib: u64,
        /// How much is left to others, in MiB.
        reserve_mib: u64,
    },
    /// An archive holds no disk image, or several.
    #[error("archive {path} must hold exactly one disk image, but holds {}", members(images, others, *more))]
    ArchiveMembers {
        /// The file.
        path: PathBuf,
        /// The first disk images in it, by name.
        images: Vec<String>,
        /// The first of its other members.
        others: Vec<String>,
        /// How many members are not named here.
        more: usize,
    },
    /// The partition table contradicts itself or the file.
    #[error("the partition table of image {path} cannot be used: {reason}")]
    BadPartitionTable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file was written to while it was being imported.
    #[error("image {0} was changed while it was being imported")]
    Changed(PathBuf),
    /// The image holds a system for another processor.
    #[error("image {path} holds a system for {found}, but this host is {host}", found = .found.debian(), host = .host.debian())]
    WrongArch {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        found: Arch,
        /// This host's.
        host: Arch,
    },
    /// A disk shall be smaller than what it is made from.
    #[error("a disk of {wanted} bytes cannot be made from image {image}, which has {image_size} bytes")]
    DiskTooSmall {
        /// The image.
        image: ImageRef,
        /// The image's virtual size in bytes.
        image_size: u64,
        /// The disk's size in bytes as wanted.
        wanted: u64,
    },
    /// A disk shall become smaller, which would destroy what is on it.
    #[error("disk {path} has {size} bytes and cannot shrink to {wanted} bytes")]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The size in bytes as wanted.
        wanted: u64,
    },
    /// There is a disk already; it is left as it is.
    #[error("disk {0} exists already and was left as it is")]
    DiskExists(PathBuf),
    /// The work was given up because nobody waits for it any more.
    #[error("the work on the image was cancelled")]
    Cancelled,
    /// The thread that did the work ended without an answer.
    #[error("the thread that worked on the image ended without an answer")]
    WorkerLost,
}

fn names(machines: &[MachineName]) -> String {
    machines.iter().map(MachineName::as_str).collect::<Vec<_>>().join(", ")
}

fn members(images: &[String], others: &[String], more: usize) -> String {
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    match (images, others) {
        ([], []) => "nothing".to_owned(),
        ([], others) => format!("none: {}{more}", others.join(", ")),
        (images, []) => format!("several: {}{more}", images.join(", ")),
        (images, others) => {
            format!("several: {} (beside {}{more})", images.join(", "), others.join(", "))
        }
    }
}

impl ImageError {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }
}
