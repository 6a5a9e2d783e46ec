//! `bootstrap:<suite>[?packages=…]`: a Debian image built on this host from the mirror that its apt already uses.
//!
//! All of it happens in `build.sh`, as PID 1 of a PID namespace and in a mount namespace of its own:
//! ```text
//!  this process --death signal--> unshare --death signal--> sh build.sh (PID 1) --> mmdebstrap, apt, dpkg, mke2fs
//! ```
//! So the end of this process ends all of them and drops every mount, and nothing is left but the part, whose lock is
//! then free for [`crate::Images::sweep`].

mod mirror;
mod progress;
mod recipe;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use fleetbox_os::child::Spawn;
use fleetbox_os::process::PidFd;
use fleetbox_spec::{Arch, DiskFormat, ImageRef, Packages};
use fleetbox_store::{BootDir, Store};

use crate::model::{Meta, load, os_name};
use crate::part::{self, Part};
use crate::task::{self, Task};
use crate::tool::{self, Limits, Tool};
use crate::{Image, ImageError, inspect};

use progress::Parser;
pub(crate) use recipe::Recipe;

const SCRIPT: &str = include_str!("build.sh");

const MMDEBSTRAP: Tool = Tool { name: "mmdebstrap", package: "mmdebstrap" };
const MKE2FS: Tool = Tool { name: "mke2fs", package: "e2fsprogs" };
const UNSHARE: Tool = Tool { name: "unshare", package: "util-linux" };

/// The longest silence is dpkg unpacking or an unreachable mirror being retried.
const LIMITS: Limits = Limits { silence: Duration::from_secs(10 * 60), total: Duration::from_secs(40 * 60) };

/// What an image and its parts take at most, in MiB: the disk image, kernel and initramfs.
const IMAGE_MIB: u64 = 1024;
/// What the unpacked system, package lists and package files take at most, in MiB.
const TREE_MIB: u64 = 2048;

/// The digest that the image of a suite with some packages more has here; `None` on a host that none can be built on.
pub(crate) fn digest_of(suite: &str, packages: &Packages) -> Option<String> {
    Some(Recipe::new(suite, packages, Arch::host()?, SCRIPT).digest())
}

/// Finds or builds the image of a suite with some packages more.
pub(crate) fn resolve(
    store: &Store,
    suite: &str,
    packages: &Packages,
    task: &Task,
) -> Result<Image, ImageError> {
    let arch = Arch::host().ok_or(ImageError::UnsupportedHost(std::env::consts::ARCH))?;
    let recipe = Recipe::new(suite, packages, arch, SCRIPT);
    let digest = recipe.digest();
    let image_ref = ImageRef::Bootstrap { suite: suite.to_owned(), packages: packages.clone() };
    // References that differ in packages that every image has are one image.
    let ready = || -> Result<Option<Image>, ImageError> {
        Ok(load(store, &digest)?.map(|image| Image { reference: image_ref.clone(), ..image }))
    };
    if let Some(image) = ready()? {
        return Ok(image);
    }
    let lock = part::lock(store, &digest, &image_ref.to_string(), task)?;
    // Whoever had the lock may have built it.
    if let Some(image) = ready()? {
        return Ok(image);
    }
    if !fleetbox_os::host::is_root() {
        return Err(ImageError::NotRoot(image_ref));
    }
    for (tool, purpose) in [
        (UNSHARE, "build an image in namespaces of its own"),
        (MMDEBSTRAP, "build a Debian image"),
        (MKE2FS, "make an ext4 disk image"),
    ] {
        tool.find(purpose)?;
    }
    let in_memory = has_memory_for_tree();
    check_space(store, if in_memory { IMAGE_MIB } else { IMAGE_MIB + TREE_MIB })?;
    let sources = mirror::of_this_host(suite, task)?;
    tracing::info!(%image_ref, sources = ?sources.lines, in_memory, "building");
    let part = Part::create(store, &digest, lock)?;
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(ImageError::io("read", "/proc/sys/kernel/random/uuid"))?
        .trim()
        .to_owned();
    let job = Job { image_ref: &image_ref, recipe: &recipe, sources: &sources, uuid: &uuid, in_memory };
    job.run(part.path(), task)?;
    finish(store, part, digest, image_ref, arch, &sources, task)
}

/// Reads what the script left, and makes it an image.
fn finish(
    store: &Store,
    part: Part<'_>,
    digest: String,
    reference: ImageRef,
    arch: Arch,
    sources: &mirror::Sources,
    task: &Task,
) -> Result<Image, ImageError> {
    let os_release = part.path().join("os-release");
    let os = fs::read_to_string(&os_release).map_err(ImageError::io("read", &os_release))?;
    fleetbox_store::remove_if_there(&os_release)?;
    fleetbox_store::remove_dir_if_there(&part.path().join("work"))?;
    let names = store.image_dir(&digest);
    let image = part.path().join(names.image("raw").file_name().unwrap_or_default());
    let virtual_size = fs::metadata(&image).map_err(ImageError::io("look at", &image))?.len();
    // The same look as into any image; it also has the kernel's stamp, by which a disk is known to boot the same one.
    let disk = fs::File::open(&image).map_err(ImageError::io("open", &image))?;
    let boot = BootDir::at(part.path());
    let found = inspect::inspect(disk, &image, &boot.kernel(), &boot.initrd(), task)?;
    let mut notes = found.notes;
    if sources.lines.is_empty() {
        notes.push(
            "apt on this host names no Debian mirror: built from mmdebstrap's default mirror".to_owned(),
        );
    }
    part.commit(Meta {
        digest,
        reference,
        format: DiskFormat::Raw,
        virtual_size,
        kernel: found.kernel,
        initrd: found.initrd,
        root_args: found.root_args,
        extra_args: found.extra_args,
        os: os_name(&os).unwrap_or_else(|| "unknown".to_owned()),
        arch,
        notes,
        inspection: found.inspection,
    })
}

struct Job<'a> {
    image_ref: &'a ImageRef,
    recipe: &'a Recipe,
    sources: &'a mirror::Sources,
    uuid: &'a str,
    in_memory: bool,
}

impl Job<'_> {
    fn run(&self, part: &Path, task: &Task) -> Result<(), ImageError> {
        let start = |source| ImageError::ToolStart { tool: UNSHARE.name, source };
        let (stdin, go) = fleetbox_os::fd::pipe().map_err(start)?;
        let mut go = Some(fs::File::from(go));
        let mut spawn = Spawn::new(UNSHARE.find("build an image in namespaces of its own")?)
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--"])
            .args(["sh", "-c", SCRIPT, "build.sh"])
            .args(&self.sources.lines);
        spawn.stdin = Some(stdin);
        let mut env = |key: &str, value: &std::ffi::OsStr| spawn.env.push((key.into(), value.into()));
        env("PART", part.as_os_str());
        env("SUITE", self.recipe.suite().as_ref());
        env("PACKAGES", self.recipe.packages().join(",").as_ref());
        env("UUID", self.uuid.as_ref());
        env("APT_CONF", self.sources.apt_conf.as_ref());
        // A bound, not a reservation: memory is taken as it is filled.
        env("TMPFS_MIB", if self.in_memory { (2 * TREE_MIB).to_string() } else { "0".to_owned() }.as_ref());
        // The caller's own settings for these would reach maintainer scripts.
        for name in ["LANG", "LANGUAGE", "APT_CONFIG", "DEB_BUILD_OPTIONS", "DPKG_ROOT"] {
            spawn.env_remove.push(name.into());
        }

        let mut first = Gone(None);
        let mut parser = Parser::default();
        let result = tool::run(MMDEBSTRAP, spawn, LIMITS, task, |line| {
            tracing::debug!(target: "fleetbox_image::build", "{line}");
            if let (None, Some(pid)) = (&first.0, line.strip_prefix("fleetbox:pid ")) {
                let io = ImageError::io("watch", "the image builder");
                let pid = pid.trim().parse().map_err(|_| std::io::ErrorKind::InvalidData.into());
                first.0 = Some(pid.and_then(PidFd::open).map_err(io)?);
                // It waits for this line; a builder that nobody holds never starts.
                if let Some(mut go) = go.take() {
                    go.write_all(b"go\n").map_err(start)?;
                }
            }
            if let Some(progress) = parser.line(line) {
                task.report(progress);
            }
            Ok(())
        });
        // PID 1 of a PID namespace is reaped only after every other process of it has ended.
        drop(first);
        let ended = result?;
        if ended.status.success() && parser.step() == "done" {
            return Ok(());
        }
        Err(ImageError::BuildFailed {
            image: self.image_ref.clone(),
            step: parser.step().to_owned(),
            status: ended.status.to_string(),
            tail: ended.tail.text(),
        })
    }
}

/// Waits, when dropped, for the namespace's first process to be gone.
struct Gone(Option<PidFd>);

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0
            && !task::readable_within(pidfd.as_fd(), Duration::from_secs(5))
        {
            tracing::warn!(pid = pidfd.pid(), "the image builder was killed and has not ended yet");
        }
    }
}

fn check_space(store: &Store, need_mib: u64) -> Result<(), ImageError> {
    let path = store.images_dir();
    let free =
        fleetbox_os::host::free_bytes(&path).map_err(ImageError::io("ask for the free space of", &path))?;
    let free_mib = free >> 20;
    if free_mib < need_mib { Err(ImageError::NoSpace { path, need_mib, free_mib }) } else { Ok(()) }
}

/// Whether the system to build may be unpacked in memory: with as much again to spare, also within this process's
/// own memory limit (cgroup v2, which `MemAvailable` does not know).
fn has_memory_for_tree() -> bool {
    let available = fleetbox_os::host::memory().map(|m| m.available_mib).unwrap_or(0);
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let dir = Path::new("/sys/fs/cgroup")
        .join(group.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default());
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let group_left = match (read("memory.max"), read("memory.current")) {
        (Some(max), Some(current)) => max.saturating_sub(current) >> 20,
        // "max", or no limit to read: only what the host has counts.
        _ => u64::MAX,
    };
    available.min(group_left) >= 2 * TREE_MIB
}
