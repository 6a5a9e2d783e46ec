//! Names of links. The kernel takes 15 bytes (IFNAMSIZ), so names are hashes.
//!
//! They are the same for the same store, cluster and machine, so that a journal, a restart and `ip link`
//! agree; and different for two stores on one host.

use std::net::Ipv6Addr;

use fleetbox_spec::{ClusterName, MachineName};
use fleetbox_store::Store;
use sha2::{Digest, Sha256};

/// Prefix of bridges; nftables rules of other clusters match it as `fb*`.
pub(crate) const BRIDGE_PREFIX: &str = "fb";
const TAP_PREFIX: &str = "ft";
const BRIDGE_DIGITS: usize = 8;
const TAP_DIGITS: usize = 12;

fn digest(store: &Store, cluster: &ClusterName, machine: Option<&MachineName>) -> [u8; 32] {
    use std::os::unix::ffi::OsStrExt;
    let mut hash = Sha256::new();
    hash.update(store.root().as_os_str().as_bytes());
    // No path and no name holds a NUL, so no two inputs run into one another.
    hash.update([0]);
    hash.update(cluster.as_str());
    if let Some(machine) = machine {
        hash.update([0]);
        hash.update(machine.as_str());
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8], digits: usize) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()[..digits].to_owned()
}

/// The bridge of a cluster: `fb` and 8 hex digits.
#[must_use]
pub fn bridge_name(store: &Store, cluster: &ClusterName) -> String {
    format!("{BRIDGE_PREFIX}{}", hex(&digest(store, cluster, None), BRIDGE_DIGITS))
}

/// The tap of a machine: `ft` and 12 hex digits.
#[must_use]
pub fn tap_name(store: &Store, cluster: &ClusterName, machine: &MachineName) -> String {
    format!("{TAP_PREFIX}{}", hex(&digest(store, cluster, Some(machine)), TAP_DIGITS))
}

/// The bridge's MAC: locally administered, and fixed, since a bridge without one takes the lowest of its
/// ports' and so changes it whenever a machine comes or goes.
pub(crate) fn bridge_mac(store: &Store, cluster: &ClusterName) -> [u8; 6] {
    let d = digest(store, cluster, None);
    [0x52, 0x54, 0x01, d[8], d[9], d[10]]
}

/// The IPv6 network of a cluster: a unique local /64 (RFC 4193) with the hash for its random part, so that it is
/// the same each time and met nowhere else.
pub(crate) fn ula_prefix(store: &Store, cluster: &ClusterName) -> Ipv6Addr {
    let d = digest(store, cluster, None);
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&d[24..31]);
    octets.into()
}

/// Where the search for a free subnet starts, spread over clusters and stores.
pub(crate) fn subnet_seed(store: &Store, cluster: &ClusterName) -> u64 {
    let d = digest(store, cluster, None);
    d[16..24].iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn has_form(link: &str, prefix: &str, digits: usize) -> bool {
    link.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == digits && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Whether a link's name has the form of [`bridge_name`], of whatever store and cluster.
#[must_use]
pub fn is_our_bridge(link: &str) -> bool {
    has_form(link, BRIDGE_PREFIX, BRIDGE_DIGITS)
}

/// Whether a link's name has the form of [`tap_name`], of whatever store, cluster and machine.
#[must_use]
pub fn is_our_tap(link: &str) -> bool {
    has_form(link, TAP_PREFIX, TAP_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_stores_clusters_and_machines_apart() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (Store::open(a.path()).unwrap(), Store::open(b.path()).unwrap());
        let c = |s: &str| ClusterName::new(s).unwrap();
        let m = |s: &str| MachineName::new(s).unwrap();
        let bridges = [bridge_name(&a, &c("x")), bridge_name(&a, &c("y")), bridge_name(&b, &c("x"))];
        let taps =
            [tap_name(&a, &c("x"), &m("n")), tap_name(&a, &c("x"), &m("o")), tap_name(&b, &c("x"), &m("n"))];
        assert!(bridges.iter().all(|n| n.len() < 16 && is_our_bridge(n) && !is_our_tap(n)), "{bridges:?}");
        assert!(taps.iter().all(|n| n.len() < 16 && is_our_tap(n) && !is_our_bridge(n)), "{taps:?}");
        let all: std::collections::HashSet<_> = bridges.iter().chain(&taps).collect();
        assert_eq!(all.len(), 6);
        assert_eq!(bridge_name(&a, &c("x")), bridges[0]);
        assert!(!is_our_bridge("fb0") && !is_our_bridge("fbABCDEF01") && !is_our_bridge("fb123456789"));
        assert_eq!(bridge_mac(&a, &c("x"))[0] & 0b11, 0b10);
    }
}
