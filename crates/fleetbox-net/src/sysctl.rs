//! Kernel settings of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::NetError;

/// `/proc/sys/` path of a setting named with `/`, such as `net/ipv4/conf/eth0/forwarding`.
///
/// Keys use `/` rather than `.`, since link names may hold dots (`eth0.100`) but no slashes.
fn path(key: &str) -> Option<PathBuf> {
    // A damaged journal must not lead out of the network's settings.
    let sane = key.starts_with("net/") && !key.split('/').any(|part| matches!(part, "" | "." | ".."));
    sane.then(|| PathBuf::from("/proc/sys").join(key))
}

fn failed(action: &'static str, key: &str) -> impl FnOnce(io::Error) -> NetError {
    let key = key.to_owned();
    move |source| NetError::Sysctl { action, key, source }
}

/// Reads a setting; `None` when the kernel has none of that name (the link is gone, no IPv6).
pub(crate) fn read(key: &str) -> Result<Option<String>, NetError> {
    let path = path(key).ok_or(io::ErrorKind::InvalidInput.into()).map_err(failed("read", key))?;
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(failed("read", key)(e)),
    }
}

/// Writes a setting; false when the kernel has none of that name.
pub(crate) fn write(key: &str, value: &str) -> Result<bool, NetError> {
    let path = path(key).ok_or(io::ErrorKind::InvalidInput.into()).map_err(failed("write", key))?;
    match fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()))
    {
        Ok(()) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(failed("write", key)(e)),
    }
}

fn is_gone(e: &io::Error) -> bool {
    // ENODEV: the link went between open and write.
    const ENODEV: i32 = 19;
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_settings_and_absent_ones_are_told() {
        assert!(read("kernel/hostname").is_err());
        assert!(read("net/../kernel/hostname").is_err());
        assert!(write("net/../../../tmp/x", "1").is_err());
        assert_eq!(read("net/ipv4/conf/no-such-link/forwarding").unwrap(), None);
        assert!(read("net/ipv4/conf/lo/forwarding").unwrap().is_some());
    }
}
