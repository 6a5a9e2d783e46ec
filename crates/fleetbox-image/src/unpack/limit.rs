//! How much a packed image may unpack to. Pure.

use std::fmt;

/// The largest disk that is taken from elsewhere, 2 TiB. Converting one that holds nothing at all takes minutes.
pub(crate) const MAX_DISK: u64 = 2 << 40;

/// Zeros cost no room, but time: so many are taken from the smallest file, and beyond that so many for each of its bytes.
const FREE_TOTAL: u64 = 64 << 30;
const MAX_TOTAL_RATIO: u64 = 2000;

/// What is not zero takes room. Systems shrink to a fourth or a tenth; text to a hundredth.
const FREE_DATA: u64 = 256 << 20;
const MAX_DATA_RATIO: u64 = 200;

/// A compressed tar of a compressed disk has three.
pub(crate) const MAX_LAYERS: usize = 4;

/// Room that unpacking leaves on the file system: others live on it too.
pub(crate) const RESERVE: u64 = 128 << 20;

/// What of a packed image was too much. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnpackLimit {
    /// The disk in it is larger than any disk that is taken.
    Size {
        /// The largest that is taken.
        most: u64,
    },
    /// It unpacks to more, zeros included, than is believed of a file of its size.
    Total {
        /// Its own size.
        packed: u64,
        /// What is believed.
        most: u64,
    },
    /// It unpacks to more that is not zero than is believed of a file of its size.
    Data {
        /// Its own size.
        packed: u64,
        /// What is believed.
        most: u64,
    },
    /// It is packed into something that is packed into something, too often.
    Layers {
        /// The most layers that are taken off.
        most: usize,
    },
}

impl fmt::Display for UnpackLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        match self {
            Self::Size { most } => write!(f, "its disk has more than {} GiB, the largest taken", most >> 30),
            Self::Total { packed, most } => write!(
                f,
                "its {packed} bytes unpack to more than {} MiB, the most that is taken of a file of that size \
                 (a decompression bomb?)",
                mib(*most)
            ),
            Self::Data { packed, most } => write!(
                f,
                "its {packed} bytes unpack to more than {} MiB of data, the most that is taken of a file of that \
                 size (a decompression bomb?)",
                mib(*most)
            ),
            Self::Layers { most } => write!(f, "it is packed more than {most} times over"),
        }
    }
}

/// The limits for one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    packed: u64,
    total: u64,
    data: u64,
}

impl Limits {
    /// For a file of this many bytes.
    pub(crate) fn of(packed: u64) -> Self {
        let total = packed.saturating_mul(MAX_TOTAL_RATIO).clamp(FREE_TOTAL, MAX_DISK);
        let data = packed.saturating_mul(MAX_DATA_RATIO).clamp(FREE_DATA, total);
        Self { packed, total, data }
    }

    /// Smaller ones, for tests that shall not write gigabytes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn small(packed: u64, total: u64, data: u64) -> Self {
        Self { packed, total, data }
    }

    /// Whether so much is within the limits: all bytes, and those that are not zero.
    pub(crate) fn check(&self, total: u64, data: u64) -> Result<(), UnpackLimit> {
        if total > MAX_DISK {
            return Err(UnpackLimit::Size { most: MAX_DISK });
        }
        if total > self.total {
            return Err(UnpackLimit::Total { packed: self.packed, most: self.total });
        }
        if data > self.data {
            return Err(UnpackLimit::Data { packed: self.packed, most: self.data });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_images_are_within() {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        // Packed size, disk, data in it: Debian's cloud images, a sparse disk for a cloud provider, a tiny system.
        for (packed, total, data) in
            [(250 * MIB, 3 * GIB, GIB), (200 * MIB, 20 * GIB, 1200 * MIB), (MIB, 64 * GIB, 40 * MIB)]
        {
            Limits::of(packed).check(total, data).unwrap();
        }
    }

    #[test]
    fn bombs_are_not() {
        let limits = Limits::of(10_000);
        assert!(matches!(limits.check(FREE_TOTAL + 1, 0), Err(UnpackLimit::Total { .. })));
        assert!(matches!(limits.check(1 << 30, FREE_DATA + 1), Err(UnpackLimit::Data { .. })));
        assert!(matches!(Limits::of(u64::MAX).check(MAX_DISK + 1, 0), Err(UnpackLimit::Size { .. })));
        let said = limits.check(FREE_TOTAL + 1, 0).unwrap_err().to_string();
        assert!(said.contains("10000 bytes") && said.contains("65536 MiB"), "{said}");
    }

    proptest! {
        #[test]
        fn a_larger_file_may_hold_no_less(a: u64, b: u64, total: u64, data: u64) {
            let (small, large) = (a.min(b), a.max(b));
            if Limits::of(small).check(total, data.min(total)).is_ok() {
                prop_assert!(Limits::of(large).check(total, data.min(total)).is_ok());
            }
        }
    }
}
