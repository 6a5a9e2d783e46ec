//! Finding programs, and asking them for their version.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetbox_os::child::Spawn;
use rustix::event::{PollFd, PollFlags, poll};

/// A program that has not told its version by then is not waited for. It takes milliseconds, and on a loaded host with
/// a cold cache half a second.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// Folders that root's PATH has and a user's often lacks; `nft` and `mke2fs` live there.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is, by PATH and then the system's own folders.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(std::env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from)), name)
}

fn find_in(dirs: impl Iterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    dirs.filter(|d| d.is_absolute())
        .map(|d| d.join(name))
        .find(|p| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// The version in the first line that a program prints for `--version`.
pub(super) fn version(program: &Path) -> Option<String> {
    version_in(output(program, "--version", VERSION_DEADLINE)?.lines().next()?)
}

/// The first word of a line that looks like a version, without a leading `v`.
pub(super) fn version_in(line: &str) -> Option<String> {
    line.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | ',')).find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        let starts = word.starts_with(|c: char| c.is_ascii_digit());
        (starts && word.contains('.')).then(|| word.to_owned())
    })
}

/// What a program prints for one argument, as far as it does within the deadline.
fn output(program: &Path, arg: &str, within: Duration) -> Option<String> {
    let deadline = Instant::now() + within;
    let (read, write) = fleetbox_os::fd::pipe().ok()?;
    let mut spawn = Spawn::new(program).arg(arg);
    spawn.stdout = Some(write);
    // Dropped, and so killed if it should still run, at the end of this function.
    let _child = spawn.spawn().ok()?;
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    let mut file = File::from(read);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.try_into().ok()?;
        let ready = poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&timeout));
        match ready {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match file.read(&mut buffer) {
            Ok(0) => return String::from_utf8(out).ok(),
            Ok(n) => out.extend_from_slice(&buffer[..n]),
            Err(_) => return None,
        }
        // A version is short: whatever prints this much is something else.
        if out.len() > 64 * 1024 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_programs_print_them() {
        for (line, version) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", Some("10.0.2")),
            ("QEMU emulator version 7.2.15(Debian 1:7.2+dfsg-7+deb12u15)", Some("7.2.15")),
            ("nftables v1.0.6 (Lester Gooch #5)", Some("1.0.6")),
            ("cloud-hypervisor v48.0", Some("48.0")),
            ("usage: 3 arguments", None),
            ("", None),
        ] {
            assert_eq!(version_in(line).as_deref(), version, "{line}");
        }
    }

    #[test]
    fn only_executable_files_are_programs() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        for d in [&a, &b] {
            std::fs::create_dir(d).unwrap();
            std::fs::write(d.join("tool"), "#!/bin/sh\necho tool version 1.2\n").unwrap();
        }
        std::fs::create_dir(a.join("folder")).unwrap();
        let look = |name| find_in([a.clone(), b.clone(), PathBuf::from("relative")].into_iter(), name);
        std::fs::set_permissions(a.join("tool"), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::set_permissions(b.join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look("tool"), Some(b.join("tool")));
        assert_eq!(look("folder"), None);
        assert_eq!(version(&b.join("tool")).as_deref(), Some("1.2"));
    }

    #[test]
    fn a_program_that_does_not_answer_is_not_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let tool = tmp.path().join("tool");
        let pid = tmp.path().join("pid");
        std::fs::write(&tool, format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", pid.display())).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(output(&tool, "--version", Duration::from_secs(1)), None);
        let pid: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        assert!(fleetbox_os::process::stat(pid).is_err(), "still runs");
    }
}
