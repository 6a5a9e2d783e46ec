//! Which QEMU this host has, and whether it will do.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox_os::child::Spawn;
use fleetbox_spec::Arch;
use tokio::io::AsyncReadExt;

/// The environment variable that names the QEMU to use, as a path or as a name in PATH.
pub const PROGRAM_VARIABLE: &str = "FLEETBOX_QEMU";

/// The oldest QEMU that is taken: Debian 12's. What is older lacks `-action`'s and `-sandbox`'s present forms or
/// was never tried.
pub const LEAST_VERSION: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 0 };

/// Printing its version takes QEMU some 20 ms; a host that takes this long runs nothing.
const VERSION_DEADLINE: Duration = Duration::from_secs(15);

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

impl QemuVersion {
    /// Reads it off what `--version` prints: `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let word = text.lines().next()?.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
        let mut numbers = word.split('.').map(str::parse);
        let mut number = || numbers.next()?.ok();
        Some(Self { major: number()?, minor: number()?, micro: number()? })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QEMU that will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundQemu {
    /// Its path.
    pub program: PathBuf,
    /// Its version, [`LEAST_VERSION`] or later.
    pub version: QemuVersion,
}

/// Why no QEMU was found that will do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// None is installed.
    #[error("there is no {program} in PATH")]
    Missing {
        /// What was looked for.
        program: PathBuf,
    },
    /// The environment names one that does not exist.
    #[error("there is no program {program}, which the environment variable {PROGRAM_VARIABLE} names")]
    OverrideMissing {
        /// What was named.
        program: PathBuf,
    },
    /// It could not be run.
    #[error("could not run {program} --version")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// It did not print its version in time.
    #[error("{program} --version has not ended within {seconds} s")]
    NoAnswer {
        /// The program.
        program: PathBuf,
        /// The time it was given.
        seconds: u64,
    },
    /// It printed something else.
    #[error("{program} --version says {answer:?}, which is no version of QEMU")]
    Unreadable {
        /// The program.
        program: PathBuf,
        /// What it printed, cut short.
        answer: String,
    },
    /// It is too old.
    #[error("{program} is QEMU {version}; at least {LEAST_VERSION} is needed")]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: QemuVersion,
    },
}

/// QEMU's name for the emulator of an architecture.
#[must_use]
pub fn program_name(arch: Arch) -> Option<&'static str> {
    match arch {
        Arch::Amd64 => Some("qemu-system-x86_64"),
        Arch::Arm64 => Some("qemu-system-aarch64"),
        _ => None,
    }
}

/// Looks for the QEMU of an architecture: the one that [`PROGRAM_VARIABLE`] names, else the one in PATH. Runs it
/// once to learn its version. Must be called within a tokio runtime.
///
/// # Errors
/// [`FindError`] says what was looked for and what is wrong with it.
pub async fn find(arch: Arch) -> Result<FoundQemu, FindError> {
    let named = std::env::var_os(PROGRAM_VARIABLE).filter(|v| !v.is_empty());
    let path = std::env::var_os("PATH").unwrap_or_default();
    check(locate(arch, named, &path)?, VERSION_DEADLINE).await
}

fn locate(arch: Arch, named: Option<OsString>, path: &OsStr) -> Result<PathBuf, FindError> {
    let program = PathBuf::from(match &named {
        Some(named) => named.as_os_str(),
        None => OsStr::new(program_name(arch).unwrap_or("qemu-system")),
    });
    let found = if program.components().count() > 1 {
        is_program(&program).then(|| program.clone())
    } else {
        std::env::split_paths(path).map(|dir| dir.join(&program)).find(|p| is_program(p))
    };
    found.ok_or(if named.is_some() {
        FindError::OverrideMissing { program }
    } else {
        FindError::Missing { program }
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

async fn check(program: PathBuf, deadline: Duration) -> Result<FoundQemu, FindError> {
    let answer = match tokio::time::timeout(deadline, version_text(&program)).await {
        Ok(Ok(text)) => text,
        Ok(Err(source)) => return Err(FindError::Run { program, source }),
        Err(_) => return Err(FindError::NoAnswer { program, seconds: deadline.as_secs() }),
    };
    let Some(version) = QemuVersion::parse(&answer) else {
        return Err(FindError::Unreadable { program, answer: answer.trim().chars().take(200).collect() });
    };
    if version < LEAST_VERSION {
        return Err(FindError::TooOld { program, version });
    }
    Ok(FoundQemu { program, version })
}

async fn version_text(program: &Path) -> io::Result<String> {
    let (reader, writer) = fleetbox_os::fd::pipe()?;
    let mut spawn = Spawn::new(program).arg("--version");
    spawn.stdout = Some(writer.try_clone()?);
    spawn.stderr = Some(writer);
    // Dropped at the end or when cancelled, which kills and reaps it.
    let _child = spawn.spawn()?;
    let mut text = Vec::new();
    tokio::net::unix::pipe::Receiver::from_owned_fd(reader)?.take(4096).read_to_end(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_read_and_compared() {
        let parse = QemuVersion::parse;
        let debian = parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c)\n").unwrap();
        assert_eq!(debian.to_string(), "10.0.2");
        assert!(debian > LEAST_VERSION);
        assert!(parse("QEMU emulator version 7.1.94\n").unwrap() < LEAST_VERSION);
        for bad in [
            "",
            "QEMU emulator version",
            "QEMU emulator version 7",
            "xen 7.2.1",
            "QEMU emulator version a.b.c",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_named_program_goes_before_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().as_os_str();
        let at = |named: Option<&Path>| locate(Arch::Arm64, named.map(|p| p.as_os_str().to_owned()), path);
        assert_eq!(at(None).unwrap_err().to_string(), "there is no qemu-system-aarch64 in PATH");
        let qemu = script(dir.path(), "qemu-system-aarch64", "");
        let mine = script(dir.path(), "my-qemu", "");
        assert_eq!(at(None).unwrap(), qemu);
        assert_eq!(at(Some(&mine)).unwrap(), mine);
        assert_eq!(at(Some(Path::new("my-qemu"))).unwrap(), mine);
        let missing = at(Some(Path::new("/nonexistent/qemu"))).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/qemu") && missing.contains("FLEETBOX_QEMU"), "{missing}");
        std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(at(None).is_err(), "a file that cannot be run is not a program");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_it_prints_decides() {
        let dir = tempfile::tempdir().unwrap();
        let run = |text: &str| check(script(dir.path(), "qemu", text), Duration::from_secs(30));
        let good = run("echo QEMU emulator version 7.2.0").await.unwrap();
        assert_eq!(good.version, LEAST_VERSION);
        let old = run("echo QEMU emulator version 6.2.0").await.unwrap_err().to_string();
        assert!(old.ends_with("is QEMU 6.2.0; at least 7.2.0 is needed"), "{old}");
        let other = run("echo hello >&2; exit 3").await.unwrap_err().to_string();
        assert!(other.contains("\"hello\""), "{other}");
        let broken = dir.path().join("broken");
        std::fs::write(&broken, "\u{7f}ELF").unwrap();
        assert!(matches!(check(broken, Duration::from_secs(30)).await, Err(FindError::Run { .. })));
        let hangs = script(dir.path(), "hangs", "sleep 1000");
        assert!(matches!(check(hangs, Duration::from_millis(100)).await, Err(FindError::NoAnswer { .. })));
    }
}
