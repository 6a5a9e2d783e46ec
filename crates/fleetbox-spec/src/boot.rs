//! What brings a machine's kernel up: the VMM itself, or firmware and the disk's own boot loader.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Firmware {
    /// A PC's BIOS: reads the boot sector. amd64 only.
    Bios,
    /// UEFI: reads the EFI system partition.
    Efi,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bios => "BIOS",
            Self::Efi => "UEFI",
        })
    }
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FirmwareChoice {
    /// The kernel directly where one was found in the image, else the firmware that its disk is made for.
    #[default]
    Auto,
    /// The kernel directly; an image in which none was found is refused.
    Direct,
    /// Through a BIOS.
    Bios,
    /// Through UEFI.
    Efi,
}

impl FirmwareChoice {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Direct, Self::Bios, Self::Efi];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Bios => "bios",
            Self::Efi => "efi",
        }
    }
}

impl fmt::Display for FirmwareChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no [`FirmwareChoice`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to boot; there are: auto, direct, bios, efi")]
pub struct FirmwareChoiceError(String);

impl FromStr for FirmwareChoice {
    type Err = FirmwareChoiceError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|c| c.as_str() == s);
        found.ok_or_else(|| FirmwareChoiceError(s.to_owned()))
    }
}

/// How a machine is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BootVia {
    /// The VMM loads the kernel.
    Kernel,
    /// Through a BIOS and the disk's boot loader.
    Bios,
    /// Through UEFI and the disk's boot loader.
    Efi,
}

impl From<Firmware> for BootVia {
    fn from(firmware: Firmware) -> Self {
        match firmware {
            Firmware::Bios => Self::Bios,
            Firmware::Efi => Self::Efi,
        }
    }
}

/// Where a kernel that the VMM loads was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KernelSource {
    /// In the image, when the machine was made.
    Image,
    /// On the machine's own disk, as it was before a later boot.
    Disk,
}

impl fmt::Display for KernelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Image => "image",
            Self::Disk => "disk",
        })
    }
}

/// What a boot was by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BootInfo {
    /// How.
    pub via: BootVia,
    /// The kernel's release, such as `6.1.0-18-cloud-amd64`; `None` where firmware loads it, or it does not tell.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Where the kernel was found; `None` where firmware loads it.
    #[serde(default)]
    pub source: Option<KernelSource>,
    /// What should be known of it: why firmware is used, or why this is not the kernel that the disk has now.
    #[serde(default)]
    pub note: Option<String>,
}

impl fmt::Display for BootInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.via, self.source) {
            (BootVia::Bios, _) => f.write_str("through BIOS"),
            (BootVia::Efi, _) => f.write_str("through UEFI"),
            (BootVia::Kernel, source) => {
                write!(f, "kernel {}", self.kernel.as_deref().unwrap_or("of unknown release"))?;
                source.map_or(Ok(()), |source| write!(f, " of the {source}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_back() {
        for choice in FirmwareChoice::ALL {
            assert_eq!(choice.to_string().parse::<FirmwareChoice>().unwrap(), choice);
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("\"{choice}\""));
        }
        let error = "uefi".parse::<FirmwareChoice>().unwrap_err().to_string();
        assert!(error.contains("\"uefi\"") && error.contains("efi"), "{error}");
    }

    #[test]
    fn a_boot_in_words() {
        let mut boot = BootInfo {
            via: BootVia::Kernel,
            kernel: Some("6.1.0-18-cloud-amd64".into()),
            source: Some(KernelSource::Disk),
            note: None,
        };
        assert_eq!(boot.to_string(), "kernel 6.1.0-18-cloud-amd64 of the disk");
        boot.via = Firmware::Efi.into();
        assert_eq!(boot.to_string(), "through UEFI");
    }
}
