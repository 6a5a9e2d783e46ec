//! A look into a disk: partition table, root file system, and what its own boot loader would boot.
//!
//! ```text
//!  disk (raw file or qcow2 overlay)
//!   -> partition  where the partitions are
//!   -> volumes    what each holds; fs/ reads ext4, xfs, btrfs and vfat
//!   -> root       which of them is the root; what is mounted below it (tree)
//!   -> loader     what to boot, the best first: GRUB, BLS entries, unified images, extlinux, mere files
//!   -> extract    kernel and initramfs as a VMM takes them
//! ```
//!
//! No mount and no privilege is needed. What cannot be read is no error: the image then boots through firmware, and the
//! notes say why. All bytes are foreign: nothing here panics or allocates by a size that they name.

mod bytes;
mod disk;
mod extract;
mod fs;
mod kernel;
mod loader;
mod partition;
mod root;
mod system;
mod tree;
mod version;
mod volumes;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::rc::Rc;

use fleetbox_spec::Arch;

use crate::inspection::{
    BootFileStamp, ImageWarning, Inspection, KernelInfo, KernelSource, PartitionInfo, RootInfo, TableKind,
};
use crate::task::Task;
use crate::{ImageError, model};

pub(crate) use disk::{Disk, RawDisk, ReadAt};

use fs::Holds;
use loader::{Located, Origin};
use root::Root;
use volumes::Volume;

/// What was found in an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    /// A kernel was written to where the caller said.
    pub(crate) kernel: bool,
    /// An initramfs, too.
    pub(crate) initrd: bool,
    pub(crate) root_args: String,
    pub(crate) extra_args: String,
    pub(crate) os: Option<String>,
    pub(crate) arch: Option<Arch>,
    pub(crate) notes: Vec<String>,
    pub(crate) inspection: Inspection,
}

impl Found {
    fn firmware(&mut self, why: impl Into<String>) {
        let why = why.into();
        self.notes.push(format!("boots through firmware: {why}"));
        self.inspection.firmware = Some(why);
    }

    fn warn(&mut self, warning: ImageWarning) {
        self.inspection.warnings.push(warning);
        self.notes.push(warning.to_string());
    }
}

/// A disk that was looked into, before anything was taken out of it.
pub(crate) struct Looked {
    found: Found,
    system: Option<Bootable>,
}

struct Bootable {
    root: Root,
    volumes: Vec<Volume>,
    entries: Vec<Located>,
}

/// Inspects a raw `disk`, known to the user as `path`; kernel and initramfs are written to the files named.
pub(crate) fn inspect(
    disk: File,
    path: &Path,
    kernel_to: &Path,
    initrd_to: &Path,
    task: &Task,
) -> Result<Found, ImageError> {
    let disk = RawDisk::new(disk).map_err(ImageError::io("look at", path))?;
    look(Rc::new(disk), path, task)?.take(path, kernel_to, initrd_to, task)
}

/// Looks into a disk.
pub(crate) fn look(disk: Disk, path: &Path, task: &Task) -> Result<Looked, ImageError> {
    let read = |e| ImageError::io("read image", path)(e);
    let table = partition::read(disk.as_ref())
        .map_err(read)?
        .map_err(|reason| ImageError::BadPartitionTable { path: path.to_owned(), reason })?;
    let volumes = volumes::survey(&disk, &table).map_err(|e| ImageError::io("read image", path)(e))?;
    task.check()?;
    let mut found = Found { notes: table.notes.clone(), ..Found::default() };
    found.inspection.table = match table.kind {
        partition::Kind::None => TableKind::None,
        partition::Kind::Gpt => TableKind::Gpt,
        partition::Kind::Mbr => TableKind::Mbr,
    };
    found.inspection.partitions = volumes.iter().map(partition_info).collect();
    let mut root = match root::find(&volumes, None, &mut found.notes) {
        Some(root) => root,
        None => {
            no_root(&volumes, &mut found);
            return Ok(Looked { found, system: None });
        }
    };
    task.check()?;
    let mut entries = loader::find(&root.tree, root.subvolume_path());
    // The loader's word on what the root is, where that is one of those there are.
    let named = entries.located.first().map(|l| loader::Args::parse(&l.entry.args));
    if let Some(args) = named
        && let Some(other) = root::named_by(&args, &volumes, &root)
        && let Some(better) = root::find(&volumes, Some(other), &mut found.notes)
    {
        root = better;
        entries = loader::find(&root.tree, root.subvolume_path());
    }
    found.notes.append(&mut root.notes);
    found.notes.append(&mut entries.notes);
    for volume in &volumes {
        if let Some(why) = &volume.trouble {
            let (kind, place) = (volume.holds.name(), volume.place());
            found
                .notes
                .push(format!("the {kind} file system of {place} is damaged or cannot be read ({why})"));
        }
    }
    describe(&root, &volumes, &mut found);
    Ok(Looked { found, system: Some(Bootable { root, volumes, entries: entries.located }) })
}

fn partition_info(volume: &Volume) -> PartitionInfo {
    PartitionInfo {
        number: volume.partition.number,
        start: volume.partition.start,
        size: volume.partition.len,
        holds: volume.holds.name().to_owned(),
        uuid: volume.uuid.clone(),
        label: volume.label.clone(),
    }
}

/// Says what is there instead of a system.
fn no_root(volumes: &[Volume], found: &mut Found) {
    let of = |kinds: &[Holds]| volumes.iter().find(|v| kinds.contains(&v.holds));
    let mut why = Vec::new();
    if let Some(v) = of(&[Holds::Luks, Holds::BitLocker]) {
        why.push(format!("{} is {}", v.place(), v.holds.name()));
        found.warn(ImageWarning::Encrypted);
    }
    if let Some(v) = of(&[Holds::Lvm, Holds::Raid]) {
        why.push(format!("{} is {}", v.place(), v.holds.name()));
        found.warn(ImageWarning::VolumeManager);
    }
    if of(&[Holds::Ntfs, Holds::BitLocker]).is_some() || volumes.iter().any(root::has_windows_loader) {
        why.push("there is Windows on it".to_owned());
        found.warn(ImageWarning::Windows);
    }
    for volume in volumes {
        if let Some(trouble) = &volume.trouble {
            let (kind, place) = (volume.holds.name(), volume.place());
            why.push(format!("the {kind} file system of {place} is damaged or cannot be read ({trouble})"));
        }
    }
    // A system whose files are known to its log alone looks like none.
    let unreplayed: Vec<&str> =
        volumes.iter().filter_map(|v| v.open()?.ok()).filter_map(|fs| fs.unreplayed()).collect();
    if !unreplayed.is_empty() {
        found.inspection.warnings.push(ImageWarning::NotUnmounted);
        why.extend(unreplayed.into_iter().map(str::to_owned));
    }
    if why.is_empty() {
        why.push("no file system with an operating system was found".to_owned());
    }
    found.firmware(why.join("; "));
}

fn describe(root: &Root, volumes: &[Volume], found: &mut Found) {
    let tree = &root.tree;
    let os_release = system::os_release(tree).unwrap_or_default();
    found.os = model::os_name(&os_release);
    found.arch = system::arch(tree);
    found.inspection.os_id = system::os_field(&os_release, "ID");
    found.inspection.os_version = system::os_field(&os_release, "VERSION_ID");
    found.inspection.arch = found.arch;
    found.inspection.systemd = system::systemd(tree);
    found.inspection.cloud_init = system::cloud_init(tree);
    found.inspection.boot_partition = root.boot.map(|i| volumes[i].partition.number);
    found.inspection.root = Some(RootInfo {
        partition: volumes[root.volume].partition.number,
        file_system: tree.root().name().to_owned(),
        uuid: tree.root().uuid(),
        subvolume: root.subvolume.as_ref().filter(|s| !s.default).map(|s| s.path.clone()),
    });
    if found.inspection.cloud_init.is_none() {
        found.warn(ImageWarning::NoCloudInit);
    }
    if !system::has_sshd(tree) {
        found.warn(ImageWarning::NoSshServer);
    }
    if found.arch.is_some() && Arch::host().is_some() && found.arch != Arch::host() {
        found.warn(ImageWarning::OtherArch);
    }
    let unreplayed: Vec<&str> = tree.file_systems().filter_map(|fs| fs.unreplayed()).collect();
    if !unreplayed.is_empty() {
        found.inspection.warnings.push(ImageWarning::NotUnmounted);
        found.notes.extend(unreplayed.into_iter().map(str::to_owned));
    }
}

impl Looked {
    /// The files that would be taken out first, and the arguments for them; `None`: nothing to take.
    pub(crate) fn first(&self) -> Option<(Vec<BootFileStamp>, String, String)> {
        let system = self.system.as_ref()?;
        let located = system.entries.first()?;
        let (root_args, extra_args, _) = system.arguments(located).ok()?;
        Some((system.stamps(located), root_args, extra_args))
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.found.notes
    }

    /// Writes kernel and initramfs to the files named; where it cannot, neither is left.
    pub(crate) fn take(
        self,
        path: &Path,
        kernel_to: &Path,
        initrd_to: &Path,
        task: &Task,
    ) -> Result<Found, ImageError> {
        let Self { mut found, system } = self;
        let Some(system) = system else { return Ok(found) };
        if system.entries.is_empty() {
            found.firmware("no kernel is in /boot of the root file system");
            return Ok(found);
        }
        let mut reasons = Vec::new();
        for located in &system.entries {
            match system.take(located, &found, (kernel_to, initrd_to), task)? {
                Ok(taken) => {
                    tracing::debug!(image = %path.display(), kernel = %located.kernel.path, "extracted");
                    found.kernel = true;
                    found.initrd = !located.initrds.is_empty();
                    (found.root_args, found.extra_args) = (taken.root_args, taken.extra_args);
                    found.notes.extend(taken.note);
                    found.notes.append(&mut reasons);
                    found.arch = found.arch.or(Some(taken.arch));
                    found.inspection.kernel = Some(taken.info);
                    return Ok(found);
                }
                Err(why) => {
                    for made in [kernel_to, initrd_to] {
                        fleetbox_store::remove_if_there(made)?;
                    }
                    if !reasons.contains(&why) {
                        reasons.push(why);
                    }
                }
            }
        }
        found.firmware(reasons.join("; "));
        Ok(found)
    }
}

struct Taken {
    root_args: String,
    extra_args: String,
    note: Option<String>,
    arch: Arch,
    info: KernelInfo,
}

impl Bootable {
    fn arguments(&self, located: &Located) -> Result<(String, String, Option<String>), String> {
        let args = loader::Args::parse(&located.entry.args);
        let (root_args, note) = root::arguments(&args, &self.root, &self.volumes, located)?;
        Ok((root_args, args.extra.join(" "), note))
    }

    fn stamps(&self, located: &Located) -> Vec<BootFileStamp> {
        let stamp = |source: &extract::Source| {
            let found = self.root.tree.resolve(&source.path).ok()?;
            let (mtime_s, mtime_ns) = found.stat.mtime;
            Some(BootFileStamp { path: found.path, len: found.stat.len, mtime_s, mtime_ns })
        };
        let mut stamps: Vec<BootFileStamp> =
            std::iter::once(&located.kernel).chain(&located.initrds).filter_map(stamp).collect();
        stamps.dedup();
        stamps
    }

    /// The inner error says why this entry cannot be booted.
    fn take(
        &self,
        located: &Located,
        found: &Found,
        (kernel_to, initrd_to): (&Path, &Path),
        task: &Task,
    ) -> Result<Result<Taken, String>, ImageError> {
        let (root_args, extra_args, note) = match self.arguments(located) {
            Ok(a) => a,
            Err(why) => return Ok(Err(why)),
        };
        let tree = &self.root.tree;
        let name = &located.kernel.path;
        let kernel = match extract::kernel(tree, &located.kernel, kernel_to, extract::MAX_BOOT_FILE, task)? {
            Ok(k) => k,
            Err(why) => return Ok(Err(format!("{name} cannot be read ({why})"))),
        };
        if let Some(arch) = found.arch.filter(|&a| a != kernel.arch) {
            let (own, other) = (kernel.arch.debian(), arch.debian());
            return Ok(Err(format!("{name} is a kernel for {own}, the system is for {other}")));
        }
        if !located.initrds.is_empty()
            && let Err(why) = extract::initrd(tree, &located.initrds, initrd_to, task)?
        {
            let names: Vec<&str> = located.initrds.iter().map(|s| s.path.as_str()).collect();
            return Ok(Err(format!("{} cannot be read ({why})", names.join(", "))));
        }
        let info = KernelInfo {
            source: match located.entry.origin {
                Origin::BootLoaderSpec => KernelSource::BootLoaderSpec,
                Origin::Unified => KernelSource::UnifiedKernelImage,
                Origin::Grub => KernelSource::Grub,
                Origin::Extlinux => KernelSource::Extlinux,
                Origin::Files => KernelSource::Files,
            },
            config: located.entry.config.clone(),
            kind: kernel.kind,
            version: kernel.version.or_else(|| located.version.clone()),
            files: self.stamps(located),
        };
        Ok(Ok(Taken { root_args, extra_args, note, arch: kernel.arch, info }))
    }
}
