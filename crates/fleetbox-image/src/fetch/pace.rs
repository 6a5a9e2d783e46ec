//! How fast bytes come. Pure: the clock is the caller's.

use std::time::Duration;

/// A rate that follows what happens, and does not jump.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When and at how many bytes the last sample was taken.
    last: Option<(Duration, u64)>,
    /// Bytes in a second.
    rate: Option<f64>,
}

/// Shorter spans say more of the kernel's buffers than of the network.
const SAMPLE: Duration = Duration::from_millis(500);
/// What a sample counts against all that was before it.
const WEIGHT: f64 = 0.3;

impl Pace {
    /// Takes note of what is done at a time since some start; gives the rate, once there is one.
    pub(super) fn at(&mut self, now: Duration, done: u64) -> Option<u64> {
        let (then, before) = *self.last.get_or_insert((now, done));
        let span = now.saturating_sub(then);
        if done < before {
            // It began anew.
            self.last = Some((now, done));
        } else if span >= SAMPLE {
            let sample = (done - before) as f64 / span.as_secs_f64();
            self.rate = Some(self.rate.map_or(sample, |rate| rate + WEIGHT * (sample - rate)));
            self.last = Some((now, done));
        }
        // A float's `as` saturates.
        self.rate.map(|rate| rate as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_steady_pace_is_found(rate in 1u64..1 << 40, steps in 2u32..50, ms in 1u64..2000, skipped in any::<u32>()) {
            // What was there before a resume does not count.
            let (mut pace, mut found) = (Pace::default(), None);
            for step in 0..=u64::from(steps) {
                let now = Duration::from_millis(step * ms);
                let done = u64::from(skipped) + (u128::from(rate) * now.as_millis() / 1000) as u64;
                found = pace.at(now, done);
            }
            match found {
                Some(found) => prop_assert!(found.abs_diff(rate) <= 2 + rate / 100, "{found} instead of {rate}"),
                None => prop_assert!(u64::from(steps) * ms < 500),
            }
        }

        #[test]
        fn it_stays_between_the_slowest_and_the_fastest(
            samples in proptest::collection::vec((500u64..5000, 0u64..1 << 30), 1..50)
        ) {
            let (mut pace, mut now, mut done) = (Pace::default(), Duration::ZERO, 0);
            pace.at(now, done);
            let (mut slowest, mut fastest) = (f64::MAX, 0f64);
            for (ms, bytes) in samples {
                now += Duration::from_millis(ms);
                done += bytes;
                let rate = bytes as f64 / (ms as f64 / 1000.0);
                (slowest, fastest) = (slowest.min(rate), fastest.max(rate));
                let found = pace.at(now, done).unwrap() as f64;
                prop_assert!(found >= slowest.floor() - 1.0 && found <= fastest + 1.0, "{slowest} {found} {fastest}");
            }
        }
    }

    #[test]
    fn beginning_anew_is_no_negative_rate() {
        let mut pace = Pace::default();
        pace.at(Duration::ZERO, 1000);
        pace.at(Duration::from_secs(1), 2000);
        assert_eq!(pace.at(Duration::from_secs(2), 0), Some(1000));
        assert_eq!(pace.at(Duration::from_secs(3), 1000), Some(1000));
    }
}
