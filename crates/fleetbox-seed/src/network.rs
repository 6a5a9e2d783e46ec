//! The `network-config` file: one interface, one static address.
//!
//! Version 2 is netplan's own form. cloud-init hands it to netplan as it is where there is netplan, and translates
//! it for ifupdown, sysconfig, NetworkManager or systemd-networkd elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::validate::{is_domain, network_error, short};
use crate::{SeedError, yaml};

/// The interface's name. cloud-init 20.4 has no look-up by MAC address when it writes for ifupdown (Debian 11): it
/// takes `set-name`, or the key of the entry, as the interface's name. And netplan's generated `.network` matches
/// by permanent MAC *and* this name, so that a bridge that takes over the card's MAC is not given its address.
const INTERFACE: &str = "eth0";

/// A machine's one static address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The interface's MAC address, by which it is found.
    pub mac: [u8; 6],
    /// The IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The length of the IPv4 network's prefix in bits, 8 to 30.
    pub prefix: u8,
    /// The IPv4 gateway, in the same network.
    pub gateway: Ipv4Addr,
    /// An IPv6 address and its prefix length in bits, if the network has IPv6. There is no IPv6 route out.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// The DNS servers, in the order in which they are asked.
    pub dns: Vec<IpAddr>,
    /// The domains in which a plain name is looked up.
    pub search: Vec<String>,
}

#[derive(Serialize)]
struct File<'a> {
    version: u8,
    ethernets: BTreeMap<&'static str, Ethernet<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Ethernet<'a> {
    r#match: Match,
    set_name: &'static str,
    dhcp4: bool,
    dhcp6: bool,
    // Nobody advertises a route here: waiting for an advertisement delays network-online by most of 13 s.
    accept_ra: bool,
    // Neighbour discovery needs a link-local address, but without IPv6 it is one more address to wait for.
    link_local: &'static [&'static str],
    addresses: Vec<String>,
    routes: [Route; 1],
    #[serde(skip_serializing_if = "Nameservers::is_empty")]
    nameservers: Nameservers<'a>,
}

#[derive(Serialize)]
struct Match {
    macaddress: String,
}

#[derive(Serialize)]
struct Route {
    // Not `default`, which netplan knows from 0.103 on (Debian 11 has 0.101), and not `gateway4`, which netplan
    // has called deprecated since 0.104.
    to: &'static str,
    via: Ipv4Addr,
}

#[derive(Serialize)]
struct Nameservers<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    addresses: &'a [IpAddr],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    search: &'a [String],
}

impl Nameservers<'_> {
    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.search.is_empty()
    }
}

impl NetworkConfig {
    /// An IPv4 address with no DNS servers and no search domains.
    #[must_use]
    pub fn ipv4(mac: [u8; 6], ipv4: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Self {
        Self { mac, ipv4, prefix, gateway, ipv6: None, dns: Vec::new(), search: Vec::new() }
    }

    pub(crate) fn render(&self) -> Result<String, SeedError> {
        let [a, b, c, d, e, f] = self.mac;
        let mut addresses = vec![format!("{}/{}", self.ipv4, self.prefix)];
        addresses.extend(self.ipv6.map(|(ip, prefix)| format!("{ip}/{prefix}")));
        let ethernet = Ethernet {
            r#match: Match { macaddress: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}") },
            set_name: INTERFACE,
            dhcp4: false,
            dhcp6: false,
            accept_ra: false,
            link_local: if self.ipv6.is_some() { &["ipv6"] } else { &[] },
            addresses,
            routes: [Route { to: "0.0.0.0/0", via: self.gateway }],
            nameservers: Nameservers { addresses: &self.dns, search: &self.search },
        };
        let file = File { version: 2, ethernets: BTreeMap::from([(INTERFACE, ethernet)]) };
        yaml::to_string("network-config", &file)
    }

    pub(crate) fn validate(&self) -> Result<(), SeedError> {
        let error = |what, value: String, problem| Err(network_error(what, value, problem));
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return error("MAC address", format!("{:02x?}", self.mac), "is not one card's own");
        }
        if !(8..=30).contains(&self.prefix) {
            return error("IPv4 prefix length", self.prefix.to_string(), "is not between 8 and 30");
        }
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        for (what, ip) in [("IPv4 address", self.ipv4), ("IPv4 gateway", self.gateway)] {
            let host = u32::from(ip) & !mask;
            if ip.is_loopback()
                || ip.is_multicast()
                || ip.is_link_local()
                || matches!(ip.octets()[0], 0 | 240..)
            {
                return error(what, ip.to_string(), "is not a unicast address of a network");
            }
            if host == 0 || host == !mask {
                return error(what, ip.to_string(), "is its network's own or broadcast address");
            }
        }
        if u32::from(self.ipv4) & mask != u32::from(self.gateway) & mask {
            return error("IPv4 gateway", self.gateway.to_string(), "is not in the address's network");
        }
        if self.ipv4 == self.gateway {
            return error("IPv4 gateway", self.gateway.to_string(), "is the machine's own address");
        }
        if let Some((ip, prefix)) = self.ipv6 {
            if !(8..=127).contains(&prefix) {
                return error("IPv6 prefix length", prefix.to_string(), "is not between 8 and 127");
            }
            if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local() {
                return error("IPv6 address", ip.to_string(), "is not a unicast address of a network");
            }
        }
        for ip in &self.dns {
            if ip.is_unspecified() || ip.is_multicast() {
                return error("DNS server", ip.to_string(), "is not a host's address");
            }
        }
        match self.search.iter().find(|d| !is_domain(d)) {
            Some(domain) => Err(SeedError::Domain { what: "search domain", domain: short(domain) }),
            None => Ok(()),
        }
    }
}
