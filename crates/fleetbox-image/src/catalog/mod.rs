//! Names of images: which vendor's file each stands for on each architecture, and the digest that it must have.
//!
//! The list is part of the program (`catalog.json`, refreshed from the vendors' own checksum files by
//! `cargo xtask catalog`), so that a name means the same bytes wherever this version runs. `FLEETBOX_CATALOG` names a
//! file that adds to it or stands in for it.

mod mirror;

use std::collections::BTreeMap;
use std::path::Path;

use fleetbox_spec::{Arch, Checksum, DiskFormat, ImageRef, ImageUrl};
use fleetbox_store::{StoreError, Versioned};
use serde::Deserialize;

use crate::ImageError;

pub(crate) use mirror::Mirrors;

const BUILT_IN: &str = include_str!("catalog.json");
/// What messages call it.
const BUILT_IN_NAME: &str = "the built-in catalog";

/// An image that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CatalogEntry {
    /// Its name, such as `debian-12`.
    pub alias: String,
    /// Other names for it, such as `debian-bookworm`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The architecture of its programs.
    pub arch: Arch,
    /// Who publishes it. `FLEETBOX_MIRROR_<VENDOR>` replaces the vendor's site in `url`.
    #[serde(default)]
    pub vendor: Option<String>,
    /// The vendor's own name for this build of it.
    pub snapshot: String,
    /// Where the vendor publishes it.
    pub url: ImageUrl,
    /// The digest of the file there.
    pub checksum: Checksum,
    /// The format of the file there. For information: the content decides.
    pub format: DiskFormat,
}

impl CatalogEntry {
    /// Whether it goes by this name.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.alias == name || self.aliases.iter().any(|a| a == name)
    }
}

/// Images by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    vendors: BTreeMap<String, Vendor>,
    entries: Vec<CatalogEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Vendor {
    /// The part of its images' addresses that is the same in all, without a `/` at its end.
    pub(crate) base: ImageUrl,
    /// The name of its checksum files, for `cargo xtask catalog`.
    #[serde(default, rename = "checksums")]
    _checksums: Option<String>,
}

/// `catalog.json`, and what `FLEETBOX_CATALOG` names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version")]
    _version: u32,
    /// Forget the built-in catalog.
    #[serde(default)]
    replace: bool,
    #[serde(default)]
    vendors: BTreeMap<String, Vendor>,
    images: Vec<CatalogEntry>,
}

impl Versioned for File {
    const VERSION: u32 = 1;
}

impl Catalog {
    /// The one that is part of this program.
    ///
    /// # Errors
    /// None in a program that passed its tests.
    pub fn built_in() -> Result<Self, ImageError> {
        let damaged = |source| ImageError::Store(StoreError::Damaged { path: BUILT_IN_NAME.into(), source });
        let file: File = serde_json::from_str(BUILT_IN).map_err(damaged)?;
        Self { vendors: BTreeMap::new(), entries: Vec::new() }.with(file, BUILT_IN_NAME.as_ref())
    }

    /// The built-in one, with a file's entries before it: one of the same name and architecture replaces. With
    /// `"replace": true` in the file, the file alone.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the file cannot be read, is no catalog or is of a newer version;
    /// [`ImageError::BadCatalog`] when it contradicts itself.
    pub fn with_file(path: &Path) -> Result<Self, ImageError> {
        let file: File = fleetbox_store::read_json(path)?;
        let base = match file.replace {
            true => Self { vendors: BTreeMap::new(), entries: Vec::new() },
            false => Self::built_in()?,
        };
        base.with(file, path)
    }

    fn with(mut self, file: File, path: &Path) -> Result<Self, ImageError> {
        let bad = |reason| ImageError::BadCatalog { path: path.to_owned(), reason };
        for (i, entry) in file.images.iter().enumerate() {
            let names = || std::iter::once(&entry.alias).chain(&entry.aliases);
            if let Some(name) = names().find(|n| !matches!(n.parse(), Ok(ImageRef::Alias(_)))) {
                return Err(bad(format!("{name:?} cannot be the name of an image")));
            }
            let clash =
                |other: &&CatalogEntry| other.arch == entry.arch && names().any(|n| other.is_called(n));
            if let Some(other) = file.images[..i].iter().find(clash) {
                return Err(bad(format!(
                    "{} and {} share a name on {}",
                    other.alias,
                    entry.alias,
                    entry.arch.debian()
                )));
            }
            if entry.url.checksum().is_some() {
                return Err(bad(format!(
                    "the digest of {} belongs into \"checksum\", not into its URL",
                    entry.alias
                )));
            }
        }
        // A name that the file takes for something else is the file's.
        self.entries.retain(|old| {
            !file.images.iter().any(|new| {
                new.arch == old.arch
                    && std::iter::once(&new.alias).chain(&new.aliases).any(|name| *name == old.alias)
            })
        });
        self.entries.splice(..0, file.images);
        self.vendors.extend(file.vendors);
        Ok(self)
    }

    /// All of it, for all architectures.
    #[must_use]
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }

    /// The image of a name for an architecture.
    ///
    /// # Errors
    /// [`ImageError::UnknownAlias`] says what names there are; [`ImageError::NotForArch`].
    pub fn find(&self, name: &str, arch: Arch) -> Result<&CatalogEntry, ImageError> {
        let mut called = self.entries.iter().filter(|e| e.is_called(name)).peekable();
        if called.peek().is_none() {
            return Err(ImageError::UnknownAlias {
                alias: name.to_owned(),
                known: self.names(arch).join(", "),
            });
        }
        called.find(|e| e.arch == arch).ok_or_else(|| ImageError::NotForArch { alias: name.to_owned(), arch })
    }

    /// The names that there are for an architecture, each once, other names left out.
    #[must_use]
    pub fn names(&self, arch: Arch) -> Vec<&str> {
        self.entries.iter().filter(|e| e.arch == arch).map(|e| e.alias.as_str()).collect()
    }

    /// The site that a vendor's images are below.
    pub(crate) fn site(&self, vendor: &str) -> Option<&ImageUrl> {
        self.vendors.get(vendor).map(|v| &v.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Catalog, ImageError> {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("catalog.json");
        std::fs::write(&path, text).unwrap();
        Catalog::with_file(&path)
    }

    fn entry(alias: &str, more: &str) -> String {
        format!(
            r#"{{"alias": "{alias}", "arch": "amd64", "snapshot": "1", "format": "raw", {more}
                 "url": "https://images.test/{alias}", "checksum": "sha256:{}"}}"#,
            "0".repeat(64)
        )
    }

    fn file(entries: &[String]) -> String {
        format!(r#"{{"version": 1, "images": [{}]}}"#, entries.join(","))
    }

    #[test]
    fn the_built_in_catalog_has_what_is_promised() {
        let catalog = Catalog::built_in().unwrap();
        for arch in [Arch::Amd64, Arch::Arm64] {
            for name in [
                "debian-11",
                "debian-12",
                "debian-13",
                "ubuntu-22.04",
                "ubuntu-24.04",
                "ubuntu-26.04",
                "debian-trixie",
            ] {
                let entry = catalog.find(name, arch).unwrap();
                let other = match arch {
                    Arch::Amd64 => ["arm64", "aarch64"],
                    _ => ["amd64", "x86_64"],
                };
                assert!(!other.iter().any(|o| entry.url.address().contains(o)), "{name}: {}", entry.url);
            }
        }
        for entry in catalog.entries() {
            let vendor = entry.vendor.as_deref().unwrap();
            let site = catalog.site(vendor).unwrap().address();
            assert!(site.starts_with("https://") && !site.ends_with('/'), "{site}");
            let rest = entry.url.address().strip_prefix(site).unwrap();
            assert!(rest.starts_with('/'), "{}", entry.url);
            // Pinned: nothing whose content may change.
            assert!(!rest.contains("latest"), "{}", entry.url);
        }
        let mut digests: Vec<_> = catalog.entries().iter().map(|e| e.checksum.hex()).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), catalog.entries().len());
    }

    #[test]
    fn unknown_names_are_answered_with_the_known() {
        let catalog = Catalog::built_in().unwrap();
        let text = catalog.find("disk.raw", Arch::Amd64).unwrap_err().to_string();
        assert!(text.contains("debian-12") && text.contains("./disk.raw"), "{text}");
        let catalog = with(&file(&[entry("only-amd64", "")])).unwrap();
        assert!(matches!(catalog.find("only-amd64", Arch::Arm64), Err(ImageError::NotForArch { .. })));
        assert!(catalog.find("only-amd64", Arch::Amd64).is_ok());
    }

    #[test]
    fn a_file_adds_replaces_or_stands_alone() {
        let added = with(&file(&[entry("ours", r#""aliases": ["mine"],"#), entry("debian-12", "")])).unwrap();
        assert!(added.find("mine", Arch::Amd64).is_ok() && added.find("debian-11", Arch::Amd64).is_ok());
        let debian = added.find("debian-12", Arch::Amd64).unwrap();
        assert_eq!(debian.url.address(), "https://images.test/debian-12");
        assert!(added.find("debian-12", Arch::Arm64).unwrap().url.address().contains("cloud.debian.org"));
        let alone = file(&[entry("ours", "")]).replacen("{", r#"{"replace": true, "#, 1);
        assert_eq!(with(&alone).unwrap().entries().len(), 1);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_said() {
        for (text, says) in [
            (file(&[entry("x", ""), entry("x", "")]), "share a name"),
            (file(&[entry("x", ""), entry("y", r#""aliases": ["x"],"#)]), "share a name"),
            (file(&[entry("Big", "")]), "cannot be the name"),
            (file(&[entry("a/b", "")]), "cannot be the name"),
            (file(&[entry("x", "").replace("sha256:0", "sha256:")]), "damaged"),
            (file(&[entry("x", r#""colour": "red","#)]), "damaged"),
            (r#"{"version": 2, "pictures": []}"#.to_owned(), "newer"),
            ("[".to_owned(), "damaged"),
        ] {
            let error = with(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let missing = Catalog::with_file(Path::new("/nonexistent/catalog.json")).unwrap_err();
        assert!(matches!(missing, ImageError::Store(e) if e.is_not_found()));
    }
}
