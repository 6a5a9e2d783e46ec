use std::fmt;

use fleetbox_spec::{Capabilities, ClusterName, ErrorKind, Event, LeaseKind, MachineInfo};
use serde::{Deserialize, Serialize};

/// Who answers, and in which version of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionInfo {
    /// The holder's version of this API.
    pub api_version: u32,
    /// The version of fleetbox it was built from.
    pub fleetbox_version: String,
    /// The holder's process id.
    pub pid: u32,
}

/// The state of a holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HolderInfo {
    /// Its process id.
    pub pid: u32,
    /// The cluster it holds.
    pub cluster: ClusterName,
    /// What keeps it alive.
    pub lease: LeaseKind,
    /// The process that started it, while the lease is bound.
    pub owner_pid: Option<u32>,
    /// The network in CIDR notation, once it is up.
    pub subnet: Option<String>,
    /// The bridge's link name, once it is up.
    pub bridge: Option<String>,
    /// What the backend can do, once one is chosen.
    pub capabilities: Option<Capabilities>,
    /// What has become of the network's parts behind the holder's back; empty when all is well.
    pub damage: Vec<String>,
}

/// How to stop a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StopRequest {
    /// Kill the VMM instead of pressing the power button.
    #[serde(default)]
    pub immediate: bool,
    /// How long the guest gets to shut down by itself, in seconds; `null` takes the default.
    #[serde(default)]
    pub grace_s: Option<u64>,
}

/// How to close a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CloseRequest {
    /// Stop members that still run; without it, running members are a conflict that names them.
    #[serde(default)]
    pub stop_members: bool,
    /// Delete the members and their disks, too.
    #[serde(default)]
    pub destroy: bool,
}

/// What went wrong, as it crosses the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiError {
    /// Its kind.
    pub kind: ErrorKind,
    /// What was attempted on which thing.
    pub message: String,
    /// The causes, nearest first. None of them is part of `message`.
    pub causes: Vec<String>,
    /// The console's last lines, where the guest's boot is what failed.
    #[serde(default)]
    pub console: Option<String>,
}

impl ApiError {
    /// An error and its causes, as its `source()` chain tells them.
    #[must_use]
    pub fn new(kind: ErrorKind, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(e) = source {
            causes.push(e.to_string());
            source = e.source();
        }
        Self { kind, message: error.to_string(), causes, console: None }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// How a slow call ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StreamResult {
    /// The machine as it is now.
    Machine(Box<MachineInfo>),
    /// There is nothing more to tell.
    Nothing,
}

/// One line of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StreamItem {
    /// Something happened.
    Event(Event),
    /// The call ended well. The last line.
    Done(StreamResult),
    /// The call failed. The last line.
    Failed(ApiError),
}
