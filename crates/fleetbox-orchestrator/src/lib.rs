//! Machine lifecycle of fleetbox: a pure transition core and a thin async shell.
//!
//! ```text
//! Orchestrator (one for each network)            orchestrator.rs
//!   ├ Shared: store, journal, network, backend   shared.rs, backends.rs
//!   └ one task for each machine                  machine.rs, decided by core.rs
//!        prepare: image, network, disk, seed     prepare.rs
//!        firmware or the disk's own kernel       firmware.rs, disk_kernel.rs
//!        boot: console, sshd, cloud-init         boot.rs
//!        room: memory and turns to boot          room.rs
//! ```
//! The order of a bring-up: resolve (image, backend) -> network -> address -> disk, seed -> launch -> wait
//! -> running. This is the only crate that knows concrete backends, and only [`backends`] does.
#![warn(missing_docs)]

pub mod backends;
mod boot;
pub mod core;
mod disk_kernel;
mod error;
mod firmware;
pub mod host;
mod machine;
mod orchestrator;
mod prepare;
mod room;
mod shared;

pub use error::{OrchestratorError, Result, SharedResult};
pub use fleetbox_image as image;
pub use fleetbox_net::ReconcileReport;
pub use orchestrator::{CloseHow, Orchestrator, OrchestratorConfig, undo_dead_owners};
pub use room::{BOOTS_VARIABLE, MEMORY_VARIABLE};
