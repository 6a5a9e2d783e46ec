//! The installation's key pair, and host keys for machines.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::{LineEnding, rand_core::Rng};
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::error::{Error, Result};

/// Comment of the installation's key, for whoever finds it in an `authorized_keys`.
const COMMENT: &str = "fleetbox";

/// The key that logs in to every machine of one installation.
#[derive(Clone)]
pub struct KeyPair {
    /// The private key.
    pub private: Arc<PrivateKey>,
    /// The line for `authorized_keys`, without a newline.
    pub public_line: String,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public_line", &self.public_line).finish_non_exhaustive()
    }
}

/// A machine's own SSH host key, made on the host so that the machine can be verified.
#[derive(Clone)]
pub struct HostKey {
    /// The private key in OpenSSH's format (PEM), for the machine.
    pub private_openssh: String,
    /// The public key as one line (`ssh-ed25519 AAAA…`), without a comment or newline.
    pub public_line: String,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKey").field("public_line", &self.public_line).finish_non_exhaustive()
    }
}

/// Returns the ed25519 key at `private_path`, which is made if there is none; its public half is kept at
/// `private_path` + `.pub`. Both are OpenSSH files that `ssh -i` takes (0600 and 0644).
///
/// Any number of processes may call this at once: a file appears complete or not at all, the first one
/// wins, and all return the same key. The directory has to exist; when root makes the key in somebody
/// else's directory, the key belongs to the directory's owner.
///
/// # Errors
/// [`Error::KeyFile`] if a file cannot be read or made, [`Error::KeyFormat`] if what is there is no
/// usable key. An unusable key is never replaced: machines know the old one.
pub fn ensure_key_pair(private_path: &Path) -> Result<KeyPair> {
    let private = match read_private(private_path)? {
        Some(private) => private,
        None => {
            create_private(private_path)?;
            read_private(private_path)?
                .ok_or_else(|| file_error("read", private_path, io::Error::from(io::ErrorKind::NotFound)))?
        }
    };
    let public_line = public_line(private.public_key(), private_path)?;
    let public_path = with_suffix(private_path, ".pub");
    let wanted = format!("{public_line}\n");
    if fs::read_to_string(&public_path).ok().as_deref() != Some(&wanted) {
        let temp = write_temp(&public_path, wanted.as_bytes(), 0o644)?;
        fs::rename(&temp.path, &public_path).map_err(|e| file_error("replace", &public_path, e))?;
    }
    Ok(KeyPair { private: Arc::new(private), public_line })
}

/// Makes a new ed25519 host key.
///
/// # Errors
/// [`Error::KeyFormat`] if it cannot be encoded.
///
/// ```
/// let key = fleetbox_ssh::generate_host_key().unwrap();
/// assert!(key.private_openssh.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
/// assert!(fleetbox_ssh::parse_public_line(&key.public_line).is_ok());
/// ```
pub fn generate_host_key() -> Result<HostKey> {
    let private = generate("")?;
    let public_line = public_line(private.public_key(), Path::new("the new host key"))?;
    let private_openssh =
        private.to_openssh(LineEnding::LF).map_err(|e| format_error("the new host key", e))?;
    Ok(HostKey { private_openssh: private_openssh.to_string(), public_line })
}

/// Parses a public key from a line as in `id_ed25519.pub` or `authorized_keys` without options.
///
/// # Errors
/// [`Error::KeyFormat`] if it is none.
pub fn parse_public_line(line: &str) -> Result<PublicKey> {
    PublicKey::from_openssh(line.trim()).map_err(|e| format_error(&format!("public key line {line:?}"), e))
}

/// 128 random bits as hex, from the generator that also makes the keys.
pub(crate) fn nonce() -> String {
    let mut rng = safe_rng();
    format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64())
}

fn generate(comment: &str) -> Result<PrivateKey> {
    let mut key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)
        .map_err(|e| format_error("the new key", e))?;
    key.set_comment(comment);
    Ok(key)
}

fn public_line(key: &PublicKey, origin: &Path) -> Result<String> {
    let line = key.to_openssh().map_err(|e| format_error(&origin.display().to_string(), e))?;
    Ok(line.trim_end().to_owned())
}

fn read_private(path: &Path) -> Result<Option<PrivateKey>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error("read", path, e)),
    };
    let key = PrivateKey::from_openssh(text).map_err(|e| format_error(&path.display().to_string(), e))?;
    Ok(Some(key))
}

/// Makes a key and puts it at `path` unless one has appeared there meanwhile.
fn create_private(path: &Path) -> Result<()> {
    let pem = generate(COMMENT)?
        .to_openssh(LineEnding::LF)
        .map_err(|e| format_error(&path.display().to_string(), e))?;
    let temp = write_temp(path, pem.as_bytes(), 0o600)?;
    // A link, not a rename: it fails where the name exists, so that nobody's key is ever replaced.
    match fs::hard_link(&temp.path, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(file_error("put in place", path, e)),
        _ => Ok(()),
    }
}

/// A file that is removed with this value, unless it has been renamed away.
struct Temp {
    path: PathBuf,
}

impl Drop for Temp {
    fn drop(&mut self) {
        // Renamed files are no longer there; for others there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

fn write_temp(path: &Path, content: &[u8], mode: u32) -> Result<Temp> {
    let temp = Temp { path: with_suffix(path, &format!(".{}.tmp", nonce())) };
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp.path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        let directory = match temp.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let owner = fs::metadata(directory)?;
        if file.metadata()?.uid() == 0 && owner.uid() != 0 {
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|e| file_error("write", &temp.path, e))?;
    Ok(temp)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::KeyFile { action, path: path.to_owned(), source: Arc::new(source) }
}

fn format_error(what: &str, source: russh::keys::ssh_key::Error) -> Error {
    Error::KeyFormat { what: what.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_with_the_right_modes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id_ed25519");
        let first = ensure_key_pair(&path).unwrap();
        let second = ensure_key_pair(&path).unwrap();
        assert_eq!(first.public_line, second.public_line);
        assert!(first.public_line.ends_with(" fleetbox"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join("id_ed25519.pub"))), (0o600, 0o644));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn many_at_once_end_with_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id_ed25519");
        let barrier = std::sync::Barrier::new(8);
        let lines: Vec<String> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                ensure_key_pair(&path).unwrap().public_line
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
        assert_eq!(fs::read_to_string(dir.path().join("id_ed25519.pub")).unwrap().trim(), lines[0]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_lost_public_half_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id_ed25519");
        let made = ensure_key_pair(&path).unwrap();
        fs::write(dir.path().join("id_ed25519.pub"), "something else\n").unwrap();
        ensure_key_pair(&path).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("id_ed25519.pub")).unwrap().trim(), made.public_line);
    }

    #[test]
    fn an_unusable_key_is_reported_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id_ed25519");
        fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nno\n").unwrap();
        assert!(matches!(ensure_key_pair(&path), Err(Error::KeyFormat { .. })));
        assert!(fs::read_to_string(&path).unwrap().contains("no"));
        let missing = dir.path().join("none/id_ed25519");
        assert!(matches!(ensure_key_pair(&missing), Err(Error::KeyFile { action: "write", .. })));
    }

    #[test]
    fn private_keys_do_not_reach_debug_output() {
        let key = generate_host_key().unwrap();
        assert!(!format!("{key:?}").contains("PRIVATE"));
        assert_eq!(key.public_line.split(' ').count(), 2, "no comment: {}", key.public_line);
    }

    #[test]
    fn public_lines() {
        let line = generate_host_key().unwrap().public_line;
        let parsed = parse_public_line(&format!("{line} a comment\n")).unwrap();
        assert_eq!(parsed.key_data(), parse_public_line(&line).unwrap().key_data());
        assert!(matches!(parse_public_line("ssh-ed25519 AAAA"), Err(Error::KeyFormat { .. })));
    }
}
