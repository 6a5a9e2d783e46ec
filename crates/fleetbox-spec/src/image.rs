//! How an image is named by a user.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::url::shortened;
use crate::{ImageUrl, PackageError, Packages};

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
    /// Something after the '?' that is no `packages=`.
    #[error("{0:?} is no option of an image; expected something like bootstrap:bookworm?packages=jq,tcpdump")]
    BadOption(String),
    /// A name that no catalog can have.
    #[error(
        "{0:?} is no name of an image: 1 to {max} of a-z, 0-9, '.' and '-', with a letter or digit first",
        max = MAX_ALIAS
    )]
    BadAlias(String),
    /// An address that is none.
    #[error("{url:?} is no address of an image: {reason}")]
    BadUrl {
        /// The address, shortened.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// A digest that is none.
    #[error("{0:?} is no digest of an image; expected sha256 with 64 hex digits, or sha512 with 128")]
    BadChecksum(String),
    /// A package of `packages=` that can be none.
    #[error("the image's list of packages is wrong")]
    BadPackages(#[source] PackageError),
}

/// Longer than any name that is worth typing.
const MAX_ALIAS: usize = 63;

/// What to boot: a catalog alias, a file, a URL, or an image built on this host.
///
/// ```
/// use fleetbox_spec::ImageRef;
/// assert!(matches!("bootstrap:bookworm".parse()?, ImageRef::Bootstrap { .. }));
/// assert!(matches!("bootstrap:bookworm?packages=jq,tcpdump".parse()?, ImageRef::Bootstrap { .. }));
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
    /// An `http(s)` address, with the digest of the file there or without.
    Url(ImageUrl),
    /// A Debian image built on this host with mmdebstrap.
    Bootstrap {
        /// The Debian suite, such as `bookworm`.
        suite: String,
        /// What is installed beside what every bootstrapped image has.
        packages: Packages,
    },
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.is_empty() {
            return Err(ImageRefError::Empty);
        }
        if let Some(rest) = s.strip_prefix("bootstrap:") {
            let (suite, options) = rest.split_once('?').map_or((rest, None), |(s, o)| (s, Some(o)));
            let ok = suite.len() <= 32
                && suite.starts_with(|c: char| c.is_ascii_lowercase())
                && suite.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !ok {
                return Err(ImageRefError::BadSuite(suite.to_owned()));
            }
            let packages = match options.map(|o| o.strip_prefix("packages=").ok_or(o)) {
                None => Packages::default(),
                Some(Ok(list)) => list.parse().map_err(ImageRefError::BadPackages)?,
                Some(Err(other)) => return Err(ImageRefError::BadOption(other.to_owned())),
            };
            return Ok(Self::Bootstrap { suite: suite.to_owned(), packages });
        }
        if ImageUrl::is_meant(s) {
            return Ok(Self::Url(s.parse()?));
        }
        if let Some(path) = s.strip_prefix("file://") {
            return Ok(Self::File(PathBuf::from(path)));
        }
        // A path is told from an alias by its slash, as in a shell's command lookup.
        if s.contains('/') {
            return Ok(Self::File(PathBuf::from(s)));
        }
        if !is_alias(s) {
            return Err(ImageRefError::BadAlias(shortened(s)));
        }
        Ok(Self::Alias(s.to_owned()))
    }
}

/// Whether a catalog can have such a name.
fn is_alias(s: &str) -> bool {
    let part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    s.len() <= MAX_ALIAS
        && s.bytes().next().is_some_and(part)
        && s.bytes().all(|b| part(b) || matches!(b, b'.' | b'-'))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(a) => f.pad(a),
            // A bare file name would read back as an alias, and `http://x` or `file://x` as what they look like.
            Self::File(p) if p.is_relative() && !p.starts_with(".") && !p.starts_with("..") => {
                write!(f, "./{}", p.display())
            }
            Self::File(p) => write!(f, "{}", p.display()),
            Self::Url(u) => u.fmt(f),
            Self::Bootstrap { suite, packages } if packages.is_empty() => write!(f, "bootstrap:{suite}"),
            Self::Bootstrap { suite, packages } => write!(f, "bootstrap:{suite}?packages={packages}"),
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

    const REFERENCE: &str = "(bootstrap:[a-z]{1,8}(\\?packages=[a-z][a-z0-9+.]{1,5}(,[a-z][a-z0-9+.]{1,5}){0,4})?\
        |/[a-z./]{1,20}|[a-z0-9][a-z0-9.-]{0,12}|https?://[a-z][a-z.]{0,9}(/[a-z./]{0,9})?(#sha256=[0-9a-f]{64})?)";

    proptest! {
        #[test]
        fn display_reads_back_the_same(s in REFERENCE) {
            let r: ImageRef = s.parse().unwrap();
            prop_assert_eq!(r.to_string().parse::<ImageRef>().unwrap(), r);
        }

        #[test]
        fn equal_sets_of_packages_are_one_image(
            names in prop::collection::vec("[a-z0-9][a-z0-9+.]{1,6}", 1..8), seed in any::<usize>()
        ) {
            let mut other = names.clone();
            other.rotate_left(seed % names.len());
            other.push(names[seed % names.len()].clone());
            let image = |names: &[String]| {
                format!("bootstrap:bookworm?packages={}", names.join(",")).parse::<ImageRef>().unwrap()
            };
            let (one, same) = (image(&names), image(&other));
            prop_assert_eq!(one.to_string(), same.to_string());
            prop_assert_eq!(&one, &same);
            let ImageRef::Bootstrap { packages, .. } = one else { panic!("{one}") };
            prop_assert!(names.iter().all(|n| packages.iter().any(|p| p == n)));
            prop_assert!(packages.iter().is_sorted());
        }

        #[test]
        fn no_text_after_the_question_mark_gets_through_that_is_no_package(s in "\\PC{0,12}") {
            if let Ok(r) = format!("bootstrap:bookworm?packages={s}").parse::<ImageRef>() {
                prop_assert!(r.to_string().bytes().all(
                    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.,=:?".contains(&b)
                ), "{}", r);
            }
        }
    }

    /// Found by fuzzing: relative paths that look like something else.
    #[test]
    fn a_path_stays_a_path() {
        for path in ["disk.raw", "a/b", "file://x", "http://x/y", "bootstrap:x", "xy.//.", "../x", "./x"] {
            let told = ImageRef::File(path.into()).to_string();
            let ImageRef::File(again) = told.parse().unwrap() else { panic!("{path}: {told}") };
            assert_eq!(
                again.strip_prefix(".").unwrap_or(&again),
                std::path::Path::new(path.trim_start_matches("./"))
            );
        }
        assert_eq!(ImageRef::File("../x".into()).to_string(), "../x");
    }

    #[test]
    fn bad_options_are_named() {
        let error = |s: &str| s.parse::<ImageRef>().unwrap_err();
        assert_eq!(error("bootstrap:bookworm?package=jq"), ImageRefError::BadOption("package=jq".into()));
        assert_eq!(error("bootstrap:bookworm?"), ImageRefError::BadOption(String::new()));
        for list in ["", "jq,", "jq tmux", "jq?packages=tmux", "jq&x=y", "--x", "$(id)"] {
            let e = error(&format!("bootstrap:bookworm?packages={list}"));
            assert!(matches!(e, ImageRefError::BadPackages(_)), "{list}: {e}");
        }
    }

    #[test]
    fn bad_names_are_named() {
        for bad in ["Debian-12", "-x", ".x", "debian 12", "debian_12", "ü", &"x".repeat(64)] {
            let e = bad.parse::<ImageRef>().unwrap_err();
            assert!(matches!(e, ImageRefError::BadAlias(_)), "{bad}: {e}");
        }
        // A local file is told by its slash; its name alone is a name of the catalog that is not there.
        assert_eq!("disk.raw".parse::<ImageRef>().unwrap(), ImageRef::Alias("disk.raw".into()));
        assert!("https://a b/x".parse::<ImageRef>().is_err());
    }

    #[test]
    fn bad_suites_are_named() {
        for bad in
            ["bootstrap:", "bootstrap:../x", "bootstrap:Book worm", "bootstrap:-x", "bootstrap:?packages=jq"]
        {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
