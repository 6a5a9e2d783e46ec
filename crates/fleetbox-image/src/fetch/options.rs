use std::path::PathBuf;
use std::time::Duration;

use crate::catalog::Mirrors;

/// How images are downloaded. The default suits slow and unsteady networks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadOptions {
    /// The longest that a connection may take, from the host's name to the end of the TLS handshake. 30 s.
    pub connect_timeout: Duration,
    /// The longest time without a single byte. 60 s.
    pub stall_timeout: Duration,
    /// How often in a row it is tried without getting farther by a MiB. 5.
    pub tries: u32,
    /// The pause after the first failure; each further one is twice as long, to 30 s at most. A server's own
    /// Retry-After goes before it, to 60 s at most. 0.5 s.
    pub backoff: Duration,
    /// The longest that [`crate::Images::default_image`] asks a site whether it is there. 1.5 s.
    pub probe_timeout: Duration,
    /// Ask the proxies that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name. Yes.
    pub proxies: bool,
    /// A file that adds to the built-in catalog. None.
    pub catalog: Option<PathBuf>,
    pub(crate) mirrors: Mirrors,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            tries: 5,
            backoff: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(1500),
            proxies: true,
            catalog: None,
            mirrors: Mirrors::default(),
        }
    }
}

impl DownloadOptions {
    /// The default, with the catalog of `FLEETBOX_CATALOG` and the sites of `FLEETBOX_MIRROR_<VENDOR>`.
    #[must_use]
    pub fn from_env() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            catalog: std::env::var_os("FLEETBOX_CATALOG").filter(|p| !p.is_empty()).map(PathBuf::from),
            mirrors: Mirrors::from_variables(std::env::vars_os().filter_map(text)),
            ..Self::default()
        }
    }

    /// The same, with another site for a vendor's images of the catalog: what `FLEETBOX_MIRROR_<VENDOR>` does.
    #[must_use]
    pub fn mirror(mut self, vendor: &str, site: &str) -> Self {
        self.mirrors.set(vendor, site);
        self
    }
}
