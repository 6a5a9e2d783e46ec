//! What is worth another try, and when. Pure.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use super::{DownloadError, DownloadOptions};

/// The longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause that a server can ask for; one that wants more is not waited for.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// Getting farther by this much is worth as many tries again.
const FARTHER: u64 = 1 << 20;

/// Whether the same request may go well a moment later. A GET changes nothing, so all of them are safe to repeat.
fn is_passing(error: &DownloadError) -> bool {
    match error {
        DownloadError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
        DownloadError::Connect { .. }
        | DownloadError::ConnectTimeout { .. }
        | DownloadError::NoAnswer { .. }
        | DownloadError::Stalled { .. }
        | DownloadError::Truncated { .. }
        | DownloadError::Broken { .. } => true,
        // It could not be reached; otherwise it has answered, and there is no cause below that.
        DownloadError::Proxy { source, .. } => source.source().is_some(),
        _ => false,
    }
}

/// Counts failures.
#[derive(Debug)]
pub(super) struct Tries {
    most: u32,
    backoff: Duration,
    failed: u32,
    farthest: u64,
}

impl Tries {
    pub(super) fn new(options: &DownloadOptions, done: u64) -> Self {
        Self { most: options.tries, backoff: options.backoff, failed: 0, farthest: done }
    }

    /// How long to wait before another try, after a failure at so many bytes; `None`: it is given up. `random` is
    /// any number.
    pub(super) fn after(&mut self, error: &DownloadError, done: u64, random: u64) -> Option<Duration> {
        if !is_passing(error) {
            return None;
        }
        // Starting anew is not getting farther.
        if done >= self.farthest.saturating_add(FARTHER) {
            self.farthest = done;
            self.failed = 0;
        }
        self.failed += 1;
        if self.failed >= self.most {
            return None;
        }
        let doubled = self.backoff.saturating_mul(1u32.checked_shl(self.failed - 1).unwrap_or(u32::MAX));
        let pause = doubled.min(LONGEST.max(self.backoff));
        // Half of it by chance: those who failed together do not come back together.
        let pause = pause / 2 + (pause / 2).mul_f64((random % 1024) as f64 / 1024.0);
        match error {
            DownloadError::Status { retry_after: Some(asked), .. } if *asked > LONGEST_ASKED => None,
            DownloadError::Status { retry_after: Some(asked), .. } => Some(pause.max(*asked)),
            _ => Some(pause),
        }
    }
}

/// A number that differs from process to process and from call to call.
pub(super) fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tries(most: u32) -> Tries {
        Tries::new(&DownloadOptions { tries: most, ..DownloadOptions::default() }, 0)
    }

    fn truncated() -> DownloadError {
        DownloadError::Truncated { done: 0, total: None }
    }

    #[test]
    fn what_will_not_change_is_not_tried_again() {
        for error in [
            DownloadError::Status { status: 404, retry_after: Some(Duration::ZERO) },
            DownloadError::Status { status: 501, retry_after: None },
            DownloadError::RedirectLoop(String::new()),
            DownloadError::BadAnswer(""),
            DownloadError::NotAnImage { found: "", content_type: String::new() },
        ] {
            assert_eq!(tries(9).after(&error, 0, 0), None, "{error}");
        }
    }

    #[test]
    fn a_server_is_waited_for_as_it_asks_but_not_for_long() {
        let busy = |s| DownloadError::Status { status: 503, retry_after: Some(Duration::from_secs(s)) };
        assert_eq!(tries(9).after(&busy(20), 0, 0), Some(Duration::from_secs(20)));
        assert!(tries(9).after(&busy(0), 0, 0).unwrap() > Duration::ZERO);
        assert_eq!(tries(9).after(&busy(61), 0, 0), None);
    }

    #[test]
    fn getting_farther_is_worth_more_tries() {
        let mut t = tries(3);
        assert!(t.after(&truncated(), 10, 0).is_some());
        assert!(t.after(&truncated(), 20, 0).is_some());
        assert!(t.after(&truncated(), 2 << 20, 0).is_some());
        // From the start again, to the same place.
        assert!(t.after(&truncated(), 2 << 20, 0).is_some());
        assert!(t.after(&truncated(), 2 << 20, 0).is_none());
        assert!(tries(1).after(&truncated(), 0, 0).is_none());
        assert!(tries(0).after(&truncated(), 0, 0).is_none());
    }

    proptest! {
        #[test]
        fn pauses_grow_and_have_an_end(most in 1u32..80, random: u64) {
            let (mut t, mut pauses) = (tries(most), Vec::new());
            while let Some(pause) = t.after(&truncated(), 0, random) {
                prop_assert!(pause <= LONGEST);
                pauses.push(pause);
            }
            prop_assert_eq!(pauses.len(), most as usize - 1);
            prop_assert!(pauses.is_sorted());
        }
    }
}
