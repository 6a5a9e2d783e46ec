//! Other firewalls on the host (Docker, ufw, firewalld, an admin's own).
//!
//! A packet passes the forward hook only if every table lets it. So where another table's base chain may
//! drop, rules that accept our bridge's packets go to its head, marked with a comment, journalled, and taken
//! out again. They open nothing that our own table does not close: new connections to machines from
//! elsewhere are still dropped there.
//!
//! The rules hold nothing but link names, protocols and ports. `iptables` on nftables reads such rules as
//! its own, whereas one with `ct state` makes it refuse the whole table ("table is incompatible", seen with 1.8.9).

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::ruleset::bridge_of_table;
use crate::{Journal, NetError, Resource, nft};

/// What to insert at the head of one foreign chain.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Opening {
    pub(crate) family: String,
    pub(crate) table: String,
    pub(crate) chain: String,
    rules: Vec<Vec<Value>>,
    /// What does not work if these cannot be inserted.
    cost: &'static str,
}

/// What other firewalls need so that a network works.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) openings: Vec<Opening>,
    pub(crate) warnings: Vec<String>,
}

/// `comment` of every rule that a network has in others' tables.
pub(crate) fn comment(bridge: &str) -> String {
    format!("fleetbox {bridge}")
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What may become of a packet in a chain.
#[derive(Debug, Default, Clone, Copy)]
struct Fate {
    may_be_dropped: bool,
    /// There is a rule about connection state: established connections pass, as on every usable host.
    state_is_known: bool,
}

/// Looks through a chain and those it leads to.
fn fate(objects: &[Value], family: &str, table: &str, chain: &str, seen: &mut HashSet<String>) -> Fate {
    let mut fate = Fate::default();
    if !seen.insert(chain.to_owned()) {
        return fate;
    }
    let ours =
        |r: &&Value| text(r, "family") == family && text(r, "table") == table && text(r, "chain") == chain;
    for rule in objects.iter().filter_map(|o| o.get("rule")).filter(ours) {
        let mut targets = Vec::new();
        if let Some(expr) = rule.get("expr") {
            walk(expr, &mut fate, &mut targets);
        }
        for target in targets {
            let there = self::fate(objects, family, table, &target, seen);
            fate.may_be_dropped |= there.may_be_dropped;
            fate.state_is_known |= there.state_is_known;
        }
    }
    fate
}

fn walk(expr: &Value, fate: &mut Fate, targets: &mut Vec<String>) {
    match expr {
        Value::Array(all) => all.iter().for_each(|v| walk(v, fate, targets)),
        Value::String(s) => fate.state_is_known |= s == "established",
        Value::Object(o) => {
            for (key, value) in o {
                match key.as_str() {
                    "drop" | "reject" => fate.may_be_dropped = true,
                    "jump" | "goto" => targets.push(text(value, "target").to_owned()),
                    // iptables' own extensions, which nft names but does not read.
                    "xt" => match text(value, "name") {
                        "conntrack" | "state" => fate.state_is_known = true,
                        "REJECT" | "DROP" => fate.may_be_dropped = true,
                        _ => {}
                    },
                    // A verdict map with a name: its elements are elsewhere, so expect the worst.
                    "vmap" => {
                        fate.may_be_dropped |= value.get("data").is_some_and(Value::is_string);
                        walk(value, fate, targets);
                    }
                    _ => walk(value, fate, targets),
                }
            }
        }
        _ => {}
    }
}

/// Whether a chain is one of `iptables` on nftables, by the names that it alone gives.
fn is_of_iptables(family: &str, table: &str, chain: &str) -> bool {
    matches!(family, "ip" | "ip6") && table == "filter" && matches!(chain, "INPUT" | "FORWARD")
}

/// Decides what to open, from a listing of the whole ruleset. Pure.
pub(crate) fn plan(objects: &[Value], bridge: &str, dns_port: u16) -> Plan {
    let mut plan = Plan::default();
    let link =
        |key: &str| json!({ "match": { "op": "==", "left": { "meta": { "key": key } }, "right": bridge } });
    let accept = |mut expr: Vec<Value>| {
        expr.extend([json!({ "counter": { "packets": 0, "bytes": 0 } }), json!({ "accept": null })]);
        expr
    };
    for chain in objects.iter().filter_map(|o| o.get("chain")) {
        let (family, table, name) = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
        if !matches!(family, "ip" | "ip6" | "inet") || bridge_of_table(table).is_some() {
            continue;
        }
        let hook = text(chain, "hook");
        let mut fate = fate(objects, family, table, name, &mut HashSet::new());
        fate.may_be_dropped |= text(chain, "policy") == "drop";
        if !fate.may_be_dropped {
            continue;
        }
        let mut rules = Vec::new();
        match hook {
            "forward" => rules.extend([accept(vec![link("iifname")]), accept(vec![link("oifname")])]),
            "input" => {
                for protocol in ["udp", "tcp"] {
                    rules.push(accept(vec![
                        link("iifname"),
                        json!({ "match": { "op": "==",
                            "left": { "payload": { "protocol": protocol, "field": "dport" } }, "right": dns_port } }),
                    ]));
                }
                // Without ICMPv6 there is no neighbour discovery.
                let protocols: &[&str] = match family {
                    "ip" => &["icmp"],
                    "ip6" => &["ipv6-icmp"],
                    _ => &["icmp", "ipv6-icmp"],
                };
                for protocol in protocols {
                    rules.push(accept(vec![
                        link("iifname"),
                        json!({ "match": { "op": "==", "left": { "meta": { "key": "l4proto" } }, "right": protocol } }),
                    ]));
                }
                if !fate.state_is_known && is_of_iptables(family, table, name) {
                    let program = if family == "ip6" { "ip6tables" } else { "iptables" };
                    plan.warnings.push(format!(
                        "chain {name} of table {family} {table} drops what machines answer to this host; allow it with `{program} -I {name} -i {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT`"
                    ));
                } else if !fate.state_is_known {
                    rules.push(accept(vec![
                        link("iifname"),
                        json!({ "match": { "op": "in",
                            "left": { "ct": { "key": "state" } }, "right": ["established", "related"] } }),
                    ]));
                }
            }
            _ => continue,
        }
        plan.openings.push(Opening {
            family: family.to_owned(),
            table: table.to_owned(),
            chain: name.to_owned(),
            rules,
            cost: if hook == "forward" {
                "machines have no way out of their network"
            } else {
                "machines cannot ask this host for names"
            },
        });
    }
    plan
}

impl Opening {
    fn commands(&self, bridge: &str) -> Vec<Value> {
        // Each goes to the head, so the last inserted stands first.
        let rules = self.rules.iter().rev();
        rules
            .map(|expr| {
                json!({ "insert": { "rule": {
                    "family": self.family, "table": self.table, "chain": self.chain,
                    "comment": comment(bridge), "expr": expr } } })
            })
            .collect()
    }

    /// Whether our rules are in the chain already.
    pub(crate) fn is_open(&self, objects: &[Value], bridge: &str) -> bool {
        let comment = comment(bridge);
        let ours = objects.iter().filter_map(|o| o.get("rule")).filter(|r| {
            text(r, "family") == self.family
                && text(r, "table") == self.table
                && text(r, "chain") == self.chain
                && text(r, "comment") == comment
        });
        ours.count() >= self.rules.len()
    }

    /// As the journal names it.
    pub(crate) fn resource(&self, bridge: &str) -> Resource {
        Resource::NftRules {
            family: self.family.clone(),
            table: self.table.clone(),
            chain: self.chain.clone(),
            comment: comment(bridge),
        }
    }

    fn where_(&self) -> String {
        format!("chain {} of table {} {}", self.chain, self.family, self.table)
    }
}

/// Inserts what a plan says. What cannot be inserted becomes a warning that names the chain and the cost: the
/// network is of use without it, and firewalld may own its table.
pub(crate) async fn open(
    journal: &Journal,
    runs: &nft::Runs,
    plan: &Plan,
    bridge: &str,
) -> Result<Vec<String>, NetError> {
    let mut warnings = plan.warnings.clone();
    for opening in &plan.openings {
        let resource = opening.resource(bridge);
        journal.record(resource.clone())?;
        let place = opening.where_();
        if let Err(e) = nft::apply(runs, "insert into", &place, opening.commands(bridge)).await {
            journal.strike(&resource)?;
            let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            warnings.push(format!(
                "{place} drops packets and could not be opened for {bridge} ({cause}): {}; accept packets from and to {bridge} there",
                opening.cost
            ));
        } else {
            tracing::info!(bridge, chain = place, "opened another firewall's chain for the network");
        }
    }
    Ok(warnings)
}

/// iptables-legacy keeps rules that nft cannot see.
pub(crate) fn legacy_warning() -> Option<String> {
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").ok()?;
    tables.lines().any(|t| t == "filter").then(|| {
        "this host has rules of iptables-legacy, which nftables cannot read: if its FORWARD chain drops, machines have no way out until `iptables-legacy -I FORWARD -i fb+ -j ACCEPT` and `iptables-legacy -I FORWARD -o fb+ -j ACCEPT`".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
        json!({ "chain": { "family": family, "table": table, "name": name, "type": "filter", "hook": hook, "prio": 0, "policy": policy } })
    }
    fn rule(family: &str, table: &str, chain: &str, expr: Value) -> Value {
        json!({ "rule": { "family": family, "table": table, "chain": chain, "expr": expr } })
    }
    fn opened(plan: &Plan) -> Vec<(&str, &str)> {
        plan.openings.iter().map(|o| (o.table.as_str(), o.chain.as_str())).collect()
    }

    #[test]
    fn only_chains_that_may_drop_are_opened() {
        let objects = [
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "accept"),
            chain("ip", "filter", "OUTPUT", "output", "drop"),
            chain("inet", "mine", "fwd", "forward", "accept"),
            chain("inet", "fleetbox_fb00000002", "forward", "forward", "drop"),
            chain("bridge", "b", "forward", "forward", "drop"),
        ];
        let plan = plan(&objects, "fb00000001", 53);
        assert_eq!(opened(&plan), [("filter", "FORWARD")]);
        assert!(plan.warnings.is_empty());
    }

    #[test]
    fn a_drop_is_found_behind_jumps_loops_and_maps() {
        for expr in [
            json!([{ "jump": { "target": "a" } }]),
            json!([{ "vmap": { "key": { "meta": { "key": "iifname" } }, "data": { "set": [["eth0", { "goto": { "target": "a" } }]] } } }]),
            json!([{ "vmap": { "key": { "meta": { "key": "iifname" } }, "data": "@named" } }]),
        ] {
            let objects = [
                chain("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
                rule("inet", "firewalld", "filter_FORWARD", expr.clone()),
                rule("inet", "firewalld", "a", json!([{ "jump": { "target": "b" } }])),
                rule("inet", "firewalld", "b", json!([{ "jump": { "target": "a" } }])),
                rule(
                    "inet",
                    "firewalld",
                    "b",
                    json!([{ "reject": { "type": "icmpx", "expr": "admin-prohibited" } }]),
                ),
            ];
            assert_eq!(
                opened(&plan(&objects, "fb00000001", 53)),
                [("firewalld", "filter_FORWARD")],
                "{expr}"
            );
        }
    }

    #[test]
    fn connection_state_is_never_put_into_iptables_tables() {
        let bare =
            |family, table, name| plan(&[chain(family, table, name, "input", "drop")], "fb00000001", 53);
        let has_ct = |p: &Plan| {
            p.openings.iter().any(|o| o.rules.iter().any(|r| json!(r).to_string().contains("\"ct\"")))
        };
        let iptables = bare("ip", "filter", "INPUT");
        assert!(!has_ct(&iptables) && iptables.warnings[0].contains("iptables -I INPUT -i fb00000001"));
        let own = bare("inet", "filter", "input");
        assert!(has_ct(&own) && own.warnings.is_empty());
        // Where established connections pass already there is nothing to add.
        for expr in [
            json!([{ "xt": { "type": "match", "name": "conntrack" } }, { "accept": null }]),
            json!([{ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"] } }, { "accept": null }]),
        ] {
            let objects =
                [chain("ip", "filter", "INPUT", "input", "drop"), rule("ip", "filter", "INPUT", expr)];
            let plan = plan(&objects, "fb00000001", 53);
            assert!(!has_ct(&plan) && plan.warnings.is_empty() && plan.openings.len() == 1);
        }
    }
}
