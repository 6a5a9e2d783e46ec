//! Machine and cluster names, and what is derived from them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not a machine or cluster name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The name is longer than a DNS label (RFC 1123 §2.1) may be.
    #[error("name {name:?} has {len} characters; at most 63 are allowed")]
    TooLong {
        /// The offending name, cut after 80 characters.
        name: String,
        /// Its length in characters.
        len: usize,
    },
    /// A character outside `a-z`, `0-9` and `-`.
    #[error("name {name:?} has the character {ch:?}; only a-z, 0-9 and '-' are allowed")]
    BadCharacter {
        /// The offending name.
        name: String,
        /// The first character that is not allowed.
        ch: char,
    },
    /// A hostname label neither starts nor ends with a hyphen.
    #[error("name {name:?} must start and end with a letter or a digit")]
    EdgeHyphen {
        /// The offending name.
        name: String,
    },
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let len = name.chars().count();
    if len > 63 {
        return Err(NameError::TooLong { name: name.chars().take(80).collect(), len });
    }
    if let Some(ch) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::BadCharacter { name: name.to_owned(), ch });
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err(NameError::EdgeHyphen { name: name.to_owned() });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $ty:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        pub struct $ty(String);

        impl $ty {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// [`NameError`] says which rule the name breaks.
            pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
                check(name.as_ref())?;
                Ok(Self(name.as_ref().to_owned()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $ty {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $ty {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                check(&s)?;
                Ok(Self(s))
            }
        }

        impl From<$ty> for String {
            fn from(n: $ty) -> String {
                n.0
            }
        }

        impl AsRef<str> for $ty {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// A machine's name: 1 to 63 of `a-z`, `0-9` and `-`, a valid hostname (RFC 1123).
    MachineName
}
name_type! {
    /// A cluster's name; the same rules as [`MachineName`].
    ClusterName
}

impl MachineName {
    /// The cluster a machine belongs to when none is given: its name less a trailing `-<digits>`.
    ///
    /// ```
    /// use fleetbox_spec::MachineName;
    /// assert_eq!(MachineName::new("node-2")?.default_cluster().as_str(), "node");
    /// assert_eq!(MachineName::new("web")?.default_cluster().as_str(), "web");
    /// # Ok::<(), fleetbox_spec::NameError>(())
    /// ```
    #[must_use]
    pub fn default_cluster(&self) -> ClusterName {
        let base = match self.0.rsplit_once('-') {
            Some((base, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => base,
            _ => &self.0,
        };
        // "a--1" leaves "a-", which is no name of its own.
        let base = base.trim_end_matches('-');
        ClusterName(if base.is_empty() { self.0.clone() } else { base.to_owned() })
    }
}

/// The MAC address of a machine: locally administered, stable for its name, so that a restart keeps it.
///
/// The prefix is `52:54:00`, the one that QEMU and libvirt use for guests; the rest is an FNV-1a hash
/// of cluster and machine name.
#[must_use]
pub fn mac_for(cluster: &ClusterName, machine: &MachineName) -> [u8; 6] {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for b in cluster.0.bytes().chain([b'/']).chain(machine.0.bytes()) {
        hash = (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }
    let [.., a, b, c] = (hash ^ (hash >> 32)).to_be_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_name() {
        for ok in ["a", "web", "node-1", "0", "a--b", &"x".repeat(63)] {
            assert!(MachineName::new(ok).is_ok(), "{ok}");
        }
        for (bad, want) in [
            ("", "must not be empty"),
            ("-a", "must start and end"),
            ("a-", "must start and end"),
            ("A", "'A'"),
            ("a/b", "'/'"),
            ("..", "'.'"),
            ("a b", "' '"),
            ("ä", "'ä'"),
        ] {
            let err = MachineName::new(bad).unwrap_err().to_string();
            assert!(err.contains(want), "{bad:?}: {err}");
        }
        assert!(matches!(MachineName::new("x".repeat(64)), Err(NameError::TooLong { len: 64, .. })));
    }

    #[test]
    fn default_cluster_drops_a_trailing_number() {
        for (m, c) in [
            ("node-1", "node"),
            ("web", "web"),
            ("a-b-12", "a-b"),
            ("a-1b", "a-1b"),
            ("7", "7"),
            ("a--1", "a"),
        ] {
            assert_eq!(MachineName::new(m).unwrap().default_cluster().as_str(), c);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_agrees_with_the_rule(s in "\\PC{0,70}") {
            let ok = !s.is_empty() && s.len() <= 63
                && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !s.starts_with('-') && !s.ends_with('-');
            prop_assert_eq!(MachineName::new(&s).is_ok(), ok);
        }

        #[test]
        fn a_default_cluster_is_itself_a_name(s in "[a-z0-9][a-z0-9-]{0,20}[0-9]") {
            let c = MachineName::new(&s).unwrap().default_cluster();
            prop_assert!(ClusterName::new(c.as_str()).is_ok(), "{c}");
        }

        #[test]
        fn macs_are_local_unicast(m in "[a-z]{1,10}") {
            let mac = mac_for(&ClusterName::new("c").unwrap(), &MachineName::new(m).unwrap());
            prop_assert_eq!(mac[0] & 0b11, 0b10);
        }
    }
}
