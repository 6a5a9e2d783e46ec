//! Who is in the cluster, and what the server says about a name. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use fleetbox_spec::{ClusterName, MachineName};

use super::wire::{A, AAAA, ANY, CLASS_IN, NAME_ERROR, NO_ERROR, Query, Record};
use crate::Ipv4Range;

/// The members of one cluster.
#[derive(Debug)]
pub(crate) struct Zone {
    /// `<cluster>.test`
    domain: String,
    subnet: Ipv4Addr,
    /// The /64, if the network has IPv6.
    prefix6: Option<Ipv6Addr>,
    members: BTreeMap<String, (Ipv4Addr, Option<Ipv6Addr>)>,
}

/// What to do about a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer from the zone: a code and records.
    Here(u8, Vec<Record>),
    /// Ask the host's resolvers.
    Forward,
}

impl Zone {
    pub(crate) fn new(cluster: &ClusterName, subnet: Ipv4Addr, prefix6: Option<Ipv6Addr>) -> Self {
        Self { domain: format!("{cluster}.test"), subnet, prefix6, members: BTreeMap::new() }
    }

    pub(crate) fn set(&mut self, name: &MachineName, ip: Ipv4Addr, ip6: Option<Ipv6Addr>) {
        self.members.insert(name.to_string(), (ip, ip6));
    }

    pub(crate) fn remove(&mut self, name: &MachineName) {
        self.members.remove(name.as_str());
    }

    /// Answers for members' names, for all of the cluster's domain, for single labels (no resolver of the host's knows
    /// them), and for the reverse of the network's own addresses. The rest is forwarded.
    ///
    /// No SOA record goes with "no such name", so that resolvers keep none of it (RFC 2308 §5): a member
    /// that is added later is found at once.
    pub(crate) fn decide(&self, query: &Query) -> Verdict {
        if query.class != CLASS_IN {
            return Verdict::Forward;
        }
        if let Some(address) = reverse4(&query.name) {
            if Ipv4Range::new(self.subnet, 24).contains(address) {
                return self.pointer(query.kind, |(ip, _)| *ip == address);
            }
        } else if let Some(address) = reverse6(&query.name)
            && self.prefix6.is_some_and(|p| p.segments()[..4] == address.segments()[..4])
        {
            return self.pointer(query.kind, |(_, ip6)| *ip6 == Some(address));
        }
        let label = match query.name.strip_suffix(&self.domain) {
            Some("") => return Verdict::Here(NO_ERROR, Vec::new()),
            Some(label) if label.ends_with('.') => label.trim_end_matches('.'),
            _ if query.name.contains('.') || query.name.is_empty() => return Verdict::Forward,
            _ => query.name.as_str(),
        };
        match self.members.get(label) {
            Some((ip, ip6)) => {
                let mut records = vec![Record::A(*ip)];
                records.extend(ip6.map(Record::Aaaa));
                records.retain(|r| query.kind == ANY || r.kind() == query.kind);
                Verdict::Here(NO_ERROR, records)
            }
            // A top-level domain's own records (NS, SOA, DS) are the world's business.
            None if !query.name.contains('.') && !matches!(query.kind, A | AAAA | ANY) => Verdict::Forward,
            None => Verdict::Here(NAME_ERROR, Vec::new()),
        }
    }

    fn pointer(&self, kind: u16, is_it: impl Fn(&(Ipv4Addr, Option<Ipv6Addr>)) -> bool) -> Verdict {
        match self.members.iter().find(|(_, addresses)| is_it(addresses)) {
            Some((name, _)) => {
                let mut records = vec![Record::Ptr(format!("{name}.{}", self.domain))];
                records.retain(|r| kind == ANY || r.kind() == kind);
                Verdict::Here(NO_ERROR, records)
            }
            None => Verdict::Here(NAME_ERROR, Vec::new()),
        }
    }
}

/// The address that `4.3.2.1.in-addr.arpa` is about.
fn reverse4(name: &str) -> Option<Ipv4Addr> {
    let labels = name.strip_suffix(".in-addr.arpa")?;
    let mut octets: [u8; 4] = labels.parse::<Ipv4Addr>().ok()?.octets();
    octets.reverse();
    Some(octets.into())
}

/// The address that 32 nibbles and `ip6.arpa` are about.
fn reverse6(name: &str) -> Option<Ipv6Addr> {
    let nibbles: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').collect();
    if nibbles.len() != 32 {
        return None;
    }
    let mut address = 0u128;
    for nibble in nibbles.iter().rev() {
        let digit = (nibble.len() == 1).then(|| u128::from_str_radix(nibble, 16).ok()).flatten()?;
        address = address << 4 | digit;
    }
    Some(Ipv6Addr::from(address))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{PTR, parse, tests::query};
    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new(
            &ClusterName::new("web").unwrap(),
            Ipv4Addr::new(10, 70, 3, 0),
            Some("fd12:3456:789a:1::".parse().unwrap()),
        );
        let name = |n| MachineName::new(n).unwrap();
        zone.set(&name("node-2"), Ipv4Addr::new(10, 70, 3, 2), Some("fd12:3456:789a:1::2".parse().unwrap()));
        zone.set(&name("v4"), Ipv4Addr::new(10, 70, 3, 3), None);
        zone
    }

    #[test]
    fn answers_members_and_forwards_the_world() {
        let zone = zone();
        let ask = |name: &str, kind| zone.decide(&parse(&query(name, kind)).unwrap());
        let a = || Verdict::Here(NO_ERROR, vec![Record::A(Ipv4Addr::new(10, 70, 3, 2))]);
        let none = || Verdict::Here(NO_ERROR, vec![]);
        let unknown = || Verdict::Here(NAME_ERROR, vec![]);
        let ptr = |n: &str| Verdict::Here(NO_ERROR, vec![Record::Ptr(n.into())]);
        for (name, kind, want) in [
            ("node-2", A, a()),
            ("NODE-2.web.test", A, a()),
            ("node-2", 15, none()),
            ("v4", AAAA, none()),
            ("web.test", A, none()),
            ("node-3", A, unknown()),
            ("node-3.web.test", A, unknown()),
            ("a.node-2.web.test", A, unknown()),
            ("node-2.otherweb.test", A, Verdict::Forward),
            ("node-2.db.test", A, Verdict::Forward),
            ("notweb.test", A, Verdict::Forward),
            ("example.com", A, Verdict::Forward),
            ("com", 2, Verdict::Forward),
            ("", 2, Verdict::Forward),
            ("2.3.70.10.in-addr.arpa", PTR, ptr("node-2.web.test")),
            ("9.3.70.10.in-addr.arpa", PTR, unknown()),
            ("2.4.70.10.in-addr.arpa", PTR, Verdict::Forward),
            ("3.70.10.in-addr.arpa", PTR, Verdict::Forward),
        ] {
            assert_eq!(ask(name, kind), want, "{name} {kind}");
        }
        let both = ask("node-2", ANY);
        assert!(matches!(&both, Verdict::Here(NO_ERROR, r) if r.len() == 2), "{both:?}");
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa";
        assert_eq!(ask(six, PTR), ptr("node-2.web.test"));
        assert_eq!(ask(&six.replacen('2', "3", 1), PTR), unknown());
        assert_eq!(ask(&six.replace("d.f.ip6", "0.2.ip6"), PTR), Verdict::Forward);
    }

    #[test]
    fn members_come_and_go() {
        let mut zone = zone();
        let name = MachineName::new("late").unwrap();
        let q = parse(&query("late", A)).unwrap();
        assert_eq!(zone.decide(&q), Verdict::Here(NAME_ERROR, vec![]));
        zone.set(&name, Ipv4Addr::new(10, 70, 3, 9), None);
        assert_eq!(zone.decide(&q), Verdict::Here(NO_ERROR, vec![Record::A(Ipv4Addr::new(10, 70, 3, 9))]));
        zone.remove(&name);
        assert_eq!(zone.decide(&q), Verdict::Here(NAME_ERROR, vec![]));
    }
}
