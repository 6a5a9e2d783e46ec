//! Finishing what dead owners left undone.

use std::fs;
use std::path::Path;

use fleetbox_os::process::{Liveness, ProcessIdentity};
use fleetbox_spec::ClusterName;
use fleetbox_store::{LockKind, Store, remove_if_there, write_json};

use crate::journal::{JournalFile, file_lock, load};
use crate::lock;
use crate::nft::Runs;
use crate::undo::undo;
use crate::{NetError, Resource};

/// What [`reconcile`] did and could not do.
#[derive(Debug, Default)]
pub struct ReconcileReport {
    /// What dead owners left, now gone.
    pub undone: Vec<(ClusterName, Resource)>,
    /// What belongs to another living namespace, untouched.
    pub foreign: Vec<(ClusterName, Resource)>,
    /// What could not be undone, and journals that could not be read; they stay for the next time.
    pub failed: Vec<(ClusterName, NetError)>,
}

/// What is to be done about a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Its owner lives.
    Leave,
    /// Undo everything here.
    Undo,
    /// Its links and rules went with its boot or namespace; files are left.
    UndoPaths,
    /// Its namespace lives and is not this one.
    Foreign,
}

/// Decides by who owned a journal. Pure.
fn judge(
    owner: &ProcessIdentity,
    liveness: Liveness,
    me: &ProcessIdentity,
    namespace_lives: impl Fn(&str, u64) -> bool,
) -> Verdict {
    if owner.boot_id != me.boot_id {
        return Verdict::UndoPaths;
    }
    // Unknown in our own PID namespace: /proc did not tell, so it may live.
    if liveness == Liveness::Alive || (liveness == Liveness::Unknown && owner.pid_ns == me.pid_ns) {
        return Verdict::Leave;
    }
    if owner.pid_ns != me.pid_ns && namespace_lives("pid", owner.pid_ns) {
        return Verdict::Foreign;
    }
    if owner.net_ns == me.net_ns {
        return Verdict::Undo;
    }
    if namespace_lives("net", owner.net_ns) { Verdict::Foreign } else { Verdict::UndoPaths }
}

/// Undoes what dead processes left of their clusters' networks and files, last made first.
///
/// A living owner's records are not touched. Records of an earlier boot, or of a namespace that has gone,
/// name links and rules that went with it; their files are deleted all the same. Records of another living
/// namespace are reported and left. A journal that cannot be read is reported and kept. What cannot be
/// undone stays in its journal. Runs in one process of a store at a time.
///
/// # Errors
/// When the lock or the folder of journals cannot be had; all else is in the report.
pub async fn reconcile(store: &Store) -> Result<ReconcileReport, NetError> {
    let _lock = lock::take(store, LockKind::Reconcile, "host").await?;
    let me = ProcessIdentity::current()
        .map_err(|source| NetError::Proc { action: "tell this process's identity", source })?;
    let mut report = ReconcileReport::default();
    for cluster in journals(store)? {
        let file = store.journal_file(&cluster);
        let found = match load(&file) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(e) => {
                report.failed.push((cluster, e));
                continue;
            }
        };
        match judge(&found.owner, found.owner.liveness(), &me, namespace_lives) {
            Verdict::Leave => {}
            Verdict::Foreign => {
                report.foreign.extend(found.resources.into_iter().map(|r| (cluster.clone(), r)))
            }
            Verdict::Undo => finish(store, &cluster, found, true, &mut report).await,
            Verdict::UndoPaths => finish(store, &cluster, found, false, &mut report).await,
        }
    }
    Ok(report)
}

/// What journals of a store name that no living process of this namespace owns.
#[derive(Debug, Default)]
pub struct Unowned {
    /// What [`reconcile`] would undo.
    pub dead: Vec<(ClusterName, Resource)>,
    /// What belongs to another living namespace.
    pub foreign: Vec<(ClusterName, Resource)>,
}

/// Looks at the journals of a store as [`reconcile`] does, and undoes nothing. A journal that cannot be read is passed
/// over.
///
/// # Errors
/// When this process or the folder of journals cannot be looked at.
pub fn unowned(store: &Store) -> Result<Unowned, NetError> {
    let me = ProcessIdentity::current()
        .map_err(|source| NetError::Proc { action: "tell this process's identity", source })?;
    let mut all = Unowned::default();
    for cluster in journals(store)? {
        let Ok(Some(found)) = load(&store.journal_file(&cluster)) else { continue };
        let named = found.resources.iter().map(|r| (cluster.clone(), r.clone()));
        match judge(&found.owner, found.owner.liveness(), &me, namespace_lives) {
            Verdict::Leave => {}
            Verdict::Foreign => all.foreign.extend(named),
            Verdict::Undo | Verdict::UndoPaths => all.dead.extend(named),
        }
    }
    Ok(all)
}

/// Undoes one dead owner's resources in reverse order; the journal is brought up to date after each.
async fn finish(
    store: &Store,
    cluster: &ClusterName,
    mut left: JournalFile,
    network_is_here: bool,
    report: &mut ReconcileReport,
) {
    let file = store.journal_file(cluster);
    if network_is_here {
        // What the dead owner had begun may still come about.
        if let Err(e) = Runs::of(store, cluster).have_ended().await {
            report.failed.push((cluster.clone(), e));
            return;
        }
    }
    for at in (0..left.resources.len()).rev() {
        let resource = left.resources[at].clone();
        let here = network_is_here || !resource.is_of_the_network();
        let result = if here { undo(store, cluster, &resource).await } else { Ok(()) };
        match result.and_then(|()| {
            left.resources.remove(at);
            Ok(write_json(&file, &left, 0o600).and_then(|()| store.give_to_owner(&file))?)
        }) {
            Ok(()) => {
                tracing::info!(cluster = %cluster, ?resource, pid = left.owner.pid, "undid what a dead process left");
                report.undone.push((cluster.clone(), resource));
            }
            Err(e) => report.failed.push((cluster.clone(), e)),
        }
    }
    if left.resources.is_empty()
        && let Err(e) = remove_if_still(store, cluster, &left.owner)
    {
        report.failed.push((cluster.clone(), e));
    }
}

/// Removes an empty journal, unless a new owner has taken it over since.
fn remove_if_still(store: &Store, cluster: &ClusterName, owner: &ProcessIdentity) -> Result<(), NetError> {
    let _lock = file_lock(store, cluster)?;
    let file = store.journal_file(cluster);
    match load(&file)? {
        Some(now) if now.owner == *owner && now.resources.is_empty() => Ok(remove_if_there(&file)?),
        _ => Ok(()),
    }
}

/// The clusters that have a journal, sorted. Sweeps half-written journals of dead writers on the way.
fn journals(store: &Store) -> Result<Vec<ClusterName>, NetError> {
    let failed = |source| NetError::Proc { action: "read the folder of journals", source };
    let mut all = Vec::new();
    for entry in fs::read_dir(store.journal_dir()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(pid) = writer_of_temporary(name) {
            if !Path::new("/proc").join(pid.to_string()).exists() && is_first_pid_namespace() {
                remove_if_there(&entry.path())?;
            }
        } else if let Some(cluster) = name.strip_suffix(".json").and_then(|n| ClusterName::new(n).ok()) {
            all.push(cluster);
        }
    }
    all.sort();
    Ok(all)
}

/// The pid in the name of a temporary file of `write_atomic`: `.<file>.<pid>-<thread>.tmp`.
fn writer_of_temporary(name: &str) -> Option<u32> {
    let (_, writer) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once(".json.")?;
    writer.split_once('-')?.0.parse().ok()
}

/// Inode of the first PID namespace (`PROC_PID_INIT_INO`, linux/proc_ns.h): all processes are seen from it.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

fn is_first_pid_namespace() -> bool {
    fleetbox_os::process::namespace_inode("pid").is_ok_and(|i| i == FIRST_PID_NAMESPACE)
}

/// Whether a process, a mount or a descriptor still holds a namespace. `true` where that cannot be told.
fn namespace_lives(kind: &str, inode: u64) -> bool {
    if !is_first_pid_namespace() {
        return true;
    }
    let wanted = format!("{kind}:[{inode}]");
    let mounted = fs::read_to_string("/proc/self/mountinfo").is_ok_and(|m| m.contains(&wanted));
    mounted || held_by_a_process(kind, &wanted)
}

fn held_by_a_process(kind: &str, wanted: &str) -> bool {
    let links_to = |path: &Path| match fs::read_link(path) {
        Ok(target) => target.as_os_str() == wanted,
        // A process that may not be looked at may be in it.
        Err(e) => e.kind() == std::io::ErrorKind::PermissionDenied,
    };
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries(Path::new("/proc"))
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<u32>().is_ok()))
        .any(|process| {
            entries(&process.join("task")).any(|task| links_to(&task.join("ns").join(kind)))
                || entries(&process.join("fd")).any(|fd| links_to(&fd))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ProcessIdentity {
        ProcessIdentity { pid: 7, start_time: 9, boot_id: "b".into(), pid_ns: 1, net_ns: 2 }
    }

    #[test]
    fn who_undoes_what() {
        let me = ProcessIdentity { pid: 8, ..identity() };
        let judge = |owner: ProcessIdentity, l, lives: bool| judge(&owner, l, &me, |_, _| lives);
        use Liveness::{Alive, Dead, Unknown};
        assert_eq!(judge(identity(), Alive, true), Verdict::Leave);
        assert_eq!(judge(identity(), Dead, true), Verdict::Undo);
        assert_eq!(
            judge(ProcessIdentity { boot_id: "a".into(), ..identity() }, Dead, true),
            Verdict::UndoPaths
        );
        let other_net = || ProcessIdentity { net_ns: 3, ..identity() };
        assert_eq!(judge(other_net(), Alive, true), Verdict::Leave);
        assert_eq!(judge(other_net(), Dead, true), Verdict::Foreign);
        assert_eq!(judge(other_net(), Dead, false), Verdict::UndoPaths);
        let other_pid = || ProcessIdentity { pid_ns: 3, ..identity() };
        assert_eq!(judge(other_pid(), Unknown, true), Verdict::Foreign);
        assert_eq!(judge(other_pid(), Unknown, false), Verdict::Undo);
        // /proc could not be read for a process of this very namespace: it may live.
        assert_eq!(judge(identity(), Unknown, true), Verdict::Leave);
    }

    #[test]
    fn knows_the_temporary_files_of_its_store() {
        assert_eq!(writer_of_temporary(".web.json.4711-ThreadId(1).tmp"), Some(4711));
        for other in ["web.json", ".tmp", ".web.json.tmp", ".x.y.1-ThreadId(1).tmp"] {
            assert_eq!(writer_of_temporary(other), None, "{other}");
        }
    }

    #[test]
    fn this_namespace_lives() {
        assert!(namespace_lives("net", fleetbox_os::process::namespace_inode("net").unwrap()));
    }
}
