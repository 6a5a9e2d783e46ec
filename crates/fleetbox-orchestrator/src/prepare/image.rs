//! What a machine is made from, and what brings it up: the image, the boot it is made for, the kernel it gets.

use fleetbox_image::{Image, ImageError, ImageProgress, ImageUse, short_digest};
use fleetbox_spec::{
    Accel, Arch, BootInfo, Capabilities, DiskFormat, Event, ImageRef, MachineName, MachineSpec, Phase,
};
use fleetbox_store::{MachineDir, MachineRecord, write_atomic};

use super::disk_format;
use crate::disk_kernel::{self, FAKE_ROOT};
use crate::error::step_error;
use crate::firmware::{Known, Made, Plan, Refusal, plan};
use crate::shared::Shared;
use crate::{OrchestratorError, Result};

pub(super) async fn resolve_image(
    shared: &Shared,
    spec: &MachineSpec,
    existing: Option<&MachineRecord>,
    capabilities: &Capabilities,
) -> Result<(Image, Option<ImageUse>)> {
    let name = &spec.name;
    if capabilities.accel == Accel::None {
        // No guest runs, so there is nothing that an image could be needed for.
        return Ok((fake_image(shared, spec, existing)?, None));
    }
    if let Some(record) = existing {
        return existing_image(shared, record).await;
    }
    let reference = match &spec.image {
        Some(image) => image.clone(),
        None => {
            let chosen = shared.images.default_image().await.map_err(step_error("choose an image", name))?;
            shared.warn(name, format!("no image was asked for; using {}, {}", chosen.image, chosen.why));
            chosen.image
        }
    };
    let progress = |p: ImageProgress| {
        shared.emit(Event::PhaseProgress {
            machine: name.clone(),
            phase: Phase::Image,
            detail: p.detail,
            progress: p.progress,
        });
    };
    shared
        .phase(name, Phase::Image, reference.to_string(), async {
            let resolved = shared.images.resolve_for_use(&reference, &progress).await;
            let (image, in_use) = resolved.map_err(step_error("get the image", name))?;
            Ok((image, Some(in_use)))
        })
        .await
}

/// The image that a machine's disk was made from. It may be gone when the disk is a copy.
async fn existing_image(shared: &Shared, record: &MachineRecord) -> Result<(Image, Option<ImageUse>)> {
    let name = &record.name;
    match shared.images.get_for_use(&record.image_digest).await {
        Ok((image, in_use)) => Ok((image, Some(in_use))),
        Err(ImageError::NoSuchImage { .. }) => {
            let disk = shared.store.machine_dir(&shared.cluster, name).path().join(&record.disk);
            if disk_format(record) == DiskFormat::Raw && disk.exists() {
                return Ok((removed_image(shared, record)?, None));
            }
            Err(OrchestratorError::ImageGone {
                name: name.clone(),
                image: record.image.clone(),
                digest: short_digest(&record.image_digest).to_owned(),
            })
        }
        Err(e) => Err(step_error("open the image", name)(e)),
    }
}

/// What is known of an image that was removed: nothing but what the machine has of it.
fn removed_image(shared: &Shared, record: &MachineRecord) -> Result<Image> {
    Ok(Image {
        digest: record.image_digest.clone(),
        reference: record.image.clone(),
        path: shared.store.image_dir(&record.image_digest).image(DiskFormat::Raw.as_str()),
        format: DiskFormat::Raw,
        virtual_size: 0,
        kernel: None,
        initrd: None,
        plain_kernel: None,
        plain_initrd: None,
        root_args: String::new(),
        extra_args: String::new(),
        os: "unknown".into(),
        arch: Arch::host().ok_or(OrchestratorError::UnknownArch)?,
        notes: Vec::new(),
        inspection: fleetbox_image::Inspection::default(),
    })
}

fn fake_image(shared: &Shared, spec: &MachineSpec, existing: Option<&MachineRecord>) -> Result<Image> {
    let reference = spec
        .image
        .clone()
        .or_else(|| existing.map(|r| r.image.clone()))
        .unwrap_or_else(|| ImageRef::Alias("fake".into()));
    let path = shared.store.images_dir().join("fake.raw");
    if !path.exists() {
        write_atomic(&path, b"", 0o644).map_err(step_error("make the empty image", &spec.name))?;
    }
    Ok(Image {
        digest: "0".repeat(64),
        reference,
        // As empty as a kernel that nothing executes may be.
        kernel: Some(path.clone()),
        path,
        format: DiskFormat::Raw,
        virtual_size: 0,
        initrd: None,
        plain_kernel: None,
        plain_initrd: None,
        root_args: FAKE_ROOT.into(),
        extra_args: String::new(),
        os: "none".into(),
        arch: Arch::host().unwrap_or(Arch::Amd64),
        notes: Vec::new(),
        inspection: fleetbox_image::Inspection::default(),
    })
}

/// Decides whether firmware is needed, before anything is made.
pub(super) fn plan_boot(spec: &MachineSpec, existing: Option<&MachineRecord>, image: &Image) -> Result<Plan> {
    let name = &spec.name;
    let host = Arch::host().ok_or(OrchestratorError::UnknownArch)?;
    if image.arch != host {
        let (name, image, found) = (name.clone(), image.reference.clone(), image.arch);
        return Err(OrchestratorError::WrongArch { name, image, found, host });
    }
    let kernel = image.kernel.is_some() || existing.is_some_and(|r| r.kernel_args.is_some());
    let made = match kernel {
        true => Made::default(),
        // An image that is gone, which a disk that is a copy can do without, was looked at before.
        false => Made::read(&image.path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(Made::default()),
            _ => Err(step_error("look at the image", name)(e)),
        })?,
    };
    let choice = spec.firmware.or(existing.map(|r| r.firmware)).unwrap_or_default();
    let before = existing.and_then(|r| r.boot.as_ref()).map(|b| b.via);
    plan(&Known { choice, kernel, before, made, arch: host, notes: &image.notes }).map_err(|refusal| {
        let (name, image) = (name.clone(), image.reference.clone());
        match refusal {
            Refusal::NoKernel => OrchestratorError::NoKernel { name, image },
            Refusal::NoBios => OrchestratorError::NoBios { name, arch: host },
        }
    })
}

/// What a person should know of the image that a new machine is made from.
pub(super) fn tell(
    shared: &Shared,
    name: &MachineName,
    image: &Image,
    plan: &Plan,
    capabilities: &Capabilities,
) {
    if capabilities.accel == Accel::None {
        return;
    }
    if let Plan::Firmware(firmware, why) = plan {
        shared.warn(name, format!("it boots through {firmware}: {why}"));
    }
    // The first note of that kind has just been told, with what follows from it.
    for note in image.notes.iter().filter(|n| !n.starts_with("boots through firmware")) {
        shared.warn(name, format!("image {}: {note}", image.reference));
    }
}

/// Whether nothing in a guest reads the seed, so that nobody will be able to log in.
pub(crate) fn lacks_cloud_init(image: &Image) -> bool {
    image.notes.iter().any(|n| n.starts_with("no cloud-init"))
}

/// Sees that the machine has the kernel it is to boot, where the VMM loads that. The image as the machine boots it.
pub(super) fn equip_boot(
    dir: &MachineDir,
    record: &mut MachineRecord,
    image: Image,
    plan: &Plan,
    made: bool,
) -> Result<Image> {
    let name = record.name.clone();
    if let Plan::Firmware(firmware, why) = plan {
        let note = Some(why.clone());
        record.boot = Some(BootInfo { via: (*firmware).into(), kernel: None, source: None, note });
        return Ok(image);
    }
    // A disk that is there has its own; what is booted first of one that an earlier program made, is the image's.
    if made || record.kernel_args.is_none() || !dir.boot().kernel().exists() {
        let kernel = disk_kernel::of_image(&image, dir).map_err(step_error("take over the kernel", &name))?;
        (record.boot, record.kernel_args) = match kernel {
            Some(kernel) => (Some(kernel.boot), Some(kernel.args)),
            None => (None, None),
        };
    }
    Ok(match (&record.boot, &record.kernel_args) {
        (Some(boot), Some(args)) => {
            disk_kernel::Kernel { boot: boot.clone(), args: args.clone() }.over(&image, dir)
        }
        // The disk's own is all that is left, and is looked for before the launch.
        _ => image,
    })
}
