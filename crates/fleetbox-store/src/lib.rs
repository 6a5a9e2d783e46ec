//! Every on-disk name of fleetbox, locks, atomic writes and versions.
//!
//! No other crate spells a path below `FLEETBOX_HOME`. The map is `docs/ondisk.md`.
//!
//! Invariants:
//! - A JSON file is complete or absent: it is written to a temporary file, fsynced and renamed.
//! - A file of a newer version than this program knows is refused, never rewritten.
//! - Lock files are never deleted: a deleted one could be locked twice by two processes.
#![warn(missing_docs)]

mod error;
mod file;
mod home;
mod lock;
mod record;

pub use error::StoreError;
pub use file::{read_json, remove_dir_if_there, remove_if_there, write_atomic, write_json};
pub use home::{BootDir, ImageDir, MachineDir, Store};
pub use lock::{Lock, LockHolder, LockKind, SharedLock};
pub use record::{KernelArgs, MachineRecord, NetworkRecord, Versioned};
