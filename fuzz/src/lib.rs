//! What is fuzzed: every parser of bytes that come from elsewhere. `cargo xtask fuzz` builds and runs it.
//!
//! A target takes any bytes and must come back: no panic, no endless loop, no memory by a size that the bytes name.
//! Where more can be said of a result, the target says it.

use fleetbox_spec::{ClusterName, ImageRef, MachineName, MachineSpec, Packages};
use fleetbox_vmm::console::Classifier;

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by name. Each has a file in `fuzz_targets/` and its seeds in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("api_bodies", api_bodies),
    ("bls", bls),
    ("btrfs", btrfs),
    ("console", console),
    ("dns", dns),
    ("extlinux", extlinux),
    ("fat", fat),
    ("grub_cfg", grub_cfg),
    ("image_ref", image_ref),
    ("inspect", inspect),
    ("kernel", kernel),
    ("names", names),
    ("os_release", os_release),
    ("partition_table", partition_table),
    ("qcow2_header", qcow2_header),
    ("qmp", qmp),
    ("uki", uki),
    ("unpack", unpack),
    ("xfs", xfs),
];

/// The header of a qcow2 file, its extensions, the name of its backing file.
pub fn qcow2_header(data: &[u8]) {
    fleetbox_image::fuzzing::qcow2_header(data);
}

/// The start of a disk of 64 MiB: GPT, MBR, extended partitions. A GPT gets the checksums that its bytes should have,
/// so that not nearly all are refused for them.
pub fn partition_table(data: &[u8]) {
    let mut disk = data.to_vec();
    seal_gpt(&mut disk);
    fleetbox_image::fuzzing::disk(&disk, 64 << 20).expect("a file in memory");
}

/// A whole disk with file systems, as its blocks that are not zero.
pub fn inspect(data: &[u8]) {
    fleetbox_image::fuzzing::sparse_disk(data).expect("a file in memory");
}

/// An os-release file.
pub fn os_release(data: &[u8]) {
    fleetbox_image::fuzzing::os_release(data);
}

/// gzip, xz, zstd and tar, around one another.
pub fn unpack(data: &[u8]) {
    fleetbox_image::fuzzing::unpacking(data).expect("a file in memory");
}

/// Entries of the Boot Loader Specification.
pub fn bls(data: &[u8]) {
    fleetbox_image::fuzzing::bls(data);
}

/// A btrfs file system.
pub fn btrfs(data: &[u8]) {
    fleetbox_image::fuzzing::btrfs(data);
}

/// extlinux.conf.
pub fn extlinux(data: &[u8]) {
    fleetbox_image::fuzzing::extlinux(data);
}

/// A FAT file system.
pub fn fat(data: &[u8]) {
    fleetbox_image::fuzzing::fat(data);
}

/// grub.cfg, and the environment block before it.
pub fn grub_cfg(data: &[u8]) {
    fleetbox_image::fuzzing::grub_cfg(data);
}

/// The start of a kernel, whatever its kind.
pub fn kernel(data: &[u8]) {
    fleetbox_image::fuzzing::kernel(data);
}

/// A unified kernel image.
pub fn uki(data: &[u8]) {
    fleetbox_image::fuzzing::uki(data);
}

/// An XFS file system.
pub fn xfs(data: &[u8]) {
    fleetbox_image::fuzzing::xfs(data);
}

/// A DNS message from a guest.
pub fn dns(data: &[u8]) {
    fleetbox_net::fuzzing::dns(data);
}

/// What QEMU says; the first byte is the length of the pieces it comes in.
pub fn qmp(data: &[u8]) {
    if let Some((step, said)) = data.split_first() {
        fleetbox_vmm_qemu::fuzzing::qmp(said, usize::from(*step));
    }
}

/// A guest's console, in one piece and in pieces: what it tells must not depend on that.
pub fn console(data: &[u8]) {
    let Some((step, said)) = data.split_first() else { return };
    let (mut whole, mut pieces) = (Classifier::new(), Classifier::new());
    let told = whole.feed(said);
    let in_pieces: Vec<_> =
        said.chunks(usize::from(*step).max(1)).flat_map(|piece| pieces.feed(piece)).collect();
    assert_eq!(told, in_pieces);
    assert_eq!((whole.stage(), whole.tail(10)), (pieces.stage(), pieces.tail(10)));
    let explained = whole.explain();
    assert!(!format!("{explained:?}").is_empty());
}

/// An image's name: what is taken must be told the same when it was told and read again.
pub fn image_ref(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(image) = text.parse::<ImageRef>()
    {
        let told = image.to_string();
        assert_eq!(told.parse::<ImageRef>().map(|again| again.to_string()), Ok(told));
    }
}

/// Names of machines and clusters, and lists of packages.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let hostname = |name: &str| {
        (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if let Ok(name) = MachineName::new(text) {
        assert!(hostname(name.as_str()) && name.as_str() == text);
    }
    if let Ok(name) = ClusterName::new(text) {
        assert!(hostname(name.as_str()) && name.as_str() == text);
    }
    if let Ok(packages) = text.parse::<Packages>() {
        assert_eq!(packages.to_string().parse(), Ok(packages));
    }
}

/// What crosses a holder's socket, both ways: each body as each type.
pub fn api_bodies(data: &[u8]) {
    use fleetbox_api::{
        ApiError, CloseRequest, HolderInfo, LineDecoder, StopRequest, StreamItem, VersionInfo,
    };
    fn body<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) {
        if let Ok(value) = serde_json::from_slice::<T>(data) {
            let text = serde_json::to_string(&value).expect("what was read can be written");
            assert_eq!(serde_json::from_str::<T>(&text).expect("and be read again"), value);
        }
    }
    body::<VersionInfo>(data);
    body::<HolderInfo>(data);
    body::<StopRequest>(data);
    body::<CloseRequest>(data);
    body::<ApiError>(data);
    body::<StreamItem>(data);
    if let Ok(spec) = serde_json::from_slice::<MachineSpec>(data) {
        let _ = spec.validate();
    }
    let mut lines = LineDecoder::default();
    if lines.feed(data).is_ok() {
        while let Some(line) = lines.line() {
            body::<StreamItem>(&line);
        }
    }
}

/// Writes the checksums of a GPT (UEFI specification 2.10, §5.3.2) that fit its bytes.
fn seal_gpt(disk: &mut [u8]) {
    if disk.get(512..520) != Some(b"EFI PART") {
        return;
    }
    let le = |disk: &[u8], at: usize| {
        disk.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let (header, at) = (le(disk, 512 + 12), le(disk, 512 + 72).saturating_mul(512));
    let len = le(disk, 512 + 80).saturating_mul(le(disk, 512 + 84));
    // Beyond the end of what is given, the disk is zero.
    if len <= 1 << 20 && at <= 1 << 20 {
        let mut entries = vec![0; len];
        for (to, from) in entries.iter_mut().zip(disk.iter().skip(at)) {
            *to = *from;
        }
        let sum = crc32(&entries);
        if let Some(to) = disk.get_mut(512 + 88..512 + 92) {
            to.copy_from_slice(&sum.to_le_bytes());
        }
    }
    if disk.len() >= 512 + 20 && header <= 512 {
        disk[512 + 16..512 + 20].fill(0);
        let mut all = disk[512..].to_vec();
        all.resize(512, 0);
        let sum = crc32(&all[..header]);
        disk[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}
