//! What tests leave behind on the host.
//!
//! A [`HostSnapshot`] is a set of plain facts, each under a [`Kind`] and each worded so that it stays the same
//! while nothing changes: no counters, no lifetimes, no indices. Two snapshots differ by what a test left or
//! took away. What only ever appears with a leak (a process, a mount, a file) is reported when it appeared; what
//! the host had before and must have again (an address, a route, a rule, a setting) also when it went.
//!
//! It looks at the network namespace of the calling thread, and at the processes of its pid namespace.

mod files;
mod network;
mod processes;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wait_for;

/// What a fact is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A virtual machine monitor, a holder, or something that either started.
    Process,
    /// A network link.
    Link,
    /// An address of a link.
    Address,
    /// A route, of any table.
    Route,
    /// A table, chain, set or rule of nftables.
    Nft,
    /// A network setting of the kernel.
    Sysctl,
    /// A mount of this mount namespace.
    Mount,
    /// A loop device with a file behind it.
    LoopDevice,
    /// A file below FLEETBOX_HOME that belongs to something that runs, or is half made.
    File,
}

impl Kind {
    /// Whether its going away is a change that a test must not make either.
    fn must_come_back(self) -> bool {
        matches!(self, Self::Link | Self::Address | Self::Route | Self::Nft | Self::Sysctl)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Process => "process",
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Nft => "nftables",
            Self::Sysctl => "sysctl",
            Self::Mount => "mount",
            Self::LoopDevice => "loop device",
            Self::File => "file",
        })
    }
}

/// Whether a fact is new or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It was not there before.
    Left,
    /// It was there before.
    Gone,
}

/// One difference between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leak {
    /// What it is about.
    pub kind: Kind,
    /// Left behind, or taken away.
    pub change: Change,
    /// The fact.
    pub what: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = match self.change {
            Change::Left => "left",
            Change::Gone => "gone",
        };
        write!(f, "{} {change}: {}", self.kind, self.what)
    }
}

/// The facts, each with the number of times it holds (two rules may read the same).
type Facts = BTreeMap<(Kind, String), usize>;

/// What is on the host at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSnapshot {
    facts: Facts,
    home: Option<PathBuf>,
    unread: Vec<String>,
}

impl HostSnapshot {
    /// Looks at the host, and at a FLEETBOX_HOME if one is given. Changes nothing.
    #[must_use]
    pub fn take(home: Option<&Path>) -> Self {
        let mut collect = Collect::default();
        processes::collect(&mut collect, home);
        network::collect(&mut collect);
        files::collect(&mut collect, home);
        Self { facts: collect.facts, home: home.map(Path::to_owned), unread: collect.unread }
    }

    /// What could not be looked at, and why: as another user than root, nftables for one.
    #[must_use]
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// What a later snapshot has that this one has not, and the other way round where that matters.
    #[must_use]
    pub fn diff(&self, later: &Self) -> Vec<Leak> {
        let mut all = Vec::new();
        let mut add = |from: &Facts, to: &Facts, change: Change| {
            for ((kind, what), count) in to {
                let before = from.get(&(*kind, what.clone())).copied().unwrap_or(0);
                if *count > before && (change == Change::Left || kind.must_come_back()) {
                    all.push(Leak { kind: *kind, change, what: what.clone() });
                }
            }
        };
        add(&self.facts, &later.facts, Change::Left);
        add(&later.facts, &self.facts, Change::Gone);
        // A link says it all; its hundred settings do not need saying.
        let links: Vec<String> = all
            .iter()
            .filter(|l| l.kind == Kind::Link && !l.what.contains(": "))
            .map(|l| l.what.clone())
            .collect();
        all.retain(|l| !links.iter().any(|link| network::belongs_to_link(l.kind, &l.what, link)));
        all.sort();
        all
    }

    /// Waits until the host is again as it was in this snapshot.
    ///
    /// # Errors
    /// What still differs when the time is up.
    pub fn wait_until_back(&self, within: Duration) -> Result<(), Vec<Leak>> {
        let mut last = Vec::new();
        wait_for("the host to be as before", within, || {
            last = self.diff(&Self::take(self.home.as_deref()));
            if last.is_empty() { Ok(()) } else { Err(format!("{} differences", last.len())) }
        })
        .map_err(|_| last)
    }
}

/// Facts being collected.
#[derive(Debug, Default)]
struct Collect {
    facts: Facts,
    unread: Vec<String>,
}

impl Collect {
    fn add(&mut self, kind: Kind, what: impl Into<String>) {
        *self.facts.entry((kind, what.into())).or_default() += 1;
    }

    fn unread(&mut self, what: &str, why: impl fmt::Display) {
        self.unread.push(format!("{what}: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(facts: &[(Kind, &str, usize)]) -> HostSnapshot {
        let facts = facts.iter().map(|(k, w, n)| ((*k, (*w).to_owned()), *n)).collect();
        HostSnapshot { facts, home: None, unread: Vec::new() }
    }

    #[test]
    fn differences_by_kind_and_count() {
        let before = snapshot(&[
            (Kind::Process, "1 init", 1),
            (Kind::Process, "7 old", 1),
            (Kind::Nft, "rule", 1),
            (Kind::Sysctl, "forwarding = 0", 1),
        ]);
        assert_eq!(before.diff(&before), vec![]);
        let after = snapshot(&[
            (Kind::Process, "1 init", 1),
            (Kind::Process, "9 qemu", 1),
            (Kind::Nft, "rule", 2),
            (Kind::Sysctl, "forwarding = 1", 1),
        ]);
        let diff: Vec<String> = before.diff(&after).iter().map(ToString::to_string).collect();
        assert_eq!(
            diff,
            [
                "process left: 9 qemu",
                "nftables left: rule",
                "sysctl left: forwarding = 1",
                "sysctl gone: forwarding = 0",
            ]
        );
    }

    #[test]
    fn a_link_stands_for_what_is_its_own() {
        let before = snapshot(&[(Kind::Link, "eth0", 1), (Kind::Link, "eth0: up", 1)]);
        let after = snapshot(&[
            (Kind::Link, "eth0", 1),
            (Kind::Link, "eth0: down", 1),
            (Kind::Link, "br0", 1),
            (Kind::Link, "br0: up", 1),
            (Kind::Address, "br0: 10.0.0.1", 1),
            (Kind::Sysctl, "net/ipv4/conf/br0/forwarding = 1", 1),
            (Kind::Sysctl, "net/ipv4/conf/br01/forwarding = 1", 1),
            (Kind::Route, "10.0.0.0/24 dev br0", 1),
        ]);
        let diff: Vec<String> = before.diff(&after).iter().map(ToString::to_string).collect();
        assert_eq!(
            diff,
            [
                "link left: br0",
                "link left: eth0: down",
                "link gone: eth0: up",
                "route left: 10.0.0.0/24 dev br0",
                "sysctl left: net/ipv4/conf/br01/forwarding = 1",
            ]
        );
    }

    #[test]
    fn a_file_left_behind_is_named_until_it_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let home = tmp.path();
        for dir in ["run", "journal", "images"] {
            std::fs::create_dir(home.join(dir)).unwrap();
        }
        let before = HostSnapshot::take(Some(home));
        std::fs::write(home.join("run/probe-1.json"), "").unwrap();
        std::fs::create_dir(home.join("images/finished")).unwrap();
        let own = |leaks: Vec<Leak>| -> Vec<String> {
            leaks.into_iter().filter(|l| l.kind == Kind::File).map(|l| l.what).collect()
        };
        assert_eq!(own(before.diff(&HostSnapshot::take(Some(home)))), [""; 0]);
        std::fs::write(home.join("run/1.sock"), "").unwrap();
        std::fs::write(home.join("journal/net.json"), "").unwrap();
        std::fs::create_dir(home.join("images/.x.part")).unwrap();
        let left = own(before.wait_until_back(Duration::ZERO).unwrap_err());
        assert_eq!(left, ["images/.x.part", "journal/net.json", "run/1.sock"]);
    }
}
