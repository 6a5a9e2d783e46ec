//! Facts about the system in a root file system.

use fleetbox_spec::Arch;

use super::fs::Kind;
use super::kernel::elf_arch;
use super::tree::Tree;
use super::version;
use crate::model;

const MAX_OS_RELEASE: u64 = 64 << 10;
const MAX_SOURCE: u64 = 256 << 10;

/// Whether there is a system at all.
pub(super) fn is_system(tree: &Tree) -> bool {
    os_release(tree).is_some()
}

pub(super) fn os_release(tree: &Tree) -> Option<String> {
    ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| tree.text(p, MAX_OS_RELEASE).ok())
}

pub(super) fn has_init(tree: &Tree) -> bool {
    ["/sbin/init", "/usr/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/init"]
        .iter()
        .any(|p| tree.is_file(p))
}

/// A field of os-release(5).
pub(super) fn os_field(text: &str, name: &str) -> Option<String> {
    model::os_field(text, name)
}

/// By a program that every system has.
pub(super) fn arch(tree: &Tree) -> Option<Arch> {
    [
        "/usr/lib/systemd/systemd",
        "/lib/systemd/systemd",
        "/usr/bin/bash",
        "/bin/bash",
        "/bin/busybox",
        "/bin/sh",
        "/usr/bin/env",
    ]
    .iter()
    .find_map(|p| elf_arch(&tree.head(p, 20).ok()?))
}

/// systemd names its private library by its version: `libsystemd-shared-252.so`, on some systems with a release
/// behind it: `libsystemd-shared-255.4-1.fc40.so`.
pub(super) fn systemd(tree: &Tree) -> Option<String> {
    [
        "/usr/lib/systemd",
        "/lib/systemd",
        "/usr/lib64/systemd",
        "/usr/lib/x86_64-linux-gnu/systemd",
        "/usr/lib/aarch64-linux-gnu/systemd",
    ]
    .iter()
    .flat_map(|folder| tree.list(folder))
    .find_map(|name| {
        let version = name.strip_prefix("libsystemd-shared-")?.strip_suffix(".so")?;
        let version = version.split('-').next()?;
        version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
    })
}

/// `__VERSION__` in its own source; `unknown` when only its program is there.
pub(super) fn cloud_init(tree: &Tree) -> Option<String> {
    let mut folders = vec!["/usr/lib/python3/dist-packages".to_owned()];
    for lib in ["/usr/lib", "/usr/lib64", "/usr/local/lib"] {
        let mut pythons = tree.list(lib);
        pythons.retain(|n| n.starts_with("python3."));
        pythons.sort_by(|a, b| version::compare(b, a));
        folders.extend(pythons.iter().take(4).map(|p| format!("{lib}/{p}/site-packages")));
    }
    let source =
        folders.iter().find_map(|f| tree.text(&format!("{f}/cloudinit/version.py"), MAX_SOURCE).ok());
    if let Some(version) = source.as_deref().and_then(python_version) {
        return Some(version);
    }
    let program = ["/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/bin/cloud-init"];
    (source.is_some() || program.iter().any(|p| tree.exists(p))).then(|| "unknown".to_owned())
}

fn python_version(text: &str) -> Option<String> {
    let value = text.lines().find_map(|l| l.strip_prefix("__VERSION__")?.trim_start().strip_prefix('='))?;
    let value = value.trim().trim_matches(['"', '\'']);
    let plain = value.len() <= 40 && value.chars().all(|c| c.is_ascii_alphanumeric() || "._~+-".contains(c));
    (plain && !value.is_empty()).then(|| value.to_owned())
}

pub(super) fn has_sshd(tree: &Tree) -> bool {
    ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/lib/ssh/sshd", "/usr/sbin/dropbear"]
        .iter()
        .any(|p| tree.resolve(p).is_ok_and(|f| f.stat.kind == Kind::File))
}

#[cfg(test)]
mod tests {
    use super::super::tree::tests::Fake;
    use super::*;

    #[test]
    fn of_debian() {
        let tree = Fake::default()
            .file("/usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n")
            .link("/etc/os-release", "../usr/lib/os-release")
            .file("/usr/lib/systemd/libsystemd-shared-252.so", "")
            .file(
                "/usr/lib/python3/dist-packages/cloudinit/version.py",
                "# x\n__VERSION__ = \"22.4.2\"\n_X = 1\n",
            )
            .file("/usr/sbin/sshd", "")
            .tree();
        assert!(is_system(&tree) && has_sshd(&tree) && !has_init(&tree));
        assert_eq!(systemd(&tree).as_deref(), Some("252"));
        assert_eq!(cloud_init(&tree).as_deref(), Some("22.4.2"));
        assert_eq!(os_field(&os_release(&tree).unwrap(), "VERSION_ID").as_deref(), Some("12"));
    }

    #[test]
    fn of_others() {
        let tree = Fake::default()
            .file("/usr/lib64/systemd/x", "")
            .file("/usr/lib/systemd/libsystemd-shared-255.4-1.fc40.so", "")
            .file("/usr/lib/python3.9/site-packages/x", "")
            .file("/usr/lib/python3.12/site-packages/cloudinit/version.py", "__VERSION__ = '24.1$'")
            .tree();
        assert_eq!(systemd(&tree).as_deref(), Some("255.4"));
        assert_eq!(cloud_init(&tree).as_deref(), Some("unknown"));
        assert_eq!(cloud_init(&Fake::default().tree()), None);
    }
}
