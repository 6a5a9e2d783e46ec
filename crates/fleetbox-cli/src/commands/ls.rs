//! `fleetbox ls`

use std::net::IpAddr;

use comfy_table::{Table, presets};
use fleetbox::{Accel, BootInfo, MachineInfo, State};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Ls;
use crate::commands::Outcomes;
use crate::error::{CliError, Result};
use crate::{duration, output, size};

/// One object of `ls --json`. Scripts read it: fields are only ever added.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    cluster: String,
    state: State,
    ip: Option<IpAddr>,
    cpus: u32,
    memory_mib: u64,
    disk_gib: u64,
    image: String,
    backend: &'a str,
    accel: Accel,
    holder_pid: Option<u32>,
    vmm_pid: Option<u32>,
    created_at: &'a str,
    boot: Option<&'a BootInfo>,
}

impl<'a> From<&'a MachineInfo> for Row<'a> {
    fn from(m: &'a MachineInfo) -> Self {
        Self {
            name: m.name.as_str(),
            cluster: m.cluster.to_string(),
            state: m.state,
            ip: m.ip,
            cpus: m.cpus,
            memory_mib: m.memory_mib,
            disk_gib: m.disk_gib,
            image: m.image.to_string(),
            backend: &m.backend,
            accel: m.accel,
            holder_pid: m.holder_pid,
            vmm_pid: m.vmm_pid,
            created_at: &m.created_at,
            boot: m.boot.as_ref(),
        }
    }
}

pub(crate) async fn run(args: &Ls) -> Result {
    let listing = fleetbox::list().await?;
    let machines = &listing.machines;
    if args.json {
        output::print(&json(machines)?)?;
    } else if args.quiet {
        output::print(&machines.iter().map(|m| format!("{}\n", m.name)).collect::<String>())?;
    } else if !machines.is_empty() {
        output::print(&table(machines, Timestamp::now()))?;
        for (cluster, damage) in fleetbox::network_damage().await? {
            output::note(&network_warning(cluster.as_str(), &damage));
        }
    } else if listing.damaged.is_empty() {
        output::note("there are no machines; `fleetbox up NAME` makes one");
    }
    let mut outcomes = Outcomes::default();
    for error in listing.damaged {
        outcomes.failed(error).await;
    }
    Ok(outcomes.exit())
}

fn network_warning(cluster: &str, damage: &[String]) -> String {
    format!(
        "warning: the network of cluster {cluster} is damaged: {}; rules are put back when a machine starts \
         in it, links when all of its machines have been stopped",
        damage.join(", ")
    )
}

fn json(machines: &[MachineInfo]) -> Result<String> {
    let rows: Vec<Row<'_>> = machines.iter().map(Row::from).collect();
    let text = serde_json::to_string_pretty(&rows).map_err(CliError::Json)?;
    Ok(text + "\n")
}

fn table(machines: &[MachineInfo], now: Timestamp) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "CLUSTER", "STATE", "IP", "CPUS", "MEMORY", "DISK", "IMAGE", "BACKEND", "AGE"]);
    for m in machines {
        table.add_row([
            m.name.to_string(),
            m.cluster.to_string(),
            m.state.to_string(),
            m.ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
            m.cpus.to_string(),
            size::short_mib(m.memory_mib),
            format!("{}G", m.disk_gib),
            m.image.to_string(),
            format!("{}/{}", m.backend, m.accel),
            age(&m.created_at, now),
        ]);
    }
    // The first column starts at the edge, and no line ends in blanks.
    table.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end())).collect()
}

fn age(created_at: &str, now: Timestamp) -> String {
    match created_at.parse::<Timestamp>() {
        // A clock that was set back makes a machine new, not negative.
        Ok(created) => duration::age(u64::try_from(now.as_second() - created.as_second()).unwrap_or(0)),
        Err(_) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines() -> Vec<MachineInfo> {
        let web = serde_json::json!({
            "name": "web", "cluster": "web", "state": "running", "ip": "10.77.3.2", "mac": "52:54:00:aa:bb:cc",
            "cpus": 2, "memory_mib": 2048, "disk_gib": 20, "image": "bootstrap:bookworm", "backend": "qemu",
            "accel": "tcg", "holder_pid": 41, "vmm_pid": 42, "created_at": "2026-01-02T03:04:05Z", "ephemeral": false,
            "host_key": "ssh-ed25519 AAAA", "boot_stage": null, "failure": null,
            "boot": { "via": "kernel", "kernel": "6.1.0-18-cloud-amd64", "source": "disk" },
        });
        let mut node = web.clone();
        for (key, value) in [
            ("name", "node-1".into()),
            ("cluster", "node".into()),
            ("state", "stopped".into()),
            ("memory_mib", 1536.into()),
            ("ip", serde_json::Value::Null),
            ("boot", serde_json::Value::Null),
            ("holder_pid", serde_json::Value::Null),
            ("vmm_pid", serde_json::Value::Null),
            ("created_at", "?".into()),
        ] {
            node[key] = value;
        }
        [web, node].map(|v| serde_json::from_value(v).unwrap()).into()
    }

    #[test]
    fn a_table_without_borders() {
        let now = "2026-01-02T05:04:05Z".parse().unwrap();
        assert_eq!(
            table(&machines(), now),
            "\
NAME    CLUSTER  STATE    IP         CPUS  MEMORY  DISK  IMAGE               BACKEND   AGE
web     web      running  10.77.3.2  2     2G      20G   bootstrap:bookworm  qemu/tcg  2h
node-1  node     stopped  -          2     1536M   20G   bootstrap:bookworm  qemu/tcg  -
"
        );
    }

    #[test]
    fn json_has_every_field_always() {
        let text = json(&machines()).unwrap();
        assert_eq!(
            text,
            r#"[
  {
    "name": "web",
    "cluster": "web",
    "state": "running",
    "ip": "10.77.3.2",
    "cpus": 2,
    "memory_mib": 2048,
    "disk_gib": 20,
    "image": "bootstrap:bookworm",
    "backend": "qemu",
    "accel": "tcg",
    "holder_pid": 41,
    "vmm_pid": 42,
    "created_at": "2026-01-02T03:04:05Z",
    "boot": {
      "via": "kernel",
      "kernel": "6.1.0-18-cloud-amd64",
      "source": "disk",
      "note": null
    }
  },
  {
    "name": "node-1",
    "cluster": "node",
    "state": "stopped",
    "ip": null,
    "cpus": 2,
    "memory_mib": 1536,
    "disk_gib": 20,
    "image": "bootstrap:bookworm",
    "backend": "qemu",
    "accel": "tcg",
    "holder_pid": null,
    "vmm_pid": null,
    "created_at": "?",
    "boot": null
  }
]
"#
        );
        assert_eq!(json(&[]).unwrap(), "[]\n");
    }
}
