//! Reaching machines with the system's own `ssh`.

use std::net::IpAddr;
use std::path::PathBuf;

use fleetbox_spec::MachineInfo;
use fleetbox_store::Store;

use crate::error::{Error, Result};

/// What the system's `ssh` needs to reach a machine, host key verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SshAccess {
    /// The machine's address.
    pub ip: IpAddr,
    /// The user, who has passwordless sudo.
    pub user: String,
    /// The private key's file.
    pub identity_file: PathBuf,
    /// A `known_hosts` file with the machine's host key and no other.
    pub known_hosts: PathBuf,
    /// The name that the host key is filed under.
    pub host_key_alias: String,
}

impl SshAccess {
    pub(crate) fn write(store: &Store, info: &MachineInfo) -> Result<Self> {
        let ip = info.ip.ok_or_else(|| Error::NotFound { name: info.name.to_string() })?;
        let known_hosts = store.machine_dir(&info.cluster, &info.name).known_hosts();
        let alias = format!("{}.{}.test", info.name, info.cluster);
        let text = format!("{alias} {}\n", info.host_key.trim());
        if std::fs::read_to_string(&known_hosts).ok().as_deref() != Some(text.as_str()) {
            let written = fleetbox_store::write_atomic(&known_hosts, text.as_bytes(), 0o644);
            written.map_err(Error::store(format!("write known_hosts of machine {}", info.name)))?;
        }
        Ok(Self {
            ip,
            user: "fleetbox".into(),
            identity_file: store.ssh_key(),
            known_hosts,
            host_key_alias: alias,
        })
    }

    /// The options in the order of ssh_config(5), as name and value.
    #[must_use]
    pub fn options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("HostName", self.ip.to_string()),
            ("User", self.user.clone()),
            ("IdentityFile", self.identity_file.display().to_string()),
            ("IdentitiesOnly", "yes".into()),
            ("UserKnownHostsFile", self.known_hosts.display().to_string()),
            ("HostKeyAlias", self.host_key_alias.clone()),
            ("StrictHostKeyChecking", "yes".into()),
            ("LogLevel", "ERROR".into()),
        ]
    }

    /// Arguments for `ssh`, up to and including the destination.
    #[must_use]
    pub fn ssh_args(&self) -> Vec<String> {
        // The user's own configuration may hold a wildcard that overrides what is set here.
        let mut args = vec!["-F".to_owned(), "/dev/null".to_owned()];
        for (name, value) in self.options() {
            args.push("-o".into());
            args.push(format!("{name}={value}"));
        }
        args.push(self.ip.to_string());
        args
    }
}
