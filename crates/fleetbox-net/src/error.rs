use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use fleetbox_spec::{ClusterName, MachineName};
use fleetbox_store::StoreError;

/// What went wrong with a cluster's network or with the journal of its resources.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// Bridges, taps and firewall rules need root.
    #[error("could not make a network for cluster {cluster}: bridges and taps need root, this is user {uid}")]
    NotRoot {
        /// Whose network.
        cluster: ClusterName,
        /// The effective user id.
        uid: u32,
    },
    /// A file or lock of fleetbox's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A request to the kernel's network configuration failed.
    #[error("could not {action} {link}")]
    Netlink {
        /// What was attempted.
        action: &'static str,
        /// On which link, address or list.
        link: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer a network request in time.
    #[error("could not {action} {link}: no answer from the kernel within {} s", after.as_secs())]
    NetlinkTimeout {
        /// What was attempted.
        action: &'static str,
        /// On which link, address or list.
        link: String,
        /// How long was waited.
        after: Duration,
    },
    /// A tap could not be made.
    #[error("could not make tap {link} for machine {machine}")]
    Tap {
        /// The tap's name.
        link: String,
        /// Whose it was to be.
        machine: MachineName,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A link that fleetbox wants to make exists, and no record says that it is fleetbox's.
    #[error(
        "link {link} exists already and no live record of fleetbox names it; remove it with `ip link delete {link}`"
    )]
    LinkExists {
        /// The link.
        link: String,
    },
    /// A link that was deleted is still there.
    #[error("link {link} is still there {} s after it was deleted", after.as_secs())]
    LinkStays {
        /// The link.
        link: String,
        /// How long was waited.
        after: Duration,
    },
    /// A link that a network needs has gone.
    #[error("link {link} of cluster {cluster} has gone: somebody deleted it")]
    LinkGone {
        /// The link.
        link: String,
        /// Whose it was.
        cluster: ClusterName,
    },
    /// Every /24 of the private ranges is in use on this host.
    #[error(
        "no free /24 for cluster {cluster}: every one in 10.64.0.0/11, 10.112.0.0/12, 172.16.0.0/12 and 192.168.0.0/16 overlaps an address, a route or another cluster of this host"
    )]
    NoFreeSubnet {
        /// Whose network.
        cluster: ClusterName,
    },
    /// All 253 addresses of a network are taken.
    #[error("no free address for machine {machine} in {subnet}/24")]
    NoFreeAddress {
        /// Whose address.
        machine: MachineName,
        /// The network.
        subnet: Ipv4Addr,
    },
    /// The address is not one for a machine of this network, or another machine has it.
    #[error("machine {machine} cannot have address {ip} in {subnet}/24: {}", taken_by(by.as_ref()))]
    BadAddress {
        /// Whose address.
        machine: MachineName,
        /// The address.
        ip: Ipv4Addr,
        /// The network.
        subnet: Ipv4Addr,
        /// Who has it.
        by: Option<MachineName>,
    },
    /// The machine has a tap already.
    #[error("machine {machine} is attached already, to {link}")]
    AlreadyAttached {
        /// The machine.
        machine: MachineName,
        /// Its tap.
        link: String,
    },
    /// The network has been closed.
    #[error("the network of cluster {cluster} is closed")]
    Closed {
        /// Whose network.
        cluster: ClusterName,
    },
    /// The journal belongs to a living process.
    #[error("the network of cluster {cluster} is held by pid {pid}")]
    Held {
        /// Whose network.
        cluster: ClusterName,
        /// The owner.
        pid: u32,
    },
    /// The journal belongs to a process of another network or PID namespace.
    #[error("the network of cluster {cluster} is recorded by a process of another namespace; see {journal}")]
    ForeignNamespace {
        /// Whose network.
        cluster: ClusterName,
        /// The journal.
        journal: PathBuf,
    },
    /// A dead owner's resources must be undone first.
    #[error("a dead process (pid {pid}) left resources of cluster {cluster} that are not yet undone")]
    NeedsReconcile {
        /// Whose network.
        cluster: ClusterName,
        /// The dead owner.
        pid: u32,
    },
    /// The journal cannot end while it names resources.
    #[error("the journal of cluster {cluster} still names {left} resources")]
    NotEmpty {
        /// Whose journal.
        cluster: ClusterName,
        /// How many.
        left: usize,
    },
    /// A journal names a path that is not one of fleetbox's to delete.
    #[error("refused to delete {path}: it is not inside fleetbox's folder")]
    UnsafePath {
        /// The path.
        path: PathBuf,
    },
    /// A kernel setting could not be read or written.
    #[error("could not {action} kernel setting {key}")]
    Sysctl {
        /// What was attempted.
        action: &'static str,
        /// The setting, such as `net.ipv4.conf.eth0.forwarding`.
        key: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// There is no `nft` program.
    #[error(
        "could not find the program `nft`: without it machines have no egress and no protection from other networks; install the package nftables"
    )]
    NftMissing,
    /// `nft` refused, or the kernel has no nf_tables.
    #[error("could not {action} {what} with nft")]
    Nft {
        /// What was attempted.
        action: &'static str,
        /// On which table or chain.
        what: String,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `nft` did not end in time.
    #[error("could not {action} {what} with nft within {} s", after.as_secs())]
    NftTimeout {
        /// What was attempted.
        action: &'static str,
        /// On which table or chain.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The kernel did not keep all the rules that it took.
    #[error("table {table} lacks, after it was loaded: {}", missing.join(", "))]
    RulesMissing {
        /// The table.
        table: String,
        /// What is not there.
        missing: Vec<String>,
    },
    /// A table that was deleted is still there.
    #[error("nftables table {name} is still there after it was deleted")]
    TableStays {
        /// The table.
        name: String,
    },
    /// A journal names a table or chain that cannot be one of fleetbox's.
    #[error("refused to give {name:?} to nft: it is no name")]
    BadName {
        /// The name.
        name: String,
    },
    /// The DNS server could not listen.
    #[error("could not start the DNS server on {gateway}")]
    Dns {
        /// The gateway's address.
        gateway: Ipv4Addr,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Another process keeps a machine-wide lock.
    #[error("could not take the machine-wide {name} lock within {} s: {}", after.as_secs(), held_by(*pid))]
    HostLock {
        /// What the lock is for.
        name: &'static str,
        /// How long was waited.
        after: Duration,
        /// Who holds it, where that can be told.
        pid: Option<u32>,
    },
    /// `/proc` could not be read.
    #[error("could not {action}")]
    Proc {
        /// What was attempted.
        action: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

fn taken_by(by: Option<&MachineName>) -> String {
    match by {
        Some(m) => format!("machine {m} has it"),
        None => "machines get .2 to .254".to_owned(),
    }
}

fn held_by(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process holds it".to_owned(), |pid| format!("pid {pid} holds it"))
}
