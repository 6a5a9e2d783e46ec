//! From a spec to everything a VMM needs: record, image, network, disk, seed.
//!
//! A preparation that fails or is dropped half-way leaves things behind on purpose: the machine's task
//! undoes them in one place (its `Detach` and `Delete` actions), and after a crash the journal does.

mod image;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fleetbox_image::Image;
use fleetbox_net::{Attachment, Resource};
use fleetbox_seed::{HostKeyPair, NetworkConfig, Seed};
use fleetbox_spec::{
    Accel, Arch, Capabilities, DEFAULT_CPUS, DEFAULT_DISK_GIB, DEFAULT_MEMORY_MIB, DiskFormat, Firmware,
    ImageRef, MachineName, MachineSpec, Phase, mac_for,
};
use fleetbox_store::{MachineDir, MachineRecord, read_json, write_atomic, write_json};
use fleetbox_vmm::{Boot, Disk, LaunchConfig, Nic};

use crate::error::{StepError, step_error};
use crate::firmware::Plan;
use crate::room::Limits;
use crate::shared::Shared;
use crate::{OrchestratorError, Result};

use image::{equip_boot, plan_boot, resolve_image, tell};

pub(crate) use image::lacks_cloud_init;

const GIB: u64 = 1 << 30;

/// What a machine's boots need, kept as long as it is up.
#[derive(Debug)]
pub(crate) struct Equipment {
    pub(crate) record: MachineRecord,
    /// With the machine's own kernel and arguments in the place of the image's, as of its last boot.
    pub(crate) image: Image,
    pub(crate) attachment: Attachment,
    pub(crate) capabilities: Capabilities,
    pub(crate) plan: Plan,
    /// A guest has had the disk, and so may have put another kernel on it.
    pub(crate) used_disk: bool,
}

/// Reads a machine's record; `None` when there is no such machine.
pub(crate) fn load_record(shared: &Shared, name: &MachineName) -> Result<Option<MachineRecord>> {
    let file = shared.store.machine_dir(&shared.cluster, name).record();
    match read_json(&file) {
        Ok(record) => Ok(Some(record)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(step_error("read machine.json", name)(e)),
    }
}

/// Everything up to the launch, in order.
pub(crate) async fn prepare(shared: &Arc<Shared>, spec: &MachineSpec) -> Result<Equipment> {
    let name = &spec.name;
    let existing = load_record(shared, name)?;
    check_spec(shared, spec, existing.as_ref())?;

    let chosen = shared.phase(name, Phase::Probe, "choosing a backend", shared.backend()).await?;
    let capabilities = chosen.backend.capabilities().clone();
    if let Some(warning) = &chosen.warning {
        shared.warn(name, warning.clone());
    }
    if let Some(record) = existing.as_ref().filter(|r| r.backend != capabilities.backend) {
        return Err(OrchestratorError::BackendDiffers {
            name: name.clone(),
            has: record.backend.clone(),
            now: capabilities.backend,
        });
    }

    // Nobody removes the image until the disk is made; from then on the disk does.
    let (image, in_use) = resolve_image(shared, spec, existing.as_ref(), &capabilities).await?;
    let plan = plan_boot(spec, existing.as_ref(), &image)?;
    if existing.is_none() {
        tell(shared, name, &image, &plan, &capabilities);
    }

    let (network, attachment, ip) = shared
        .phase(
            name,
            Phase::Network,
            "setting up bridge, tap and address",
            attach(shared, name, existing.as_ref()),
        )
        .await?;

    let dir = shared.store.machine_dir(&shared.cluster, name);
    let (mut record, host_key) = match existing {
        Some(record) => renew_record(shared, spec, record, ip, &capabilities, &dir)?,
        None => new_record(shared, spec, &image, ip, &capabilities, &dir)?,
    };
    let disk = Phase::Disk;
    let made = shared
        .phase(
            name,
            disk,
            format!("{} GiB", record.disk_gib),
            make_disk(&dir, &record, &image, capabilities.accel),
        )
        .await?;
    drop(in_use);
    let image = equip_boot(&dir, &mut record, image, &plan, made)?;
    let seed = write_seed(shared, &dir, &record, &host_key, &network, &image);
    shared.phase(name, Phase::Seed, "NoCloud seed", seed).await?;

    write_json(&dir.record(), &record, 0o644).map_err(step_error("write machine.json", name))?;
    give_dir_to_owner(shared, &dir, name)?;
    if !record.ephemeral {
        // From here on it is a machine with a name, which only `destroy` deletes.
        strike_dir(shared, name, &dir)?;
    }
    Ok(Equipment { record, image, attachment, capabilities, plan, used_disk: !made })
}

pub(crate) fn strike_dir(shared: &Shared, name: &MachineName, dir: &MachineDir) -> Result<()> {
    let resource = Resource::Path { path: dir.path().to_owned() };
    shared.journal.strike(&resource).map_err(step_error("strike the folder off the journal", name))
}

/// A machine is never started from another image than the one its disk was made from, nor taken for one.
///
/// Two references that lead to the same content are the same image: the digest that was recorded decides.
pub(crate) fn check_image(shared: &Shared, spec: &MachineSpec, record: &MachineRecord) -> Result<()> {
    let Some(asked) = spec.image.as_ref().filter(|asked| **asked != record.image) else { return Ok(()) };
    let same = shared.images.digests_of(asked).map_err(step_error("look for the image", &spec.name))?;
    if same.contains(&record.image_digest) {
        return Ok(());
    }
    let (has, asked) = (record.image.clone(), asked.clone());
    Err(OrchestratorError::ImageDiffers { name: spec.name.clone(), has, asked })
}

/// What can be said against a start before anything is looked for or made.
fn check_spec(shared: &Shared, spec: &MachineSpec, existing: Option<&MachineRecord>) -> Result<()> {
    spec.validate()?;
    let name = &spec.name;
    let memory_mib = spec.memory_mib.or(existing.map(|r| r.memory_mib)).unwrap_or(DEFAULT_MEMORY_MIB);
    let host_mib = Limits::of_host()?.memory_mib;
    if memory_mib > host_mib {
        let name = name.clone();
        return Err(OrchestratorError::TooMuchMemory { name, asked_mib: memory_mib, host_mib });
    }
    let Some(record) = existing else { return Ok(()) };
    check_image(shared, spec, record)?;
    match spec.disk_gib {
        Some(asked_gib) if asked_gib < record.disk_gib => Err(OrchestratorError::DiskTooSmall {
            name: name.clone(),
            asked_gib,
            what: "its disk",
            least_gib: record.disk_gib,
        }),
        _ => Ok(()),
    }
}

async fn attach(
    shared: &Arc<Shared>,
    name: &MachineName,
    existing: Option<&MachineRecord>,
) -> Result<(Arc<fleetbox_net::Network>, Attachment, Ipv4Addr)> {
    let network = shared.network(Some(name)).await?;
    let on_disk = addresses_on_disk(shared, name)?;
    let ip = shared
        .take_address(&network, name, existing.map(|r| r.ip), &on_disk)
        .map_err(step_error("choose the address", name))?;
    let mac = mac_for(&shared.cluster, name);
    let attachment = network.attach(name, ip, mac).await.map_err(step_error("make the tap", name))?;
    Ok((network, attachment, ip))
}

fn addresses_on_disk(shared: &Shared, name: &MachineName) -> Result<Vec<(MachineName, Ipv4Addr)>> {
    let mut all = Vec::new();
    for other in shared.store.machines(&shared.cluster).map_err(step_error("list the siblings", name))? {
        // A sibling's damaged record must not keep this machine from starting.
        match load_record(shared, &other) {
            Ok(Some(record)) => all.push((other, record.ip)),
            Ok(None) => {}
            Err(e) => shared.warn(name, e.story()),
        }
    }
    Ok(all)
}

fn new_record(
    shared: &Shared,
    spec: &MachineSpec,
    image: &Image,
    ip: Ipv4Addr,
    capabilities: &Capabilities,
    dir: &MachineDir,
) -> Result<(MachineRecord, String)> {
    let name = &spec.name;
    let image_gib = image.virtual_size.div_ceil(GIB);
    let disk_gib = match spec.disk_gib {
        Some(asked_gib) if asked_gib < image_gib => {
            let (name, what) = (name.clone(), "the image");
            return Err(OrchestratorError::DiskTooSmall { name, asked_gib, what, least_gib: image_gib });
        }
        Some(asked) => asked,
        None => DEFAULT_DISK_GIB.max(image_gib),
    };
    let host_key = fleetbox_ssh::generate_host_key().map_err(step_error("make the SSH host key", name))?;
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(step_error("make the UUID", name))?
        .trim()
        .to_owned();
    // Journalled before it exists: until machine.json is whole, a crash must leave nothing.
    let resource = Resource::Path { path: dir.path().to_owned() };
    shared.journal.record(resource).map_err(step_error("journal the folder", name))?;
    shared.store.make_dir(dir.path(), 0o755).map_err(step_error("make the folder", name))?;
    write_atomic(&dir.host_key(), host_key.private_openssh.as_bytes(), 0o600)
        .map_err(step_error("write the SSH host key", name))?;
    let format = if capabilities.qcow2_overlay { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    let record = MachineRecord {
        name: name.clone(),
        image: image.reference.clone(),
        image_digest: image.digest.clone(),
        cpus: spec.cpus.unwrap_or(DEFAULT_CPUS),
        memory_mib: spec.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
        disk_gib,
        disk: format!("disk.{}", format.as_str()),
        backend: capabilities.backend.clone(),
        accel: capabilities.accel,
        instance_id: format!("fleetbox-{uuid}"),
        uuid,
        mac: mac_text(mac_for(&shared.cluster, name)),
        ip,
        host_key: host_key.public_line,
        created_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        ephemeral: spec.ephemeral,
        failure: None,
        firmware: spec.firmware.unwrap_or_default(),
        boot: None,
        kernel_args: None,
    };
    Ok((record, host_key.private_openssh))
}

fn renew_record(
    shared: &Shared,
    spec: &MachineSpec,
    mut record: MachineRecord,
    ip: Ipv4Addr,
    capabilities: &Capabilities,
    dir: &MachineDir,
) -> Result<(MachineRecord, String)> {
    let name = &spec.name;
    if record.ip != ip {
        shared.warn(name, format!("its address {} is not free any more; it is {ip} now", record.ip));
    }
    record.ip = ip;
    record.cpus = spec.cpus.unwrap_or(record.cpus);
    record.memory_mib = spec.memory_mib.unwrap_or(record.memory_mib);
    record.disk_gib = spec.disk_gib.unwrap_or(record.disk_gib);
    record.accel = capabilities.accel;
    record.firmware = spec.firmware.unwrap_or(record.firmware);
    record.failure = None;
    let host_key =
        std::fs::read_to_string(dir.host_key()).map_err(step_error("read the SSH host key", name))?;
    Ok((record, host_key))
}

/// Makes the disk, or grows the one that is there. Whether it was made.
async fn make_disk(dir: &MachineDir, record: &MachineRecord, image: &Image, accel: Accel) -> Result<bool> {
    let name = &record.name;
    let path = dir.path().join(&record.disk);
    let format = disk_format(record);
    let size = record.disk_gib * GIB;
    if accel == Accel::None {
        let made = !path.exists();
        if made {
            std::fs::write(&path, b"").map_err(step_error("make the disk", name))?;
        }
        return Ok(made);
    }
    if path.exists() {
        let now =
            fleetbox_image::disk_size(&path, format).await.map_err(step_error("measure the disk", name))?;
        if now < size {
            fleetbox_image::grow_disk(&path, format, size)
                .await
                .map_err(step_error("grow the disk", name))?;
        }
        return Ok(false);
    }
    let made = fleetbox_image::create_disk(image, &path, format, size).await;
    let made = made.map_err(step_error("make the disk", name))?;
    tracing::info!(machine = %name, ?made, "disk");
    Ok(true)
}

async fn write_seed(
    shared: &Shared,
    dir: &MachineDir,
    record: &MachineRecord,
    host_key: &str,
    network: &fleetbox_net::Network,
    image: &Image,
) -> Result<()> {
    let name = &record.name;
    let step = |e: StepError| step_error("make the seed", name)(e);
    let key = shared.key().await.map_err(step)?;
    let mac = mac_for(&shared.cluster, name);
    let mut config = NetworkConfig::ipv4(mac, record.ip, network.prefix(), network.gateway());
    config.dns = vec![IpAddr::V4(network.gateway())];
    config.search = vec![network.domain()];
    config.ipv6 = network.ipv6_for(record.ip).map(|ip| (ip, 64));
    let mut seed = Seed::new(
        record.instance_id.clone(),
        name.clone(),
        key.public_line.clone(),
        HostKeyPair { private_openssh: host_key.to_owned(), public_line: record.host_key.clone() },
        config,
    );
    seed.domain = Some(network.domain());
    // A bootstrapped image is one file system without a partition table: there is no partition to grow.
    seed.grow_partition = !matches!(image.reference, ImageRef::Bootstrap { .. });
    let iso = seed.to_iso().map_err(|e| step(e.into()))?;
    // It holds the private host key.
    write_atomic(&dir.seed(), &iso, 0o600).map_err(|e| step(e.into()))
}

fn give_dir_to_owner(shared: &Shared, dir: &MachineDir, name: &MachineName) -> Result<()> {
    let step = |e: StepError| step_error("give the folder to its user", name)(e);
    for folder in [dir.path(), dir.boot().path()].into_iter().filter(|f| f.exists()) {
        for entry in std::fs::read_dir(folder).map_err(|e| step(e.into()))? {
            let entry = entry.map_err(|e| step(e.into()))?;
            shared.store.give_to_owner(&entry.path()).map_err(|e| step(e.into()))?;
        }
    }
    Ok(())
}

pub(crate) fn disk_format(record: &MachineRecord) -> DiskFormat {
    if record.disk.ends_with(".qcow2") { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}

/// A MAC address as text.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// What the VMM is given for the next boot.
pub(crate) fn launch_config(
    shared: &Shared,
    record: &MachineRecord,
    image: &Image,
    plan: &Plan,
    accel: Accel,
    tap: OwnedFd,
) -> Result<LaunchConfig> {
    let dir = shared.store.machine_dir(&shared.cluster, &record.name);
    let emulated = accel == Accel::Tcg;
    let boot = match (plan, &image.kernel) {
        (Plan::Firmware(Firmware::Efi, _), _) => Boot::Efi { vars: dir.efi_vars() },
        (Plan::Firmware(..), _) => Boot::Bios,
        (Plan::Direct, Some(kernel)) => Boot::Kernel {
            // What need not be unpacked is a tenth of an emulated boot. With KVM it is nothing, and KASLR, which a
            // kernel does while it unpacks itself, is kept.
            kernel: image.plain_kernel.clone().filter(|_| emulated).unwrap_or_else(|| kernel.clone()),
            initrd: image.plain_initrd.clone().filter(|_| emulated).or_else(|| image.initrd.clone()),
            cmdline: kernel_cmdline(image, accel),
        },
        (Plan::Direct, None) => {
            let (name, image) = (record.name.clone(), image.reference.clone());
            return Err(OrchestratorError::NoKernel { name, image });
        }
    };
    Ok(LaunchConfig {
        name: record.name.clone(),
        uuid: record.uuid.clone(),
        cpus: record.cpus,
        memory_mib: record.memory_mib,
        boot,
        disks: vec![
            Disk {
                id: "root".into(),
                path: dir.path().join(&record.disk),
                format: disk_format(record),
                read_only: false,
            },
            Disk { id: "seed".into(), path: dir.seed(), format: DiskFormat::Raw, read_only: true },
        ],
        nic: Some(Nic { tap, mac: mac_for(&shared.cluster, &record.name), ip: record.ip }),
        serial_log: dir.serial_log(),
        vmm_log: dir.vmm_log(),
    })
}

/// The kernel's command line: the image's own root, a console to read, and where the seed is.
///
/// No bare `quiet`: the boot classifier needs its lines (docs/adr has the measurements). Under emulation the
/// CPU has no speculation to defend against, so `mitigations=off` saves work and weakens nothing.
fn kernel_cmdline(image: &Image, accel: Accel) -> String {
    let console = match image.arch {
        Arch::Arm64 => "ttyAMA0",
        _ => "ttyS0",
    };
    let mut line = format!("{} console={console} ds=nocloud", image.root_args);
    if !image.extra_args.is_empty() {
        line.push(' ');
        line.push_str(&image.extra_args);
    }
    if accel == Accel::Tcg {
        line.push_str(" mitigations=off");
        // It would find that there is nothing to do for it, which takes a quarter of the time to the first login.
        line.push_str(" systemd.mask=");
        line.push_str(fleetbox_seed::IDLE_UNIT);
        if image.arch == Arch::Amd64 {
            // The emulated TSC is the host's clock and always in step; the watchdog's checks of it only cost time.
            line.push_str(" tsc=reliable");
        }
    }
    line
}
