//! What a name on the command line stands for: a machine, or all of a cluster.

use fleetbox::{ErrorKind, MachineInfo};

/// A machine or a cluster.
#[derive(Debug)]
pub(super) enum Target {
    /// A machine of that name.
    Machine(Box<MachineInfo>),
    /// No machine of that name, but a cluster, with these members.
    Cluster(Vec<MachineInfo>),
}

/// Looks for a machine of that name first, then for a cluster.
pub(super) async fn resolve(name: &str) -> fleetbox::Result<Target> {
    match fleetbox::inspect(name).await {
        Err(e) if e.kind() == ErrorKind::NotFound && fleetbox::cluster_exists(name)? => {
            let all = fleetbox::list().await?.machines;
            Ok(Target::Cluster(all.into_iter().filter(|m| m.cluster.as_str() == name).collect()))
        }
        found => Ok(Target::Machine(Box::new(found?))),
    }
}
