//! The live network of one cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleetbox_spec::{ClusterName, MachineName};
use fleetbox_store::{LockKind, NetworkRecord, Store, read_json};

use crate::dns::{ResolvConf, Server, Zone};
use crate::egress::Egress;
use crate::forwarding::Alias;
use crate::health::{Damage, look};
use crate::lock::HostLock;
use crate::netlink::{Link, LinkType, Netlink};
use crate::ruleset::Facts;
use crate::undo::{delete_link, undo};
use crate::{Ipv4Range, Journal, NetError, Resource, choose_address, choose_subnet, names, nft, sysctl};

/// How long a dead VMM's tap may still be seen.
const TAP_GONE: Duration = Duration::from_secs(1);

/// A network that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The network.
    pub network: Network,
    /// The saved subnet has been taken by somebody else meanwhile: machines need new addresses.
    pub renumbered: bool,
    /// What does not work as it should, in sentences for the user.
    pub warnings: Vec<String>,
}

/// A machine's link to its network.
#[derive(Debug)]
pub struct Attachment {
    /// The tap's other end, for the VMM; with virtio-net headers. The tap goes with the last copy of it.
    pub tap: OwnedFd,
    /// The tap's link name.
    pub link: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) link: String,
    pub(crate) ip: Ipv4Addr,
}

/// What lives between open and close.
#[derive(Debug, Default)]
struct State {
    closed: bool,
    dns: Option<Server>,
    egress: Option<Egress>,
}

/// The network of one cluster, owned by this process.
///
/// [`Network::close`] undoes it. Dropping one that is open warns and leaves the undo to
/// [`reconcile`](crate::reconcile()), since it cannot wait for the kernel.
#[derive(Debug)]
pub struct Network {
    store: Store,
    cluster: ClusterName,
    journal: Arc<Journal>,
    record: NetworkRecord,
    /// The /64, if this host has IPv6.
    prefix6: Option<Ipv6Addr>,
    /// Held by each operation for its whole length, so that they come one after another.
    state: tokio::sync::Mutex<State>,
    ports: Mutex<BTreeMap<MachineName, Port>>,
    zone: Arc<Mutex<Zone>>,
}

impl Network {
    /// Makes the network: bridge, addresses, firewall rules, forwarding and DNS server, on the saved subnet
    /// if that is still free.
    ///
    /// On an error nothing of it is left.
    ///
    /// # Errors
    /// [`NetError::NotRoot`]; [`NetError::NftMissing`] and [`NetError::Nft`] (no nf_tables in the kernel), since
    /// without rules there is no egress and no isolation; [`NetError::LinkExists`] when the bridge's name is
    /// taken; [`NetError::NoFreeSubnet`]; [`NetError::RulesMissing`]; what the kernel answered.
    pub async fn open(
        store: &Store,
        cluster: &ClusterName,
        saved: Option<NetworkRecord>,
        journal: Arc<Journal>,
    ) -> Result<Opened, NetError> {
        Self::open_with(store, cluster, saved, journal, ResolvConf::default()).await
    }

    /// [`Network::open`] with the host's resolvers read from other files than the usual.
    ///
    /// # Errors
    /// As [`Network::open`].
    pub async fn open_with(
        store: &Store,
        cluster: &ClusterName,
        saved: Option<NetworkRecord>,
        journal: Arc<Journal>,
        resolvers: ResolvConf,
    ) -> Result<Opened, NetError> {
        if !fleetbox_os::host::is_root() {
            let uid = fleetbox_os::host::effective_uid();
            return Err(NetError::NotRoot { cluster: cluster.clone(), uid });
        }
        // Before anything is made: is there an nft, and nf_tables in the kernel?
        nft::chains().await?;
        let bridge = names::bridge_name(store, cluster);
        // Until the address is on the bridge, where the next process sees it.
        let lock = HostLock::take(store, LockKind::Subnet).await?;
        let netlink = Netlink::connect()?;
        if netlink.link(&bridge).await?.is_some() {
            return Err(NetError::LinkExists { link: bridge });
        }
        let mut used = netlink.used_ranges().await?;
        used.extend(subnets_of_others(store, cluster)?);
        let before = saved.as_ref().map(|s| s.subnet);
        let subnet = choose_subnet(&used, before, names::subnet_seed(store, cluster))
            .ok_or_else(|| NetError::NoFreeSubnet { cluster: cluster.clone() })?;
        let mut network = Self {
            store: store.clone(),
            cluster: cluster.clone(),
            journal,
            record: NetworkRecord { subnet, bridge, explicit: saved.is_some_and(|s| s.explicit) },
            prefix6: None,
            state: tokio::sync::Mutex::default(),
            ports: Mutex::default(),
            zone: Arc::new(Mutex::new(Zone::new(cluster, subnet, None))),
        };
        let made = network.make(&netlink, lock, resolvers).await;
        match made {
            Ok(warnings) => {
                tracing::info!(cluster = %cluster, subnet = %subnet, bridge = network.record.bridge, "network made");
                Ok(Opened { network, renumbered: before.is_some_and(|b| b != subnet), warnings })
            }
            Err(e) => {
                if let Err(e) = network.close().await {
                    tracing::warn!(cluster = %cluster, error = %e, "a network that failed to open is not undone");
                }
                Err(e)
            }
        }
    }

    async fn make(
        &mut self,
        netlink: &Netlink,
        subnet_lock: HostLock,
        resolvers: ResolvConf,
    ) -> Result<Vec<String>, NetError> {
        let mut warnings = Vec::new();
        let owner = fleetbox_os::process::ProcessIdentity::current()
            .map_err(|source| NetError::Proc { action: "tell this process's identity", source })?;
        let bridge = self.make_bridge(netlink, &Alias::of(&owner)).await?;
        drop(subnet_lock);
        if let Some(gateway6) = self.ipv6_gateway() {
            netlink.add_address(&bridge, IpAddr::V6(gateway6), 64).await?;
        } else {
            warnings.push("this host has no IPv6, so the network has IPv4 only".to_owned());
        }
        self.zone = Arc::new(Mutex::new(Zone::new(&self.cluster, self.record.subnet, self.prefix6)));
        let gateway = self.gateway();
        let dns = Server::start(gateway, self.zone.clone(), resolvers)
            .await
            .map_err(|source| NetError::Dns { gateway, source })?;
        let facts = Facts {
            bridge: bridge.name.clone(),
            subnet: self.record.subnet,
            gateway,
            gateway6: self.ipv6_gateway(),
            dns_port: Some(dns.port()).filter(|p| *p != 53),
            opened: Default::default(),
            others: Default::default(),
        };
        let mut egress = Egress::new(facts, owner);
        let state = self.state.get_mut();
        state.dns = Some(dns);
        let result = egress.ensure(&self.store, netlink, &self.journal, &bridge).await;
        state.egress = Some(egress);
        warnings.extend(result?);
        Ok(warnings)
    }

    async fn make_bridge(&mut self, netlink: &Netlink, alias: &Alias) -> Result<Link, NetError> {
        let name = self.record.bridge.clone();
        self.journal.record(Resource::Bridge { name: name.clone() })?;
        let bridge = match netlink.add_bridge(&name, names::bridge_mac(&self.store, &self.cluster)).await {
            Err(e @ NetError::LinkExists { .. }) => {
                // Not ours, so not ours to delete.
                self.journal.strike(&Resource::Bridge { name })?;
                return Err(e);
            }
            r => r?,
        };
        netlink.set_alias(&bridge, &alias.to_text()).await?;
        // These go with the link. No guest may tell the host its routes, and the bridge's own addresses need no
        // duplicate detection, which would keep them unusable until a first machine gives the bridge a carrier.
        for setting in ["accept_ra", "autoconf", "accept_dad"] {
            sysctl::write(&format!("net/ipv6/conf/{name}/{setting}"), "0")?;
        }
        // No such setting: a kernel without IPv6. 1: the host's admin wants none on new links.
        if sysctl::read(&format!("net/ipv6/conf/{name}/disable_ipv6"))?.as_deref() == Some("0") {
            self.prefix6 = Some(names::ula_prefix(&self.store, &self.cluster));
        }
        netlink.add_address(&bridge, IpAddr::V4(self.gateway()), self.prefix()).await?;
        netlink.up(&bridge).await?;
        Ok(bridge)
    }

    /// What to keep in `network.json`, so that the next open gets the same subnet.
    #[must_use]
    pub fn record(&self) -> NetworkRecord {
        self.record.clone()
    }

    /// The host's address on the network: `.1`.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.record.subnet.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// The network's prefix length: 24.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        24
    }

    /// The network's IPv6 /64, a unique local one that is the same each time; `None` on a host without IPv6.
    ///
    /// It reaches from member to member and between host and members; there is no IPv6 egress.
    #[must_use]
    pub fn ipv6_prefix(&self) -> Option<Ipv6Addr> {
        self.prefix6
    }

    /// The host's IPv6 address on the network: `::1` of the /64.
    #[must_use]
    pub fn ipv6_gateway(&self) -> Option<Ipv6Addr> {
        self.ipv6_host(1)
    }

    /// The IPv6 address of the machine with an IPv4 address: its last octet, in the /64.
    #[must_use]
    pub fn ipv6_for(&self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        self.ipv6_host(ip.octets()[3])
    }

    fn ipv6_host(&self, host: u8) -> Option<Ipv6Addr> {
        self.prefix6.map(|p| Ipv6Addr::from(u128::from(p) | u128::from(host)))
    }

    /// The domain that members' full names end in, such as `web.test`: machines need it as their search
    /// domain, or their resolvers do not ask for bare names.
    #[must_use]
    pub fn domain(&self) -> String {
        format!("{}.test", self.cluster)
    }

    /// Lets a name resolve to an address on this network, at once. [`Network::attach`] does it for the
    /// machine it attaches.
    pub fn set_member(&self, machine: &MachineName, ip: Ipv4Addr) {
        self.zone().set(machine, ip, self.ipv6_for(ip));
    }

    /// Lets a name resolve no more. [`Network::detach`] does it too.
    pub fn remove_member(&self, machine: &MachineName) {
        self.zone().remove(machine);
    }

    /// The bridge's link name.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.record.bridge
    }

    /// Chooses a machine's address, `.2` to `.254`: `wanted` if it is free, else its last octet on this
    /// subnet, else the lowest free one. Neither `taken` nor an address of another attached machine.
    ///
    /// # Errors
    /// [`NetError::NoFreeAddress`].
    pub fn address_for(
        &self,
        machine: &MachineName,
        wanted: Option<Ipv4Addr>,
        taken: &[Ipv4Addr],
    ) -> Result<Ipv4Addr, NetError> {
        let subnet = self.record.subnet;
        let mut all = taken.to_vec();
        all.extend(self.ports().iter().filter(|(m, _)| *m != machine).map(|(_, p)| p.ip));
        choose_address(subnet, wanted, &all)
            .ok_or_else(|| NetError::NoFreeAddress { machine: machine.clone(), subnet })
    }

    /// Makes a machine's tap, attaches it to the bridge, and lets its name resolve.
    ///
    /// Looks after the network's way out as well: rules that somebody took away are put back, an uplink that
    /// has come since is used. On an error nothing of the tap is left.
    ///
    /// # Errors
    /// [`NetError::Closed`], [`NetError::AlreadyAttached`], [`NetError::BadAddress`], [`NetError::LinkGone`]
    /// when somebody deleted the bridge, [`NetError::LinkExists`], [`NetError::Tap`], what the kernel answered.
    pub async fn attach(
        &self,
        machine: &MachineName,
        ip: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<Attachment, NetError> {
        let mut state = self.state.lock().await;
        if state.closed {
            return Err(NetError::Closed { cluster: self.cluster.clone() });
        }
        let netlink = Netlink::connect()?;
        let link = names::tap_name(&self.store, &self.cluster, machine);
        let known = self.ports().get(machine).cloned();
        if known.is_some() {
            // The last descriptor of a VMM that was just killed is closed a moment later.
            if !netlink.gone_within(&link, TAP_GONE).await? {
                return Err(NetError::AlreadyAttached { machine: machine.clone(), link });
            }
            // Its VMM has ended and nobody detached it.
            self.undo_port(machine, &link).await?;
        }
        self.check_address(machine, ip)?;
        let bridge = netlink.link(&self.record.bridge).await?.ok_or_else(|| NetError::LinkGone {
            link: self.record.bridge.clone(),
            cluster: self.cluster.clone(),
        })?;
        if let Some(egress) = &mut state.egress {
            for warning in egress.ensure(&self.store, &netlink, &self.journal, &bridge).await? {
                tracing::warn!(cluster = %self.cluster, "{warning}");
            }
        }
        self.journal.record(Resource::Tap { name: link.clone() })?;
        self.ports().insert(machine.clone(), Port { link: link.clone(), ip });
        match self.make_tap(&netlink, machine, &link, &bridge).await {
            Ok(tap) => {
                self.set_member(machine, ip);
                tracing::debug!(machine = %machine, link, %ip, ?mac, "tap attached");
                Ok(Attachment { tap, link })
            }
            Err(e @ NetError::LinkExists { .. }) => {
                // Not ours, so not ours to delete.
                self.journal.strike(&Resource::Tap { name: link })?;
                self.ports().remove(machine);
                Err(e)
            }
            Err(e) => {
                self.undo_port(machine, &link).await?;
                Err(e)
            }
        }
    }

    async fn make_tap(
        &self,
        netlink: &Netlink,
        machine: &MachineName,
        link: &str,
        bridge: &Link,
    ) -> Result<OwnedFd, NetError> {
        let tap = fleetbox_os::tap::create(link, true).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => NetError::LinkExists { link: link.to_owned() },
            _ => NetError::Tap { link: link.to_owned(), machine: machine.clone(), source },
        })?;
        // The host talks to machines through the bridge; on the tap itself it has no business.
        sysctl::write(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1")?;
        let found = netlink
            .link(link)
            .await?
            .ok_or_else(|| NetError::LinkGone { link: link.to_owned(), cluster: self.cluster.clone() })?;
        netlink.enslave(&found, bridge).await?;
        Ok(tap)
    }

    fn check_address(&self, machine: &MachineName, ip: Ipv4Addr) -> Result<(), NetError> {
        let subnet = self.record.subnet;
        let bad = |by| NetError::BadAddress { machine: machine.clone(), ip, subnet, by };
        if !Ipv4Range::new(subnet, 24).contains(ip) || !(2..=254).contains(&ip.octets()[3]) {
            return Err(bad(None));
        }
        match self.ports().iter().find(|(m, p)| *m != machine && p.ip == ip) {
            Some((other, _)) => Err(bad(Some(other.clone()))),
            None => Ok(()),
        }
    }

    /// Removes a machine's tap. One that is gone already, or never was, is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub async fn detach(&self, machine: &MachineName) -> Result<(), NetError> {
        let _state = self.state.lock().await;
        let known = self.ports().get(machine).cloned();
        match known {
            Some(port) => self.undo_port(machine, &port.link).await,
            None => Ok(()),
        }
    }

    async fn undo_port(&self, machine: &MachineName, link: &str) -> Result<(), NetError> {
        self.remove_member(machine);
        delete_link(link, LinkType::Tun).await?;
        self.journal.strike(&Resource::Tap { name: link.to_owned() })?;
        self.ports().remove(machine);
        Ok(())
    }

    /// Looks whether all that the network consists of is still there; empty when it is. A closed network has
    /// nothing to lose.
    ///
    /// # Errors
    /// When the kernel or `nft` cannot be asked.
    pub async fn health(&self) -> Result<Vec<Damage>, NetError> {
        let state = self.state.lock().await;
        if state.closed {
            return Ok(Vec::new());
        }
        let mut addresses = vec![IpAddr::V4(self.gateway())];
        addresses.extend(self.ipv6_gateway().map(IpAddr::V6));
        let ports = self.ports().clone();
        let mut damage = look(&self.record.bridge, &addresses, &ports, state.egress.as_ref()).await?;
        if !state.dns.as_ref().is_some_and(Server::is_alive) {
            damage.push(Damage::DnsEnded);
        }
        Ok(damage)
    }

    /// Undoes the network: taps, DNS server, what was opened in other firewalls, forwarding, rules, bridge, each seen to be gone and struck off the journal. What
    /// somebody else removed already is fine, and so is a second close.
    ///
    /// # Errors
    /// The first thing that failed; the rest is undone all the same, and a further close tries again.
    pub async fn close(&self) -> Result<(), NetError> {
        let mut state = self.state.lock().await;
        state.closed = true;
        if let Some(dns) = state.dns.take() {
            dns.stop().await;
        }
        let mut first = None;
        let ports: Vec<_> = self.ports().iter().map(|(m, p)| (m.clone(), p.link.clone())).collect();
        for (machine, link) in ports {
            if let Err(e) = self.undo_port(&machine, &link).await {
                first.get_or_insert(e);
            }
        }
        for resource in self.journal.resources().into_iter().rev().filter(Resource::is_of_the_network) {
            if let Err(e) = self.undo_and_strike(&resource).await {
                first.get_or_insert(e);
            }
        }
        match first {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    async fn undo_and_strike(&self, resource: &Resource) -> Result<(), NetError> {
        undo(&self.store, &self.cluster, resource).await?;
        self.journal.strike(resource)
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<MachineName, Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !self.state.get_mut().closed {
            tracing::warn!(cluster = %self.cluster, bridge = self.record.bridge, "a network was dropped without close: its undo is left to the next fleetbox process");
        }
    }
}

/// The subnets that other clusters of this store had when they last ran: they come back to them.
fn subnets_of_others(store: &Store, cluster: &ClusterName) -> Result<Vec<Ipv4Range>, NetError> {
    let mut all = Vec::new();
    for other in store.clusters()?.into_iter().filter(|c| c != cluster) {
        match read_json::<NetworkRecord>(&store.network_file(&other)) {
            Ok(r) => all.push(Ipv4Range::new(r.subnet, 24)),
            Err(e) if e.is_not_found() => {}
            // Its own opener reports it; this cluster has no need of it.
            Err(e) => tracing::warn!(cluster = %other, error = %e, "a cluster's saved subnet cannot be read"),
        }
    }
    Ok(all)
}
