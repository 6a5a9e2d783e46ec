use std::fmt;
use std::path::{Path, PathBuf};

use fleetbox_spec::{Arch, DiskFormat, ImageRef, Progress};
use fleetbox_store::{ImageDir, Store, Versioned};
use serde::{Deserialize, Serialize};

use crate::{ImageError, Inspection};

/// A complete image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What names it in the store: 64 hex digits. SHA-256 of an imported file's content, or of a bootstrap's recipe.
    pub digest: String,
    /// The reference that it was resolved from.
    pub reference: ImageRef,
    /// The disk image itself; immutable.
    pub path: PathBuf,
    /// Format of `path`.
    pub format: DiskFormat,
    /// Size in bytes that a guest sees; no disk made from it can be smaller.
    pub virtual_size: u64,
    /// The image's own kernel, for direct boot; `None`: boot through firmware, `notes` says why.
    pub kernel: Option<PathBuf>,
    /// The initramfs that belongs to `kernel`.
    pub initrd: Option<PathBuf>,
    /// `kernel` unpacked: an x86-64 ELF file with a PVH entry, which boots sooner under emulation. `None` where the
    /// kernel has no such form. KASLR is a part of what unpacks a kernel: booted like this it does not move.
    pub plain_kernel: Option<PathBuf>,
    /// `initrd` unpacked; `None` where it is too big for that or nothing in it is packed.
    pub plain_initrd: Option<PathBuf>,
    /// Kernel arguments that name the root file system, such as `root=UUID=… ro`. Empty without a kernel.
    pub root_args: String,
    /// Further kernel arguments that the image itself asks for.
    pub extra_args: String,
    /// The operating system's name (`PRETTY_NAME` of os-release(5)), or `unknown`.
    pub os: String,
    /// The processor architecture of its programs.
    pub arch: Arch,
    /// What a person should know about it.
    pub notes: Vec<String>,
    /// What was found in it when it was inspected.
    pub inspection: Inspection,
}

/// `meta.json`: an [`Image`] without its paths, so that a store may be moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) digest: String,
    pub(crate) reference: ImageRef,
    pub(crate) format: DiskFormat,
    pub(crate) virtual_size: u64,
    pub(crate) kernel: bool,
    pub(crate) initrd: bool,
    pub(crate) root_args: String,
    pub(crate) extra_args: String,
    pub(crate) os: String,
    pub(crate) arch: Arch,
    pub(crate) notes: Vec<String>,
    /// Since version 2.
    #[serde(default)]
    pub(crate) inspection: Inspection,
}

impl Versioned for Meta {
    const VERSION: u32 = 2;
}

impl Meta {
    pub(crate) fn into_image(self, dir: &ImageDir) -> Image {
        let boot = dir.boot();
        Image {
            path: dir.image(self.format.as_str()),
            kernel: self.kernel.then(|| boot.kernel()),
            initrd: self.initrd.then(|| boot.initrd()),
            // Not in meta.json: a folder does not change, and one of an earlier version has neither.
            plain_kernel: Some(boot.plain_kernel()).filter(|path| self.kernel && path.exists()),
            plain_initrd: Some(boot.plain_initrd()).filter(|path| self.initrd && path.exists()),
            digest: self.digest,
            reference: self.reference,
            format: self.format,
            virtual_size: self.virtual_size,
            root_args: self.root_args,
            extra_args: self.extra_args,
            os: self.os,
            arch: self.arch,
            notes: self.notes,
            inspection: self.inspection,
        }
    }
}

/// Whether a string can be an image's digest; anything else could name a folder elsewhere.
pub(crate) fn is_digest(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads a complete image; `None` when there is none.
pub(crate) fn load(store: &Store, digest: &str) -> Result<Option<Image>, ImageError> {
    if !is_digest(digest) {
        return Ok(None);
    }
    let dir = store.image_dir(digest);
    match fleetbox_store::read_json::<Meta>(&dir.meta()) {
        Ok(meta) => Ok(Some(meta.into_image(&dir))),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// `PRETTY_NAME` of an os-release(5) file.
pub(crate) fn os_name(os_release: &str) -> Option<String> {
    os_field(os_release, "PRETTY_NAME").or_else(|| os_field(os_release, "NAME"))
}

/// A field of an os-release(5) file.
pub(crate) fn os_field(os_release: &str, name: &str) -> Option<String> {
    os_release.lines().find_map(|l| {
        let value = l.trim().strip_prefix(name)?.strip_prefix('=')?.trim_matches(['"', '\'']);
        // Foreign text that ends up on terminals: no control characters, no novels.
        let clean: String = value.chars().filter(|c| !c.is_control()).take(100).collect();
        (!clean.is_empty()).then_some(clean)
    })
}

/// A name for a lock or part that comes from a path: fixed length, safe characters.
pub(crate) fn path_name(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    format!("file-{}", &hex(&Sha256::digest(path.as_os_str().as_bytes()))[..32])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What is being done to get an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageStage {
    /// Waiting for another process that builds or imports the same image.
    Waiting,
    /// Fetching a file from its address.
    Download,
    /// Fetching package lists and packages.
    Fetch,
    /// Unpacking and setting up packages.
    Install,
    /// The initramfs, certificates and byte code, once for all packages.
    Finish,
    /// Writing the disk image.
    Disk,
    /// Copying a file into the store and taking its digest.
    Copy,
    /// Taking the image out of what it is packed in.
    Unpack,
    /// Converting to a raw image.
    Convert,
    /// Looking for the root file system and the kernel.
    Inspect,
    /// Waiting for the finished image to be on the disk for good.
    Sync,
}

impl fmt::Display for ImageStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Download => "downloading",
            Self::Fetch => "fetching",
            Self::Install => "installing",
            Self::Finish => "finishing",
            Self::Disk => "writing the disk image",
            Self::Copy => "copying",
            Self::Unpack => "unpacking",
            Self::Convert => "converting",
            Self::Inspect => "inspecting",
            Self::Sync => "syncing",
        })
    }
}

/// How far the work on an image has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageProgress {
    /// What is being done.
    pub stage: ImageStage,
    /// What exactly, for a person, such as a package's name. Complete without the stage.
    pub detail: String,
    /// How much is done, in packages or bytes, where that can be told.
    pub progress: Option<Progress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hex_digits_are_a_digest() {
        assert!(is_digest(&"0a".repeat(32)));
        for bad in
            ["", "..", &"0A".repeat(32), &"g".repeat(64), &"a".repeat(63), &format!("../{}", "a".repeat(61))]
        {
            assert!(!is_digest(bad), "{bad}");
        }
    }

    #[test]
    fn a_record_of_version_1_is_read() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("meta.json");
        let digest = "ab".repeat(32);
        let v1 = format!(
            r#"{{"version":1,"digest":"{digest}","reference":"bootstrap:bookworm","format":"raw","virtual_size":1048576,
               "kernel":true,"initrd":true,"root_args":"root=UUID=x ro","extra_args":"","os":"Debian","arch":"amd64","notes":[]}}"#
        );
        std::fs::write(&path, v1).unwrap();
        let meta = fleetbox_store::read_json::<Meta>(&path).unwrap();
        assert_eq!(meta.inspection, Inspection::default());
        fleetbox_store::write_json(&path, &meta, 0o644).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"version\": 2"));
        assert_eq!(fleetbox_store::read_json::<Meta>(&path).unwrap().digest, digest);
    }

    #[test]
    fn names_of_systems() {
        assert_eq!(
            os_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n").unwrap(),
            "Debian GNU/Linux 12"
        );
        assert_eq!(os_name("NAME='Alpine'").unwrap(), "Alpine");
        assert_eq!(os_name("PRETTY_NAME=\"a\u{1b}[31mb\"").unwrap(), "a[31mb");
        assert_eq!(os_name("PRETTY_NAME=\n"), None);
    }
}
