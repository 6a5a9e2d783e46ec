use std::io;
use std::path::PathBuf;

use fleetbox_store::StoreError;

/// Why there is no test image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestImageError {
    /// A system that it is made from could not be had.
    #[error("could not get a system to make the test image {image} from")]
    System {
        /// Which image.
        image: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The home's folders or locks.
    #[error("could not use the fleetbox home for test images")]
    Store(#[from] StoreError),
    /// A file of the cache.
    #[error("could not {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The builder could not be started or watched.
    #[error("could not run the builder of the test image {image}")]
    Builder {
        /// Which image.
        image: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The builder gave up.
    #[error("the builder of the test image {image} ended with {status}; its last lines:\n{tail}")]
    Failed {
        /// Which image.
        image: &'static str,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        tail: String,
    },
    /// The builder did not come to an end.
    #[error("the builder of the test image {image} was not done after {after_s} s; its last lines:\n{tail}")]
    Stalled {
        /// Which image.
        image: &'static str,
        /// How long it was given.
        after_s: u64,
        /// The last lines of its log.
        tail: String,
    },
    /// A recipe does not tell what is asked.
    #[error("nothing is known of {fact} of {image}")]
    NoFact {
        /// Which image.
        image: &'static str,
        /// What was asked.
        fact: &'static str,
    },
}

impl TestImageError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
