//! Names of Debian packages.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Why a string names no Debian package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// Not a name by Debian Policy §5.6.1, or one that apt would take for something else.
    #[error(
        "{0:?} is no Debian package name: 2 to {max} of a-z, 0-9, '+', '-' and '.', with a letter or digit first and \
         no '-' last",
        max = MAX_LEN
    )]
    BadName(String),
    /// More of them than a build takes.
    #[error("{0} packages; at most {max} can be named", max = MAX_COUNT)]
    TooMany(usize),
}

/// Longer than any in Debian's archive.
const MAX_LEN: usize = 100;
/// They are handed on in one string of an environment, which has a limit.
const MAX_COUNT: usize = 500;

/// A set of Debian packages, such as what a bootstrapped image has beside what every image has.
///
/// It is written as names with commas between; the order and repetitions do not matter.
///
/// ```
/// use fleetbox_spec::Packages;
/// assert_eq!("jq,etcd-server,jq".parse::<Packages>()?.to_string(), "etcd-server,jq");
/// # Ok::<(), fleetbox_spec::PackageError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packages(BTreeSet<String>);

impl Packages {
    /// Checks and collects names.
    ///
    /// # Errors
    /// [`PackageError`] names the first that is none.
    pub fn new<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Result<Self, PackageError> {
        let names: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        match names.iter().find(|n| !is_package(n)) {
            // Foreign text that ends up in a message.
            Some(bad) => Err(PackageError::BadName(bad.chars().take(MAX_LEN).collect())),
            None if names.len() > MAX_COUNT => Err(PackageError::TooMany(names.len())),
            None => Ok(Self(names)),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A '-' at the end is apt's way to say that a package is to be removed.
fn is_package(name: &str) -> bool {
    let part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (2..=MAX_LEN).contains(&name.len())
        && name.bytes().next().is_some_and(part)
        && name.bytes().all(|b| part(b) || matches!(b, b'+' | b'-' | b'.'))
        && !name.ends_with('-')
}

impl FromStr for Packages {
    type Err = PackageError;

    fn from_str(s: &str) -> Result<Self, PackageError> {
        Self::new(s.split(','))
    }
}

impl fmt::Display for Packages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_package() {
        for ok in ["jq", "g++", "libstdc++6", "linux-image-6.1.0-1-amd64", "0ad", &"x".repeat(100)] {
            assert!(ok.parse::<Packages>().is_ok(), "{ok}");
        }
        for bad in
            ["", "a", "jq-", "-jq", "+jq", "./jq.deb", "?all", "~n", "jq:arm64", "jq=1", "Jq", "j q", "jq\n"]
        {
            let e = format!("curl,{bad}").parse::<Packages>().unwrap_err();
            assert_eq!(e, PackageError::BadName(bad.to_owned()), "{bad}");
        }
        assert!("x".repeat(101).parse::<Packages>().is_err());
        assert!("curl,,jq".parse::<Packages>().is_err());
        let many = (0..501).map(|n| format!("p{n}"));
        assert_eq!(Packages::new(many), Err(PackageError::TooMany(501)));
    }
}
