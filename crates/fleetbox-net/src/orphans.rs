//! Things that look like fleetbox's and that no record accounts for.

use std::collections::HashSet;

use fleetbox_spec::ClusterName;
use fleetbox_store::Store;
use serde_json::Value;

use crate::forwarding::Alias;
use crate::journal::load;
use crate::netlink::{LinkType, Netlink};
use crate::ruleset::bridge_of_table;
use crate::{NetError, Resource, is_our_bridge, is_our_tap, nft};

/// A link, table or rule of fleetbox's form that no journal of this store names and no living process is
/// known to own. It may belong to another FLEETBOX_HOME whose owner was killed and has not been reconciled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// What it is.
    pub resource: Resource,
    /// The command that removes it.
    pub remedy: String,
}

/// Scans this network namespace for orphans. Removes nothing.
///
/// Without an `nft` program only links are looked at.
///
/// # Errors
/// When links, rules or journals cannot be listed.
pub async fn orphans(store: &Store) -> Result<Vec<Orphan>, NetError> {
    let named = named_in_journals(store)?;
    let links = Netlink::connect()?.links().await?;
    let mut accounted: HashSet<&str> = HashSet::new();
    let mut all = Vec::new();
    for link in &links {
        let resource = match link.of {
            LinkType::Bridge if is_our_bridge(&link.name) => Resource::Bridge { name: link.name.clone() },
            LinkType::Tun if is_our_tap(&link.name) => Resource::Tap { name: link.name.clone() },
            _ => continue,
        };
        // A tap needs a process that holds it, so it is as much accounted for as its bridge.
        let bridge = link.controller.map_or(Some(link), |c| links.iter().find(|l| l.index == c));
        let lives =
            bridge.and_then(|b| Alias::parse(b.alias.as_deref()?)).is_some_and(|a| a.owner_may_live());
        if lives || named.contains(&resource) {
            accounted.insert(&link.name);
        } else {
            all.push(Orphan { resource, remedy: format!("ip link delete {}", link.name) });
        }
    }
    let objects = match nft::ruleset().await {
        Err(NetError::NftMissing) => Vec::new(),
        r => r?,
    };
    for object in &objects {
        if let Some((resource, bridge, remedy)) = of_ours(object) {
            let orphan = Orphan { resource, remedy };
            // One rule of a chain stands for all that carry the same comment.
            if !accounted.contains(bridge) && !named.contains(&orphan.resource) && !all.contains(&orphan) {
                all.push(orphan);
            }
        }
    }
    Ok(all)
}

/// A table of ours, or a rule of ours in another's: what, of which bridge, and how to remove it.
fn of_ours(object: &Value) -> Option<(Resource, &str, String)> {
    let text = |v: &'static str, of: &Value| of.get(v).and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(table) = object.get("table") {
        let bridge = bridge_of_table(table.get("name")?.as_str()?)?;
        let (family, name) = (text("family", table), text("name", table));
        let remedy = format!("nft delete table {family} {name}");
        return Some((Resource::NftTable { family, name }, bridge, remedy));
    }
    let rule = object.get("rule")?;
    let bridge = rule.get("comment")?.as_str()?.strip_prefix("fleetbox ").filter(|b| is_our_bridge(b))?;
    let (family, table, chain) = (text("family", rule), text("table", rule), text("chain", rule));
    let remedy = format!(
        "nft -a list chain {family} {table} {chain}, then nft delete rule {family} {table} {chain} handle N for each with the comment \"fleetbox {bridge}\""
    );
    Some((Resource::NftRules { family, table, chain, comment: text("comment", rule) }, bridge, remedy))
}

/// What the journals of the store name, whoever owns them; a damaged one is passed over, `reconcile` reports it.
fn named_in_journals(store: &Store) -> Result<HashSet<Resource>, NetError> {
    let failed = |source| NetError::Proc { action: "read the folder of journals", source };
    let mut all = HashSet::new();
    for entry in std::fs::read_dir(store.journal_dir()).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let cluster =
            name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| ClusterName::new(n).ok());
        if let Some(Ok(Some(journal))) = cluster.map(|c| load(&store.journal_file(&c))) {
            all.extend(journal.resources);
        }
    }
    Ok(all)
}
