//! Forwarding on the host's uplinks, for machines' egress.
//!
//! Linux forwards an IPv4 packet if the link it came in on has `forwarding` (net.ipv4.conf.LINK.forwarding).
//! Machines' packets come in on our bridge, whose setting goes with it; their answers come in on an uplink,
//! whose setting is the host's. The global `ip_forward` is never touched.
//!
//! Several networks, of several stores, share an uplink: the last one out restores it. The count is kept
//! where all of them see it and no crash can make it wrong: each bridge's alias names the uplinks that its
//! network needs and that were off before any of them, and its owner. An owner that was killed leaves bridge and
//! alias behind: who comes then still learns that the uplink was off; who leaves then does not wait for the dead
//! one's undo (its journal may be lost), and restores the setting if no living owner's bridge names it.

use std::collections::BTreeMap;

use fleetbox_os::process::{Liveness, ProcessIdentity};
use fleetbox_store::{LockKind, Store};

use crate::lock::HostLock;
use crate::netlink::{Link, LinkType, Netlink};
use crate::{Journal, NetError, Resource, is_our_bridge, sysctl};

/// What a bridge's alias says: whose it is, and the uplinks that were off, each with whether the global
/// switch was on then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Alias {
    pid: u32,
    start_time: u64,
    pid_ns: u64,
    pub(crate) off: BTreeMap<String, bool>,
}

impl Alias {
    pub(crate) fn of(owner: &ProcessIdentity) -> Self {
        Self { pid: owner.pid, start_time: owner.start_time, pid_ns: owner.pid_ns, off: BTreeMap::new() }
    }

    /// `fleetbox <pid> <start time> <pid namespace> <uplink>=<0|1> …`. Link names hold no white space; the kernel takes 255 bytes.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("fleetbox {} {} {}", self.pid, self.start_time, self.pid_ns);
        for (link, global) in &self.off {
            text.push_str(&format!(" {link}={}", u8::from(*global)));
        }
        text
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("fleetbox ")?.split(' ');
        let (pid, start_time) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let pid_ns = words.next()?.parse().ok()?;
        let off = words.filter_map(|w| w.rsplit_once('=')).map(|(l, g)| (l.to_owned(), g == "1")).collect();
        Some(Self { pid, start_time, pid_ns, off })
    }

    /// Whether its owner lives, or may live in a PID namespace that cannot be seen into. Links are of this boot.
    pub(crate) fn owner_may_live(&self) -> bool {
        let me = ProcessIdentity::current();
        me.is_ok_and(|me| {
            let owner =
                ProcessIdentity { pid: self.pid, start_time: self.start_time, pid_ns: self.pid_ns, ..me };
            owner.liveness() != Liveness::Dead
        })
    }
}

fn key(link: &str) -> String {
    format!("net/ipv4/conf/{link}/forwarding")
}

fn is_on(key: &str) -> Result<Option<bool>, NetError> {
    Ok(sysctl::read(key)?.map(|v| v != "0"))
}

/// What other networks' bridges say.
fn others<'a>(links: &'a [Link], own_bridge: &'a str) -> impl Iterator<Item = Alias> + 'a {
    links
        .iter()
        .filter(move |l| l.of == LinkType::Bridge && l.name != own_bridge && is_our_bridge(&l.name))
        .filter_map(|l| Alias::parse(l.alias.as_deref()?))
}

/// Which uplinks a network must name: those that are off, and those that are on only for another network.
/// Each with whether the global switch was on when it was first named. Pure.
fn to_name(
    uplinks: &[(String, bool)],
    global: bool,
    others: &BTreeMap<String, bool>,
) -> BTreeMap<String, bool> {
    uplinks
        .iter()
        .filter_map(|(link, on)| match others.get(link) {
            Some(&then) => Some((link.clone(), then)),
            None => (!on).then(|| (link.clone(), global)),
        })
        .collect()
}

/// The step between naming the uplinks and switching them on: a held lock and what was decided.
pub(crate) struct Entering {
    _lock: HostLock,
    /// All that this network names.
    pub(crate) off: BTreeMap<String, bool>,
    /// Whether that is more than before.
    pub(crate) changed: bool,
    /// Other links that were there, ours left out.
    pub(crate) others: Vec<String>,
    uplinks: Vec<String>,
}

/// Looks at the uplinks and names those to be switched on, in the journal and on the bridge. The caller puts
/// its rules in place before it calls [`Entering::switch_on`], so that nothing is forwarded without them.
pub(crate) async fn enter(
    store: &Store,
    netlink: &Netlink,
    journal: &Journal,
    bridge: &Link,
    owner: &ProcessIdentity,
    already: &BTreeMap<String, bool>,
) -> Result<Entering, NetError> {
    let lock = HostLock::take(store, LockKind::Forwarding).await?;
    let links = netlink.links().await?;
    let mut uplinks = Vec::new();
    for index in netlink.uplinks().await? {
        if let Some(link) = links.iter().find(|l| l.index == index && !is_our_bridge(&l.name))
            && let Some(on) = is_on(&key(&link.name))?
        {
            uplinks.push((link.name.clone(), on));
        }
    }
    let global = is_on("net/ipv4/ip_forward")?.unwrap_or(false);
    let mut off = to_name(&uplinks, global, &others(&links, &bridge.name).flat_map(|a| a.off).collect());
    for (link, then) in already {
        off.insert(link.clone(), *then);
    }
    let changed = off != *already;
    if changed {
        for (link, global) in &off {
            journal.record(Resource::Forwarding { link: link.clone(), global: *global })?;
        }
        netlink.set_alias(bridge, &Alias { off: off.clone(), ..Alias::of(owner) }.to_text()).await?;
    }
    let others =
        links.into_iter().map(|l| l.name).filter(|n| n != "lo" && !is_our_bridge(n) && !crate::is_our_tap(n));
    let uplinks = uplinks.into_iter().map(|(l, _)| l).filter(|l| off.contains_key(l)).collect();
    Ok(Entering { _lock: lock, changed, others: others.collect(), uplinks, off })
}

impl Entering {
    /// Switches forwarding on, on the bridge and the uplinks that are off.
    pub(crate) fn switch_on(self, bridge: &str) -> Result<(), NetError> {
        for link in self.uplinks.iter().map(String::as_str).chain([bridge]) {
            if is_on(&key(link))? == Some(false) {
                sysctl::write(&key(link), "1")?;
            }
        }
        Ok(())
    }
}

/// Takes a network's name off an uplink, and switches it off again if no living one names it.
///
/// `global` says whether the global switch was on when the uplink was found off. If it was off then and is on now, somebody
/// (Docker, an admin) has since asked for forwarding on every link, and it stays.
pub(crate) async fn leave(store: &Store, own_bridge: &str, link: &str, global: bool) -> Result<(), NetError> {
    let _lock = HostLock::take(store, LockKind::Forwarding).await?;
    let netlink = Netlink::connect()?;
    let links = netlink.links().await?;
    // First the name, then the setting: who leaves after us must not take our bridge for one that needs it still.
    if let Some(bridge) = links.iter().find(|l| l.name == own_bridge && l.of == LinkType::Bridge)
        && let Some(mut alias) = bridge.alias.as_deref().and_then(Alias::parse)
        && alias.off.remove(link).is_some()
    {
        netlink.set_alias(bridge, &alias.to_text()).await?;
    }
    if others(&links, own_bridge).any(|a| a.off.contains_key(link) && a.owner_may_live()) {
        return Ok(());
    }
    if !global && is_on("net/ipv4/ip_forward")? == Some(true) {
        tracing::info!(link, "forwarding was switched on for all links meanwhile: left on");
        return Ok(());
    }
    sysctl::write(&key(link), "0").map(|_| ())
}

/// Uplinks of a network on which somebody has switched forwarding off meanwhile.
pub(crate) fn switched_off(off: &BTreeMap<String, bool>) -> Result<Vec<String>, NetError> {
    let mut all = Vec::new();
    for link in off.keys() {
        if is_on(&key(link))? == Some(false) {
            all.push(link.clone());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_alias_reads_back(
            pid in any::<u32>(), start_time in any::<u64>(), pid_ns in any::<u64>(),
            off in prop::collection::btree_map("[a-z0-9.=@-]{1,15}", any::<bool>(), 0..5)
        ) {
            let alias = Alias { pid, start_time, pid_ns, off };
            prop_assert_eq!(Alias::parse(&alias.to_text()), Some(alias));
        }

        #[test]
        fn any_alias_is_read_without_a_panic(text in "\\PC{0,80}") {
            let _ = Alias::parse(&text);
            let _ = Alias::parse(&format!("fleetbox {text}"));
        }

        /// Networks come, go, are killed and reconciled in any order, each as `enter` and `leave` do it. While one
        /// lives its uplinks are on; at the end every link is as it was.
        #[test]
        fn the_last_one_out_restores(
            before in any::<[bool; 2]>(), global in any::<bool>(),
            steps in prop::collection::vec((0usize..4, any::<bool>()), 0..60)
        ) {
            struct Net { off: BTreeMap<String, bool>, lives: bool }
            let names = ["eth0", "eth1"];
            let mut on = before;
            let mut nets: [Option<Net>; 4] = Default::default();
            let leave = |nets: &mut [Option<Net>; 4], on: &mut [bool; 2], who: usize| {
                let Some(mine) = nets[who].take() else { return };
                for (i, name) in names.iter().enumerate() {
                    let needed = nets.iter().flatten().any(|n| n.lives && n.off.contains_key(*name));
                    if mine.off.contains_key(*name) && !needed {
                        on[i] = false;
                    }
                }
            };
            for (who, kill) in steps {
                match &mut nets[who] {
                    Some(net) if kill => net.lives = false,
                    Some(_) => leave(&mut nets, &mut on, who),
                    None => {
                        let uplinks: Vec<_> = names.iter().zip(on).map(|(n, on)| ((*n).to_owned(), on)).collect();
                        let others = nets.iter().flatten().flat_map(|n| n.off.clone()).collect();
                        nets[who] = Some(Net { off: to_name(&uplinks, global, &others), lives: true });
                        on = [true; 2];
                    }
                }
                if nets.iter().flatten().any(|n| n.lives) {
                    prop_assert_eq!(on, [true; 2]);
                }
            }
            for who in 0..4 {
                leave(&mut nets, &mut on, who);
            }
            prop_assert_eq!(on, before);
        }
    }
}
