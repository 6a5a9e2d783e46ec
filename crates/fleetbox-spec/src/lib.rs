//! Plain validated data of fleetbox: names, machine specs, states, events.
//!
//! Nothing in this crate does I/O or knows a hypervisor. A value that exists is valid: names parse or
//! fail, sizes are checked by [`MachineSpec::validate`] before anything is prepared from them.
#![warn(missing_docs)]

mod boot;
mod error;
mod event;
mod image;
mod machine;
mod name;
mod packages;
mod state;
mod url;

pub use boot::{BootInfo, BootVia, Firmware, FirmwareChoice, FirmwareChoiceError, KernelSource};
pub use error::ErrorKind;
pub use event::{Event, Phase, PhaseTiming, Progress};
pub use image::{ImageRef, ImageRefError};
pub use machine::{
    Accel, Arch, Capabilities, DEFAULT_CPUS, DEFAULT_DISK_GIB, DEFAULT_MEMORY_MIB, DiskFormat, LeaseKind,
    MachineInfo, MachineSpec, SpecError,
};
pub use name::{ClusterName, MachineName, NameError, mac_for};
pub use packages::{PackageError, Packages};
pub use state::{BootStage, State};
pub use url::{Checksum, HashAlgorithm, ImageUrl};
