//! Images from `http(s)` addresses.
//!
//! ```text
//!  Source (address, pinned digest) --known?--> image in the store; nobody is asked
//!     | lock of the download: one downloader, the others wait and hear how far it is
//!     v
//!  images/.<name>.download/{state.json, body} <--Range, If-Range-- server      interrupted: stays, and is resumed
//!     | all there, digest as pinned
//!     v
//!  images/.<digest>.part/source (a second name of body) --import::adopt--> images/<digest>/
//! ```
//! Invariants:
//! - Bytes from two states of a file are never joined: what is there is resumed only where the server says, by
//!   entity tag or date, that it is the same file, or where the pinned digest will tell.
//! - What is pinned is believed for its digest alone, wherever it comes from.
//! - A download's folder is changed only under its lock. `body` is never made empty or written to in the middle, as
//!   it may be an image by its other name.
//! - The address of an image that is in the store is never asked, but by a pull of an address without a digest.
//!
//! Why hyper, with rustls on ring, and no larger client: docs/adr/0013-downloads.md.

mod answer;
mod connect;
mod error;
mod http;
mod kept;
mod options;
mod pace;
mod reach;
mod record;
mod redirect;
mod retry;
mod sink;
mod transfer;
mod wait;

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use fleetbox_spec::{Checksum, ImageRef, ImageUrl};
use fleetbox_store::Store;
use tokio::net::unix::pipe::Receiver;

use crate::model::load;
use crate::part::{self, Part};
use crate::task::Task;
use crate::{Image, ImageError, ImageProgress, ImageStage, import};

pub use error::DownloadError;
pub use kept::PartialDownload;
pub(crate) use kept::{list, sweep, sweep_old};
pub use options::DownloadOptions;
pub(crate) use reach::answers;

use answer::Validator;
use kept::Kept;
use sink::Digests;
use transfer::Transfer;

/// Where an image is to come from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// As its user named it.
    pub(crate) reference: ImageRef,
    /// Where it is; another site than the vendor's, where the user said so.
    pub(crate) url: ImageUrl,
    /// What it must be.
    pub(crate) pin: Option<Checksum>,
}

impl Source {
    /// The file at an address.
    pub(crate) fn of_url(url: &ImageUrl) -> Self {
        Self { reference: ImageRef::Url(url.clone()), url: url.clone(), pin: url.checksum().cloned() }
    }

    /// For a person: what, and where from.
    fn described(&self) -> String {
        match &self.reference {
            ImageRef::Url(_) => self.url.address().to_owned(),
            other => format!("{other} from {}", self.url.host()),
        }
    }
}

/// Whether the image is in the store. Asks nobody.
pub(crate) fn in_store(store: &Store, source: &Source) -> Result<bool, ImageError> {
    Ok(record::known(store, source)?.is_some())
}

/// Finds the image in the store or downloads it. With `anew`, an address without a digest is asked whether it has
/// another file by now.
pub(crate) fn resolve(
    store: &Store,
    source: &Source,
    options: &DownloadOptions,
    anew: bool,
    task: &Task,
) -> Result<Image, ImageError> {
    let ask = anew && source.pin.is_none();
    if !ask && let Some(image) = record::known(store, source)? {
        return Ok(image);
    }
    let name = record::name(source);
    let lock = wait::lock(store, &name, &source.reference.to_string(), task)?;
    let kept = Kept::new(store, &name, &lock);
    let here = record::known(store, source)?;
    if !ask && let Some(image) = here {
        // What somebody left who was killed at the very end.
        kept.clear()?;
        return Ok(image);
    }
    let unless = here.is_some().then(|| record::recall(store, source)).flatten().map(|r| r.validator);
    let arrived = match arrive(source, &kept, unless.clone(), options, task)? {
        // Pieces of two states of a file, perhaps: once more, in one piece.
        Arrived::Mixed(_) => {
            report_anew(source, task);
            arrive(source, &kept, unless, options, task)?
        }
        arrived => arrived,
    };
    let (digests, validator) = match (arrived, here) {
        (Arrived::Whole(digests, validator), _) => (digests, validator),
        (Arrived::NotModified, Some(image)) => return Ok(image),
        (Arrived::NotModified, None) => return Err(ImageError::WorkerLost),
        (Arrived::Mixed(e), _) => return Err(e),
    };
    let result = make(store, source, &kept, &digests.sha256, task);
    match &result {
        Ok(image) => record::remember(store, source, &image.digest, &validator)?,
        // The file is good, and something here was not.
        Err(e) if is_about_this_host(e) => return result,
        Err(_) => {}
    }
    kept.clear()?;
    result
}

/// How a download ended well, or nearly.
enum Arrived {
    Whole(Digests, Validator),
    NotModified,
    /// All there, in several pieces, and not what it must be.
    Mixed(ImageError),
}

/// Downloads what is missing.
fn arrive(
    source: &Source,
    kept: &Kept<'_>,
    unless: Option<Validator>,
    options: &DownloadOptions,
    task: &Task,
) -> Result<Arrived, ImageError> {
    let mut transfer = Transfer::new(source, kept, unless, options, task)?;
    match block_on(task, transfer.run()) {
        Ok(true) => {}
        Ok(false) => return Ok(Arrived::NotModified),
        Err(e) => {
            transfer.stop(&e);
            return Err(e);
        }
    }
    let joined = transfer.is_joined();
    match transfer.finish() {
        Ok((digests, validator)) => Ok(Arrived::Whole(digests, validator)),
        Err(e) if joined && is_wrong_digest(&e) => Ok(Arrived::Mixed(e)),
        Err(e) => Err(e),
    }
}

fn is_wrong_digest(error: &ImageError) -> bool {
    matches!(error, ImageError::Download { source, .. } if matches!(**source, DownloadError::WrongDigest { .. }))
}

fn report_anew(source: &Source, task: &Task) {
    tracing::info!(url = %source.url, "its pieces are not of one file; starting anew");
    task.report(ImageProgress {
        stage: ImageStage::Download,
        detail: format!("downloading {}; its pieces are not of one file; starting anew", source.described()),
        progress: None,
    });
}

/// Makes the whole file an image.
fn make(
    store: &Store,
    source: &Source,
    kept: &Kept<'_>,
    digest: &str,
    task: &Task,
) -> Result<Image, ImageError> {
    let named = |image: Image| Image { reference: source.reference.clone(), ..image };
    let lock = part::lock(store, digest, &source.reference.to_string(), task)?;
    // The same file from another place.
    if let Some(image) = load(store, digest)? {
        return Ok(named(image));
    }
    let part = Part::create(store, digest, lock)?;
    let file = part.path().join("source");
    // Should this process be killed now, the next one need not download it again.
    fs::hard_link(kept.body(), &file)
        .or_else(|_| fs::rename(kept.body(), &file))
        .map_err(ImageError::io("link", &file))?;
    let label = source.described();
    import::adopt(store, part, &file, &label, source.reference.clone(), digest.to_owned(), task).map(named)
}

/// Whether the same file may well become an image at the next try.
fn is_about_this_host(error: &ImageError) -> bool {
    match error {
        ImageError::Io { source, .. } => {
            matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        }
        ImageError::Cancelled
        | ImageError::NoSpace { .. }
        | ImageError::Store(_)
        | ImageError::ToolMissing { .. }
        | ImageError::ToolStart { .. }
        | ImageError::ToolStalled { .. } => true,
        _ => false,
    }
}

/// Runs a future on this thread, for as long as anybody is interested.
fn block_on<T>(task: &Task, work: impl Future<Output = Result<T, ImageError>>) -> Result<T, ImageError> {
    let failed = || ImageError::io("start", "the download");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed())?;
    let result = runtime.block_on(async {
        // A pipe that nobody writes to: it is readable once its other end is closed.
        let interest =
            task.as_fd().try_clone_to_owned().and_then(Receiver::from_owned_fd).map_err(failed())?;
        tokio::select! {
            biased;
            _ = interest.readable() => Err(ImageError::Cancelled),
            result = work => result,
        }
    });
    // A resolver that waits for its servers is not waited for.
    runtime.shutdown_background();
    result
}

/// A future that must end by a time.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}
