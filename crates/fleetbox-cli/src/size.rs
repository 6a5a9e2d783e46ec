//! Sizes as a person writes them.

/// Reads a size of memory in MiB: `2G`, `512M`, `1.5GiB`; a bare number is GiB.
///
/// # Errors
/// In words, for clap to print.
pub(crate) fn memory_mib(text: &str) -> Result<u64, String> {
    let kib = kib(text)?;
    match kib % 1024 {
        0 => Ok(kib / 1024),
        _ => Err("it must be a whole number of MiB".into()),
    }
}

/// Reads a size of a disk in GiB, rounded up to whole ones.
///
/// # Errors
/// As [`memory_mib`].
pub(crate) fn disk_gib(text: &str) -> Result<u64, String> {
    Ok(kib(text)?.div_ceil(1 << 20))
}

/// All units are powers of two, as everywhere where memory is meant; `GB` is taken for `GiB`.
fn kib(text: &str) -> Result<u64, String> {
    let form = || "write it like 2G, 512M or 1.5GiB; a number alone is GiB".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let kib_per_unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "g" | "gb" | "gib" => 1 << 20,
        "m" | "mb" | "mib" => 1 << 10,
        "t" | "tb" | "tib" => 1 << 30,
        _ => return Err(form()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(form());
    }
    let too_large = || "it is too large".to_owned();
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| form())?;
    whole
        .checked_mul(kib_per_unit)
        .and_then(|w| w.checked_add(kib_per_unit * thousandths / 1000))
        .ok_or_else(too_large)
}

/// A size in MiB as short as can be: `2G`, `1536M`.
pub(crate) fn short_mib(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) { format!("{}G", mib / 1024) } else { format!("{mib}M") }
}

/// A number of bytes as short as can be, rounded: `0`, `640K`, `482M`, `1.4G`.
pub(crate) fn short_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
    let bytes = u128::from(bytes);
    let rounded = |divisor: u128| (bytes + divisor / 2) / divisor;
    let mut divisor = 1;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    // What would be rounded to 1024 is 1 of the next.
    while rounded(divisor) >= 1024
        && let Some(next) = units.next()
    {
        divisor *= 1024;
        unit = next;
    }
    let tenths = (bytes * 10 + divisor / 2) / divisor;
    match (tenths / 10, tenths % 10) {
        (whole @ 1..10, part @ 1..) if divisor > 1 => format!("{whole}.{part}{unit}"),
        _ => format!("{}{unit}", rounded(divisor)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, mib) in [
            ("2", 2048),
            ("2G", 2048),
            ("2g", 2048),
            ("2GiB", 2048),
            ("2GB", 2048),
            ("2 GiB", 2048),
            ("512M", 512),
            ("512MiB", 512),
            ("1.5G", 1536),
            ("0.5", 512),
            ("1T", 1 << 20),
            ("0", 0),
        ] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        for text in ["", "G", "-1", "2X", "1.5.5G", "1,5G", ".5G", "1.2345G", "two", "2Gx", "0.3M"] {
            assert!(memory_mib(text).is_err(), "{text}");
        }
        assert_eq!(memory_mib("99999999999999999999G"), Err("it is too large".into()));
        assert_eq!(memory_mib("99999999999999999T"), Err("it is too large".into()));
    }

    #[test]
    fn a_disk_is_whole_gib() {
        for (text, gib) in [("20", 20), ("20G", 20), ("512M", 1), ("1025M", 2), ("1T", 1024), ("0", 0)] {
            assert_eq!(disk_gib(text), Ok(gib), "{text}");
        }
    }

    #[test]
    fn short() {
        assert_eq!([short_mib(512), short_mib(1024), short_mib(1536)], ["512M", "1G", "1536M"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,30}") {
            let _ = (memory_mib(&text), disk_gib(&text));
        }

        #[test]
        fn reads_what_it_writes(mib in 1u64..1 << 40) {
            prop_assert_eq!(memory_mib(&short_mib(mib)), Ok(mib));
        }
    }
    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (0, "0"),
            (7, "7"),
            (1023, "1023"),
            (1024, "1K"),
            (1536, "1.5K"),
            ((1 << 20) - 1, "1M"),
            (482 << 20, "482M"),
            ((10 << 30) - 1, "10G"),
            (1_503_238_553, "1.4G"),
            (3 << 40, "3T"),
            (u64::MAX, "16777216T"),
        ] {
            assert_eq!(short_bytes(bytes), text, "{bytes}");
        }
    }
}
