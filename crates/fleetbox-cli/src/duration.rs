//! Times as a person writes and reads them.

use std::time::Duration;

/// Reads a time: `90s`, `5m`, `1m30s`, `2h`; a bare number is seconds.
///
/// # Errors
/// In words, for clap to print.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let form = || "write it like 90s, 5m or 1m30s; a number alone is seconds".to_owned();
    let too_long = || "it is too long".to_owned();
    let mut rest = text;
    let mut seconds: u64 = 0;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        if number.is_empty() {
            return Err(form());
        }
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "h" => 3600,
            "m" | "min" => 60,
            "s" => 1,
            "" if seconds == 0 && last_unit == u64::MAX => 1,
            _ => return Err(form()),
        };
        // 30s5m would be a slip of the pen.
        if unit >= last_unit {
            return Err(form());
        }
        last_unit = unit;
        seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or_else(too_long)?;
        rest = after;
    }
    match seconds {
        0 => Err("it must be at least one second".into()),
        s if s > 7 * 24 * 3600 => Err(too_long()),
        s => Ok(Duration::from_secs(s)),
    }
}

/// How long ago, in its largest unit: `45s`, `12m`, `3h`, `9d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("5min", 300),
            ("1m30s", 90),
            ("2h", 7200),
            ("1h1m1s", 3661),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "0",
            "0s",
            "s",
            "5x",
            "1m30",
            "30s1m",
            "1m1m",
            "-5",
            "1.5m",
            "200h",
            "9999999999999999999999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages() {
        let ages = [0, 59, 60, 3599, 3600, 172_799, 172_800].map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,30}") {
            let _ = parse(&text);
        }
    }
}
