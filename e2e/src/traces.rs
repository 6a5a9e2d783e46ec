//! What one cluster has on the host.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use fleetbox::MachineInfo;
use fleetbox_os::process::stat;
use serde_json::Value;

/// Remembers what a cluster's machines have on this host, and tells later what of it is still there.
///
/// It looks at nothing else: what other programs do at the same time is no leak of this cluster's.
#[derive(Debug, Clone)]
pub struct Traces {
    home: PathBuf,
    cluster: String,
    bridge: Option<String>,
    /// What it is, its pid, and its start time: pids are used again.
    processes: Vec<(&'static str, u32, u64)>,
}

impl Traces {
    /// Those of a cluster that nothing is known of yet.
    #[must_use]
    pub fn new(home: &Path, cluster: &str) -> Self {
        Self { home: home.to_owned(), cluster: cluster.to_owned(), bridge: None, processes: Vec::new() }
    }

    /// Remembers the network's bridge, if the network has been made.
    pub fn note_network(&mut self) {
        let file = self.cluster_dir().join("network.json");
        let record = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        if let Some(bridge) = record.as_ref().and_then(|r| r["bridge"].as_str()) {
            self.bridge = Some(bridge.to_owned());
        }
    }

    /// Remembers a machine's processes.
    pub fn note_machine(&mut self, info: &MachineInfo) {
        self.note_network();
        for (what, pid) in [("VMM", info.vmm_pid), ("holder", info.holder_pid)] {
            if let Some((pid, stat)) = pid.and_then(|p| Some((p, stat(p).ok()?))) {
                self.processes.push((what, pid, stat.start_time));
            }
        }
    }

    /// What is still there, in words.
    ///
    /// # Errors
    /// When the host cannot be looked at.
    pub fn left(&self) -> io::Result<Vec<String>> {
        let mut left = Vec::new();
        for (what, pid, started) in &self.processes {
            if stat(*pid).is_ok_and(|s| s.start_time == *started && !s.is_dead()) {
                left.push(format!("process {pid} ({what})"));
            }
        }
        if let Some(bridge) = &self.bridge {
            left.extend(links(bridge)?);
            let tables = Command::new("nft").args(["list", "tables"]).output()?;
            if String::from_utf8_lossy(&tables.stdout).contains(bridge.as_str()) {
                left.push(format!("nftables table of {bridge}"));
            }
        }
        let journal = self.home.join("journal").join(format!("{}.json", self.cluster));
        for path in [journal, self.cluster_dir()] {
            if path.exists() {
                left.push(format!("file {}", path.display()));
            }
        }
        Ok(left)
    }

    fn cluster_dir(&self) -> PathBuf {
        self.home.join("clusters").join(&self.cluster)
    }
}

/// A bridge and what is plugged into it.
fn links(bridge: &str) -> io::Result<Vec<String>> {
    let mut links = Vec::new();
    for link in std::fs::read_dir("/sys/class/net")? {
        let link = link?;
        let name = link.file_name().to_string_lossy().into_owned();
        let is_on_bridge = std::fs::read_link(link.path().join("master")).is_ok_and(|m| m.ends_with(bridge));
        if name == bridge || is_on_bridge {
            links.push(format!("link {name}"));
        }
    }
    Ok(links)
}
