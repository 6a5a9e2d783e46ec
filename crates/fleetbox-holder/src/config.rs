use std::os::fd::RawFd;
use std::path::PathBuf;

use fleetbox_api::ApiError;
use fleetbox_spec::{ClusterName, LeaseKind};
use serde::{Deserialize, Serialize};

/// The variable whose presence makes a program become a holder; its value is a [`HolderConfig`] as JSON.
pub const VARIABLE: &str = "FLEETBOX_HOLDER_CONFIG";

/// What a holder is told by the process that starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderConfig {
    /// Version of the API that the owner speaks.
    pub api_version: u32,
    /// The fleetbox home.
    pub home: PathBuf,
    /// The cluster to hold.
    pub cluster: ClusterName,
    /// What keeps it alive.
    pub lease: LeaseKind,
    /// The owner's process id.
    pub owner_pid: u32,
    /// Number of the inherited read end of the owner pipe.
    pub owner_fd: RawFd,
    /// Number of the inherited write end of the ready pipe.
    pub ready_fd: RawFd,
}

/// The one line a holder writes to its ready pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// It serves.
    Serving {
        /// Its process id.
        pid: u32,
    },
    /// It will not.
    Failed(ApiError),
}
