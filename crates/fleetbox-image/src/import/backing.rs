//! The files behind a local qcow2 file, where following them was allowed.

use std::fs::{self, File};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::cache::Fingerprint;
use super::{open, take_copy};
use crate::ImageError;
use crate::model::hex;
use crate::qcow2::{self, Header, Qcow2Problem};
use crate::task::Task;

/// More is no chain that somebody uses.
const MAX_DEPTH: usize = 16;

/// A private copy of a file behind another.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its name in the part.
    pub(super) name: String,
    pub(super) qcow2: bool,
    pub(super) print: Fingerprint,
}

/// The files behind a qcow2 file, nearest first: copied into the part, each with a checked header.
///
/// # Errors
/// [`Qcow2Problem`] says which is missing, names itself wrongly, or leads back to an earlier one.
pub(super) fn follow(
    top: &Fingerprint,
    top_path: &Path,
    top_copy: &Path,
    part: &Path,
    digest: &mut String,
    task: &Task,
) -> Result<Vec<Layer>, ImageError> {
    let mut layers: Vec<Layer> = Vec::new();
    let (mut path, mut copy) = (top_path.to_owned(), top_copy.to_owned());
    while let Some(next) = behind(&path, &copy)? {
        let bad = |problem| Err(ImageError::BadQcow2 { path: path.clone(), reason: problem });
        if layers.len() == MAX_DEPTH {
            return bad(Qcow2Problem::BackingDepth(MAX_DEPTH));
        }
        let named = path.parent().unwrap_or(Path::new("/")).join(&next.name);
        let real = fs::canonicalize(&named).map_err(ImageError::io("find backing file", &named))?;
        let file = open(&real)?;
        let print = Fingerprint::of(&real, &file)?;
        let ids = layers.iter().map(|l| l.print.file_id());
        if ids.chain([top.file_id()]).any(|id| id == print.file_id()) {
            return bad(Qcow2Problem::BackingCycle(real));
        }
        let name = format!("backing-{}", layers.len());
        copy = part.join(&name);
        let layer_digest = take_copy(&file, &real, &copy, part, task)?;
        if Fingerprint::of(&real, &file)? != print {
            return Err(ImageError::Changed(real));
        }
        *digest = together(digest, &layer_digest, next.qcow2);
        layers.push(Layer { name, qcow2: next.qcow2, print });
        if !next.qcow2 {
            break;
        }
        path = real;
    }
    Ok(layers)
}

/// What is behind a file. Of our copy, which nobody changes any more: what is checked is what is used.
fn behind(path: &Path, copy: &Path) -> Result<Option<qcow2::Backing>, ImageError> {
    let file = File::open(copy).map_err(ImageError::io("open", copy))?;
    let len = file.metadata().map_err(ImageError::io("look at", copy))?.len();
    let head = super::start(&file, copy, qcow2::HEAD)?;
    let bad = |reason| ImageError::BadQcow2 { path: path.to_owned(), reason };
    let header = Header::parse(&head).map_err(bad)?;
    header.check_importable(len).map_err(bad)?;
    header.backing(&head).map_err(bad)
}

/// One digest for a file and what is behind it.
fn together(front: &str, back: &str, qcow2: bool) -> String {
    let format = if qcow2 { "qcow2" } else { "raw" };
    hex(&Sha256::digest(format!("{front}\n{format} {back}\n").as_bytes()))
}
