//! Files that are complete or absent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{StoreError, Versioned};

/// Writes a file so that after any crash either the old or the new content is there, whole.
///
/// # Errors
/// What the system answered; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    // The pid and thread keep two writers of one file apart; the last rename wins.
    let tmp = path.with_file_name(format!(
        ".{}.{}-{:?}.tmp",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id(),
        std::thread::current().id()
    ));
    let result = write_and_rename(&tmp, path, bytes, mode);
    if result.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    result
}

fn write_and_rename(tmp: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(tmp)
        .map_err(StoreError::io("create", tmp))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(StoreError::io("write", path))?;
    // A temporary file left by an earlier crash may have had another mode.
    crate::home::set_mode(tmp, mode)?;
    fs::rename(tmp, path).map_err(StoreError::io("rename into place", path))?;
    if let Some(dir) = path.parent() {
        // Without this the rename itself may be lost with the power.
        File::open(dir).and_then(|d| d.sync_all()).map_err(StoreError::io("sync folder", dir))?;
    }
    Ok(())
}

/// Writes a versioned record as JSON, atomically.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json<T: Serialize + Versioned>(path: &Path, value: &T, mode: u32) -> Result<(), StoreError> {
    #[derive(Serialize)]
    struct Envelope<'a, T> {
        version: u32,
        #[serde(flatten)]
        value: &'a T,
    }
    let mut bytes = serde_json::to_vec_pretty(&Envelope { version: T::VERSION, value })
        .map_err(|source| StoreError::Damaged { path: path.to_owned(), source })?;
    bytes.push(b'\n');
    write_atomic(path, &bytes, mode)
}

/// Reads a versioned record.
///
/// # Errors
/// [`StoreError::Io`] (see [`StoreError::is_not_found`]), [`StoreError::TooNew`], [`StoreError::Damaged`].
pub fn read_json<T: DeserializeOwned + Versioned>(path: &Path) -> Result<T, StoreError> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let bytes = fs::read(path).map_err(StoreError::io("read", path))?;
    let damaged = |source| StoreError::Damaged { path: path.to_owned(), source };
    // The version first: a newer file may well not parse as this version's record.
    let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > T::VERSION {
        return Err(StoreError::TooNew { path: path.to_owned(), found: version, known: T::VERSION });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// What unlink answered otherwise.
pub fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    ok_if_gone(fs::remove_file(path)).map_err(StoreError::io("remove", path))
}

/// Removes a folder and all below it; one that is not there is fine.
///
/// # Errors
/// What the system answered otherwise.
pub fn remove_dir_if_there(path: &Path) -> Result<(), StoreError> {
    ok_if_gone(fs::remove_dir_all(path)).map_err(StoreError::io("remove folder", path))
}

fn ok_if_gone(r: io::Result<()>) -> io::Result<()> {
    match r {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        r => r,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Rec {
        a: u32,
    }
    impl Versioned for Rec {
        const VERSION: u32 = 2;
    }

    #[test]
    fn reads_back_refuses_newer_and_keeps_the_damaged() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("r.json");
        write_json(&path, &Rec { a: 7 }, 0o600).unwrap();
        assert_eq!(read_json::<Rec>(&path).unwrap(), Rec { a: 7 });
        for text in [r#"{"version": 3, "b": 1}"#, "{\"version\": 2, \"a\"", "", "[]", r#"{"a": 1}"#] {
            fs::write(&path, text).unwrap();
            let err = read_json::<Rec>(&path).unwrap_err();
            match text.contains('3') {
                true => assert!(matches!(err, StoreError::TooNew { found: 3, known: 2, .. }), "{err}"),
                false => assert!(matches!(err, StoreError::Damaged { .. }), "{err}"),
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        // A folder in the way makes the rename fail.
        let path = tmp.path().join("r.json");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "").unwrap();
        assert!(write_atomic(&path, b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }
}
