//! Links, addresses, routes, rules and settings of the calling thread's network namespace.

use std::fs;
use std::io;
use std::process::Command;

use serde_json::Value;

use super::{Collect, Kind};

/// Fields that change by themselves, or differ when the same thing is made again.
const VOLATILE: [&str; 12] = [
    "ifindex",
    "link_index",
    "handle",
    "index",
    "packets",
    "bytes",
    "expires",
    "valid_life_time",
    "preferred_life_time",
    "operstate",
    "flags",
    "metainfo",
];

/// Folders of settings that have one sub-folder for each link.
const PER_LINK: [&str; 2] = ["ipv4/conf", "ipv6/conf"];

/// Settings of the whole namespace that a network of machines might be tempted to touch.
const GLOBAL: [&str; 5] = [
    "ipv4/ip_forward",
    "ipv6/bindv6only",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "bridge/bridge-nf-call-arptables",
];

pub(super) fn collect(collect: &mut Collect) {
    match json("ip", &["-j", "addr"]) {
        Ok(links) => add_links(collect, &links),
        Err(e) => collect.unread("links and addresses", e),
    }
    for family in ["-4", "-6"] {
        match json("ip", &["-j", family, "route", "show", "table", "all"]) {
            Ok(routes) => add_each(collect, Kind::Route, &routes),
            Err(e) => collect.unread("routes", e),
        }
    }
    // -s leaves out the counters.
    match json("nft", &["-s", "-j", "list", "ruleset"]) {
        Ok(rules) => add_each(collect, Kind::Nft, &rules["nftables"]),
        Err(e) => collect.unread("nftables", e),
    }
    for setting in GLOBAL {
        add_setting(collect, setting);
    }
    for dir in PER_LINK {
        let names = |path: String| fs::read_dir(path).into_iter().flatten().flatten();
        for link in names(format!("/proc/sys/net/{dir}")) {
            let link = format!("{dir}/{}", link.file_name().to_string_lossy());
            for setting in names(format!("/proc/sys/net/{link}")) {
                add_setting(collect, &format!("{link}/{}", setting.file_name().to_string_lossy()));
            }
        }
    }
}

/// Whether a fact is one of a link's own, that comes and goes with it.
pub(super) fn belongs_to_link(kind: Kind, what: &str, link: &str) -> bool {
    match kind {
        Kind::Link | Kind::Address => what.strip_prefix(link).is_some_and(|rest| rest.starts_with(": ")),
        Kind::Sysctl => PER_LINK.iter().any(|dir| {
            let rest = what.strip_prefix("net/").and_then(|r| r.strip_prefix(dir)?.strip_prefix('/'));
            rest.and_then(|r| r.strip_prefix(link)).is_some_and(|r| r.starts_with('/'))
        }),
        _ => false,
    }
}

fn add_links(collect: &mut Collect, links: &Value) {
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        collect.add(Kind::Link, name);
        let up = link["flags"].as_array().is_some_and(|f| f.iter().any(|f| f == "UP"));
        let master = link["master"].as_str().map(|m| format!(", in {m}")).unwrap_or_default();
        collect.add(Kind::Link, format!("{name}: {}{master}", if up { "up" } else { "down" }));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            collect.add(Kind::Address, format!("{name}: {}", stable(address)));
        }
    }
}

fn add_each(collect: &mut Collect, kind: Kind, list: &Value) {
    for item in list.as_array().into_iter().flatten() {
        let item = stable(item);
        // An object that held volatile fields only says nothing.
        if item.as_object().is_none_or(|o| !o.is_empty()) {
            collect.add(kind, item.to_string());
        }
    }
}

/// The value without its volatile fields, at any depth. Its keys are sorted.
fn stable(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(key, _)| !VOLATILE.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), stable(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(stable).collect()),
        other => other.clone(),
    }
}

/// One that is not there, or that cannot be read (some are secret or write-only), is no fact.
fn add_setting(collect: &mut Collect, name: &str) {
    if let Ok(value) = fs::read_to_string(format!("/proc/sys/net/{name}")) {
        collect.add(Kind::Sysctl, format!("net/{name} = {}", value.trim()));
    }
}

fn json(program: &str, args: &[&str]) -> io::Result<Value> {
    let output = Command::new(program).args(args).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("{program} ended with {}: {why}", output.status)));
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_itself_is_no_fact() {
        let rule: Value = serde_json::from_str(
            r#"{"rule": {"family": "ip", "handle": 7, "expr": [{"counter": {"packets": 3, "bytes": 9}}, {"accept": null}]}}"#,
        )
        .unwrap();
        assert_eq!(
            stable(&rule).to_string(),
            r#"{"rule":{"expr":[{"counter":{}},{"accept":null}],"family":"ip"}}"#
        );
        let address: Value =
            serde_json::from_str(r#"{"local": "::1", "valid_life_time": 17, "prefixlen": 128}"#).unwrap();
        assert_eq!(stable(&address).to_string(), r#"{"local":"::1","prefixlen":128}"#);
    }

    #[test]
    fn links_tell_state_bridge_and_addresses() {
        let links: Value = serde_json::from_str(
            r#"[{"ifindex": 4, "ifname": "tap0", "flags": ["UP", "LOWER_UP"], "master": "br0",
                 "addr_info": [{"family": "inet", "local": "10.0.0.1", "valid_life_time": 5}]}]"#,
        )
        .unwrap();
        let mut collected = Collect::default();
        add_links(&mut collected, &links);
        let facts: Vec<&str> = collected.facts.keys().map(|(_, what)| what.as_str()).collect();
        assert_eq!(facts, ["tap0", "tap0: up, in br0", r#"tap0: {"family":"inet","local":"10.0.0.1"}"#]);
    }

    #[test]
    fn this_host_has_a_loopback() {
        let mut collected = Collect::default();
        collect(&mut collected);
        let links_read = !collected.unread.iter().any(|u| u.starts_with("links"));
        assert_eq!(collected.facts.keys().any(|(k, w)| *k == Kind::Link && w == "lo"), links_read);
        assert!(collected.facts.keys().any(|(k, _)| *k == Kind::Sysctl));
    }
}
