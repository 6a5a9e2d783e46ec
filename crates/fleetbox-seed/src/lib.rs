//! NoCloud seed: spec in, bytes out.
//!
//! A stock cloud image reads one thing of ours: a small ISO 9660 volume labelled `cidata`, which cloud-init's
//! NoCloud data source finds by that label. It holds `meta-data` (who this instance is), `user-data` (the
//! account, the keys, the packages) and `network-config` (the one address). This crate turns a [`Seed`] into
//! those files ([`Seed::render`]) and into the volume ([`Seed::to_iso`]). It does no I/O.
//!
//! # Invariants
//! - The same [`Seed`] gives the same bytes: no clock and no randomness are read.
//! - Nothing that a caller puts into a field can become configuration: every field is checked against what it
//!   may hold, and every string leaves as an escaped JSON string (JSON is YAML; see `yaml.rs` for where it is not).
//! - A seed is secret: it holds the machine's private host key. The files in the volume are root's alone, and
//!   the [`std::fmt::Debug`] of [`HostKeyPair`] leaves the private half out.
//! - What cloud-init 20.4 (Debian 11) to 26 (Ubuntu 26.04) do not all understand is not used.
//!
//! ```
//! use fleetbox_seed::{HostKeyPair, NetworkConfig, Seed};
//! use fleetbox_spec::MachineName;
//!
//! let seed = Seed::new(
//!     "web-0001",
//!     MachineName::new("web")?,
//!     "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl client",
//!     HostKeyPair {
//!         private_openssh: "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n-----END OPENSSH PRIVATE KEY-----\n".into(),
//!         public_line: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl".into(),
//!     },
//!     NetworkConfig::ipv4([0x52, 0x54, 0, 1, 2, 3], [10, 87, 3, 2].into(), 24, [10, 87, 3, 1].into()),
//! );
//! let iso = seed.to_iso()?;
//! assert_eq!(&iso[0x8001..0x8006], b"CD001");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![warn(missing_docs)]

mod iso;
mod network;
mod user_data;
mod validate;
mod yaml;

use std::fmt;

use fleetbox_spec::MachineName;

pub use network::NetworkConfig;

/// The account that is made when no other is asked for.
pub const DEFAULT_USER: &str = "fleetbox";

/// The volume label by which cloud-init's NoCloud data source finds a seed.
pub const VOLUME_LABEL: &str = "cidata";

/// The unit of cloud-init's second stage, up to cloud-init 24.2, which has nothing to do with a seed of ours.
///
/// A seed is local ([`Seed::render`] says `dsmode: local`), so cloud-init's first stage takes all of it; its second, which
/// is for data that comes over the network, loads itself, finds that, and ends. sshd waits for it. From 24.3 on the stages
/// share one process and the second costs nothing; there is no unit of this name then.
pub const IDLE_UNIT: &str = "cloud-init.service";

/// The SSH host key that a machine shall have, so that its first login can already be verified.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKeyPair {
    /// The private ed25519 key in OpenSSH's own PEM form (`-----BEGIN OPENSSH PRIVATE KEY-----`), unencrypted.
    pub private_openssh: String,
    /// The public key as one line: `ssh-ed25519 AAAA… [comment]`.
    pub public_line: String,
}

impl fmt::Debug for HostKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The private half must not reach a log.
        f.debug_struct("HostKeyPair").field("public_line", &self.public_line).finish_non_exhaustive()
    }
}

/// What a machine's cloud-init is told at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// cloud-init's identity of this machine: 1 to 64 of `A-Z a-z 0-9 . _ -`. With a new one cloud-init treats
    /// the disk as a new machine and runs [`commands`](Self::commands) again, so it stays the same for a disk.
    pub instance_id: String,
    /// The machine's hostname.
    pub hostname: MachineName,
    /// The DNS domain of the cluster, which makes the fully qualified name; `None` leaves the plain hostname.
    pub domain: Option<String>,
    /// The account to make, with passwordless sudo.
    pub user: String,
    /// The public keys that may log in as [`user`](Self::user), one line each; at least one.
    pub authorized_keys: Vec<String>,
    /// The machine's own SSH host key.
    pub host_key: HostKeyPair,
    /// The machine's address.
    pub network: NetworkConfig,
    /// Packages to install at the first boot, by the distribution's names.
    pub packages: Vec<String>,
    /// Shell commands that root runs once, at the end of the first boot, after the packages.
    pub commands: Vec<String>,
    /// Grow the root partition to the disk's end at boot. `false` saves the attempt where the disk has no
    /// partition table (the file system itself is grown either way).
    pub grow_partition: bool,
}

/// The three files of a seed, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedFiles {
    /// `user-data`: `#cloud-config` and JSON. Holds the private host key.
    pub user_data: String,
    /// `meta-data`: JSON.
    pub meta_data: String,
    /// `network-config`: version 2 (netplan's form), JSON.
    pub network_config: String,
}

impl fmt::Debug for SeedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // user_data holds the private host key.
        f.debug_struct("SeedFiles")
            .field("meta_data", &self.meta_data)
            .field("network_config", &self.network_config)
            .finish_non_exhaustive()
    }
}

/// Why no seed can be made of a [`Seed`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// The instance id would not be a file name of its own in `/var/lib/cloud/instances`.
    #[error(
        "instance id {id:?} must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', starting with a letter or digit"
    )]
    InstanceId {
        /// The offending id, shortened.
        id: String,
    },
    /// Not a user name that every distribution accepts.
    #[error(
        "user name {user:?} must be 1 to 32 of a-z, 0-9, '_' and '-', starting with a letter or '_', and not root"
    )]
    User {
        /// The offending name, shortened.
        user: String,
    },
    /// Not a DNS domain.
    #[error("{what} {domain:?} is not a DNS domain name")]
    Domain {
        /// Which of the domains: the machine's own, or a search domain.
        what: &'static str,
        /// The offending domain, shortened.
        domain: String,
    },
    /// Nobody could log in.
    #[error("a seed needs at least one authorized key")]
    NoAuthorizedKey,
    /// Not one line of an OpenSSH public key.
    #[error("authorized key {index} is not one line of an OpenSSH public key: {problem}")]
    AuthorizedKey {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Not an ed25519 host key pair.
    #[error("the {half} half of the host key cannot be used: {problem}")]
    HostKey {
        /// `private` or `public`.
        half: &'static str,
        /// What is wrong. The key itself is never shown.
        problem: &'static str,
    },
    /// An address, prefix or gateway that cannot work.
    #[error("network configuration: {what} {value} {problem}")]
    Network {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not a package name.
    #[error(
        "package name {name:?} must be letters, digits and any of '+-._:=~@', starting with a letter, digit or '@'"
    )]
    Package {
        /// The offending name, shortened.
        name: String,
    },
    /// A command that no shell could be given.
    #[error("command {index} {problem}")]
    Command {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file that does not fit a seed.
    #[error("seed file {file} has {len} bytes; at most {max} are possible")]
    TooLarge {
        /// The file's name in the volume.
        file: &'static str,
        /// Its size in bytes.
        len: usize,
        /// The most that is possible, in bytes.
        max: usize,
    },
    /// A file could not be written as JSON.
    #[error("could not write {file} as JSON")]
    Json {
        /// The file's name in the volume.
        file: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Seed {
    /// A seed with one authorized key for [`DEFAULT_USER`], no domain, no packages and no commands.
    #[must_use]
    pub fn new(
        instance_id: impl Into<String>,
        hostname: MachineName,
        authorized_key: impl Into<String>,
        host_key: HostKeyPair,
        network: NetworkConfig,
    ) -> Self {
        Self {
            instance_id: instance_id.into(),
            hostname,
            domain: None,
            user: DEFAULT_USER.to_owned(),
            authorized_keys: vec![authorized_key.into()],
            host_key,
            network,
            packages: Vec::new(),
            commands: Vec::new(),
            grow_partition: true,
        }
    }

    /// The seed's files as text.
    ///
    /// # Errors
    /// [`SeedError`] names the first field that cannot be used.
    pub fn render(&self) -> Result<SeedFiles, SeedError> {
        validate::seed(self)?;
        Ok(SeedFiles {
            user_data: user_data::user_data(self)?,
            meta_data: user_data::meta_data(self)?,
            network_config: self.network.render()?,
        })
    }

    /// The seed as an ISO 9660 volume with the label [`VOLUME_LABEL`], some 20 KiB; equal seeds give equal bytes.
    ///
    /// # Errors
    /// As [`render`](Self::render), and [`SeedError::TooLarge`].
    pub fn to_iso(&self) -> Result<Vec<u8>, SeedError> {
        let files = self.render()?;
        iso::volume(
            VOLUME_LABEL,
            &[
                iso::File { iso_name: "METADATA.;1", name: "meta-data", data: files.meta_data.as_bytes() },
                iso::File {
                    iso_name: "NETCONF.;1",
                    name: "network-config",
                    data: files.network_config.as_bytes(),
                },
                iso::File { iso_name: "USERDATA.;1", name: "user-data", data: files.user_data.as_bytes() },
            ],
        )
    }
}
