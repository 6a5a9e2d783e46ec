//! Images such as vendors publish: how their disks are laid out, how they come, what boots them.

use std::time::Duration;

use fleetbox::blocking::Vm;
use fleetbox::{BootInfo, BootVia, Command, ErrorKind, FirmwareChoice, KernelSource, State, VmBuilder};
use fleetbox_e2e::images::{Made, TestImage};
use fleetbox_testkit::wait_for;
use libtest_mimic::Trial;

use crate::served::{Server, Stop};
use crate::support::{Owner, PATIENCE, PROMISE, TestResult, Traces, chain, ended, made, trial, unique};

/// More than any of the images has, so that growth can be seen.
const DISK_GIB: u64 = 6;

/// The tests, each with the images that it needs.
pub(crate) fn trials() -> Vec<(Trial, &'static [TestImage])> {
    use TestImage::{BtrfsRoot, Kernel, OnlyGrub, XfsRoot, ZstdQcow2};
    vec![
        (trial("xfs_with_a_separate_boot_takes_a_new_kernel", xfs_root), &[XfsRoot, Kernel]),
        (trial("btrfs_in_a_subvolume_boots", btrfs_root), &[BtrfsRoot]),
        (trial("what_only_grub_finds_boots_by_firmware", only_grub), &[OnlyGrub]),
        (trial("a_download_killed_half_way_is_resumed_and_boots", resumed), &[ZstdQcow2]),
        (trial("what_only_grub_finds_boots_by_uefi", only_grub_uefi).with_ignored_flag(true), &[OnlyGrub]),
        (
            trial("a_whole_kernel_package_is_installed_and_booted", whole_package).with_ignored_flag(true),
            &[Kernel],
        ),
    ]
}

fn builder_from(name: &str, image: &str) -> VmBuilder {
    // Growing the disk is a part of cloud-init's work.
    Vm::builder(name).image(image).memory_mib(768).disk_gib(DISK_GIB).wait_cloud_init()
}

fn start(name: &str, image: &str) -> fleetbox::Result<Vm> {
    Vm::start(builder_from(name, image))
}

fn start_from(name: &str, image: &Made) -> fleetbox::Result<Vm> {
    start(name, &image.file("disk.raw").display().to_string())
}

fn gone(vm: Vm) -> TestResult {
    let traces = Traces::of(vm.info()?);
    vm.destroy()?;
    drop(vm);
    traces.assert_gone(PATIENCE)
}

/// How the last boot was made, in the machine's own record.
fn boot_of(vm: &Vm) -> Result<BootInfo, Box<dyn std::error::Error>> {
    Ok(vm.info()?.boot.ok_or("nothing is told of the boot")?)
}

/// The root file system and the kernel are the image's own, started by the image's own configuration, on a disk that
/// has grown.
fn runs_from(vm: &Vm, image: &Made, file_system: &str) -> TestResult {
    assert_eq!(vm.ssh("findmnt -n -o FSTYPE /")?, file_system);
    assert_eq!(vm.ssh("uname -r")?, image.fact("kernel")?);
    starts_as_configured(vm, image)?;
    has_grown(vm)
}

fn starts_as_configured(vm: &Vm, image: &Made) -> TestResult {
    let uuid = image.fact("root_uuid")?;
    assert_eq!(vm.ssh("findmnt -n -o UUID /")?, uuid);
    let words = vm.ssh("cat /proc/cmdline")?;
    let has = |word: &str| words.split_whitespace().any(|w| w == word);
    assert!(has(&format!("root=UUID={uuid}")), "{words}");
    // Only the image's own loader says that.
    assert!(has("fleetbox_test=loader"), "{words}");
    Ok(())
}

fn has_grown(vm: &Vm) -> TestResult {
    let mib: u64 = vm.ssh("df --output=size -BM / | tail -n 1 | tr -d ' M'")?.parse()?;
    // All but /boot, the partition table, and what a file system keeps for itself.
    assert!((5000..=DISK_GIB * 1024).contains(&mib), "{mib} MiB of disk");
    Ok(())
}

fn xfs_root() -> TestResult {
    let (image, kernel) = (made(TestImage::XfsRoot)?, made(TestImage::Kernel)?);
    let vm = start_from(&unique("xfs"), &image)?;
    runs_from(&vm, &image, "xfs")?;
    assert_eq!(vm.ssh("findmnt -n -o FSTYPE /boot")?, "ext4");
    let boot = boot_of(&vm)?;
    assert_eq!((boot.via, boot.source), (BootVia::Kernel, Some(KernelSource::Image)), "{boot:?}");
    // The package brings its initramfs; all else is done by its own maintainer scripts, as for any kernel.
    takes_kernel(&vm, &kernel, "linux.deb", "INITRD=No")?;
    starts_as_configured(&vm, &image)?;
    gone(vm)
}

fn btrfs_root() -> TestResult {
    let image = made(TestImage::BtrfsRoot)?;
    let vm = start_from(&unique("btrfs"), &image)?;
    runs_from(&vm, &image, "btrfs")?;
    for (point, subvolume) in [("/", "/@"), ("/home", "/@home")] {
        assert_eq!(vm.ssh(&format!("findmnt -n -o FSROOT {point}"))?, subvolume);
    }
    gone(vm)
}

fn only_grub() -> TestResult {
    by_firmware("grub", FirmwareChoice::Auto, BootVia::Bios)
}

fn only_grub_uefi() -> TestResult {
    by_firmware("uefi", FirmwareChoice::Efi, BootVia::Efi)
}

fn by_firmware(name: &str, choice: FirmwareChoice, via: BootVia) -> TestResult {
    let image = made(TestImage::OnlyGrub)?;
    let wanted = builder_from(&unique(name), &image.file("disk.raw").display().to_string());
    let vm = Vm::start(wanted.firmware(choice))?;
    runs_from(&vm, &image, "ext4")?;
    let boot = boot_of(&vm)?;
    assert_eq!((boot.via, boot.source), (via, None), "{boot:?}");
    // The guest's own reboot goes through the firmware, too.
    reboots(&vm)?;
    starts_as_configured(&vm, &image)?;
    assert_eq!(boot_of(&vm)?.via, via);
    gone(vm)
}

/// The guest's own reboot, into a new VMM.
fn reboots(vm: &Vm) -> TestResult {
    let before = vm.info()?.vmm_pid;
    let boot = vm.ssh("cat /proc/sys/kernel/random/boot_id")?;
    // The connection may end before the answer.
    let _ = vm.exec("sudo systemctl reboot");
    wait_for("the rebooted machine", PATIENCE, || match vm.info() {
        Ok(i) if i.state == State::Running && i.vmm_pid != before => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    assert_ne!(vm.ssh("cat /proc/sys/kernel/random/boot_id")?, boot);
    Ok(())
}

/// Installs a kernel from a local file. The guest's own reboot boots it, and so does the next start.
fn takes_kernel(vm: &Vm, kernel: &Made, file: &str, environment: &str) -> TestResult {
    let version = kernel.fact("kernel")?;
    assert_ne!(vm.ssh("uname -r")?, version);
    let package = std::fs::read(kernel.file(file))?;
    assert!(vm.exec(Command::shell("cat > linux.deb").stdin(package))?.status().success());
    vm.ssh(&format!("sudo env {environment} dpkg -i linux.deb"))?;
    assert_eq!(vm.ssh("readlink /vmlinuz")?, format!("boot/vmlinuz-{version}"));
    reboots(vm)?;
    assert_eq!(vm.ssh("uname -r")?, version);
    vm.stop()?;
    vm.start_again()?;
    assert_eq!(vm.ssh("uname -r")?, version);
    // Not the image's kernel, and it is told which.
    let boot = boot_of(vm)?;
    assert_eq!((boot.source, boot.kernel.as_deref()), (Some(KernelSource::Disk), Some(version)), "{boot:?}");
    Ok(())
}

fn whole_package() -> TestResult {
    let kernel = made(TestImage::Kernel)?;
    let vm = Vm::start(crate::support::builder(&unique("kernel")).cpus(2))?;
    takes_kernel(&vm, &kernel, "whole.deb", "LC_ALL=C")?;
    gone(vm)
}

/// The client is killed in the middle; the next one goes on from there, and is cut off once, too.
fn resumed() -> TestResult {
    let image = made(TestImage::ZstdQcow2)?;
    let file = image.file("disk.qcow2");
    let len = std::fs::metadata(&file)?.len();
    let (half, most) = (len / 2, len / 4 * 3);
    let server = Server::start(&file, vec![Stop::Silent(half), Stop::Cut(most)])?;
    let url = format!("{}#sha256={}", server.url("disk.qcow2"), image.fact("sha256")?);

    let name = unique("resumed");
    let owner = Owner::spawn(&name, &url);
    wait_for("half of the file to be sent", PATIENCE, || match server.requests().first() {
        Some(first) if first.sent >= half => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let holder = fleetbox::blocking::inspect(&name).ok().and_then(|info| info.holder_pid);
    owner.kill();
    if holder.is_some() {
        ended(holder, PROMISE)?;
    }

    let vm = start(&name, &url)?;
    let requests = server.requests();
    let [first, second, third] = &requests[..] else { panic!("three requests: {requests:?}") };
    assert!(first.from == 0 && second.if_range && third.if_range, "{requests:?}");
    // What was on its way when the client was killed or cut off is all that is sent twice.
    assert!(second.from > half / 2 && second.from <= half, "{requests:?}");
    assert!(third.from > second.from && third.from <= most, "{requests:?}");
    assert!(requests.iter().map(|r| r.sent).sum::<u64>() < len + half / 2, "{requests:?}");
    assert_eq!(vm.ssh("findmnt -n -o FSTYPE /")?, "ext4");
    has_grown(&vm)?;

    // It is in the store now: another machine of it asks nobody.
    drop(server);
    let again = unique("again");
    let wanted = Vm::builder(&again).image(&url).ephemeral().boot_timeout(Duration::from_secs(1));
    let e = Vm::start(wanted).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BootTimeout, "{}", chain(&e));
    fleetbox::blocking::remove(&again, true)?;
    gone(vm)
}
