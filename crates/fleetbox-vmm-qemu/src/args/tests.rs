use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox_spec::MachineName;
use fleetbox_vmm::Nic;

use super::*;
use crate::LEAST_VERSION;

fn qemu(arch: Arch, accel: Accel) -> QemuConfig {
    QemuConfig {
        program: PathBuf::from("/usr/bin/qemu"),
        version: LEAST_VERSION,
        arch,
        accel,
        start_deadline: Duration::from_secs(1),
        command_deadline: Duration::from_secs(1),
    }
}

fn full() -> LaunchConfig {
    let disk = |id: &str, path: &str, format, read_only| Disk {
        id: id.into(),
        path: path.into(),
        format,
        read_only,
    };
    LaunchConfig {
        name: MachineName::new("web-1").unwrap(),
        uuid: "12345678-1234-1234-1234-123456789abc".into(),
        cpus: 2,
        memory_mib: 1024,
        boot: Boot::Kernel {
            kernel: "/i/vmlinuz".into(),
            initrd: Some("/i/initrd".into()),
            cmdline: "root=/dev/vda console=ttyS0,115200".into(),
        },
        disks: vec![
            disk("root", "/m/disk.qcow2", DiskFormat::Qcow2, false),
            disk("seed", "/m/a,b/seed.iso", DiskFormat::Raw, true),
        ],
        nic: Some(Nic {
            tap: std::fs::File::open("/dev/null").unwrap().into(),
            mac: [0x52, 0x54, 0, 0xaa, 0xb, 0xcc],
            ip: [10, 0, 0, 2].into(),
        }),
        serial_log: "/m/serial,1.log".into(),
        vmm_log: "/m/vmm.log".into(),
    }
}

/// One line for each option, with its value.
fn lines(qemu: &QemuConfig, machine: &LaunchConfig) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for arg in build(qemu, machine, Some(Path::new("/f/CODE,1.fd"))) {
        let arg = arg.into_string().unwrap();
        match lines.last_mut() {
            Some(line) if !arg.starts_with('-') => *line = format!("{line} {arg}"),
            _ => lines.push(arg),
        }
    }
    lines
}

#[test]
fn a_machine_with_everything() {
    let expected = "\
-nodefaults
-no-user-config
-display none
-name guest=web-1
-uuid 12345678-1234-1234-1234-123456789abc
-msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-action reboot=shutdown,shutdown=poweroff,panic=none
-machine q35,sata=off,smbus=off,smm=off,vmport=off,dump-guest-core=off
-accel tcg,thread=multi
-cpu Nehalem
-smp 2
-m 1024M
-kernel /i/vmlinuz
-initrd /i/initrd
-append root=/dev/vda console=ttyS0,115200
-chardev socket,id=qmp,fd=3
-mon chardev=qmp,mode=control
-chardev file,id=console,append=on,path=/m/serial,,1.log
-serial chardev:console
-blockdev driver=qcow2,node-name=disk0,read-only=off,discard=unmap,file.driver=file,file.locking=on,file.filename=/m/disk.qcow2
-device virtio-blk-pci,drive=disk0,disable-legacy=on,serial=root
-blockdev driver=raw,node-name=disk1,read-only=on,discard=unmap,file.driver=file,file.locking=on,file.filename=/m/a,,b/seed.iso
-device virtio-blk-pci,drive=disk1,disable-legacy=on,serial=seed
-netdev tap,id=net0,fd=4,vhost=off
-device virtio-net-pci,netdev=net0,mac=52:54:00:aa:0b:cc,disable-legacy=on,romfile=
-object rng-builtin,id=rng0
-device virtio-rng-pci,rng=rng0,disable-legacy=on
-device pvpanic-pci
-device vmgenid,guid=auto";
    assert_eq!(lines(&qemu(Arch::Amd64, Accel::Tcg), &full()).join("\n"), expected);
}

#[test]
fn what_differs_by_accelerator_architecture_and_boot() {
    let difference = |qemu: &QemuConfig, machine: &LaunchConfig| {
        let base = lines(&self::qemu(Arch::Amd64, Accel::Tcg), &full());
        let lines = lines(qemu, machine);
        let only =
            |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
        (only(&base, &lines), only(&lines, &base))
    };
    let (gone, new) = difference(&qemu(Arch::Amd64, Accel::Kvm), &full());
    assert_eq!(gone, ["-accel tcg,thread=multi", "-cpu Nehalem"]);
    assert_eq!(new, ["-accel kvm", "-cpu host"]);

    let (gone, new) = difference(&qemu(Arch::Arm64, Accel::Tcg), &full());
    assert_eq!(
        gone,
        [
            "-machine q35,sata=off,smbus=off,smm=off,vmport=off,dump-guest-core=off",
            "-cpu Nehalem",
            "-device vmgenid,guid=auto"
        ]
    );
    assert_eq!(new, ["-machine virt,gic-version=max,dump-guest-core=off", "-cpu cortex-a72"]);

    let firmware = LaunchConfig { boot: Boot::Bios, nic: None, ..full() };
    let (gone, new) = difference(&qemu(Arch::Amd64, Accel::Tcg), &firmware);
    let kinds: Vec<&str> = gone.iter().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(kinds, ["-kernel", "-initrd", "-append", "-device", "-netdev", "-device"]);
    let first = "-device virtio-blk-pci,drive=disk0,disable-legacy=on,serial=root,bootindex=0";
    assert_eq!(new, ["-machine graphics=off", first]);

    let efi = LaunchConfig { boot: Boot::Efi { vars: "/m/efi,vars.fd".into() }, ..full() };
    let (gone, new) = difference(&qemu(Arch::Amd64, Accel::Tcg), &efi);
    let kinds: Vec<&str> = gone.iter().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(kinds, ["-kernel", "-initrd", "-append", "-device"]);
    assert_eq!(
        new,
        [
            "-drive if=pflash,format=raw,unit=0,readonly=on,file=/f/CODE,,1.fd",
            "-drive if=pflash,format=raw,unit=1,readonly=off,file=/m/efi,,vars.fd",
            first
        ]
    );
}

#[test]
fn names_that_are_not_utf8_reach_the_vmm_unchanged() {
    let odd = OsStr::from_bytes(b"/m/\xff,x");
    let mut machine = full();
    machine.disks[0].path = odd.into();
    machine.serial_log = odd.into();
    let escaped = b"/m/\xff,,x";
    let hits = build(&qemu(Arch::Amd64, Accel::Tcg), &machine, None)
        .iter()
        .filter(|a| a.as_bytes().ends_with(escaped))
        .count();
    assert_eq!(hits, 2);
}
