//! Which /24 a network gets, and which address a machine gets in it. Pure.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// An inclusive range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ipv4Range {
    first: u32,
    last: u32,
}

impl Ipv4Range {
    /// The network that an address with a prefix length (at most 32; more counts as 32) is in.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let address = u32::from(address);
        Self { first: address & !host_bits, last: address | host_bits }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address))
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where networks are looked for, in this order.
///
/// The first two hold 12,288 of them and are clear of what is met most on hosts and in guests: home routers
/// and hypervisors (192.168.0.0/16, the low 10.0.0.0/16s), Docker (172.17.0.0/16 and up), Kubernetes'
/// services and pods (10.96.0.0/12, 10.244.0.0/16). The others are for hosts where a VPN has all of 10.0.0.0/8.
const POOLS: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 64, 0, 0), 11),
    (Ipv4Addr::new(10, 112, 0, 0), 12),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// Chooses a free /24 and returns its first address; `None` when every one is taken.
///
/// `used` are the ranges that must not be touched. `saved`, the network's last subnet, is kept when it is
/// free. Otherwise the search starts at a place that `seed` decides, so that two hosts' or stores'
/// networks seldom meet, and takes the first free one.
#[must_use]
pub fn choose_subnet(used: &[Ipv4Range], saved: Option<Ipv4Addr>, seed: u64) -> Option<Ipv4Addr> {
    let used = merge(used);
    let free = |subnet: Ipv4Addr| {
        let candidate = Ipv4Range::new(subnet, 24);
        // The first range that ends at or after the candidate's start is the only one that can reach into it.
        let at = used.partition_point(|r| r.last < candidate.first);
        used.get(at).is_none_or(|r| !r.overlaps(&candidate))
    };
    if let Some(saved) = saved {
        let in_a_pool = POOLS.iter().any(|&(base, prefix)| Ipv4Range::new(base, prefix).contains(saved));
        if saved.octets()[3] == 0 && in_a_pool && free(saved) {
            return Some(saved);
        }
    }
    POOLS.iter().find_map(|&(base, prefix)| {
        let count = 1u32 << (24 - prefix);
        let start = u32::try_from(seed % u64::from(count)).unwrap_or(0);
        (0..count).map(|i| Ipv4Addr::from(u32::from(base) + ((start + i) % count) * 256)).find(|&s| free(s))
    })
}

/// Sorted, with no two that overlap.
fn merge(ranges: &[Ipv4Range]) -> Vec<Ipv4Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<Ipv4Range> = Vec::with_capacity(sorted.len());
    for r in sorted {
        match merged.last_mut() {
            Some(m) if r.first <= m.last => m.last = m.last.max(r.last),
            _ => merged.push(r),
        }
    }
    merged
}

/// Chooses a machine's address in a /24: `.2` to `.254`, none of `taken`.
///
/// `wanted` (the machine's last address) is kept when it is free. When the network has moved to another
/// subnet, its last octet is kept if that is free. Otherwise it is the lowest free one; `None` when all are taken.
#[must_use]
pub fn choose_address(subnet: Ipv4Addr, wanted: Option<Ipv4Addr>, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let [a, b, c, _] = subnet.octets();
    let free = |host: u8| {
        let ip = Ipv4Addr::new(a, b, c, host);
        ((2..=254).contains(&host) && !taken.contains(&ip)).then_some(ip)
    };
    wanted.and_then(|w| free(w.octets()[3])).or_else(|| (2..=254).find_map(free))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = Ipv4Range> {
        // Mostly inside the pools, so that they are really in the way.
        let address = prop_oneof![
            (0x0a40_0000u32..0x0a80_0000),
            (0xac10_0000u32..0xac20_0000),
            (0xc0a8_0000u32..0xc0a9_0000),
            any::<u32>(),
        ];
        (address, 9u8..=32).prop_map(|(a, p)| Ipv4Range::new(Ipv4Addr::from(a), p))
    }

    proptest! {
        #[test]
        fn a_chosen_subnet_is_an_aligned_private_24_that_touches_nothing(
            used in prop::collection::vec(range(), 0..60), seed in any::<u64>(), saved in any::<Option<u32>>()
        ) {
            if let Some(s) = choose_subnet(&used, saved.map(Ipv4Addr::from), seed) {
                prop_assert_eq!(s.octets()[3], 0);
                prop_assert!(s.is_private(), "{s}");
                let got = Ipv4Range::new(s, 24);
                prop_assert!(used.iter().all(|u| !u.overlaps(&got)), "{s} {used:?}");
            }
        }

        #[test]
        fn none_only_when_every_24_of_every_pool_is_touched(
            used in prop::collection::vec(range(), 0..60), seed in any::<u64>()
        ) {
            let any_free = POOLS.iter().any(|&(base, prefix)| {
                (0..1u32 << (24 - prefix)).any(|i| {
                    let c = Ipv4Range::new(Ipv4Addr::from(u32::from(base) + i * 256), 24);
                    !used.iter().any(|u| u.overlaps(&c))
                })
            });
            prop_assert_eq!(choose_subnet(&used, None, seed).is_some(), any_free);
        }

        #[test]
        fn a_free_saved_subnet_is_kept(
            used in prop::collection::vec(range(), 0..30), n in 0u32..8192, seed in any::<u64>()
        ) {
            let saved = Ipv4Addr::from(0x0a40_0000 + n * 256);
            let free = !used.iter().any(|u| u.overlaps(&Ipv4Range::new(saved, 24)));
            prop_assert_eq!(choose_subnet(&used, Some(saved), seed) == Some(saved), free);
        }

        #[test]
        fn an_address_is_a_free_host_of_the_subnet(
            taken in prop::collection::vec(0u8..=255, 0..300), wanted in any::<Option<u32>>()
        ) {
            let subnet = Ipv4Addr::new(10, 70, 3, 0);
            let taken: Vec<_> = taken.into_iter().map(|h| Ipv4Addr::new(10, 70, 3, h)).collect();
            let wanted = wanted.map(Ipv4Addr::from);
            let all_taken = (2..=254).all(|h| taken.contains(&Ipv4Addr::new(10, 70, 3, h)));
            match choose_address(subnet, wanted, &taken) {
                Some(ip) => {
                    prop_assert!(Ipv4Range::new(subnet, 24).contains(ip) && !taken.contains(&ip));
                    prop_assert!((2..=254).contains(&ip.octets()[3]));
                }
                None => prop_assert!(all_taken),
            }
        }
    }

    #[test]
    fn ranges_of_every_prefix_length() {
        let r = |p| Ipv4Range::new(Ipv4Addr::new(10, 1, 2, 3), p);
        assert_eq!((r(0).first, r(0).last), (0, u32::MAX));
        assert_eq!((r(32).first, r(32).last), (0x0a01_0203, 0x0a01_0203));
        assert_eq!((r(24).first, r(24).last), (0x0a01_0200, 0x0a01_02ff));
    }

    #[test]
    fn a_moved_machine_keeps_its_last_octet() {
        let subnet = Ipv4Addr::new(10, 70, 3, 0);
        let was = Some(Ipv4Addr::new(10, 99, 9, 17));
        assert_eq!(choose_address(subnet, was, &[]), Some(Ipv4Addr::new(10, 70, 3, 17)));
        let taken = [Ipv4Addr::new(10, 70, 3, 17), Ipv4Addr::new(10, 70, 3, 2)];
        assert_eq!(choose_address(subnet, was, &taken), Some(Ipv4Addr::new(10, 70, 3, 3)));
    }
}
