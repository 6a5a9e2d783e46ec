//! Where everything is.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fleetbox_spec::{ClusterName, MachineName};
use sha2::{Digest, Sha256};

use crate::StoreError;

/// A fleetbox home: the folder below which every path of fleetbox's is made.
///
/// Cheap to clone. Making one creates the folder and its fixed sub-folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    root: PathBuf,
    /// Under sudo: the user who called it, who shall own what is made here.
    owner: Option<(u32, u32)>,
}

/// First 16 hex digits of a name's SHA-256: short enough for a socket path, and safe for any name.
fn short_hash(s: &str) -> String {
    Sha256::digest(s.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

impl Store {
    /// The store of this environment: `FLEETBOX_HOME`, else `~/.fleetbox`; under sudo, the invoking user's home.
    ///
    /// # Errors
    /// [`StoreError::NoHome`], [`StoreError::RelativeHome`], or what making the folders answered (a
    /// read-only file system, no permission).
    pub fn open_default() -> Result<Self, StoreError> {
        Self::open(&Self::default_root()?)
    }

    /// Where [`Store::open_default`] would open it. Makes nothing.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] or [`StoreError::RelativeHome`].
    pub fn default_root() -> Result<PathBuf, StoreError> {
        if let Some(home) = std::env::var_os("FLEETBOX_HOME").filter(|h| !h.is_empty()) {
            let home = PathBuf::from(home);
            return if home.is_absolute() { Ok(home) } else { Err(StoreError::RelativeHome(home)) };
        }
        // sudo changes HOME; the machines still belong to whoever called it.
        if let Some((uid, _)) = fleetbox_os::host::sudo_caller()
            && let Ok(home) = fleetbox_os::host::home_of(uid)
        {
            return Ok(home.join(".fleetbox"));
        }
        let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).ok_or(StoreError::NoHome)?;
        Ok(PathBuf::from(home).join(".fleetbox"))
    }

    /// The store in a given folder, which is created when missing.
    ///
    /// # Errors
    /// [`StoreError::RelativeHome`], or what making the folders answered.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        if !root.is_absolute() {
            return Err(StoreError::RelativeHome(root.to_owned()));
        }
        let store = Self { root: root.to_owned(), owner: fleetbox_os::host::sudo_caller() };
        // The VMM and, under sudo, the user's own client must be able to walk in; secrets are 0600 each.
        store.make_dir(&store.root, 0o755)?;
        for dir in ["clusters", "images", "locks", "run", "journal", "logs", "bin"] {
            store.make_dir(&store.root.join(dir), 0o755)?;
        }
        Ok(store)
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a folder (and its parents) unless it is there, owned by the invoking user under sudo.
    ///
    /// # Errors
    /// What mkdir answered.
    pub fn make_dir(&self, dir: &Path, mode: u32) -> Result<(), StoreError> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .map_err(StoreError::io("create folder", dir))?;
        self.give_to_owner(dir)
    }

    /// Gives a path to the user who called sudo; nothing otherwise.
    ///
    /// # Errors
    /// What chown answered.
    pub fn give_to_owner(&self, path: &Path) -> Result<(), StoreError> {
        match self.owner {
            Some((uid, gid)) => {
                fleetbox_os::host::chown(path, uid, gid).map_err(StoreError::io("change owner of", path))
            }
            None => Ok(()),
        }
    }

    /// `clusters/`
    #[must_use]
    pub fn clusters_dir(&self) -> PathBuf {
        self.root.join("clusters")
    }

    /// `clusters/<cluster>/`
    #[must_use]
    pub fn cluster_dir(&self, cluster: &ClusterName) -> PathBuf {
        self.clusters_dir().join(cluster.as_str())
    }

    /// `clusters/<cluster>/network.json`: subnet and bridge, kept so that a restart gets the same addresses.
    #[must_use]
    pub fn network_file(&self, cluster: &ClusterName) -> PathBuf {
        // Cannot clash with a machine's folder: '.' is in no machine's name.
        self.cluster_dir(cluster).join("network.json")
    }

    /// `clusters/<cluster>/<machine>/`
    #[must_use]
    pub fn machine_dir(&self, cluster: &ClusterName, machine: &MachineName) -> MachineDir {
        MachineDir(self.cluster_dir(cluster).join(machine.as_str()))
    }

    /// `images/`
    #[must_use]
    pub fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    /// `images/<digest>/`, immutable once `meta.json` is in it.
    #[must_use]
    pub fn image_dir(&self, digest: &str) -> ImageDir {
        ImageDir(self.images_dir().join(digest))
    }

    /// `images/.<digest>.part/`: an image being built. Never an image; swept when its builder is gone.
    #[must_use]
    pub fn image_part_dir(&self, digest: &str) -> PathBuf {
        self.images_dir().join(format!(".{digest}.part"))
    }

    /// `images/.<name>.download/`: what has come of a download so far. Kept for a while after an interruption.
    #[must_use]
    pub fn image_download_dir(&self, name: &str) -> PathBuf {
        self.images_dir().join(format!(".{name}.download"))
    }

    /// `locks/<kind>-<hash>`
    #[must_use]
    pub fn lock_file(&self, kind: crate::LockKind, name: &str) -> PathBuf {
        self.root.join("locks").join(format!("{kind}-{}", short_hash(name)))
    }

    /// `run/<hash>.sock`: where the holder of a cluster listens.
    ///
    /// # Errors
    /// [`StoreError::SocketPathTooLong`]: `sun_path` has 108 bytes, one of which ends it (unix(7)).
    pub fn socket(&self, cluster: &ClusterName) -> Result<PathBuf, StoreError> {
        let path = self.root.join("run").join(format!("{}.sock", short_hash(cluster.as_str())));
        let len = path.as_os_str().len();
        if len > 107 { Err(StoreError::SocketPathTooLong { path, len }) } else { Ok(path) }
    }

    /// `journal/`
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// `journal/<cluster>.json`: host resources of a network, recorded before they are made.
    #[must_use]
    pub fn journal_file(&self, cluster: &ClusterName) -> PathBuf {
        self.journal_dir().join(format!("{cluster}.json"))
    }

    /// `logs/holder-<cluster>.log`
    #[must_use]
    pub fn holder_log(&self, cluster: &ClusterName) -> PathBuf {
        self.root.join("logs").join(format!("holder-{cluster}.log"))
    }

    /// `id_ed25519`: the one private key of this installation; its public half beside it with `.pub`.
    #[must_use]
    pub fn ssh_key(&self) -> PathBuf {
        self.root.join("id_ed25519")
    }

    /// `run/probe-<hash>.json`: what the host probe found in this boot.
    #[must_use]
    pub fn probe_cache(&self, boot_id: &str) -> PathBuf {
        self.root.join("run").join(format!("probe-{}.json", short_hash(boot_id)))
    }

    /// `bin/`: VMM programs that fleetbox fetched.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The clusters on disk, sorted. Folders whose name is no cluster's are passed over.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn clusters(&self) -> Result<Vec<ClusterName>, StoreError> {
        sub_dirs(&self.clusters_dir(), |n| ClusterName::new(n).ok())
    }

    /// The machines of a cluster on disk, sorted: each folder that holds a `machine.json`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn machines(&self, cluster: &ClusterName) -> Result<Vec<MachineName>, StoreError> {
        let mut all = sub_dirs(&self.cluster_dir(cluster), |n| MachineName::new(n).ok())?;
        all.retain(|m| self.machine_dir(cluster, m).record().exists());
        Ok(all)
    }

    /// The folders of a cluster's machines, also of those that have no record: being made, or damaged.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn machine_dirs(&self, cluster: &ClusterName) -> Result<Vec<(MachineName, MachineDir)>, StoreError> {
        let names = sub_dirs(&self.cluster_dir(cluster), |n| MachineName::new(n).ok())?;
        Ok(names.into_iter().map(|n| (n.clone(), self.machine_dir(cluster, &n))).collect())
    }

    /// The cluster that a machine of this name is in, if there is one. Names are unique in a store.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn cluster_of(&self, machine: &MachineName) -> Result<Option<ClusterName>, StoreError> {
        Ok(self.clusters()?.into_iter().find(|c| self.machine_dir(c, machine).record().exists()))
    }
}

fn sub_dirs<T: Ord>(dir: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("read folder", dir)(e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read folder", dir))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            all.extend(entry.file_name().to_str().and_then(&parse));
        }
    }
    all.sort();
    Ok(all)
}

/// The folder of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDir(PathBuf);

impl MachineDir {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// `machine.json`
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.0.join("machine.json")
    }
    /// `disk.qcow2` or `disk.raw`
    #[must_use]
    pub fn disk(&self, extension: &str) -> PathBuf {
        self.0.join(format!("disk.{extension}"))
    }
    /// `seed.iso`, mode 0600: it holds the private host key.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.0.join("seed.iso")
    }
    /// `ssh_host_ed25519_key`, mode 0600: to make the seed anew with.
    #[must_use]
    pub fn host_key(&self) -> PathBuf {
        self.0.join("ssh_host_ed25519_key")
    }
    /// `serial.log`: the guest's console, appended to by each boot.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.0.join("serial.log")
    }
    /// `known_hosts`: the machine's host key, for the system's ssh.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.0.join("known_hosts")
    }
    /// `vmm.log`: the VMM's own stderr.
    #[must_use]
    pub fn vmm_log(&self) -> PathBuf {
        self.0.join("vmm.log")
    }
    /// `boot/`: the kernel that the machine is booted with, where that is not its firmware's work.
    #[must_use]
    pub fn boot(&self) -> BootDir {
        BootDir(self.0.join("boot"))
    }
    /// `.boot.part/`: what becomes `boot/`.
    #[must_use]
    pub fn boot_part(&self) -> BootDir {
        BootDir(self.0.join(".boot.part"))
    }
    /// `efi-vars.fd`, mode 0600: the variables of the machine's UEFI firmware.
    #[must_use]
    pub fn efi_vars(&self) -> PathBuf {
        self.0.join("efi-vars.fd")
    }
}

/// A folder with what the VMM boots by itself: an image's, or a machine's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootDir(PathBuf);

impl BootDir {
    /// Such a folder that is still being made, under another name.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// `kernel`
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.0.join("kernel")
    }
    /// `initrd`
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.0.join("initrd")
    }
    /// `vmlinux`: what `kernel` unpacks itself to, for guests that are emulated. Not there for every kernel.
    #[must_use]
    pub fn plain_kernel(&self) -> PathBuf {
        self.0.join("vmlinux")
    }
    /// `initrd.cpio`: what the guest's kernel would unpack `initrd` to. Not there for every initramfs.
    #[must_use]
    pub fn plain_initrd(&self) -> PathBuf {
        self.0.join("initrd.cpio")
    }
    /// `boot.json`: from which files of a machine's disk the others were taken.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.0.join("boot.json")
    }
}

/// The folder of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDir(PathBuf);

impl ImageDir {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// `image.raw` or `image.qcow2`
    #[must_use]
    pub fn image(&self, extension: &str) -> PathBuf {
        self.0.join(format!("image.{extension}"))
    }
    /// Kernel and initramfs, in the image's folder itself.
    #[must_use]
    pub fn boot(&self) -> BootDir {
        BootDir::at(&self.0)
    }
    /// `meta.json`: written last; an image folder without it is no image.
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.0.join("meta.json")
    }
}

/// Sets a file's mode.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(StoreError::io("set mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_only_machines_with_a_record() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        let (c, a, b) =
            (ClusterName::new("c").unwrap(), MachineName::new("a").unwrap(), MachineName::new("b").unwrap());
        fs::create_dir_all(store.machine_dir(&c, &a).path()).unwrap();
        fs::create_dir_all(store.machine_dir(&c, &b).path()).unwrap();
        fs::create_dir_all(store.clusters_dir().join("NOT A NAME")).unwrap();
        fs::write(store.machine_dir(&c, &b).record(), "{}").unwrap();
        assert_eq!(store.clusters().unwrap(), vec![c.clone()]);
        assert_eq!(store.machines(&c).unwrap(), vec![b.clone()]);
        let dirs = store.machine_dirs(&c).unwrap();
        assert_eq!(dirs.iter().map(|(n, _)| n).collect::<Vec<_>>(), [&a, &b]);
        assert_eq!(dirs[1].1.record(), store.machine_dir(&c, &b).record());
        assert_eq!(store.cluster_of(&b).unwrap(), Some(c));
        assert_eq!(store.cluster_of(&a).unwrap(), None);
    }

    #[test]
    fn socket_paths_are_bounded() {
        let tmp = tempfile::tempdir().unwrap();
        let deep = tmp.path().join("x".repeat(90));
        let store = Store::open(&deep).unwrap();
        let err = store.socket(&ClusterName::new("c").unwrap()).unwrap_err();
        assert!(matches!(err, StoreError::SocketPathTooLong { len, .. } if len > 107));
    }

    #[test]
    fn a_relative_home_is_refused() {
        assert!(matches!(Store::open(Path::new("x")), Err(StoreError::RelativeHome(_))));
    }
}
