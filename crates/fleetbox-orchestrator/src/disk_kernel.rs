//! The kernel that a machine's disk boots now: a guest may have got a new one since its last boot.
//!
//! ```text
//!  look: disk --inspector--> .boot.part/{kernel,initrd} --exchanged with--> boot/{kernel,initrd} --VMM--> guest
//!                 | fails
//!                 +--> boot/ as it is, a warning, and a note in machine.json
//! ```
//! A disk that was made in this start is not looked into: its kernel is the image's, which `boot/` has by a link.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use fleetbox_image::{Image, Images};
use fleetbox_spec::{Accel, Arch, BootInfo, BootVia, DiskFormat, Event, KernelSource, Phase};
use fleetbox_store::{BootDir, KernelArgs, MachineDir, MachineRecord, remove_dir_if_there};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::Result;
use crate::error::{StepError, step_error};
use crate::prepare::disk_format;
use crate::shared::Shared;

/// Reading a kernel off a disk takes a second at most; a disk that takes this long is told, and not waited for.
const LIMIT: Duration = Duration::from_secs(120);

/// What a disk boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskBoot {
    /// The kernel: in the folder that it was to be written to, or where it lies already, such as in the image's.
    pub(crate) kernel: PathBuf,
    /// The initramfs that belongs to it, likewise.
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) args: KernelArgs,
    /// What should be known of it.
    pub(crate) notes: Vec<String>,
}

pub(crate) type Looked<'a> = Pin<Box<dyn Future<Output = Result<DiskBoot, StepError>> + Send + 'a>>;

/// Looks into machines' disks.
pub(crate) trait DiskInspector: Send + Sync + std::fmt::Debug {
    /// Finds what a disk that no VMM has open boots, and writes it to `out`, which has what was found last: its files may
    /// be kept or replaced, but not written into, as they are links. Dropping the future ends the work.
    fn look<'a>(&'a self, disk: &'a Path, format: DiskFormat, out: &'a Path, arch: Arch) -> Looked<'a>;
}

/// What the image crate finds.
#[derive(Debug)]
pub(crate) struct ByImages(pub(crate) Images);

impl DiskInspector for ByImages {
    fn look<'a>(&'a self, disk: &'a Path, format: DiskFormat, out: &'a Path, arch: Arch) -> Looked<'a> {
        Box::pin(self.look_now(disk, format, out, arch))
    }
}

/// Takes the disk of a machine of the fake backend, which has no guest to write to it, for a text that tells what a
/// guest has done: nothing where it is empty; else the arguments of a new kernel, or `damaged`.
#[derive(Debug)]
pub(crate) struct ByText;

impl DiskInspector for ByText {
    fn look<'a>(&'a self, disk: &'a Path, _: DiskFormat, out: &'a Path, _: Arch) -> Looked<'a> {
        Box::pin(async move {
            let text = fs::read_to_string(disk)?;
            let (kernel, root) = match text.trim() {
                "damaged" => return Err(io::Error::new(io::ErrorKind::InvalidData, "a damaged disk").into()),
                "" => (String::new(), FAKE_ROOT),
                root => (format!("kernel of {root}"), root),
            };
            let to = BootDir::at(out).kernel();
            fleetbox_store::write_atomic(&to, kernel.as_bytes(), 0o644)?;
            let args = KernelArgs { root: root.to_owned(), extra: String::new() };
            Ok(DiskBoot { kernel: to, initrd: None, args, notes: Vec::new() })
        })
    }
}

/// Who looks into the disks of machines that are executed like this.
pub(crate) fn inspector(shared: &Shared, accel: Accel) -> Box<dyn DiskInspector> {
    match accel {
        Accel::None => Box::new(ByText),
        _ => Box::new(ByImages(shared.images.clone())),
    }
}

/// The root argument of the fake backend's image.
pub(crate) const FAKE_ROOT: &str = "root=fake";

/// What a machine boots with, by its own record and folder.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) boot: BootInfo,
    pub(crate) args: KernelArgs,
}

impl Kernel {
    /// Writes it into a machine's record.
    pub(crate) fn note_in(&self, record: &mut MachineRecord) {
        record.boot = Some(self.boot.clone());
        record.kernel_args = Some(self.args.clone());
    }

    /// The image as this machine boots it: its own kernel, initramfs and arguments in the place of the image's.
    pub(crate) fn over(&self, image: &Image, dir: &MachineDir) -> Image {
        let own = dir.boot();
        Image {
            kernel: Some(own.kernel()),
            initrd: Some(own.initrd()).filter(|i| i.exists()),
            plain_kernel: Some(own.plain_kernel()).filter(|k| k.exists()),
            plain_initrd: Some(own.plain_initrd()).filter(|i| i.exists()),
            root_args: self.args.root.clone(),
            extra_args: self.args.extra.clone(),
            ..image.clone()
        }
    }
}

/// Gives a machine the image's own kernel: by links, as both never change, else by copies. It keeps it when the image is
/// removed, which a machine whose disk is a copy does not need any more.
pub(crate) fn of_image(image: &Image, dir: &MachineDir) -> io::Result<Option<Kernel>> {
    let Some(kernel) = &image.kernel else { return Ok(None) };
    let part = empty(dir)?;
    link_or_copy(kernel, &part.kernel())?;
    if let Some(initrd) = &image.initrd {
        link_or_copy(initrd, &part.initrd())?;
    }
    if let Some(plain) = &image.plain_kernel {
        link_or_copy(plain, &part.plain_kernel())?;
    }
    if let Some(plain) = &image.plain_initrd {
        link_or_copy(plain, &part.plain_initrd())?;
    }
    let release = release(kernel);
    put_into_place(dir)?;
    let boot =
        BootInfo { via: BootVia::Kernel, kernel: release, source: Some(KernelSource::Image), note: None };
    let args = KernelArgs { root: image.root_args.clone(), extra: image.extra_args.clone() };
    Ok(Some(Kernel { boot, args }))
}

/// Looks for the disk's current kernel. Where that fails it is the last one again, with a note.
///
/// # Errors
/// When there is neither.
pub(crate) async fn current(
    shared: &Shared,
    inspector: &dyn DiskInspector,
    dir: &MachineDir,
    record: &MachineRecord,
    arch: Arch,
) -> Result<Kernel> {
    let name = &record.name;
    let last = record.kernel_args.clone().filter(|_| dir.boot().kernel().exists()).map(|args| {
        let unknown = BootInfo { via: BootVia::Kernel, kernel: None, source: None, note: None };
        let boot = record.boot.clone().filter(|b| b.via == BootVia::Kernel).unwrap_or(unknown);
        Kernel { boot, args }
    });
    let disk = dir.path().join(&record.disk);
    let looked = find(inspector, &disk, disk_format(record), dir, arch, last.as_ref());
    let looked = match tokio::time::timeout(LIMIT, looked).await {
        Ok(looked) => looked,
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", LIMIT.as_secs()))
                .into())
        }
    };
    match (looked, last) {
        (Ok(kernel), last) => {
            if let Some(last) = last.filter(|last| last.boot.kernel != kernel.boot.kernel) {
                let machine = name.clone();
                let detail = format!("{} instead of {}", kernel.boot, last.boot);
                shared.emit(Event::PhaseProgress { machine, phase: Phase::Kernel, detail, progress: None });
            }
            Ok(kernel)
        }
        (Err(e), Some(last)) => {
            let _ = remove_dir_if_there(dir.boot_part().path());
            let note = format!(
                "its disk's current kernel could not be found ({}); it boots the one of its last boot again: {}",
                story(&e),
                last.boot
            );
            shared.warn(name, note.clone());
            Ok(Kernel { boot: BootInfo { note: Some(note), ..last.boot }, args: last.args })
        }
        (Err(e), None) => {
            let _ = remove_dir_if_there(dir.boot_part().path());
            Err(step_error("find a kernel on the disk", name)(e))
        }
    }
}

async fn find(
    inspector: &dyn DiskInspector,
    disk: &Path,
    format: DiskFormat,
    dir: &MachineDir,
    arch: Arch,
    last: Option<&Kernel>,
) -> Result<Kernel, StepError> {
    let part = empty(dir)?;
    link_all(&dir.boot(), &part)?;
    let found = inspector.look(disk, format, part.path(), arch).await?;
    take_over(Some(&found.kernel), &part.kernel(), &part)?;
    take_over(found.initrd.as_deref(), &part.initrd(), &part)?;
    let note = Some(found.notes.join("; ")).filter(|n| !n.is_empty());
    if let Some(last) = last
        && last.args == found.args
        && same(&part.kernel(), &dir.boot().kernel())?
        && same(&part.initrd(), &dir.boot().initrd())?
    {
        // The one of the last boot, wherever that came from.
        remove_dir_if_there(part.path())?;
        return Ok(Kernel { boot: BootInfo { note, ..last.boot.clone() }, args: found.args });
    }
    let (kernel, source) = (release(&part.kernel()), Some(KernelSource::Disk));
    unpack(part.clone()).await?;
    put_into_place(dir)?;
    Ok(Kernel { boot: BootInfo { via: BootVia::Kernel, kernel, source, note }, args: found.args })
}

/// Unpacks a new kernel and its initramfs, in the place of those of the last one.
async fn unpack(part: BootDir) -> Result<(), StepError> {
    let work = move || Ok(fleetbox_image::unpack_boot_files(&part)?);
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

/// The folder for what is to come, without what an earlier attempt left.
fn empty(dir: &MachineDir) -> io::Result<BootDir> {
    let part = dir.boot_part();
    match fs::remove_dir_all(part.path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir(part.path())?;
    Ok(part)
}

/// Makes `.boot.part` the machine's `boot`, kernel and initramfs in one step.
fn put_into_place(dir: &MachineDir) -> io::Result<()> {
    let (part, boot) = (dir.boot_part(), dir.boot());
    for file in [part.kernel(), part.initrd()] {
        match File::open(&file).and_then(|f| f.sync_all()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    match renameat_with(CWD, part.path(), CWD, boot.path(), RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_dir_all(part.path())?,
        Err(rustix::io::Errno::NOENT) => fs::rename(part.path(), boot.path())?,
        Err(e) => return Err(e.into()),
    }
    File::open(dir.path()).and_then(|d| d.sync_all())
}

/// Gives the folder to come what there is: an inspector may see that it is what the disk has still.
fn link_all(boot: &BootDir, part: &BootDir) -> io::Result<()> {
    let entries = match fs::read_dir(boot.path()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        link_or_copy(&entry.path(), &part.path().join(entry.file_name()))?;
    }
    Ok(())
}

/// Puts what was found to where it is looked for; nothing found is nothing there.
fn take_over(from: Option<&Path>, to: &Path, part: &BootDir) -> io::Result<()> {
    if from == Some(to) {
        return Ok(());
    }
    match fs::remove_file(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match from {
        None => Ok(()),
        Some(from) if from.parent() == Some(part.path()) => fs::rename(from, to),
        // Somebody else's, who keeps it.
        Some(from) => link_or_copy(from, to),
    }
}

fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    // Another file system, one without links, or a file of somebody else's (fs.protected_hardlinks).
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}

/// Whether two files have the same content, or are both not there.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let (mut a, mut b) = match (open(a)?, open(b)?) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return Ok(a.is_none() && b.is_none()),
    };
    let (of_a, of_b) = (a.metadata()?, b.metadata()?);
    if (of_a.dev(), of_a.ino()) == (of_b.dev(), of_b.ino()) {
        return Ok(true);
    }
    if of_a.len() != of_b.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0u8; 256 << 10], vec![0u8; 256 << 10]);
    loop {
        let n = a.read(&mut one)?;
        if n == 0 {
            return Ok(true);
        }
        b.read_exact(&mut other[..n])?;
        if one[..n] != other[..n] {
            return Ok(false);
        }
    }
}

/// The release that a kernel for PCs tells of itself, such as `6.1.0-18-cloud-amd64`.
///
/// Linux, Documentation/arch/x86/boot.rst: "HdrS" at 0x202, the offset of the text less 0x200 at 0x20e.
fn release(kernel: &Path) -> Option<String> {
    let file = File::open(kernel).ok()?;
    let mut head = [0u8; 16];
    file.read_exact_at(&mut head, 0x200).ok()?;
    if head[2..6] != *b"HdrS" {
        return None;
    }
    let at = u64::from(u16::from_le_bytes([head[14], head[15]])) + 0x200;
    let mut text = [0u8; 128];
    file.read_exact_at(&mut text, at).ok()?;
    // The builder and the date follow after a blank.
    let text = text.split(|&b| b == 0 || b == b' ').next()?;
    let release = std::str::from_utf8(text).ok()?;
    let fits = !release.is_empty() && release.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| release.to_owned())
}

impl ByImages {
    /// The one place where the image crate is asked for what a disk boots.
    async fn look_now(
        &self,
        disk: &Path,
        format: DiskFormat,
        out: &Path,
        arch: Arch,
    ) -> Result<DiskBoot, StepError> {
        let files = self.0.boot_files_of_disk(disk, format, out, arch).await?;
        let Some(kernel) = files.kernel else {
            return Err(io::Error::new(io::ErrorKind::NotFound, files.notes.join("; ")).into());
        };
        let args = KernelArgs { root: files.root_args, extra: files.extra_args };
        Ok(DiskBoot { kernel, initrd: files.initrd, args, notes: files.notes })
    }
}

#[cfg(test)]
mod tests;
