//! Undoing one resource. The same code serves an owner that closes its network and a later process that
//! finishes a dead owner's undo.

use std::path::{Component, Path};

use fleetbox_spec::ClusterName;
use fleetbox_store::{Store, remove_dir_if_there, remove_if_there};

use crate::netlink::{LinkType, Netlink};
use crate::nft::Runs;
use crate::{NetError, Resource, forwarding, names, nft, sysctl};

/// Undoes a resource and sees that it is gone. One that does not exist is fine: that is a record of
/// something that was never made, or that somebody else removed.
pub(crate) async fn undo(store: &Store, cluster: &ClusterName, resource: &Resource) -> Result<(), NetError> {
    match resource {
        Resource::Bridge { name } => delete_link(name, LinkType::Bridge).await,
        Resource::Tap { name } => delete_link(name, LinkType::Tun).await,
        Resource::NftTable { family, name } => {
            nft::delete_table(&Runs::of(store, cluster), family, name).await
        }
        Resource::NftRules { family, table, chain, comment } => {
            nft::delete_commented(&Runs::of(store, cluster), family, table, chain, comment).await
        }
        Resource::Forwarding { link, global } => {
            forwarding::leave(store, &names::bridge_name(store, cluster), link, *global).await
        }
        // A setting that has gone went with its link.
        Resource::Sysctl { key, original } => sysctl::write(key, original).map(|_| ()),
        Resource::Path { path } => {
            check_path(store, path)?;
            match std::fs::symlink_metadata(path) {
                Ok(m) if m.is_dir() => Ok(remove_dir_if_there(path)?),
                _ => Ok(remove_if_there(path)?),
            }
        }
    }
}

/// Deletes a link if there is one of that name *and* type: another type's is not the recorded one.
pub(crate) async fn delete_link(name: &str, of: LinkType) -> Result<(), NetError> {
    let netlink = Netlink::connect()?;
    match netlink.link(name).await? {
        Some(link) if link.of == of => netlink.delete(&link).await,
        Some(link) => {
            tracing::warn!(link = name, found = ?link.of, "a link of a recorded name is of another type: left alone");
            Ok(())
        }
        None => Ok(()),
    }
}

/// Whether a journalled path may be deleted: at least two levels below the store's root, without `..`.
///
/// The journal is a file: a damaged or edited one must not delete what is not fleetbox's.
pub(crate) fn check_path(store: &Store, path: &Path) -> Result<(), NetError> {
    let inside = path.strip_prefix(store.root()).is_ok_and(|rest| {
        let parts: Vec<_> = rest.components().collect();
        parts.len() >= 2 && parts.iter().all(|p| matches!(p, Component::Normal(_)))
    });
    if inside { Ok(()) } else { Err(NetError::UnsafePath { path: path.to_owned() }) }
}
