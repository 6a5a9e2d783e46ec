//! What ended fleetbox processes have left on this host.

use fleetbox_store::Store;

use super::Leftover;

/// Looks and touches nothing. What cannot be looked at, as by somebody who is not root, is passed over.
///
/// Not to be called on a thread of an async runtime.
pub(super) fn leftovers(store: &Store) -> Vec<Leftover> {
    let mut all = Vec::new();
    if let Ok(unowned) = fleetbox_net::unowned(store) {
        for (cluster, resource) in unowned.dead {
            all.push(Leftover {
                what: format!("{resource}: of cluster {cluster}, whose holder has ended"),
                how: "fleetbox prune".into(),
            });
        }
        for (cluster, resource) in unowned.foreign {
            all.push(Leftover {
                what: format!("{resource}: of cluster {cluster}, in another namespace"),
                how: "fleetbox prune in that namespace, such as the container it was made in".into(),
            });
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(Ok(orphans)) = runtime.map(|runtime| runtime.block_on(fleetbox_net::orphans(store))) {
        for orphan in orphans {
            let what = format!("{}: no record of this FLEETBOX_HOME names it", orphan.resource);
            all.push(Leftover { what, how: orphan.remedy });
        }
    }
    all
}
