//! QEMU's command line for a machine. Pure.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use fleetbox_spec::{Accel, Arch};
use fleetbox_vmm::{Boot, Disk, DiskFormat, LaunchConfig};

use crate::QemuConfig;

/// The VMM's end of the control socket, in the VMM.
pub(crate) const QMP_FD: RawFd = 3;

/// The tap, in the VMM.
pub(crate) const TAP_FD: RawFd = 4;

/// The processor that TCG emulates for amd64.
///
/// x86-64-v2 is the least that every supported distribution runs on (RHEL 9 and its kin ask for it), and `Nehalem`
/// is just that: TCG has all of it. More costs time under emulation: `max` was the slowest of those measured each
/// time. `Haswell` has features that TCG lacks; QEMU warns of each on its stderr, where they would bury its last words.
const TCG_CPU_AMD64: &str = "Nehalem";

/// The processor that TCG emulates for arm64: plain ARMv8.0, without the pointer authentication of `max`, which
/// TCG computes in software at every function call.
const TCG_CPU_ARM64: &str = "cortex-a72";

/// The whole command line, the program's name left out. `efi`: the code of the UEFI firmware, where that is to boot.
pub(crate) fn build(qemu: &QemuConfig, machine: &LaunchConfig, efi: Option<&Path>) -> Vec<OsString> {
    let mut args = Args(Vec::new());
    args.flag("-nodefaults").flag("-no-user-config");
    args.pair("-display", "none");
    args.pair("-name", format!("guest={}", machine.name));
    args.pair("-uuid", &machine.uuid);
    args.pair("-msg", "timestamp=on");
    args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    // A reboot ends the VMM: the owner boots the disk's kernel of that moment, not the one loaded here before.
    // After a panic the guest runs on: its last console lines come after the notification, and whether they
    // are read, or a crash kernel takes over, is the owner's business. It ends the VMM when it has seen enough.
    args.pair("-action", "reboot=shutdown,shutdown=poweroff,panic=none");
    platform(&mut args, qemu);
    args.pair("-smp", machine.cpus.to_string());
    args.pair("-m", format!("{}M", machine.memory_mib));
    boot(&mut args, &machine.boot, efi);

    args.pair("-chardev", format!("socket,id=qmp,fd={QMP_FD}"));
    args.pair("-mon", "chardev=qmp,mode=control");
    let mut console = OsString::from("file,id=console,append=on,path=");
    console.push(escape(machine.serial_log.as_os_str()));
    args.pair("-chardev", console);
    args.pair("-serial", "chardev:console");

    for (index, disk) in machine.disks.iter().enumerate() {
        add_disk(&mut args, index, disk, machine.boot.is_firmware() && index == 0);
    }
    if let Some(nic) = &machine.nic {
        args.pair("-netdev", format!("tap,id=net0,fd={TAP_FD},vhost=off"));
        let [a, b, c, d, e, f] = nic.mac;
        // Without its option ROM: nothing boots from the network, and SeaBIOS would spend time on it.
        args.pair(
            "-device",
            format!(
                "virtio-net-pci,netdev=net0,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},\
                 disable-legacy=on,romfile="
            ),
        );
    }
    args.pair("-object", "rng-builtin,id=rng0");
    args.pair("-device", "virtio-rng-pci,rng=rng0,disable-legacy=on");
    args.pair("-device", "pvpanic-pci");
    if qemu.arch == Arch::Amd64 {
        // Not offered for arm64 by all versions that are taken.
        args.pair("-device", "vmgenid,guid=auto");
    }
    args.0
}

fn platform(args: &mut Args, qemu: &QemuConfig) {
    // Guest memory stays out of core dumps: it holds keys.
    let (machine, tcg_cpu) = match qemu.arch {
        // No SATA, SMBus, SMM, VMware port: devices that no guest here uses and that firmware and kernel would probe.
        Arch::Amd64 => ("q35,sata=off,smbus=off,smm=off,vmport=off,dump-guest-core=off", TCG_CPU_AMD64),
        _ => ("virt,gic-version=max,dump-guest-core=off", TCG_CPU_ARM64),
    };
    args.pair("-machine", machine);
    match qemu.accel {
        Accel::Kvm => args.pair("-accel", "kvm").pair("-cpu", "host"),
        // One host thread for each virtual CPU.
        _ => args.pair("-accel", "tcg,thread=multi").pair("-cpu", tcg_cpu),
    };
}

fn boot(args: &mut Args, boot: &Boot, efi: Option<&Path>) {
    match boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            args.pair("-kernel", kernel);
            if let Some(initrd) = initrd {
                args.pair("-initrd", initrd);
            }
            args.pair("-append", cmdline);
        }
        // SeaBIOS puts its own and the boot loader's text on the serial console when it is told that there is no screen.
        Boot::Bios => drop(args.pair("-machine", "graphics=off")),
        // Its console is the serial port where there is no other.
        Boot::Efi { vars } => {
            for (unit, file) in efi.into_iter().chain([vars.as_path()]).enumerate() {
                let read_only = if unit == 0 { "on" } else { "off" };
                let mut flash =
                    OsString::from(format!("if=pflash,format=raw,unit={unit},readonly={read_only},file="));
                flash.push(escape(file.as_os_str()));
                args.pair("-drive", flash);
            }
        }
    }
}

fn add_disk(args: &mut Args, index: usize, disk: &Disk, boots: bool) {
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let read_only = if disk.read_only { "on" } else { "off" };
    // The file is locked: a second VMM on the same disk is refused. Blocks the guest discards are given back.
    // The guest's flushes reach the host's disk (no cache.no-flush), so that a crash of the host costs no more than
    // on a real machine. A boot with cloud-init asks for 17 of them, 0.04 s in all: nothing to be won there. What
    // the guest has flushed survives a kill of the VMM in any case: it is in the host's page cache by then.
    let mut blockdev = OsString::from(format!(
        "driver={format},node-name=disk{index},read-only={read_only},discard=unmap,\
         file.driver=file,file.locking=on,file.filename="
    ));
    blockdev.push(escape(disk.path.as_os_str()));
    args.pair("-blockdev", blockdev);
    let mut device = format!("virtio-blk-pci,drive=disk{index},disable-legacy=on,serial=");
    device.push_str(&disk.id.replace(',', ",,"));
    if boots {
        device.push_str(",bootindex=0");
    }
    args.pair("-device", device);
}

/// QEMU's options are separated by commas; a comma in a value is doubled.
fn escape(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        escaped.push(byte);
        if byte == b',' {
            escaped.push(byte);
        }
    }
    OsString::from_vec(escaped)
}

struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
        self
    }
}

#[cfg(test)]
mod tests;
