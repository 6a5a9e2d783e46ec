//! Whether a machine's kernel is loaded by the VMM or by firmware, and by which.
//!
//! The policy is [`plan`]: pure. What the disk of an image is made for is read off its first sectors by [`Made::read`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fleetbox_spec::{Arch, BootVia, Firmware, FirmwareChoice};

/// What is known when it is decided how a machine boots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// What was asked for.
    pub(crate) choice: FirmwareChoice,
    /// A kernel is there that the VMM can load.
    pub(crate) kernel: bool,
    /// The firmware that it was booted through before, if it was.
    pub(crate) before: Option<BootVia>,
    /// What the image's disk is made for.
    pub(crate) made: Made,
    /// The guest's architecture.
    pub(crate) arch: Arch,
    /// What inspection told of the image.
    pub(crate) notes: &'a [String],
}

/// How a machine is to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The VMM loads the kernel.
    Direct,
    /// Firmware does, and why.
    Firmware(Firmware, String),
}

/// Why a machine cannot be booted as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No kernel was found that the VMM could load.
    NoKernel,
    /// There is no BIOS for this architecture.
    NoBios,
}

/// Decides.
pub(crate) fn plan(known: &Known<'_>) -> Result<Plan, Refusal> {
    let asked = || "it was asked for".to_owned();
    match known.choice {
        FirmwareChoice::Direct if !known.kernel => Err(Refusal::NoKernel),
        FirmwareChoice::Bios if known.arch != Arch::Amd64 => Err(Refusal::NoBios),
        FirmwareChoice::Bios => Ok(Plan::Firmware(Firmware::Bios, asked())),
        FirmwareChoice::Efi => Ok(Plan::Firmware(Firmware::Efi, asked())),
        FirmwareChoice::Direct => Ok(Plan::Direct),
        // Auto, and what later versions may bring.
        _ if known.kernel => Ok(Plan::Direct),
        _ => Ok(Plan::Firmware(firmware_for(known), why(known.notes))),
    }
}

fn firmware_for(known: &Known<'_>) -> Firmware {
    match (known.arch, known.before) {
        (Arch::Amd64, Some(BootVia::Bios)) => Firmware::Bios,
        (_, Some(BootVia::Efi)) => Firmware::Efi,
        // A disk that takes both boots through the one that QEMU always has.
        (Arch::Amd64, _) if known.made.bios || !known.made.efi => Firmware::Bios,
        _ => Firmware::Efi,
    }
}

/// The reason that inspection gave.
fn why(notes: &[String]) -> String {
    let told = notes.iter().find_map(|n| n.strip_prefix("boots through firmware: "));
    told.unwrap_or("no kernel was found in the image").to_owned()
}

/// What a disk is made to be booted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Made {
    /// It has boot code for a BIOS.
    pub(crate) bios: bool,
    /// It has an EFI system partition.
    pub(crate) efi: bool,
}

/// The most entries of a GUID partition table that are looked at; it usually has 128.
const MOST_ENTRIES: u32 = 512;

impl Made {
    /// Reads a raw disk's boot sector and partition table. What is damaged is not there.
    pub(crate) fn read(disk: &Path) -> io::Result<Self> {
        let file = File::open(disk)?;
        let size = file.metadata()?.len();
        let mut sector = [0u8; 512];
        if size < 1024 {
            return Ok(Self::default());
        }
        file.read_exact_at(&mut sector, 0)?;
        // Boot code, partitions at 446, signature at 510: UEFI specification 5.2.1.
        let signed = sector[510..] == [0x55, 0xaa];
        let code = sector[..440].iter().any(|&b| b != 0);
        let types = (0..4).map(|i| sector[446 + 16 * i + 4]);
        let mut made = Self { bios: signed && code, efi: signed && types.clone().any(|t| t == 0xef) };
        if signed && types.clone().any(|t| t == 0xee) {
            made.efi |= Self::has_efi_partition(&file, size)?;
        }
        Ok(made)
    }

    fn has_efi_partition(file: &File, size: u64) -> io::Result<bool> {
        /// C12A7328-F81F-11D2-BA4B-00A0C93EC93B: UEFI specification 5.3.3.
        const SYSTEM: [u8; 16] =
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        let mut header = [0u8; 512];
        file.read_exact_at(&mut header, 512)?;
        if !header.starts_with(b"EFI PART") {
            return Ok(false);
        }
        let le32 = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default();
        let le64 = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let (first, count, each) = (le64(72), le32(80).min(MOST_ENTRIES), u64::from(le32(84)));
        for index in 0..u64::from(count) {
            let at = first.checked_mul(512).and_then(|s| each.checked_mul(index)?.checked_add(s));
            let Some(at) = at.filter(|at| at.saturating_add(16) <= size) else { break };
            let mut kind = [0u8; 16];
            file.read_exact_at(&mut kind, at)?;
            if kind == SYSTEM {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known(choice: FirmwareChoice, kernel: bool, made: Made, arch: Arch) -> Known<'static> {
        Known { choice, kernel, before: None, made, arch, notes: &[] }
    }

    fn any_known() -> impl Strategy<Value = (Known<'static>, Made)> {
        let choice = prop::sample::select(FirmwareChoice::ALL.to_vec());
        let arch = prop::sample::select(vec![Arch::Amd64, Arch::Arm64]);
        let made = (any::<bool>(), any::<bool>()).prop_map(|(bios, efi)| Made { bios, efi });
        (choice, any::<bool>(), made, arch).prop_map(|(c, k, m, a)| (known(c, k, m, a), m))
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_done_or_refused((known, made) in any_known()) {
            let plan = plan(&known);
            let firmware = match &plan {
                Ok(Plan::Firmware(firmware, _)) => Some(*firmware),
                _ => None,
            };
            match known.choice {
                FirmwareChoice::Direct => prop_assert_eq!(plan.is_ok(), known.kernel),
                FirmwareChoice::Bios => prop_assert_eq!(plan.is_ok(), known.arch == Arch::Amd64),
                FirmwareChoice::Efi => prop_assert_eq!(firmware, Some(Firmware::Efi)),
                _ => prop_assert_eq!(plan == Ok(Plan::Direct), known.kernel),
            }
            prop_assert!(known.arch == Arch::Amd64 || firmware != Some(Firmware::Bios));
            if known.choice == FirmwareChoice::Auto && !known.kernel && known.arch == Arch::Amd64 {
                prop_assert_eq!(firmware == Some(Firmware::Efi), made.efi && !made.bios);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), gpt in any::<bool>()) {
            let mut bytes = bytes;
            if gpt && bytes.len() > 1024 {
                bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
                bytes[450] = 0xee;
                bytes[512..520].copy_from_slice(b"EFI PART");
            }
            let tmp = tempfile::tempdir().unwrap();
            std::fs::write(tmp.path().join("disk"), bytes).unwrap();
            prop_assert!(Made::read(&tmp.path().join("disk")).is_ok());
        }
    }

    #[test]
    fn what_it_was_booted_through_before_stays() {
        let made = Made { bios: false, efi: true };
        let auto = known(FirmwareChoice::Auto, false, made, Arch::Amd64);
        let kind = |known: &Known<'_>| match plan(known) {
            Ok(Plan::Firmware(firmware, _)) => firmware,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(&auto), Firmware::Efi);
        assert_eq!(kind(&Known { before: Some(BootVia::Bios), ..auto }), Firmware::Bios);
        let notes = ["x".to_owned(), "boots through firmware: no /boot".to_owned()];
        let Ok(Plan::Firmware(_, why)) = plan(&Known { notes: &notes, ..auto }) else { panic!() };
        assert_eq!(why, "no /boot");
    }

    #[test]
    fn what_a_disk_is_made_for() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("disk");
        let made = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let made = Made::read(&path).unwrap();
            (made.bios, made.efi)
        };
        let mut disk = vec![0u8; 64 << 10];
        assert_eq!(made(&disk), (false, false));
        disk[0] = 0xeb;
        assert_eq!(made(&disk), (false, false), "no signature");
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(made(&disk), (true, false));
        disk[450] = 0xef;
        assert_eq!(made(&disk), (true, true));
        disk[450] = 0xee;
        assert_eq!(made(&disk), (true, false));
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 128;
        disk[512 + 84] = 128;
        assert_eq!(made(&disk), (true, false));
        let system =
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        disk[1024 + 3 * 128..][..16].copy_from_slice(&system);
        assert_eq!(made(&disk), (true, true));
        disk[0] = 0;
        assert_eq!(made(&disk), (false, true));
        assert_eq!(made(&disk[..1024]), (false, false), "cut short");
        assert_eq!(made(b""), (false, false));
    }
}
