//! Vendors' sites replaced by copies of them.

use std::collections::BTreeMap;

use fleetbox_spec::ImageUrl;

use super::{Catalog, CatalogEntry};
use crate::ImageError;

const PREFIX: &str = "FLEETBOX_MIRROR_";

/// Sites that stand in for vendors' own, by the end of the variable's name: `DEBIAN`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mirrors(BTreeMap<String, String>);

impl Mirrors {
    /// `FLEETBOX_MIRROR_DEBIAN`, `FLEETBOX_MIRROR_UBUNTU` and so on. An empty one counts as none.
    pub(crate) fn from_variables(all: impl IntoIterator<Item = (String, String)>) -> Self {
        let mirrors = all.into_iter().filter_map(|(name, value)| {
            let vendor = name.strip_prefix(PREFIX)?.to_owned();
            (!vendor.is_empty() && !value.is_empty()).then_some((vendor, value))
        });
        Self(mirrors.collect())
    }

    pub(crate) fn set(&mut self, vendor: &str, site: &str) {
        self.0.insert(variable(vendor), site.to_owned());
    }

    /// Where to fetch an image from.
    pub(crate) fn address(&self, catalog: &Catalog, entry: &CatalogEntry) -> Result<ImageUrl, ImageError> {
        let Some(vendor) = &entry.vendor else { return Ok(entry.url.clone()) };
        let variable = variable(vendor);
        let Some(mirror) = self.0.get(&variable) else { return Ok(entry.url.clone()) };
        let bad = |source| ImageError::BadMirror { variable: format!("{PREFIX}{variable}"), source };
        let site: ImageUrl = mirror.parse().map_err(bad)?;
        let rest = catalog.site(vendor).and_then(|base| entry.url.address().strip_prefix(base.address()));
        let Some(rest) = rest.filter(|r| r.starts_with('/')) else {
            tracing::warn!(%vendor, url = %entry.url, "not below its vendor's site: no mirror has it");
            return Ok(entry.url.clone());
        };
        format!("{}{rest}", site.address().trim_end_matches('/')).parse().map_err(bad)
    }
}

/// The end of the variable's name.
fn variable(vendor: &str) -> String {
    vendor.to_ascii_uppercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetbox_spec::Arch;

    fn address(variables: &[(&str, &str)], alias: &str) -> Result<String, ImageError> {
        let mirrors =
            Mirrors::from_variables(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let catalog = Catalog::built_in().unwrap();
        let entry = catalog.find(alias, Arch::Arm64).unwrap();
        mirrors.address(&catalog, entry).map(|u| u.to_string())
    }

    #[test]
    fn the_rest_of_the_address_stays() {
        let own = address(&[], "debian-12").unwrap();
        let rest = own.strip_prefix("https://cloud.debian.org/images/cloud").unwrap();
        for mirror in ["http://mirror.test/debian-cloud", "http://mirror.test/debian-cloud/"] {
            let there = address(&[("FLEETBOX_MIRROR_DEBIAN", mirror)], "debian-12").unwrap();
            assert_eq!(there, format!("http://mirror.test/debian-cloud{rest}"));
        }
        let others = [
            ("FLEETBOX_MIRROR_UBUNTU", "http://x"),
            ("FLEETBOX_MIRROR_DEBIAN", ""),
            ("FLEETBOX_MIRROR_", "y"),
        ];
        assert_eq!(address(&others, "debian-12").unwrap(), own);
    }

    #[test]
    fn a_mirror_that_is_no_address_is_named() {
        for bad in ["mirror.test", "ftp://mirror.test", "https://"] {
            let error = address(&[("FLEETBOX_MIRROR_DEBIAN", bad)], "debian-12").unwrap_err();
            assert!(error.to_string().contains("FLEETBOX_MIRROR_DEBIAN"), "{error}");
        }
    }
}
