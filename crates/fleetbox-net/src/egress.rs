//! A network's way out, and who is kept out: our nftables table, forwarding, and other firewalls' chains.

use std::collections::BTreeMap;

use fleetbox_os::process::ProcessIdentity;
use fleetbox_store::Store;
use serde_json::Value;

use crate::netlink::{Link, Netlink};
use crate::ruleset::{self, Facts};
use crate::{Journal, NetError, Resource, foreign, forwarding, nft};

/// What was put in place.
#[derive(Debug)]
pub(crate) struct Egress {
    facts: Facts,
    /// Uplinks that this network names, see `forwarding`.
    off: BTreeMap<String, bool>,
    owner: ProcessIdentity,
}

/// What of it somebody has taken away.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Of our table, in words; "the table" if all of it.
    pub(crate) rules: Vec<String>,
    /// Chains of other tables: family, table, chain.
    pub(crate) closed: Vec<(String, String, String)>,
    /// Uplinks.
    pub(crate) forwarding: Vec<String>,
}

impl Egress {
    pub(crate) fn new(facts: Facts, owner: ProcessIdentity) -> Self {
        Self { facts, off: BTreeMap::new(), owner }
    }

    /// Puts in place what is not: everything the first time, later what has come (an uplink, another
    /// firewall) or what somebody took away (a firewall's restart flushes all tables). Returns warnings.
    ///
    /// Rules first, forwarding after: nothing is forwarded that the rules would not let.
    pub(crate) async fn ensure(
        &mut self,
        store: &Store,
        netlink: &Netlink,
        journal: &Journal,
        bridge: &Link,
    ) -> Result<Vec<String>, NetError> {
        let runs = nft::Runs::of(store, journal.cluster());
        let table = ruleset::table_name(&self.facts.bridge);
        let objects = nft::around(ruleset::FAMILY, &table).await?;
        journal.record(Resource::NftTable { family: ruleset::FAMILY.to_owned(), name: table.clone() })?;
        let entering = forwarding::enter(store, netlink, journal, bridge, &self.owner, &self.off).await?;
        if entering.changed {
            self.off = entering.off.clone();
            // Where the global switch was on, the host was a router before us.
            self.facts.opened =
                self.off.iter().filter(|(_, global)| !**global).map(|(link, _)| link.clone()).collect();
            self.facts.others = entering.others.iter().cloned().collect();
        }
        if entering.changed || !ruleset::missing(&self.facts, &of_table(&objects, &table)).is_empty() {
            nft::apply(&runs, "load", &format!("table {table}"), ruleset::commands(&self.facts)).await?;
            let listing = nft::table(ruleset::FAMILY, &table).await?.unwrap_or_default();
            let missing = ruleset::missing(&self.facts, &listing);
            if !missing.is_empty() {
                return Err(NetError::RulesMissing { table, missing });
            }
        }
        entering.switch_on(&self.facts.bridge)?;
        let plan = self.closed(&objects);
        let mut warnings = foreign::open(journal, &runs, &plan, &self.facts.bridge).await?;
        warnings.extend(foreign::legacy_warning());
        Ok(warnings)
    }

    /// What other firewalls need that they do not have.
    fn closed(&self, objects: &[Value]) -> foreign::Plan {
        let mut plan = foreign::plan(objects, &self.facts.bridge, self.facts.dns_port.unwrap_or(53));
        plan.openings.retain(|o| !o.is_open(objects, &self.facts.bridge));
        plan
    }

    /// Looks what has been taken away.
    pub(crate) async fn losses(&self) -> Result<Losses, NetError> {
        let table = ruleset::table_name(&self.facts.bridge);
        let objects = nft::around(ruleset::FAMILY, &table).await?;
        let listing = of_table(&objects, &table);
        let rules = if listing.is_empty() {
            vec!["the table".to_owned()]
        } else {
            ruleset::missing(&self.facts, &listing)
        };
        let closed = self.closed(&objects).openings.into_iter().map(|o| (o.family, o.table, o.chain));
        Ok(Losses { rules, closed: closed.collect(), forwarding: forwarding::switched_off(&self.off)? })
    }
}

/// The chains and rules of one of our tables in a listing.
fn of_table(objects: &[Value], table: &str) -> Vec<Value> {
    let is_of = |inner: &Value| {
        inner.get("table").and_then(Value::as_str) == Some(table)
            && inner.get("family").and_then(Value::as_str) == Some(ruleset::FAMILY)
    };
    objects.iter().filter(|o| o.as_object().is_some_and(|o| o.values().any(is_of))).cloned().collect()
}
