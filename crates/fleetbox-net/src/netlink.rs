//! What fleetbox asks of rtnetlink(7), each request with a deadline.
//!
//! A connection is made for each piece of work: it is a socket, cheap, and of the network namespace that
//! the calling thread is in.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use crate::{Ipv4Range, NetError};

/// How long the kernel may take to answer; it holds one lock for all network configuration of the host.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a deleted link may still be seen.
const GONE: Duration = Duration::from_secs(5);

/// Routes to less than this are default routes, or the halves (0.0.0.0/1, 128.0.0.0/1) that VPNs lay over them.
const SHORTEST: u8 = 4;

const ENODEV: i32 = 19;
const EEXIST: i32 = 17;

/// The types of link that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkType {
    Bridge,
    /// A tun or tap device.
    Tun,
    Other,
}

#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) of: LinkType,
    /// Index of the bridge it is a port of.
    pub(crate) controller: Option<u32>,
    pub(crate) up: bool,
    pub(crate) alias: Option<String>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            of: LinkType::Other,
            controller: None,
            up: message.header.flags.contains(LinkFlags::Up),
            alias: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Bridge) => link.of = LinkType::Bridge,
                            LinkInfo::Kind(InfoKind::Tun) => link.of = LinkType::Tun,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// A connection to rtnetlink.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    pump: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

fn to_io(e: rtnetlink::Error) -> io::Error {
    match e {
        rtnetlink::Error::NetlinkError(e) => e.to_io(),
        e => io::Error::other(e),
    }
}

async fn ask<T>(
    action: &'static str,
    link: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetError> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(r) => r.map_err(|e| NetError::Netlink { action, link: link.to_owned(), source: to_io(e) }),
        Err(_) => Err(NetError::NetlinkTimeout { action, link: link.to_owned(), after: ANSWER }),
    }
}

impl Netlink {
    pub(crate) fn connect() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| NetError::Netlink {
            action: "open a socket to",
            link: "rtnetlink".to_owned(),
            source,
        })?;
        Ok(Self { handle, pump: tokio::spawn(connection) })
    }

    /// All links.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, NetError> {
        let all = self.handle.link().get().execute().map_ok(Link::from).try_collect();
        ask("list the", "links", all).await
    }

    /// One link; `None` when there is none of that name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        let one = async { self.handle.link().get().match_name(name).execute().try_next().await };
        match ask("look up link", name, one).await {
            Ok(message) => Ok(message.map(Link::from)),
            Err(NetError::Netlink { source, .. }) if source.raw_os_error() == Some(ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a bridge, down: no spanning tree and no forward delay, so that a port carries traffic at once;
    /// no multicast snooping, which without a querier on the bridge drops IPv6 neighbour discovery.
    pub(crate) async fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<Link, NetError> {
        let message = LinkBridge::new(name)
            .down()
            .address(mac.to_vec())
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            .build();
        match ask("make bridge", name, self.handle.link().add(message).execute()).await {
            Err(NetError::Netlink { source, .. }) if source.raw_os_error() == Some(EEXIST) => {
                return Err(NetError::LinkExists { link: name.to_owned() });
            }
            r => r?,
        }
        self.link(name).await?.ok_or_else(|| NetError::Netlink {
            action: "look up bridge",
            link: name.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    pub(crate) async fn up(&self, link: &Link) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        ask("bring up link", &link.name, self.handle.link().set(message).execute()).await
    }

    /// Makes a link a port of a bridge and brings it up.
    pub(crate) async fn enslave(&self, link: &Link, bridge: &Link) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index).controller(bridge.index).up().build();
        ask("attach to its bridge link", &link.name, self.handle.link().set(message).execute()).await
    }

    /// Notes something on a link that all processes see (`ip link` shows it).
    pub(crate) async fn set_alias(&self, link: &Link, alias: &str) -> Result<(), NetError> {
        let alias = LinkAttribute::IfAlias(alias.to_owned());
        let message = LinkUnspec::new_with_index(link.index).append_extra_attribute(alias).build();
        ask("set the alias of link", &link.name, self.handle.link().set(message).execute()).await
    }

    /// Gives a link an address; an IPv6 one without duplicate detection, which a bridge with no port never ends.
    pub(crate) async fn add_address(&self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), NetError> {
        let mut add = self.handle.address().add(link.index, address, prefix);
        if address.is_ipv6() {
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        ask("give an address to link", &link.name, add.execute()).await
    }

    /// The addresses of a link.
    pub(crate) async fn addresses(&self, link: &Link) -> Result<Vec<IpAddr>, NetError> {
        let get = self.handle.address().get().set_link_index_filter(link.index);
        let messages =
            ask("list the addresses of", &link.name, get.execute().try_collect::<Vec<_>>()).await?;
        let addresses = messages.into_iter().flat_map(|m| m.attributes).filter_map(|a| match a {
            AddressAttribute::Address(ip) => Some(ip),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Indices of the links that IPv4's default routes, of any table, lead out of.
    pub(crate) async fn uplinks(&self) -> Result<BTreeSet<u32>, NetError> {
        let mut all = BTreeSet::new();
        for message in self.routes().await? {
            if message.header.destination_prefix_length >= SHORTEST
                || message.header.kind != RouteType::Unicast
            {
                continue;
            }
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => _ = all.insert(index),
                    RouteAttribute::MultiPath(hops) => all.extend(hops.iter().map(|h| h.interface_index)),
                    _ => {}
                }
            }
        }
        Ok(all)
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetError> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().build();
        ask("list the", "routes", self.handle.route().get(message).execute().try_collect()).await
    }

    /// Deletes a link and sees that it is gone.
    pub(crate) async fn delete(&self, link: &Link) -> Result<(), NetError> {
        match ask("delete link", &link.name, self.handle.link().del(link.index).execute()).await {
            // Somebody else was faster, or the last descriptor of a tap was closed meanwhile.
            Err(NetError::Netlink { source, .. }) if source.raw_os_error() == Some(ENODEV) => {}
            r => r?,
        }
        if self.gone_within(&link.name, GONE).await? {
            Ok(())
        } else {
            Err(NetError::LinkStays { link: link.name.clone(), after: GONE })
        }
    }

    /// Waits until there is no link of a name; false when there still is one after that time.
    pub(crate) async fn gone_within(&self, name: &str, limit: Duration) -> Result<bool, NetError> {
        let started = Instant::now();
        while self.link(name).await?.is_some() {
            if started.elapsed() > limit {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    /// Every IPv4 range that this host has an address in or a route to, in any table. The default route is
    /// everybody's.
    pub(crate) async fn used_ranges(&self) -> Result<Vec<Ipv4Range>, NetError> {
        let mut used = Vec::new();
        let addresses = self.handle.address().get().execute().try_collect::<Vec<_>>();
        for message in ask("list the", "addresses", addresses).await? {
            for attribute in &message.attributes {
                // Local is this end; Address is the network's, or on a point-to-point link the other end.
                if let AddressAttribute::Address(IpAddr::V4(ip)) | AddressAttribute::Local(IpAddr::V4(ip)) =
                    attribute
                {
                    used.push(Ipv4Range::new(*ip, message.header.prefix_len));
                }
            }
        }
        for message in self.routes().await? {
            let prefix = message.header.destination_prefix_length;
            for attribute in &message.attributes {
                if let RouteAttribute::Destination(RouteAddress::Inet(ip)) = attribute
                    && prefix >= SHORTEST
                {
                    used.push(Ipv4Range::new(*ip, prefix));
                }
            }
        }
        Ok(used)
    }
}
