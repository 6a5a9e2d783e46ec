//! The write-ahead record of a cluster's host resources.
//!
//! ```text
//!  record ──▶ make ──▶ (in use) ──▶ undo ──▶ see that it is gone ──▶ strike
//! ```
//! A crash between any two steps leaves a record of something that exists or does not; undo is fine with
//! both. What never happens is a resource without a record. The file is written anew as a whole, atomically
//! and fsynced, at each step.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleetbox_os::process::{Liveness, ProcessIdentity};
use fleetbox_spec::ClusterName;
use fleetbox_store::{Lock, LockKind, Store, Versioned, read_json, remove_if_there, write_json};
use serde::{Deserialize, Serialize};

use crate::NetError;

/// Something on the host that exists for a cluster and must not outlive its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Resource {
    /// A bridge.
    Bridge {
        /// Its link name.
        name: String,
    },
    /// A tap. Not persistent: it goes with the last descriptor of it.
    Tap {
        /// Its link name.
        name: String,
    },
    /// A table of nftables, with all in it.
    NftTable {
        /// Address family, such as `inet`.
        family: String,
        /// Its name.
        name: String,
    },
    /// Rules of ours in a table of somebody else's, found by their comment.
    NftRules {
        /// Address family, such as `ip`.
        family: String,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
        /// Their comment.
        comment: String,
    },
    /// Forwarding of IPv4 on a link, which was off before any network of fleetbox's needed it.
    Forwarding {
        /// The link.
        link: String,
        /// Whether the global switch (`net.ipv4.ip_forward`) was on then.
        global: bool,
    },
    /// A kernel setting below `/proc/sys/net` that was changed.
    Sysctl {
        /// The setting, with slashes: `net/ipv4/ip_forward`.
        key: String,
        /// Its value before.
        original: String,
    },
    /// A file, or a folder with all below it, to be deleted. Inside the store's root.
    Path {
        /// Where.
        path: PathBuf,
    },
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { name } => write!(f, "bridge {name}"),
            Self::Tap { name } => write!(f, "tap {name}"),
            Self::NftTable { family, name } => write!(f, "nftables table {family} {name}"),
            Self::NftRules { family, table, chain, comment } => {
                write!(f, "nftables rules \"{comment}\" in chain {chain} of table {family} {table}")
            }
            Self::Forwarding { link, .. } => write!(f, "IPv4 forwarding on {link}"),
            Self::Sysctl { key, original } => write!(f, "kernel setting {key}, which was {original}"),
            Self::Path { path } => write!(f, "{}", path.display()),
        }
    }
}

impl Resource {
    /// Whether it lives in a network namespace, and so goes with the namespace or the boot.
    pub(crate) fn is_of_the_network(&self) -> bool {
        !matches!(self, Self::Path { .. })
    }
}

/// `journal/<cluster>.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JournalFile {
    /// Whose process made (or is making) these.
    pub(crate) owner: ProcessIdentity,
    /// In the order they were recorded.
    pub(crate) resources: Vec<Resource>,
}

impl Versioned for JournalFile {
    const VERSION: u32 = 1;
}

/// The journal of one cluster, owned by this process.
#[derive(Debug)]
pub struct Journal {
    store: Store,
    cluster: ClusterName,
    file: PathBuf,
    state: Mutex<JournalFile>,
}

/// Guards the taking over and the removal of one journal file against another process's. Held for a few
/// file operations, never over an await.
pub(crate) fn file_lock(store: &Store, cluster: &ClusterName) -> Result<Lock, NetError> {
    Ok(Lock::take(store, LockKind::Reconcile, &format!("journal/{cluster}"), Duration::from_secs(10))?)
}

/// Reads a journal; `None` when there is none.
pub(crate) fn load(file: &Path) -> Result<Option<JournalFile>, NetError> {
    match read_json::<JournalFile>(file) {
        Ok(j) => Ok(Some(j)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Journal {
    /// Makes this process the owner of a cluster's journal.
    ///
    /// Call [`reconcile`](crate::reconcile()) first: a dead owner's journal is taken over only once it is empty.
    ///
    /// # Errors
    /// [`NetError::Held`] by a living process (this one included, while the journal names resources),
    /// [`NetError::NeedsReconcile`], [`NetError::ForeignNamespace`], or a damaged file.
    pub fn open(store: &Store, cluster: &ClusterName) -> Result<Self, NetError> {
        let me = ProcessIdentity::current()
            .map_err(|source| NetError::Proc { action: "tell this process's identity", source })?;
        let file = store.journal_file(cluster);
        let _lock = file_lock(store, cluster)?;
        if let Some(old) = load(&file)? {
            let pid = old.owner.pid;
            match old.owner.liveness() {
                _ if old.resources.is_empty() && old.owner.pid == me.pid => {}
                Liveness::Alive => return Err(NetError::Held { cluster: cluster.clone(), pid }),
                _ if old.resources.is_empty() => {}
                Liveness::Dead if old.owner.net_ns == me.net_ns || old.owner.boot_id != me.boot_id => {
                    return Err(NetError::NeedsReconcile { cluster: cluster.clone(), pid });
                }
                Liveness::Dead | Liveness::Unknown => {
                    return Err(NetError::ForeignNamespace { cluster: cluster.clone(), journal: file });
                }
            }
        }
        let journal = Self {
            store: store.clone(),
            cluster: cluster.clone(),
            file,
            state: Mutex::new(JournalFile { owner: me, resources: Vec::new() }),
        };
        journal.write(&journal.lock())?;
        Ok(journal)
    }

    /// Whose journal it is.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Names a resource, before it is made. On disk when this returns. Naming one twice is fine.
    ///
    /// # Errors
    /// [`NetError::UnsafePath`] for a path outside the store; what writing the file answered. Make nothing then.
    pub fn record(&self, resource: Resource) -> Result<(), NetError> {
        if let Resource::Path { path } = &resource {
            crate::undo::check_path(&self.store, path)?;
        }
        let mut state = self.lock();
        if state.resources.contains(&resource) {
            return Ok(());
        }
        state.resources.push(resource);
        self.write(&state).inspect_err(|_| {
            state.resources.pop();
        })
    }

    /// Strikes a resource off, after it was seen to be gone. One that is not named is fine.
    ///
    /// # Errors
    /// What writing the file answered; the resource is then still named.
    pub fn strike(&self, resource: &Resource) -> Result<(), NetError> {
        let mut state = self.lock();
        let Some(at) = state.resources.iter().position(|r| r == resource) else { return Ok(()) };
        let removed = state.resources.remove(at);
        self.write(&state).inspect_err(|_| state.resources.insert(at, removed))
    }

    /// What is named now, in the order it was recorded.
    #[must_use]
    pub fn resources(&self) -> Vec<Resource> {
        self.lock().resources.clone()
    }

    /// Ends the journal: removes its file. A later [`Journal::record`] makes it anew.
    ///
    /// # Errors
    /// [`NetError::NotEmpty`] while it names resources; what removing the file answered.
    pub fn finish(&self) -> Result<(), NetError> {
        let state = self.lock();
        if !state.resources.is_empty() {
            return Err(NetError::NotEmpty { cluster: self.cluster.clone(), left: state.resources.len() });
        }
        Ok(remove_if_there(&self.file)?)
    }

    fn lock(&self) -> MutexGuard<'_, JournalFile> {
        // The state is whole at every point where a panic could unwind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &JournalFile) -> Result<(), NetError> {
        write_json(&self.file, state, 0o600)?;
        Ok(self.store.give_to_owner(&self.file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(n: u32) -> Resource {
        Resource::Bridge { name: format!("fb{n:08x}") }
    }

    #[test]
    fn records_strikes_in_order_and_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let c = ClusterName::new("c").unwrap();
        let j = Journal::open(&store, &c).unwrap();
        let path = Resource::Path { path: store.cluster_dir(&c).join("half") };
        for r in [bridge(1), path.clone(), bridge(1), bridge(2)] {
            j.record(r).unwrap();
        }
        let on_disk = || load(&store.journal_file(&c)).unwrap().unwrap().resources;
        assert_eq!(on_disk(), [bridge(1), path.clone(), bridge(2)]);
        assert!(matches!(j.finish(), Err(NetError::NotEmpty { left: 3, .. })));
        // Held by this very process: a second opener would undo under the first one's feet.
        assert!(
            matches!(Journal::open(&store, &c), Err(NetError::Held { pid, .. }) if pid == std::process::id())
        );
        j.strike(&path).unwrap();
        j.strike(&path).unwrap();
        assert_eq!(on_disk(), [bridge(1), bridge(2)]);
        assert_eq!(j.resources(), on_disk());
        j.strike(&bridge(1)).unwrap();
        j.strike(&bridge(2)).unwrap();
        j.finish().unwrap();
        assert!(!store.journal_file(&c).exists());
        Journal::open(&store, &c).unwrap();
    }

    #[test]
    fn a_record_that_cannot_be_written_is_not_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let c = ClusterName::new("c").unwrap();
        let j = Journal::open(&store, &c).unwrap();
        std::fs::remove_dir_all(store.journal_dir()).unwrap();
        assert!(j.record(bridge(1)).is_err());
        assert!(j.resources().is_empty());
    }

    #[test]
    fn refuses_to_own_a_path_outside_the_store() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let j = Journal::open(&store, &ClusterName::new("c").unwrap()).unwrap();
        for bad in ["/", "/etc", "relative", tmp.path().to_str().unwrap()] {
            assert!(
                matches!(j.record(Resource::Path { path: bad.into() }), Err(NetError::UnsafePath { .. })),
                "{bad}"
            );
        }
        for bad in ["clusters", "clusters/../..", "clusters/c/../../../x"] {
            let path = tmp.path().join(bad);
            assert!(matches!(j.record(Resource::Path { path }), Err(NetError::UnsafePath { .. })), "{bad}");
        }
        j.record(Resource::Path { path: tmp.path().join("clusters/c") }).unwrap();
    }

    #[test]
    fn another_owners_journal_is_taken_over_only_when_dead_and_empty() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let c = ClusterName::new("c").unwrap();
        let me = ProcessIdentity::current().unwrap();
        let dead = ProcessIdentity { start_time: 1, ..me.clone() };
        let put = |owner: &ProcessIdentity, resources: Vec<Resource>| {
            write_json(&store.journal_file(&c), &JournalFile { owner: owner.clone(), resources }, 0o600)
                .unwrap();
        };
        put(&dead, vec![bridge(1)]);
        assert!(matches!(Journal::open(&store, &c), Err(NetError::NeedsReconcile { .. })));
        put(&ProcessIdentity { net_ns: 1, ..dead.clone() }, vec![bridge(1)]);
        assert!(matches!(Journal::open(&store, &c), Err(NetError::ForeignNamespace { .. })));
        let parent = std::os::unix::process::parent_id();
        let start_time = fleetbox_os::process::start_time(parent).unwrap();
        put(&ProcessIdentity { pid: parent, start_time, ..me }, vec![]);
        assert!(matches!(Journal::open(&store, &c), Err(NetError::Held { pid, .. }) if pid == parent));
        put(&dead, vec![]);
        Journal::open(&store, &c).unwrap();
        std::fs::write(store.journal_file(&c), "{").unwrap();
        assert!(matches!(Journal::open(&store, &c), Err(NetError::Store(_))));
        assert_eq!(std::fs::read_to_string(store.journal_file(&c)).unwrap(), "{");
    }
}
