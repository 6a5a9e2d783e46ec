//! Tests that cannot run here, and say so.
//!
//! libtest has no way to skip a test while it runs: it shows `ok`. So the reason goes to stderr and to the file
//! that [`SKIP_FILE`] names, which `cargo xtask test` reads and counts.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

/// The environment variable that names the file to which skips are appended.
pub const SKIP_FILE: &str = "FLEETBOX_SKIP_FILE";

/// A test that was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// Its name.
    pub test: String,
    /// Why.
    pub reason: String,
}

/// Leaves the calling test, saying why it cannot run here. Takes what `format!` takes.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::report_skip(&::std::format!($($reason)*));
        return;
    }};
}

/// Tells that the calling thread's test is skipped; the test then has to return by itself. See [`skip!`].
pub fn report_skip(reason: &str) {
    // libtest names each test's thread after the test.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unnamed");
    let _ = writeln!(io::stderr(), "skipped: {test}: {reason}");
    if let Some(file) = std::env::var_os(SKIP_FILE)
        && let Err(e) = append(Path::new(&file), test, reason)
    {
        let _ = writeln!(io::stderr(), "skipped: {test}: not counted: {e}");
    }
}

/// One line in one write, so that tests running side by side do not mix theirs.
fn append(file: &Path, test: &str, reason: &str) -> io::Result<()> {
    let line = format!("{}\n", serde_json::json!({ "test": test, "reason": reason }));
    OpenOptions::new().create(true).append(true).open(file)?.write_all(line.as_bytes())
}

/// Reads the file that [`SKIP_FILE`] named; one that is not there holds no skips.
///
/// # Errors
/// When it cannot be read, or does not hold skips.
pub fn read_skips(file: &Path) -> io::Result<Vec<Skip>> {
    let file = match File::open(file) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for line in BufReader::new(file).lines() {
        let value: serde_json::Value = serde_json::from_str(&line?)?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let (Some(test), Some(reason)) = (text("test"), text("reason")) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line that is no skip"));
        };
        all.push(Skip { test, reason });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_read_back() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("skips");
        assert_eq!(read_skips(&file).unwrap(), vec![]);
        append(&file, "a::b", "no \"root\"\nhere").unwrap();
        append(&file, "c", "x").unwrap();
        let skips = read_skips(&file).unwrap();
        assert_eq!(skips.len(), 2);
        assert_eq!(skips[0], Skip { test: "a::b".into(), reason: "no \"root\"\nhere".into() });
        std::fs::write(&file, "{}\n").unwrap();
        assert!(read_skips(&file).is_err());
    }
}
