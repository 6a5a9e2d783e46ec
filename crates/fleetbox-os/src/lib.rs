//! What fleetbox asks of the operating system beyond std: process identity and death, descriptor
//! passing, taps, namespaces, and the KVM probe.
//!
//! `unsafe` lives here (and in fleetbox-vmm-vz) and nowhere else. Nothing in this crate knows a
//! machine, a network or a file of fleetbox's.
#![warn(missing_docs)]

pub mod child;
pub mod daemon;
pub mod fd;
pub mod host;
pub mod kvm;
pub mod netns;
pub mod process;
pub mod ready;
pub mod tap;
