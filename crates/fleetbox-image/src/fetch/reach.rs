//! Whether a file can be had, asked shortly and not too often.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fleetbox_store::{Store, Versioned};
use hyper::Method;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::http::Client;
use super::{DownloadOptions, Source, block_on, within};
use crate::ImageError;
use crate::model::hex;
use crate::task::Task;

/// How long a site that was there is believed to be.
const THERE: Duration = Duration::from_secs(60 * 60);
/// How long a site that was not there is not asked again: a host without internet pays the wait once in this time.
const NOT_THERE: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    url: String,
    there: bool,
    /// Seconds since 1970.
    at: u64,
}

impl Versioned for Verdict {
    const VERSION: u32 = 1;
}

impl Verdict {
    /// What it says, while it says anything.
    fn valid(&self, url: &str, now: u64) -> Option<bool> {
        let kept = if self.there { THERE } else { NOT_THERE };
        // The clock may have been set back since.
        (self.url == url && self.at <= now && now - self.at < kept.as_secs()).then_some(self.there)
    }
}

fn file(store: &Store, url: &str) -> PathBuf {
    use sha2::{Digest, Sha256};
    store.images_dir().join(format!(".site-{}.json", &hex(&Sha256::digest(url.as_bytes()))[..32]))
}

/// Whether the source's server gives the file. Takes [`DownloadOptions::probe_timeout`] at the longest.
pub(crate) fn answers(
    store: &Store,
    source: &Source,
    options: &DownloadOptions,
    task: &Task,
) -> Result<bool, ImageError> {
    let url = source.url.address();
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = file(store, url);
    let kept = fleetbox_store::read_json::<Verdict>(&path).ok();
    if let Some(there) = kept.and_then(|v| v.valid(url, now())) {
        return Ok(there);
    }
    let client = Client::new(options);
    let asked = block_on(task, async {
        Ok(within(options.probe_timeout, client.ask(&Method::HEAD, url, &HeaderMap::new())).await)
    })?;
    let there = match asked {
        // A server that does not know HEAD is there, too.
        Some(Ok(reply)) => reply.status.is_success() || matches!(reply.status.as_u16(), 405 | 501),
        Some(Err(error)) => {
            tracing::info!(url, %error, "not there");
            false
        }
        None => {
            tracing::info!(url, after = ?options.probe_timeout, "no answer");
            false
        }
    };
    fleetbox_store::write_json(&path, &Verdict { url: url.to_owned(), there, at: now() }, 0o644)?;
    store.give_to_owner(&path)?;
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_age() {
        let verdict = |there| Verdict { url: "u".into(), there, at: 1000 };
        assert_eq!(verdict(true).valid("u", 1000), Some(true));
        assert_eq!(verdict(true).valid("u", 1000 + 3599), Some(true));
        assert_eq!(verdict(true).valid("u", 1000 + 3600), None);
        assert_eq!(verdict(false).valid("u", 1000 + 599), Some(false));
        assert_eq!(verdict(false).valid("u", 1000 + 600), None);
        assert_eq!(verdict(true).valid("other", 1000), None);
        assert_eq!(verdict(true).valid("u", 999), None);
    }
}
