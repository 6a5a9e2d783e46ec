//! Images: find or make one, look into it once, and make machines' disks from it.
//!
//! ```text
//!  ImageRef --Images::resolve--> images/<digest>/{image.raw, kernel, initrd, meta.json} --create_disk--> disk.qcow2
//!     bootstrap:<suite>   bootstrap/: mmdebstrap and mke2fs in namespaces of their own
//!     ./disk.raw          import/:    a private copy by content digest, then unpack/, qemu-img and inspect/
//!     https://…           fetch/:     downloaded, digest verified, then as a file
//!     debian-12           catalog/:   an address and its digest
//! ```
//!
//! Invariants:
//! - An image's folder is complete or absent: it is made as `images/.<name>.part` under the image lock of that name,
//!   `meta.json` is written into it last, and then it is renamed. Nothing in it changes afterwards.
//! - A part whose lock is free belongs to nobody: [`Images::sweep`] removes it. What was downloaded of an image waits
//!   for the rest, `images/.<name>.download`, for a week.
//! - The work runs on a thread of its own. Dropping the future that waits for it kills its children, removes its part,
//!   and returns when both are gone (which blocks for some tens of milliseconds).
//! - Children cannot outlive this process, `kill -9` included (fleetbox_os::child, and a PID namespace where a child
//!   starts processes and mounts of its own).
//! - Foreign bytes never panic and never allocate by a size that they name themselves.
#![warn(missing_docs)]

mod boot_files;
mod bootstrap;
mod catalog;
mod copy;
mod disk;
mod error;
mod ext4_size;
mod fetch;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod import;
mod inspect;
mod inspection;
mod manage;
mod model;
mod overlay;
mod part;
mod plain;
mod qcow2;
mod task;
mod tool;
mod unpack;

pub use boot_files::BootFiles;
pub use catalog::{Catalog, CatalogEntry};
pub use copy::digest_file;
pub use disk::{DiskMade, create_disk, disk_size, grow_disk};
pub use error::ImageError;
pub use fetch::{DownloadError, DownloadOptions, PartialDownload};
pub use images::{DefaultImage, Images};
pub use import::ImportOptions;
pub use inspection::{
    BootFileStamp, ImageWarning, Inspection, KernelInfo, KernelKind, KernelSource, PartitionInfo, RootInfo,
    TableKind,
};
pub use manage::{ImageListing, ImageUse, ImagesPruned, StoredImage, short_digest};
pub use model::{Image, ImageProgress, ImageStage};
pub use plain::unpack_boot_files;
pub use qcow2::Qcow2Problem;
pub use unpack::UnpackLimit;
