//! Paths of the API; `{name}` stands for a machine's name.

/// `GET`: [`VersionInfo`](crate::VersionInfo). The same in every version of the API.
pub const VERSION: &str = "/version";
/// `GET`: [`HolderInfo`](crate::HolderInfo).
pub const HOLDER: &str = "/v1/holder";
/// `GET`: what the backend can do; chooses one, if none was needed yet.
pub const CAPABILITIES: &str = "/v1/capabilities";
/// `POST`: make the network, and keep it while it is empty; a stream.
pub const NETWORK: &str = "/v1/network";
/// `GET`: the machines. `POST` a `MachineSpec`: start it; a stream.
pub const MACHINES: &str = "/v1/machines";
/// `GET`: one machine. `DELETE`: stop it at once and delete it.
pub const MACHINE: &str = "/v1/machines/{name}";
/// `POST` a [`StopRequest`](crate::StopRequest): stop it; a stream.
pub const STOP: &str = "/v1/machines/{name}/stop";
/// `POST`: halt its virtual CPUs.
pub const PAUSE: &str = "/v1/machines/{name}/pause";
/// `POST`: let its virtual CPUs run again.
pub const RESUME: &str = "/v1/machines/{name}/resume";
/// `POST`: cut its power and boot it again; a stream.
pub const RESET: &str = "/v1/machines/{name}/reset";
/// `POST`: from now on the holder lives until it is closed.
pub const DETACH: &str = "/v1/detach";
/// `POST` a [`CloseRequest`](crate::CloseRequest): release the network and end the holder; a stream.
pub const CLOSE: &str = "/v1/close";
/// `GET`: every event from now on; a stream without an end.
pub const EVENTS: &str = "/v1/events";

/// A route with a machine's name in it.
#[must_use]
pub fn with_name(route: &str, name: &fleetbox_spec::MachineName) -> String {
    route.replace("{name}", name.as_str())
}
