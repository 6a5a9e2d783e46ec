//! What an inspection tells about an image.

use std::fmt;

use fleetbox_spec::Arch;
use serde::{Deserialize, Serialize};

/// What was found in an image when it was inspected, once, before anything was booted from it.
///
/// An image that a version without inspection records put into the store has an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Inspection {
    /// `ID` of os-release(5), such as `debian`.
    pub os_id: Option<String>,
    /// `VERSION_ID` of os-release(5), such as `12`.
    pub os_version: Option<String>,
    /// Architecture of the system's programs (their ELF headers).
    pub arch: Option<Arch>,
    /// Version of systemd, such as `252`, by the name of its private library; `None`: another init, or none.
    pub systemd: Option<String>,
    /// Version of cloud-init, such as `22.4.2`; `unknown` where it is there without telling.
    pub cloud_init: Option<String>,
    /// Kind of the partition table.
    pub table: TableKind,
    /// The partitions, by number; without a table the whole disk as number 0.
    pub partitions: Vec<PartitionInfo>,
    /// Where the root file system is.
    pub root: Option<RootInfo>,
    /// Number of the partition that is `/boot`, where that is one of its own.
    pub boot_partition: Option<u32>,
    /// The kernel for direct boot; `None`: `firmware` says why.
    pub kernel: Option<KernelInfo>,
    /// Why the image boots through firmware.
    pub firmware: Option<String>,
    /// What will keep it from being a good fixture.
    pub warnings: Vec<ImageWarning>,
}

/// Kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TableKind {
    /// None: one file system on the bare disk, or nothing known.
    #[default]
    None,
    /// GUID partition table.
    Gpt,
    /// MBR ("DOS") table.
    Mbr,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// From 1 up; 0: the whole disk.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it holds: `ext4`, `xfs`, `btrfs`, `vfat`, `LUKS encryption`, …, or `unknown`.
    pub holds: String,
    /// The file system's UUID.
    pub uuid: Option<String>,
    /// The file system's label.
    pub label: Option<String>,
}

/// Where a root file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RootInfo {
    /// Number of its partition; 0: the whole disk.
    pub partition: u32,
    /// `ext4`, `xfs` or `btrfs`.
    pub file_system: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Path of the btrfs subvolume; `None`: the default one, or not btrfs.
    pub subvolume: Option<String>,
}

/// How a kernel was found, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelInfo {
    /// Who names it.
    pub source: KernelSource,
    /// The configuration that names it, inside of the image; empty for [`KernelSource::Files`].
    pub config: String,
    /// What kind of file it is in the image.
    pub kind: KernelKind,
    /// Its release, such as `6.1.0-21-cloud-amd64`, where that is known.
    pub version: Option<String>,
    /// The kernel and the initramfs archives as they are in the image: path, length, and time of last change in seconds
    /// and nanoseconds. A disk on which they are the same boots the same kernel.
    pub files: Vec<BootFileStamp>,
}

/// What tells, without reading it, that a boot file is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BootFileStamp {
    /// Path in the image.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// Time of last change, seconds since 1970.
    pub mtime_s: i64,
    /// Its nanoseconds.
    pub mtime_ns: u32,
}

/// Whose configuration names a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KernelSource {
    /// An entry of the Boot Loader Specification, type 1.
    BootLoaderSpec,
    /// A unified kernel image (Boot Loader Specification, type 2).
    UnifiedKernelImage,
    /// grub.cfg.
    Grub,
    /// extlinux.conf or syslinux.cfg.
    Extlinux,
    /// None: the newest kernel that lies in /boot.
    Files,
}

impl fmt::Display for KernelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BootLoaderSpec => "a boot loader entry",
            Self::UnifiedKernelImage => "a unified kernel image",
            Self::Grub => "grub.cfg",
            Self::Extlinux => "extlinux.conf",
            Self::Files => "the newest file in /boot",
        })
    }
}

/// What kind of file a kernel is in the image. It is kept in the store as the VMMs take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KernelKind {
    /// x86 bzImage.
    BzImage,
    /// arm64 Image.
    Image,
    /// arm64 Image packed with gzip; kept unpacked.
    ImageGzip,
    /// arm64 Image packed with zstd; kept unpacked.
    ImageZstd,
    /// arm64 EFI zboot; the Image in it is kept.
    EfiZboot,
}

/// What will keep an image from being a good fixture, or from booting at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ImageWarning {
    /// It will not take the user, key and address that it is given.
    NoCloudInit,
    /// Nothing will answer logins.
    NoSshServer,
    /// A partition is encrypted with LUKS or BitLocker, and no root file system can be read.
    Encrypted,
    /// The root file system is in a volume manager (LVM, RAID), which is not read.
    VolumeManager,
    /// It holds Windows.
    Windows,
    /// Its programs, or its kernel, are for another architecture.
    OtherArch,
    /// Its file system was not unmounted, and the changes in its log were not read.
    NotUnmounted,
}

impl fmt::Display for ImageWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoCloudInit => {
                "no cloud-init in it: it will not take the user, key and address that it is given"
            }
            Self::NoSshServer => "no sshd in it: nothing will answer logins",
            Self::Encrypted => {
                "it is encrypted: no root file system can be read, and it will ask for a passphrase"
            }
            Self::VolumeManager => "its root file system is in LVM or RAID, which is not read",
            Self::Windows => "it holds Windows, which is not supported",
            Self::OtherArch => "it is made for another processor architecture",
            Self::NotUnmounted => "its file system was not unmounted: the last changes are not seen",
        })
    }
}
