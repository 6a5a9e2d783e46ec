//! How an image is named by a user.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageRefError {
    /// An empty string.
    #[error("an image name must not be empty")]
    Empty,
    /// `bootstrap:` with something that is no Debian suite name.
    #[error("{0:?} is no Debian suite; expected something like bootstrap:bookworm")]
    BadSuite(String),
}

/// What to boot: a catalog alias, a file, a URL, or an image built on this host.
///
/// ```
/// use fleetbox_spec::ImageRef;
/// assert!(matches!("bootstrap:bookworm".parse()?, ImageRef::Bootstrap { .. }));
/// assert!(matches!("./disk.raw".parse()?, ImageRef::File(_)));
/// assert!(matches!("debian-12".parse()?, ImageRef::Alias(_)));
/// # Ok::<(), fleetbox_spec::ImageRefError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum ImageRef {
    /// A name from the catalog, such as `debian-12`.
    Alias(String),
    /// A file on this host. A relative path is made absolute by the client, which knows its own folder.
    File(PathBuf),
    /// An `http(s)` address.
    Url(String),
    /// A Debian image built on this host with mmdebstrap.
    Bootstrap {
        /// The Debian suite, such as `bookworm`.
        suite: String,
    },
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.is_empty() {
            return Err(ImageRefError::Empty);
        }
        if let Some(suite) = s.strip_prefix("bootstrap:") {
            let ok = suite.len() <= 32
                && suite.starts_with(|c: char| c.is_ascii_lowercase())
                && suite.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            return if ok {
                Ok(Self::Bootstrap { suite: suite.to_owned() })
            } else {
                Err(ImageRefError::BadSuite(suite.to_owned()))
            };
        }
        if s.starts_with("http://") || s.starts_with("https://") {
            return Ok(Self::Url(s.to_owned()));
        }
        if let Some(path) = s.strip_prefix("file://") {
            return Ok(Self::File(PathBuf::from(path)));
        }
        // A path is told from an alias by its slash, as in a shell's command lookup.
        if s.contains('/') {
            return Ok(Self::File(PathBuf::from(s)));
        }
        Ok(Self::Alias(s.to_owned()))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(a) => f.pad(a),
            // A bare file name would read back as an alias.
            Self::File(p) if p.components().count() == 1 && p.is_relative() && !p.starts_with(".") => {
                write!(f, "./{}", p.display())
            }
            Self::File(p) => write!(f, "{}", p.display()),
            Self::Url(u) => f.pad(u),
            Self::Bootstrap { suite } => write!(f, "bootstrap:{suite}"),
        }
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ImageRefError;
    fn try_from(s: String) -> Result<Self, ImageRefError> {
        s.parse()
    }
}

impl From<ImageRef> for String {
    fn from(i: ImageRef) -> String {
        i.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn display_reads_back_the_same(s in "(bootstrap:[a-z]{1,8}|/[a-z./]{1,20}|[a-z0-9-]{1,12}|https?://[a-z./]{1,20})") {
            let r: ImageRef = s.parse().unwrap();
            prop_assert_eq!(r.to_string().parse::<ImageRef>().unwrap(), r);
        }
    }

    #[test]
    fn bad_suites_are_named() {
        for bad in ["bootstrap:", "bootstrap:../x", "bootstrap:Book worm", "bootstrap:-x"] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
