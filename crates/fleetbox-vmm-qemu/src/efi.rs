//! UEFI firmware: its code, which all machines share, and each machine's own variables.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, MachineName};
use fleetbox_vmm::VmmError;

use crate::machine::preparing;

/// Firmware as distributions package it: code, and the template of its variables.
///
/// Debian and Ubuntu (ovmf, qemu-efi-aarch64), Fedora (edk2-ovmf, edk2-aarch64), Arch (edk2-ovmf, edk2-aarch64) and
/// openSUSE (qemu-ovmf-x86_64, qemu-uefi-aarch64). The 4 MiB builds first, which every later package has. Not the ones
/// for Secure Boot: they need the system management mode that the machine does without.
const AMD64: &[(&str, &str)] = &[
    ("OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),
    ("OVMF/OVMF_CODE.fd", "OVMF/OVMF_VARS.fd"),
    ("edk2/ovmf/OVMF_CODE.fd", "edk2/ovmf/OVMF_VARS.fd"),
    ("edk2/x64/OVMF_CODE.4m.fd", "edk2/x64/OVMF_VARS.4m.fd"),
    ("edk2-ovmf/x64/OVMF_CODE.fd", "edk2-ovmf/x64/OVMF_VARS.fd"),
    ("qemu/ovmf-x86_64-4m-code.bin", "qemu/ovmf-x86_64-4m-vars.bin"),
    ("qemu/ovmf-x86_64-code.bin", "qemu/ovmf-x86_64-vars.bin"),
];
const ARM64: &[(&str, &str)] = &[
    ("AAVMF/AAVMF_CODE.no-secboot.fd", "AAVMF/AAVMF_VARS.fd"),
    ("AAVMF/AAVMF_CODE.fd", "AAVMF/AAVMF_VARS.fd"),
    ("edk2/aarch64/QEMU_EFI-pflash.raw", "edk2/aarch64/vars-template-pflash.raw"),
    ("edk2/aarch64/QEMU_CODE.fd", "edk2/aarch64/QEMU_VARS.fd"),
    ("qemu/aavmf-aarch64-code.bin", "qemu/aavmf-aarch64-vars.bin"),
];
/// The environment variable that names the folder which the paths above are below, in the place of `/usr/share`.
pub const SHARE_VARIABLE: &str = "FLEETBOX_FIRMWARE";

fn share() -> PathBuf {
    let named = std::env::var_os(SHARE_VARIABLE).filter(|v| !v.is_empty());
    named.map_or_else(|| PathBuf::from("/usr/share"), PathBuf::from)
}

fn places(arch: Arch) -> &'static [(&'static str, &'static str)] {
    match arch {
        Arch::Amd64 => AMD64,
        Arch::Arm64 => ARM64,
        _ => &[],
    }
}

fn package(arch: Arch) -> &'static str {
    match arch {
        Arch::Arm64 => "qemu-efi-aarch64",
        _ => "ovmf",
    }
}

/// Firmware that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Efi {
    code: PathBuf,
    template: PathBuf,
    /// Of the template, in bytes: variables of another size are another build's.
    vars_size: u64,
}

fn installed(arch: Arch, share: &Path) -> impl Iterator<Item = Efi> + '_ {
    let size = |path: &Path| path.metadata().ok().filter(fs::Metadata::is_file).map(|m| m.len());
    places(arch).iter().filter_map(move |(code, template)| {
        let (code, template) = (share.join(code), share.join(template));
        size(&code).filter(|&n| n > 0)?;
        let vars_size = size(&template).filter(|&n| n > 0)?;
        Some(Efi { code, template, vars_size })
    })
}

/// Whether machines of an architecture can be booted through UEFI here.
#[must_use]
pub fn is_there(arch: Arch) -> bool {
    installed(arch, &share()).next().is_some()
}

/// Finds the firmware's code for a machine, and makes its variables unless it has some already.
pub(crate) fn prepare(arch: Arch, machine: &MachineName, vars: &Path) -> Result<PathBuf, VmmError> {
    prepare_in(arch, machine, vars, &share())
}

fn prepare_in(arch: Arch, machine: &MachineName, vars: &Path, share: &Path) -> Result<PathBuf, VmmError> {
    let preparing = || preparing(machine, "the UEFI variables");
    let has = match fs::metadata(vars) {
        Ok(meta) => Some(meta.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(preparing()(e)),
    };
    let mut all = installed(arch, share).peekable();
    if all.peek().is_none() {
        let looked = places(arch).iter().map(|(code, _)| share.join(code)).collect();
        return Err(VmmError::NoFirmware { machine: machine.clone(), package: package(arch), looked });
    }
    let Some(efi) = all.find(|efi| has.is_none_or(|size| size == efi.vars_size)) else {
        let (vars, size) = (vars.to_owned(), has.unwrap_or_default());
        return Err(VmmError::OtherFirmware { machine: machine.clone(), vars, size });
    };
    if has.is_none() {
        copy(&efi.template, vars).map_err(preparing())?;
    }
    Ok(efi.code)
}

/// Whole or not at all. Of mode 0600, as the disk is: what a guest puts there is its own.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".part");
    let part = to.with_file_name(name);
    // One that is there was left by a process that has died: a machine is launched by one process at a time.
    match fs::remove_file(&part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
    let copied = File::open(from).and_then(|mut from| io::copy(&mut from, &mut file));
    let done = copied.and_then(|_| file.sync_all()).and_then(|()| fs::rename(&part, to));
    if done.is_err() {
        let _ = fs::remove_file(&part);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Share(tempfile::TempDir);

    impl Share {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn install(&self, path: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        }

        fn vars(&self) -> PathBuf {
            self.0.path().join("efi-vars.fd")
        }

        fn prepare(&self, arch: Arch) -> Result<PathBuf, VmmError> {
            prepare_in(arch, &MachineName::new("web").unwrap(), &self.vars(), self.0.path())
        }
    }

    #[test]
    fn none_installed_names_the_package_and_makes_nothing() {
        let share = Share::new();
        // Code alone is of no use, nor is an empty file.
        share.install("OVMF/OVMF_CODE_4M.fd", "code");
        share.install("OVMF/OVMF_CODE.fd", "code");
        share.install("OVMF/OVMF_VARS.fd", "");
        let error = share.prepare(Arch::Amd64).unwrap_err().to_string();
        assert!(error.contains("package ovmf") && error.contains("OVMF/OVMF_CODE_4M.fd"), "{error}");
        let error = share.prepare(Arch::Arm64).unwrap_err().to_string();
        assert!(error.contains("package qemu-efi-aarch64"), "{error}");
        assert!(!share.vars().exists());
    }

    #[test]
    fn variables_are_the_machines_own_and_stay() {
        let share = Share::new();
        let code = share.install("edk2/ovmf/OVMF_CODE.fd", "code");
        let template = share.install("edk2/ovmf/OVMF_VARS.fd", "fresh");
        fs::set_permissions(&template, fs::Permissions::from_mode(0o444)).unwrap();
        fs::write(share.0.path().join(".efi-vars.fd.part"), "half of an earlier one").unwrap();
        assert_eq!(share.prepare(Arch::Amd64).unwrap(), code);
        assert_eq!(fs::read_to_string(share.vars()).unwrap(), "fresh");
        assert_eq!(share.vars().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(share.vars(), "guest").unwrap();
        // A build that goes before it is installed later: the machine stays with what its variables are for.
        share.install("OVMF/OVMF_CODE_4M.fd", "code");
        share.install("OVMF/OVMF_VARS_4M.fd", "larger");
        assert_eq!(share.prepare(Arch::Amd64).unwrap(), code);
        assert_eq!(fs::read_to_string(share.vars()).unwrap(), "guest");
        fs::remove_file(template).unwrap();
        let error = share.prepare(Arch::Amd64).unwrap_err().to_string();
        assert!(error.contains("5 bytes") && error.contains("efi-vars.fd"), "{error}");
        let left = fs::read_dir(share.0.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part"));
        assert_eq!(left.count(), 0);
    }
}
