//! What a part of a disk holds, by the marks that libblkid goes by, too.

use std::io;

use serde::{Deserialize, Serialize};

use crate::inspect::disk::Window;

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::inspect) enum Holds {
    Ext4,
    Xfs,
    Btrfs,
    Fat,
    Luks,
    Lvm,
    Raid,
    Ntfs,
    BitLocker,
    Swap,
    Iso9660,
    Squashfs,
    Zfs,
    F2fs,
    /// None of these.
    Unknown,
}

impl Holds {
    pub(in crate::inspect) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Fat => "vfat",
            Self::Luks => "LUKS encryption",
            Self::Lvm => "an LVM physical volume",
            Self::Raid => "a Linux RAID member",
            Self::Ntfs => "ntfs",
            Self::BitLocker => "BitLocker encryption",
            Self::Swap => "swap",
            Self::Iso9660 => "iso9660",
            Self::Squashfs => "squashfs",
            Self::Zfs => "zfs",
            Self::F2fs => "f2fs",
            Self::Unknown => "unknown",
        }
    }
}

/// Looks at the places where the marks are.
pub(in crate::inspect) fn probe(window: &Window) -> io::Result<Holds> {
    let at = |offset: u64, mark: &[u8]| -> io::Result<bool> {
        if offset + mark.len() as u64 > window.len() {
            return Ok(false);
        }
        Ok(window.bytes(offset, mark.len())? == mark)
    };
    // Those first whose mark says most.
    let marks: &[(Holds, u64, &[u8])] = &[
        (Holds::Luks, 0, b"LUKS\xba\xbe"),
        (Holds::BitLocker, 3, b"-FVE-FS-"),
        (Holds::Xfs, 0, b"XFSB"),
        (Holds::Btrfs, 0x10040, b"_BHRfS_M"),
        (Holds::Lvm, 0x218, b"LVM2 001"),
        (Holds::Lvm, 0x18, b"LVM2 001"),
        (Holds::Ntfs, 3, b"NTFS    "),
        (Holds::Squashfs, 0, b"hsqs"),
        (Holds::Raid, 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
        (Holds::Iso9660, 0x8001, b"CD001"),
        (Holds::F2fs, 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
        (Holds::Swap, 4086, b"SWAPSPACE2"),
        (Holds::Zfs, 0x21000, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]),
        (Holds::Ext4, 0x438, &[0x53, 0xef]),
        (Holds::Fat, 82, b"FAT32   "),
        (Holds::Fat, 54, b"FAT16   "),
        (Holds::Fat, 54, b"FAT12   "),
    ];
    for (holds, offset, mark) in marks {
        if at(*offset, mark)? {
            return Ok(*holds);
        }
    }
    Ok(Holds::Unknown)
}
