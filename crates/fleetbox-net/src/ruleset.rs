//! The nftables table of one network. Pure: facts in, JSON out, and what of it is missing.
//!
//! A verdict of ours ends only our own chain: what another table drops stays dropped (see `foreign`), and
//! what we drop no other table can let through.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::names::BRIDGE_PREFIX;

/// Family of our tables: one table for IPv4 and IPv6.
pub(crate) const FAMILY: &str = "inet";

/// The table of a bridge.
pub(crate) fn table_name(bridge: &str) -> String {
    format!("fleetbox_{bridge}")
}

/// The bridge of a table, if its name has the form of ours.
pub(crate) fn bridge_of_table(table: &str) -> Option<&str> {
    table.strip_prefix("fleetbox_").filter(|b| crate::is_our_bridge(b))
}

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) bridge: String,
    pub(crate) subnet: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) gateway6: Option<Ipv6Addr>,
    /// The port of our DNS server where it is not 53.
    pub(crate) dns_port: Option<u16>,
    /// Links on which we switched forwarding on.
    pub(crate) opened: BTreeSet<String>,
    /// Links that were there then: between them and `opened` nothing is forwarded on our account.
    pub(crate) others: BTreeSet<String>,
}

/// `comment` of each rule: how it is found again.
struct Rule {
    chain: &'static str,
    comment: &'static str,
    expr: Vec<Value>,
}

fn meta(key: &str, op: &str, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": op, "left": { "meta": { "key": key } }, "right": right.into() } })
}

fn payload(protocol: &str, field: &str, op: &str, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": op, "left": { "payload": { "protocol": protocol, "field": field } }, "right": right.into() } })
}

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> Value {
    json!({ "set": names.into_iter().collect::<Vec<_>>() })
}

const CHAINS: [(&str, &str, &str, i32); 4] = [
    ("prerouting", "nat", "prerouting", -100),
    ("input", "filter", "input", 0),
    ("forward", "filter", "forward", 0),
    ("postrouting", "nat", "postrouting", 100),
];

fn rules(f: &Facts) -> Vec<Rule> {
    let b = f.bridge.as_str();
    let from = || meta("iifname", "==", b);
    let to = || meta("oifname", "==", b);
    let subnet = || json!({ "prefix": { "addr": f.subnet.to_string(), "len": 24 } });
    let accept = || json!({ "accept": null });
    let drop = || json!({ "drop": null });
    let any_bridge = format!("{BRIDGE_PREFIX}*");
    let mut all = Vec::new();
    let mut rule = |chain, comment, expr| all.push(Rule { chain, comment, expr });

    if let Some(port) = f.dns_port {
        for (comment, protocol) in [("names over udp", "udp"), ("names over tcp", "tcp")] {
            let at_gateway = payload("ip", "daddr", "==", f.gateway.to_string());
            let redirect = json!({ "redirect": { "port": port } });
            rule(
                "prerouting",
                comment,
                vec![from(), at_gateway, payload(protocol, "dport", "==", 53), redirect],
            );
        }
    }

    // The host answers on every address it has, whichever link a packet comes in on: without these, a neighbour
    // of the host or another cluster could reach this network's DNS server.
    let not_ours = || meta("iifname", "!=", set([b, "lo"]));
    rule(
        "input",
        "gateway for members",
        vec![not_ours(), payload("ip", "daddr", "==", f.gateway.to_string()), drop()],
    );
    if let Some(gateway6) = f.gateway6 {
        let at_gateway = payload("ip6", "daddr", "==", gateway6.to_string());
        rule("input", "gateway6 for members", vec![not_ours(), at_gateway, drop()]);
    }

    // Bridged frames come by here too where bridge-netfilter is on.
    rule("forward", "member to member", vec![from(), to(), accept()]);
    let answered = json!({ "match": {
        "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"] } });
    rule("forward", "answers", vec![to(), answered, accept()]);
    rule("forward", "nothing new from elsewhere", vec![to(), drop()]);
    rule("forward", "no other cluster", vec![from(), meta("oifname", "==", any_bridge.as_str()), drop()]);
    rule("forward", "no egress for ipv6", vec![from(), meta("nfproto", "==", "ipv6"), drop()]);
    rule("forward", "no forged source", vec![from(), payload("ip", "saddr", "!=", subnet()), drop()]);
    if !f.opened.is_empty() && !f.others.is_empty() {
        // Forwarding on a link lets the host route for that link's neighbours; before us it did not.
        rule(
            "forward",
            "no router for others",
            vec![
                meta("iifname", "==", set(f.opened.iter().map(String::as_str))),
                meta("oifname", "==", set(f.others.iter().map(String::as_str))),
                drop(),
            ],
        );
    }

    rule(
        "postrouting",
        "egress",
        vec![
            payload("ip", "saddr", "==", subnet()),
            payload("ip", "daddr", "!=", subnet()),
            meta("oifname", "!=", any_bridge.as_str()),
            json!({ "masquerade": null }),
        ],
    );
    all
}

/// The commands that make the table, replacing an earlier one, in one transaction.
pub(crate) fn commands(f: &Facts) -> Vec<Value> {
    let name = table_name(&f.bridge);
    let table = json!({ "table": { "family": FAMILY, "name": name } });
    let mut all = vec![json!({ "add": table }), json!({ "delete": table }), json!({ "add": table })];
    for (chain, kind, hook, prio) in CHAINS {
        all.push(json!({ "add": { "chain": {
            "family": FAMILY, "table": name, "name": chain,
            "type": kind, "hook": hook, "prio": prio, "policy": "accept" } } }));
    }
    for Rule { chain, comment, expr } in rules(f) {
        all.push(json!({ "add": { "rule": {
            "family": FAMILY, "table": name, "chain": chain, "comment": comment, "expr": expr } } }));
    }
    all
}

/// What of the table is not in a listing of it, in words; empty when all is there.
pub(crate) fn missing(f: &Facts, listing: &[Value]) -> Vec<String> {
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let chains: Vec<&Value> = listing.iter().filter_map(|o| o.get("chain")).collect();
    let found: Vec<&Value> = listing.iter().filter_map(|o| o.get("rule")).collect();
    let mut missing = Vec::new();
    for (chain, kind, hook, _) in CHAINS {
        if !chains
            .iter()
            .any(|c| text(c, "name") == chain && text(c, "type") == kind && text(c, "hook") == hook)
        {
            missing.push(format!("chain {chain}"));
        }
    }
    // In their order: an "accept" behind the "drop" it is an exception to is missing.
    let mut at = 0;
    for rule in rules(f) {
        let verdict = rule.expr.last().and_then(Value::as_object).and_then(|o| o.keys().next()).cloned();
        let hit = found.iter().enumerate().skip(at).find(|(_, r)| {
            let has_verdict = r.get("expr").and_then(Value::as_array).is_some_and(|e| {
                e.last()
                    .and_then(Value::as_object)
                    .is_some_and(|o| verdict.as_ref().is_some_and(|v| o.contains_key(v)))
            });
            text(r, "chain") == rule.chain && text(r, "comment") == rule.comment && has_verdict
        });
        match hit {
            Some((i, _)) => at = i + 1,
            None => missing.push(format!("rule \"{}\"", rule.comment)),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            bridge: "fb00000001".into(),
            subnet: Ipv4Addr::new(10, 70, 3, 0),
            gateway: Ipv4Addr::new(10, 70, 3, 1),
            gateway6: Some("fd00::1".parse().unwrap()),
            dns_port: None,
            opened: ["eth0".to_owned()].into(),
            others: ["eth0".to_owned(), "eth1".to_owned()].into(),
        }
    }

    fn listing(f: &Facts) -> Vec<Value> {
        // What is added is what a kernel that keeps everything would list.
        commands(f).into_iter().filter_map(|c| c.get("add").cloned()).collect()
    }

    #[test]
    fn nothing_is_missing_from_a_whole_table_and_each_part_is_missed() {
        let f = facts();
        let whole = listing(&f);
        assert_eq!(missing(&f, &whole), [""; 0]);
        for at in 0..whole.len() {
            if whole[at].get("table").is_some() {
                continue;
            }
            let mut part = whole.clone();
            part.remove(at);
            assert_eq!(missing(&f, &part).len(), 1, "{}", whole[at]);
        }
    }

    #[test]
    fn a_drop_before_its_exception_is_noticed() {
        let f = facts();
        let mut all = listing(&f);
        let at = |all: &[Value], c: &str| {
            all.iter().position(|o| o.pointer("/rule/comment") == Some(&json!(c))).unwrap()
        };
        let (a, b) = (at(&all, "answers"), at(&all, "nothing new from elsewhere"));
        all.swap(a, b);
        assert!(!missing(&f, &all).is_empty());
    }

    #[test]
    fn tables_and_bridges_name_each_other() {
        assert_eq!(bridge_of_table(&table_name("fb0123abcd")), Some("fb0123abcd"));
        assert_eq!(bridge_of_table("fleetbox_x"), None);
        assert_eq!(bridge_of_table("filter"), None);
    }
}
