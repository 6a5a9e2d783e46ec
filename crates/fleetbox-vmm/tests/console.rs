//! The boot classifier on real consoles.
//!
//! Files in `data/console` are the serial consoles of our own boots of Debian 12 (QEMU 10.0, kernel 6.1, cloud-init
//! 22.4), with most of the kernel's own lines left out. The texts of other distributions below are single lines as
//! their programs print them or as their users' logs show them:
//! - dracut without a root device: `modules.d/99base/dracut-lib.sh` and `98dracut-systemd/dracut-emergency.sh` in
//!   dracut; lore.kernel.org/xen-devel, "Xen PV on Hyper-V", 2018; github.com/Kubeinit/kubeinit/issues/695
//! - systemd before 249, which names units by their descriptions, and dracut's own targets:
//!   github.com/coreos/fedora-coreos-tracker/issues/663 and /735, github.com/cloud-hypervisor/cloud-hypervisor/issues/2143
//! - Ubuntu 22.04 and 24.04 with cloud-init: github.com/confidential-containers/cloud-api-adaptor/pull/2003
//! - Alpine: `initramfs-init.in` of alpinelinux/mkinitfs; OpenRC's `src/openrc/rc.c` and `libeinfo.c`
//! - OVMF: `MdeModulePkg/Universal/BdsDxe` of tianocore/edk2; GRUB: `grub-core/normal/main.c`, `util/grub.d/10_linux.in`
#![expect(clippy::unwrap_used, reason = "a failing unwrap in a test is a failing test")]

use fleetbox_spec::BootStage;
use fleetbox_vmm::console::{Classifier, DEFAULT_TAIL_LINES, Signal};
use proptest::prelude::*;

fn data(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/console/{name}.txt", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A signal in short.
fn short(signal: &Signal) -> String {
    match signal {
        Signal::Stage(stage) => stage.to_string(),
        Signal::Panic { .. } => "PANIC".into(),
        Signal::EmergencyShell { .. } => "SHELL".into(),
        Signal::OutOfMemory { .. } => "OOM".into(),
        Signal::RootMissing { .. } => "NO ROOT".into(),
        Signal::NoBootDevice { .. } => "NO BOOT DEVICE".into(),
        Signal::InitFrozen { .. } => "FROZEN".into(),
        Signal::Login => "LOGIN".into(),
        Signal::Reboot { .. } => "REBOOT".into(),
        Signal::PowerOff { .. } => "POWER OFF".into(),
        Signal::Restarted { generation } => format!("#{generation}"),
        other => format!("{other:?}"),
    }
}

/// What a console tells, in short, and how it is explained.
fn read(bytes: &[u8]) -> (String, Classifier) {
    let mut console = Classifier::new();
    let told: Vec<String> = console.feed(bytes).iter().map(short).collect();
    (told.join(", "), console)
}

const BOOTED: &str = "kernel, initramfs, root mounted, init, network, sshd, LOGIN, cloud-init";

#[test]
fn our_own_boots() {
    for (name, told, explained) in [
        (
            "debian-12-then-panic",
            format!("{BOOTED}, PANIC"),
            "the kernel panicked: Kernel panic - not syncing: sysrq triggered crash",
        ),
        (
            "debian-12-quiet",
            "kernel, init, network, LOGIN, cloud-init".into(),
            "cloud-init is at or past its last stage",
        ),
        (
            "debian-12-loglevel-4",
            "initramfs, root mounted, init, network, sshd, LOGIN, cloud-init".into(),
            "cloud-init is at or past its last stage",
        ),
        (
            "debian-12-read-only-root",
            "kernel, initramfs, root mounted, init, network, sshd, LOGIN".into(),
            "likely cause: the root file system is read-only",
        ),
        (
            "debian-12-no-network-card",
            "kernel, initramfs, root mounted, init, network, sshd, LOGIN, cloud-init".into(),
            "the network card that the seed names",
        ),
        (
            "debian-12-root-missing",
            "kernel, initramfs, NO ROOT, SHELL".into(),
            "waiting for the root device in the initramfs: ALERT!  UUID=0a1b2c3d-0000-4000-8000-123456789abc does not exist",
        ),
        ("debian-12-no-initrd", "kernel, NO ROOT, PANIC".into(), "was given no initrd, or root= is wrong"),
        (
            "debian-12-too-little-memory",
            "kernel, OOM, PANIC".into(),
            "likely cause: the machine has too little memory",
        ),
        (
            "debian-12-emergency",
            "kernel, initramfs, root mounted, init, SHELL".into(),
            "in an emergency or rescue shell",
        ),
        (
            "seabios-empty-disk",
            "firmware, NO BOOT DEVICE".into(),
            "the firmware finds nothing to boot: No bootable device.",
        ),
    ] {
        let (got, console) = read(&data(name));
        assert_eq!(got, told, "{name}");
        let explanation = console.explain().to_string();
        assert!(explanation.contains(explained), "{name}: {explanation}");
        assert!(!explanation.contains(['\n', '\x1b']), "{name}: {explanation:?}");
    }
}

#[test]
fn other_distributions() {
    for (what, lines, told) in [
        (
            "OVMF and GRUB",
            "BdsDxe: loading Boot0002 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x2,0x0)\n\
             BdsDxe: starting Boot0002 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x2,0x0)\n\
             Welcome to GRUB!\n\x1b[2J\x1b[01;01H\x1b[1;21HGNU GRUB  version 2.06-13+deb12u1\x1b[5;3H*Debian GNU/Linux\n\
             Booting `Debian GNU/Linux'\n\nLoading Linux 6.1.0-18-amd64 ...\nLoading initial ramdisk ...\n\
             EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path\n",
            "firmware, boot loader, kernel",
        ),
        (
            "OVMF without a disk",
            "BdsDxe: No bootable option or device was found.\n",
            "firmware, NO BOOT DEVICE",
        ),
        (
            "GRUB that finds nothing",
            "SeaBIOS (version 1.16.3-1)\nBooting from Hard Disk...\nGRUB loading.\nerror: no such partition.\ngrub rescue> ",
            "firmware, boot loader, SHELL",
        ),
        (
            "Rocky Linux 9 (dracut; systemd 252)",
            "[    0.000000] Linux version 5.14.0-362.8.1.el9_3.x86_64 (mockbuild@)\n\
             [    1.020114] Run /init as init process\n\
             [    1.102938] systemd[1]: systemd 252-18.el9 running in system mode (+PAM +AUDIT)\n\
             [    1.115201] systemd[1]: Running in initrd.\n\n\
             Welcome to \x1b[0;32mRocky Linux 9.3 (Blue Onyx) dracut-057-44.git20230822.el9 (Initramfs)\x1b[0m!\n\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mNetwork\x1b[0m.\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mBasic System\x1b[0m.\n\
             [    3.348811] XFS (vda5): Mounting V5 Filesystem\n[    3.401223] XFS (vda5): Ending clean mount\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mSwitch Root\x1b[0m.\n\
             [    4.512301] systemd[1]: systemd 252-18.el9 running in system mode (+PAM +AUDIT)\n\n\
             Welcome to \x1b[0;32mRocky Linux 9.3 (Blue Onyx)\x1b[0m!\n\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mPreparation for Network\x1b[0m.\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mNetwork\x1b[0m.\n\
             [\x1b[0;32m  OK  \x1b[0m] Finished \x1b[0;1;39mOpenSSH ed25519 Server Key Generation\x1b[0m.\n\
             [\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mOpenSSH server daemon\x1b[0m.\n\n\
             Rocky Linux 9.3 (Blue Onyx)\nKernel 5.14.0-362.8.1.el9_3.x86_64 on an x86_64\n\nlocalhost login: ",
            "kernel, initramfs, root mounted, init, network, sshd, LOGIN",
        ),
        (
            "Fedora without its root device (dracut)",
            "[    0.000000] Linux version 6.8.5-301.fc40.x86_64\n[    1.300000] Run /init as init process\n\
             [  197.060965] dracut-initqueue[311]: Warning: dracut-initqueue: starting timeout scripts\n\
             [  197.060965] dracut-initqueue[311]: Warning: Could not boot.\n\
             [  197.067020] dracut-initqueue[311]: Warning: /dev/disk/by-uuid/c8396182-9335-4bf7-a963-f14e85f41f23 does not exist\n\
             \x20        Starting Dracut Emergency Shell...\n\nGenerating \"/run/initramfs/rdsosreport.txt\"\n\n\n\
             Entering emergency mode. Exit the shell to continue.\nType \"journalctl\" to view system logs.\n\n\ndracut:/# ",
            "kernel, initramfs, NO ROOT, SHELL",
        ),
        (
            "Ubuntu 24.04 (systemd 255, sshd by socket)",
            "[    0.000000] Linux version 6.8.0-31-generic (buildd@lcy02-amd64-080)\n\
             Begin: Loading essential drivers ... done.\nBegin: Mounting root file system ... Begin: Running /scripts/local-top ... done.\n\
             [    2.950000] EXT4-fs (vda1): mounted filesystem 0b4f7b3e-54a7 ro with ordered data mode. Quota mode: none.\n\
             Begin: Running /scripts/init-bottom ... done.\n\
             [    3.412345] systemd[1]: systemd 255.4-1ubuntu8 running in system mode (+PAM +AUDIT)\n\n\
             Welcome to \x1b[1mUbuntu 24.04 LTS\x1b[0m!\n\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mnetwork-pre.target\x1b[0m - Preparation for Network.\n\
             [    9.812345] cloud-init[541]: Cloud-init v. 24.1.3-0ubuntu3 running 'init' at Thu, 25 Apr 2024 10:00:00 +0000. Up 9.79 seconds.\n\
             [\x1b[0;32m  OK  \x1b[0m] Listening on \x1b[0;1;39mssh.socket\x1b[0m - OpenBSD Secure Shell server socket.\n\
             \x20        Starting \x1b[0;1;39mcloud-final.service\x1b[0m - Execute cloud user/final scripts...\n\
             [   14.012345] cloud-init[812]: Cloud-init v. 24.1.3-0ubuntu3 finished at Thu, 25 Apr 2024 10:00:05 +0000.\n",
            "kernel, initramfs, root mounted, init, network, sshd, cloud-init",
        ),
        (
            "Ubuntu 22.04 (systemd 249, units by description)",
            "[    0.000000] Linux version 5.15.0-101-generic\nWelcome to \x1b[1mUbuntu 22.04.4 LTS\x1b[0m!\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mNetwork is Online\x1b[0m.\n\
             [\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mOpenBSD Secure Shell server\x1b[0m.\n\
             \x20        Starting \x1b[0;1;39mExecute cloud user/final scripts\x1b[0m...\n\
             [\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mCloud-init target\x1b[0m.\n",
            "kernel, init, network, sshd, cloud-init",
        ),
        (
            "Alpine (mkinitfs, OpenRC)",
            "[    0.000000] Linux version 6.6.31-0-virt (buildozer@build-3-20-x86_64)\n\
             Alpine Init 3.10.0-r0\n * Loading boot drivers: ok.\n * Mounting root: ok.\n\n   OpenRC 0.54 is starting up Linux 6.6.31-0-virt (x86_64)\n\n\
             \x20* Mounting /proc ...\x1b[72G [ ok ]\n * Starting networking ...\n\x1b[A\x1b[72C [ ok ]\n *   eth0 ... [ ok ]\n\
             \x20* Starting sshd ... [ ok ]\n * Starting cloud-init final ... [ ok ]\n\nWelcome to Alpine Linux 3.20\n\nlocalhost login: ",
            "kernel, initramfs, root mounted, init, network, sshd, LOGIN",
        ),
        (
            "Alpine without its root device",
            "Mounting root: mount: mounting /dev/vdz on /sysroot failed: No such file or directory\nMounting root: failed.\n\
             initramfs emergency recovery shell launched. Type 'exit' to continue boot\nsh: can't access tty; job control turned off\n~ # ",
            "initramfs, NO ROOT, SHELL",
        ),
        (
            "init that gives up",
            "[    4.100000] systemd[1]: systemd 252 running in system mode (+PAM)\n\
             [\x1b[0;1;31m!!!!!!\x1b[0m] Failed to mount API filesystems.\n[    4.310000] systemd[1]: Freezing execution.\n",
            "kernel, FROZEN",
        ),
    ] {
        assert_eq!(read(lines.as_bytes()).0, told, "{what}");
    }
}

/// A machine that is up, then `more`: what the latter tells.
fn after_the_boot(more: &str) -> (Vec<Signal>, Classifier) {
    let mut console = Classifier::new();
    let boot = data("debian-12-then-panic");
    let end = boot.windows(11).position(|w| w == b"web login: ").unwrap() + 11;
    console.feed(&boot[..end]);
    assert!(console.stage() >= BootStage::Sshd);
    (console.feed(more.as_bytes()), console)
}

#[test]
fn what_programs_print_does_not_count() {
    for text in [
        "\nKernel panic - not syncing: said a program\n",
        "\nlog: [   12.345678] Kernel panic - not syncing: quoted\n",
        "\nOut of memory: Killed process 1 (said a program)\n",
        "\n[  100.000000] systemd-coredump[3]: Kernel panic - not syncing: quoted\n",
        "\n[  100.000000] Memory cgroup out of memory: Killed process 312 (stress)\n",
        "\n(initramfs) is what I print\n",
        "\nYou are in emergency mode, he said\n",
        "\nLinux version 6.1.0 is what /proc/version says\n",
        "\n[   77.000000] Linux version 6.1.0 out of a log file\n",
        "\nBooting from Hard Disk...\nLoading Linux 6.1 ...\nBegin: a story\nALERT! my keys does not exist\n",
    ] {
        let (signals, console) = after_the_boot(text);
        assert_eq!((signals.as_slice(), console.generation()), (&[][..], 1), "{text:?}");
    }
}

#[test]
fn what_the_kernel_prints_after_the_boot_counts() {
    for (text, wanted) in [
        ("\n[  123.443596] Kernel panic - not syncing: Fatal exception\n", "PANIC"),
        // The prompt's line was never ended.
        ("[  123.443596] Kernel panic - not syncing: Fatal exception\n", "PANIC"),
        ("\n[  123.443596][    T1] Kernel panic - not syncing: Fatal exception\n", "PANIC"),
        ("\n[ 4000.000001] Out of memory: Killed process 312 (stress) total-vm:1kB\n", "OOM"),
        ("\n[ 4000.000001] reboot: Restarting system\n", "REBOOT"),
        ("\n[ 4000.000001] reboot: Power down\n", "POWER OFF"),
    ] {
        let signals = after_the_boot(text).0;
        assert_eq!(signals.iter().map(short).collect::<Vec<_>>(), [wanted], "{text:?}");
    }
}

#[test]
fn a_reset_begins_a_new_generation() {
    let resets = [
        // through the kernel's banner; through firmware; with neither banner, after the kernel's goodbye
        "\n[    0.000000] Linux version 6.1.0-18-amd64\n",
        "\nSeaBIOS (version 1.16.3-1)\n",
        "\nBdsDxe: loading Boot0002 \"UEFI Misc Device\"\n",
        "\n[  900.000001] reboot: Restarting system\nLoading, please wait...\n",
    ];
    for text in resets {
        let (signals, console) = after_the_boot(text);
        assert!(signals.contains(&Signal::Restarted { generation: 2 }), "{text:?}: {signals:?}");
        assert!(console.stage() < BootStage::RootMounted, "{text:?}: {}", console.stage());
        assert!(console.explain().to_string().contains("boot 2 of this machine"), "{}", console.explain());
    }
    // An early console's log is repeated by the real one: one boot.
    let banner = "[    0.000000] Linux version 6.1.0-18-arm64\n";
    assert_eq!(read(banner.repeat(2).as_bytes()).1.generation(), 1);

    let (_, mut console) = after_the_boot("");
    assert_eq!(console.note_reset(), Some(Signal::Restarted { generation: 2 }));
    assert_eq!((console.stage(), console.note_reset()), (BootStage::PowerOn, None));
    assert!(console.tail(5).contains("login:"), "the tail outlives a reset: {}", console.tail(5));
}

#[test]
fn a_job_that_init_waits_for_is_named() {
    let frames = "Welcome to Debian GNU/Linux 12 (bookworm)!\n\
        [\x1b[0;31m*     \x1b[0m] A start job is running for dev-vdz.device (3s / 1min 30s)\r\x1b[K\
        [\x1b[0;1;31m*\x1b[0m\x1b[0;31m*    \x1b[0m] A start job is running for dev-vdz.device (5s / 1min 30s)\r\x1b[K.";
    let (_, console) = read(frames.as_bytes());
    let explanation = console.explain().to_string();
    assert!(explanation.contains("init waits for dev-vdz.device (5s / 1min 30s)"), "{explanation}");
    assert_eq!(
        console.tail(9),
        "Welcome to Debian GNU/Linux 12 (bookworm)!\n.",
        "animations do not fill the tail"
    );
}

#[test]
fn a_silent_console_is_explained() {
    let (told, console) = read(b"");
    assert_eq!((told.as_str(), console.stage()), ("", BootStage::PowerOn));
    assert!(console.explain().to_string().contains("nothing has been written to the serial console"));
}

#[test]
fn the_tail_is_the_last_lines() {
    let (_, console) = read(b"\n\none\r\ntwo\r\n\r\nthree");
    assert_eq!(console.tail(2), "two\nthree");
    assert_eq!(console.tail(9), "one\ntwo\nthree");
    let mut none = Classifier::with_tail_lines(0);
    none.feed(b"a\nb\n");
    assert_eq!(none.tail(9), "");
}

/// Console-like bytes: real pieces, escapes and noise.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        Just(b"\r\n".to_vec()),
        Just(b"\x1b[0;32m".to_vec()),
        Just(b"\x1b]".to_vec()),
        Just(b"(initramfs) ".to_vec()),
        Just(b"web login: ".to_vec()),
        Just(b"[    0.000000] Linux version 6\r\n".to_vec()),
        Just(b"[   12.000000] Kernel panic - not syncing: x\r\n".to_vec()),
        Just(b"[  OK  ] Started ssh.service - x.\r\n".to_vec()),
        Just(b"SeaBIOS (version 1\n".to_vec()),
        Just(vec![b'x'; 3000]),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Everything that can be seen of a classifier.
fn seen(console: &Classifier) -> (BootStage, u32, String, String) {
    (console.stage(), console.generation(), console.tail(usize::MAX), console.explain().to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_do_not_matter(bytes in noise(), sizes in proptest::collection::vec(1..50usize, 1..20)) {
        let (mut whole, mut parts) = (Classifier::new(), Classifier::new());
        let at_once = whole.feed(&bytes);
        let (mut in_parts, mut rest) = (Vec::new(), bytes.as_slice());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, tail) = rest.split_at(rest.len().min(*size));
            in_parts.extend(parts.feed(chunk));
            rest = tail;
        }
        prop_assert_eq!(at_once, in_parts);
        prop_assert_eq!(seen(&whole), seen(&parts));
    }

    #[test]
    fn any_bytes_are_survived_in_bounded_memory(bytes in noise(), times in 1..30usize) {
        let mut console = Classifier::new();
        for _ in 0..times {
            for signal in console.feed(&bytes) {
                let len = format!("{signal:?}").len();
                prop_assert!(len < 4096, "{len}");
            }
        }
        let (_, _, tail, explanation) = seen(&console);
        prop_assert!(tail.lines().count() <= DEFAULT_TAIL_LINES + 1);
        // A line of 512 bytes, none of them UTF-8, is 1536 bytes of replacement characters.
        prop_assert!(tail.len() <= (DEFAULT_TAIL_LINES + 1) * (3 * 512 + 4), "{}", tail.len());
        prop_assert!(explanation.len() < 16 * 1024);
    }

    #[test]
    fn stages_only_rise_within_a_generation(bytes in noise()) {
        let mut last = BootStage::PowerOn;
        for signal in Classifier::new().feed(&bytes) {
            match signal {
                Signal::Restarted { .. } => last = BootStage::PowerOn,
                Signal::Stage(stage) => {
                    prop_assert!(stage > last, "{stage} after {last}");
                    last = stage;
                }
                _ => {}
            }
        }
    }
}
