//! What somebody else took away from a live network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use fleetbox_spec::MachineName;

use crate::NetError;
use crate::egress::Egress;
use crate::netlink::{LinkType, Netlink};
use crate::network::Port;

/// Something that a live network lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The bridge is gone, and the whole network with it.
    BridgeGone {
        /// Its link name.
        link: String,
    },
    /// The bridge was set down.
    BridgeDown {
        /// Its link name.
        link: String,
    },
    /// The bridge lost one of its addresses.
    AddressGone {
        /// The bridge's link name.
        link: String,
        /// The address.
        address: IpAddr,
    },
    /// A machine's tap is gone: somebody deleted it, or its VMM has ended.
    TapGone {
        /// Whose.
        machine: MachineName,
        /// Its link name.
        link: String,
    },
    /// A machine's tap is no port of the bridge any more, or down.
    TapDetached {
        /// Whose.
        machine: MachineName,
        /// Its link name.
        link: String,
    },
    /// Our rules are not whole: no egress, or no protection.
    RulesMissing {
        /// What is missing, in words.
        missing: Vec<String>,
    },
    /// Another firewall's chain drops our packets, and our rules are not in it.
    FirewallClosed {
        /// Address family of the table.
        family: String,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// Somebody switched forwarding off on an uplink: no egress through it.
    ForwardingOff {
        /// The uplink.
        link: String,
    },
    /// The DNS server has ended.
    DnsEnded,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BridgeGone { link } => write!(f, "bridge {link} is gone"),
            Self::BridgeDown { link } => write!(f, "bridge {link} is down"),
            Self::AddressGone { link, address } => write!(f, "bridge {link} lost its address {address}"),
            Self::TapGone { machine, link } => write!(f, "tap {link} of machine {machine} is gone"),
            Self::TapDetached { machine, link } => {
                write!(f, "tap {link} of machine {machine} is down or no longer on the bridge")
            }
            Self::RulesMissing { missing } => write!(f, "firewall rules lack {}", missing.join(", ")),
            Self::FirewallClosed { family, table, chain } => {
                write!(f, "chain {chain} of table {family} {table} drops the network's packets")
            }
            Self::ForwardingOff { link } => write!(f, "forwarding was switched off on {link}"),
            Self::DnsEnded => f.write_str("the DNS server has ended"),
        }
    }
}

/// Looks at links, addresses and rules.
pub(crate) async fn look(
    bridge: &str,
    addresses: &[IpAddr],
    ports: &BTreeMap<MachineName, Port>,
    egress: Option<&Egress>,
) -> Result<Vec<Damage>, NetError> {
    let mut damage = Vec::new();
    let netlink = Netlink::connect()?;
    let links = netlink.links().await?;
    let named = |name: &str, of: LinkType| links.iter().find(|l| l.name == name && l.of == of);
    let found = named(bridge, LinkType::Bridge);
    match found {
        Some(link) => {
            let has = netlink.addresses(link).await?;
            for address in addresses.iter().filter(|a| !has.contains(a)) {
                damage.push(Damage::AddressGone { link: bridge.to_owned(), address: *address });
            }
            if !link.up {
                damage.push(Damage::BridgeDown { link: bridge.to_owned() });
            }
        }
        None => damage.push(Damage::BridgeGone { link: bridge.to_owned() }),
    }
    for (machine, port) in ports {
        let (machine, link) = (machine.clone(), port.link.clone());
        match named(&port.link, LinkType::Tun) {
            Some(tap) if tap.up && tap.controller.is_some() && tap.controller == found.map(|b| b.index) => {}
            Some(_) => damage.push(Damage::TapDetached { machine, link }),
            None => damage.push(Damage::TapGone { machine, link }),
        }
    }
    if let Some(egress) = egress {
        let losses = egress.losses().await?;
        if !losses.rules.is_empty() {
            damage.push(Damage::RulesMissing { missing: losses.rules });
        }
        let closed = losses.closed.into_iter();
        damage.extend(closed.map(|(family, table, chain)| Damage::FirewallClosed { family, table, chain }));
        damage.extend(losses.forwarding.into_iter().map(|link| Damage::ForwardingOff { link }));
    }
    Ok(damage)
}
