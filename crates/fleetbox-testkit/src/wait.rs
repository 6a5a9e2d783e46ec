//! Waiting for a level.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What was waited for has not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("waited {waited:?} for {what}; last seen: {last}")]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub waited: Duration,
    /// What the last look saw.
    pub last: String,
}

/// Looks until it is so, at most until the deadline; blocks the thread. At least one look is taken.
///
/// `look` answers `Ok` when it is so, else `Err` with what it saw instead.
///
/// # Errors
/// [`TimedOut`] with what the last look saw.
pub fn wait_for<T, E: Display>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, TimedOut> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let last = match look() {
            Ok(value) => return Ok(value),
            Err(seen) => seen.to_string(),
        };
        let left = within.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(TimedOut { what: what.to_owned(), waited: started.elapsed(), last });
        }
        // May wake early, which costs one more look.
        thread::park_timeout(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_the_level_or_tells_the_last_look() {
        let mut looks = 0;
        let seen = wait_for("three looks", Duration::from_secs(60), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("{looks} looks")) }
        });
        assert_eq!(seen, Ok(3));
        let error = wait_for("never", Duration::ZERO, || Err::<(), _>("nothing")).unwrap_err();
        assert_eq!((error.what.as_str(), error.last.as_str()), ("never", "nothing"));
    }
}
