//! Which image an address stood for when it was last downloaded, so that using it again asks nobody.

use std::path::PathBuf;

use fleetbox_spec::{Checksum, HashAlgorithm};
use fleetbox_store::{Store, Versioned};
use serde::{Deserialize, Serialize};

use super::Source;
use super::answer::Validator;
use crate::model::{hex, load};
use crate::{Image, ImageError};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The address, or the checksum where one was given.
    key: String,
    /// SHA-256 of the file.
    pub(super) digest: String,
    pub(super) validator: Validator,
}

impl Versioned for Record {
    const VERSION: u32 = 1;
}

/// What a source is remembered by: a digest wherever the file comes from, an address otherwise.
fn key(source: &Source) -> String {
    source.pin.as_ref().map_or_else(|| source.url.address().to_owned(), ToString::to_string)
}

/// A name for a source's lock and files: of fixed length, of safe characters.
pub(super) fn name(source: &Source) -> String {
    use sha2::{Digest, Sha256};
    format!("url-{}", &hex(&Sha256::digest(key(source).as_bytes()))[..32])
}

fn file(store: &Store, source: &Source) -> PathBuf {
    store.images_dir().join(format!(".{}.json", name(source)))
}

/// What is remembered. Whatever is wrong with the record: it is only a short cut.
pub(super) fn recall(store: &Store, source: &Source) -> Option<Record> {
    fleetbox_store::read_json::<Record>(&file(store, source)).ok().filter(|r| r.key == key(source))
}

pub(super) fn remember(
    store: &Store,
    source: &Source,
    digest: &str,
    validator: &Validator,
) -> Result<(), ImageError> {
    // The name of such an image is the digest itself.
    if matches!(&source.pin, Some(pin) if pin.algorithm() == HashAlgorithm::Sha256) {
        return Ok(());
    }
    let record = Record { key: key(source), digest: digest.to_owned(), validator: validator.clone() };
    let path = file(store, source);
    fleetbox_store::write_json(&path, &record, 0o644)?;
    Ok(store.give_to_owner(&path)?)
}

/// The source's image, if it is in the store. Asks nobody.
pub(super) fn known(store: &Store, source: &Source) -> Result<Option<Image>, ImageError> {
    let digest = match source.pin.as_ref().map(|p| (p.algorithm(), Checksum::hex(p))) {
        Some((HashAlgorithm::Sha256, hex)) => Some(String::from(hex)),
        _ => recall(store, source).map(|r| r.digest),
    };
    let Some(digest) = digest else { return Ok(None) };
    Ok(load(store, &digest)?.map(|image| Image { reference: source.reference.clone(), ..image }))
}
