//! One downloader for many who wait.

use std::time::{Duration, Instant};

use fleetbox_spec::Progress;
use fleetbox_store::{Lock, LockKind, Store, StoreError};

use super::{kept, pace::Pace};
use crate::task::Task;
use crate::{ImageError, ImageProgress, ImageStage};

/// The longest that somebody else's work is waited for without any more bytes of it: a conversion takes its time.
const PATIENCE: Duration = Duration::from_secs(45 * 60);
const POLL: Duration = Duration::from_millis(100);

/// Takes the lock of a download, telling who has it and how far it is while that takes time.
pub(super) fn lock(store: &Store, name: &str, label: &str, task: &Task) -> Result<Lock, ImageError> {
    let begun = Instant::now();
    let (mut pace, mut moved, mut told) = (Pace::default(), begun, None);
    let mut last = None;
    loop {
        let holder = match Lock::try_take(store, LockKind::Image, name) {
            Ok(lock) => return Ok(lock),
            Err(StoreError::Locked { holder, .. }) if moved.elapsed() < PATIENCE => holder,
            Err(e) => return Err(e.into()),
        };
        let seen = kept::progress(store, name);
        if seen != last {
            (moved, last) = (Instant::now(), seen);
        }
        let rate = seen.and_then(|(done, _)| pace.at(begun.elapsed(), done));
        let progress = seen.map(|(done, total)| Progress::new(done, total, "bytes").at_rate(rate));
        let now = (holder.clone(), seen);
        if told.as_ref() != Some(&now) {
            let detail = format!("{label} is being downloaded by {holder}");
            task.report(ImageProgress { stage: ImageStage::Waiting, detail, progress });
            told = Some(now);
        }
        task.pause(POLL)?;
    }
}
