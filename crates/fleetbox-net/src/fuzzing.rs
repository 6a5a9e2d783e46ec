//! The parsers of foreign bytes, for `fuzz/`. Not part of the API.

use std::net::Ipv4Addr;

use fleetbox_spec::{ClusterName, MachineName};

use crate::dns::{Zone, message};

/// A DNS message that a guest sent, and one that came back for it from a resolver.
pub fn dns(bytes: &[u8]) {
    let (Ok(cluster), Ok(name)) = (ClusterName::new("web"), MachineName::new("node-1")) else { return };
    let mut zone = Zone::new(&cluster, Ipv4Addr::new(10, 70, 3, 0), None);
    zone.set(&name, Ipv4Addr::new(10, 70, 3, 2), None);
    if let Some(answer) = message(&zone, bytes) {
        // Answers to answers would make a loop.
        assert!(message(&zone, &answer).is_none(), "an answer is answered");
        assert!(answer.len() >= 12 && answer.get(..2) == bytes.get(..2), "an answer to something else");
    }
}
