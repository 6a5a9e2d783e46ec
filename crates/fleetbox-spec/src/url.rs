//! Addresses of images, and the digests that their content must have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ImageRefError;

/// A function that digests are taken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HashAlgorithm {
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
}

impl HashAlgorithm {
    /// Its name in checksums and URLs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The digest that a file must have, written as `sha256:<64 hex digits>` or `sha512:<128 hex digits>`.
///
/// ```
/// use fleetbox_spec::Checksum;
/// let checksum: Checksum = format!("sha256:{}", "A0".repeat(32)).parse()?;
/// assert_eq!(checksum.hex(), "a0".repeat(32));
/// # Ok::<(), fleetbox_spec::ImageRefError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Checksum {
    algorithm: HashAlgorithm,
    hex: String,
}

impl Checksum {
    /// A digest, given in hex digits of either case.
    ///
    /// # Errors
    /// [`ImageRefError::BadChecksum`] when the number of digits is not that of the algorithm, or one is none.
    pub fn new(algorithm: HashAlgorithm, hex: &str) -> Result<Self, ImageRefError> {
        if hex.len() == algorithm.hex_digits() && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self { algorithm, hex: hex.to_ascii_lowercase() })
        } else {
            Err(ImageRefError::BadChecksum(shortened(&format!("{algorithm}:{hex}"))))
        }
    }

    /// What it is taken with.
    #[must_use]
    pub fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The digits, in lower case.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    fn parse(text: &str, separator: char) -> Result<Self, ImageRefError> {
        let bad = || ImageRefError::BadChecksum(shortened(text));
        let (name, hex) = text.split_once(separator).ok_or_else(bad)?;
        let algorithm = match name {
            "sha256" => HashAlgorithm::Sha256,
            "sha512" => HashAlgorithm::Sha512,
            _ => return Err(bad()),
        };
        Self::new(algorithm, hex).map_err(|_| bad())
    }
}

impl FromStr for Checksum {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, ImageRefError> {
        Self::parse(s, ':')
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl TryFrom<String> for Checksum {
    type Error = ImageRefError;
    fn try_from(s: String) -> Result<Self, ImageRefError> {
        s.parse()
    }
}

impl From<Checksum> for String {
    fn from(c: Checksum) -> String {
        c.to_string()
    }
}

/// Longer than servers take (RFC 9110 §4.1 asks for 8000), and than anybody types.
const MAX_LEN: usize = 8000;

/// The `http` or `https` address of an image, with the digest that the file there must have, if it was given:
/// `https://host/path/disk.qcow2#sha256=<64 hex digits>`.
///
/// It holds no user name and no password: references are shown and are written into machines' records.
///
/// ```
/// use fleetbox_spec::ImageUrl;
/// let url: ImageUrl = format!("https://images.test/x.qcow2#sha256={}", "0".repeat(64)).parse()?;
/// assert_eq!(url.address(), "https://images.test/x.qcow2");
/// assert!(url.checksum().is_some());
/// # Ok::<(), fleetbox_spec::ImageRefError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageUrl {
    address: String,
    /// In a box, as references are in many errors, and few of them have one.
    checksum: Option<Box<Checksum>>,
}

impl ImageUrl {
    /// The address, without the digest.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The digest that the file must have.
    #[must_use]
    pub fn checksum(&self) -> Option<&Checksum> {
        self.checksum.as_deref()
    }

    /// The host, with its port if one was given.
    #[must_use]
    pub fn host(&self) -> &str {
        authority(&self.address)
    }

    /// Whether a string is meant as such an address: by its scheme, in either case.
    pub(crate) fn is_meant(s: &str) -> bool {
        scheme(s).is_some()
    }
}

/// The scheme and what follows it.
fn scheme(s: &str) -> Option<(&'static str, &str)> {
    ["http://", "https://"].into_iter().find_map(|scheme| {
        let start = s.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| (scheme, &s[scheme.len()..]))
    })
}

fn authority(address: &str) -> &str {
    let rest = scheme(address).map_or(address, |(_, rest)| rest);
    &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())]
}

/// For messages: a password must not reach a log.
fn without_user(s: &str) -> String {
    match authority(s).rsplit_once('@') {
        Some((user, _)) if !user.is_empty() => s.replacen(user, "…", 1),
        _ => s.to_owned(),
    }
}

/// What is wrong with a host and port (RFC 3986 §3.2), if anything is.
fn wrong_authority(authority: &str) -> Option<&'static str> {
    if authority.contains('@') {
        return Some("it must not hold a user name or password");
    }
    let (host, port) = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((v6, rest))) => {
            if v6.parse::<std::net::Ipv6Addr>().is_err() {
                return Some("what is between the brackets is no IPv6 address");
            }
            match rest.strip_prefix(':') {
                Some(port) => ("x", Some(port)),
                None if rest.is_empty() => ("x", None),
                None => return Some("the host is not a name or address"),
            }
        }
        Some(None) => return Some("a bracket is not closed"),
        None => authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p))),
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.is_empty() {
        return Some("it has no host");
    }
    if !host.bytes().all(named) || !host.bytes().any(|b| b.is_ascii_alphanumeric()) {
        return Some("the host is not a name or address");
    }
    match port {
        Some(p) if !p.bytes().all(|b| b.is_ascii_digit()) || !p.parse::<u16>().is_ok_and(|p| p > 0) => {
            Some("the port is no number from 1 to 65535")
        }
        _ => None,
    }
}

impl FromStr for ImageUrl {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, ImageRefError> {
        let bad = |reason| ImageRefError::BadUrl { url: shortened(&without_user(s)), reason };
        let Some((scheme, rest)) = scheme(s) else {
            return Err(bad("it starts with neither http:// nor https://"));
        };
        if s.len() > MAX_LEN {
            return Err(bad("it is longer than 8000 bytes"));
        }
        let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(r, f)| (r, Some(f)));
        // What RFC 3986 allows nowhere in a URL; a server would have to guess.
        if let Some(c) = rest.chars().find(|c| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(*c)) {
            return Err(bad(match c {
                ' ' => "it holds a space; write %20",
                c if c.is_ascii() => "it holds a character that no URL may hold",
                _ => "it holds a character outside of ASCII; percent-encode it",
            }));
        }
        if let Some(reason) = wrong_authority(authority(s)) {
            return Err(bad(reason));
        }
        let checksum = fragment.map(|f| Checksum::parse(f, '=').map(Box::new)).transpose()?;
        Ok(Self { address: format!("{scheme}{rest}"), checksum })
    }
}

impl fmt::Display for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.checksum {
            None => f.pad(&self.address),
            Some(c) => write!(f, "{}#{}={}", self.address, c.algorithm, c.hex),
        }
    }
}

impl TryFrom<String> for ImageUrl {
    type Error = ImageRefError;
    fn try_from(s: String) -> Result<Self, ImageRefError> {
        s.parse()
    }
}

impl From<ImageUrl> for String {
    fn from(u: ImageUrl) -> String {
        u.to_string()
    }
}

/// Foreign text that ends up in a message.
pub(crate) fn shortened(s: &str) -> String {
    const MAX: usize = 200;
    match s.char_indices().nth(MAX) {
        None => s.to_owned(),
        Some((at, _)) => format!("{}…", &s[..at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_parses_reads_back_the_same(s in "[hH]ttps?://\\PC{0,30}(#sha256=[0-9a-fA-F]{64})?") {
            if let Ok(url) = s.parse::<ImageUrl>() {
                prop_assert_eq!(url.to_string().parse::<ImageUrl>().unwrap(), url.clone());
                prop_assert!(url.address().bytes().all(|b| b.is_ascii_graphic() && b != b'#'));
                prop_assert!(!url.host().is_empty() && !url.host().contains('@'));
            }
        }

        #[test]
        fn hosts_ports_and_digests_are_found(
            host in "[a-z][a-z0-9.-]{0,20}", port in proptest::option::of(1u16..), path in "(/[a-z0-9._~%?=&-]{0,20})?",
            digits in "[0-9a-fA-F]{128}",
        ) {
            let host = port.map_or(host.clone(), |p| format!("{host}:{p}"));
            let url: ImageUrl = format!("HTTPS://{host}{path}#sha512={digits}").parse().unwrap();
            prop_assert_eq!(url.host(), host.as_str());
            prop_assert_eq!(url.address(), format!("https://{host}{path}"));
            prop_assert_eq!(url.checksum().unwrap().hex(), digits.to_ascii_lowercase());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, says) in [
            ("https://", "no host"),
            ("https:///x", "no host"),
            ("https://.../x", "not a name"),
            ("https://a b/x", "space"),
            ("https://ä.test/x", "ASCII"),
            ("https://a/\u{1b}[31m", "no URL may hold"),
            ("https://a/<x>", "no URL may hold"),
            ("https://user:secret@a/x", "user name"),
            ("https://a:0/x", "port"),
            ("https://a:65536/x", "port"),
            ("https://a:/x", "port"),
            ("https://[::1/x", "bracket"),
            ("https://[x]/y", "IPv6"),
            ("https://[::1]y/z", "not a name"),
            ("ftp://a/x", "neither"),
        ] {
            let text = url.parse::<ImageUrl>().unwrap_err().to_string();
            assert!(text.contains(says), "{url}: {text}");
        }
        let zeros = "0".repeat(63);
        for fragment in
            ["", "sha256", "sha256=", "md5=00", "sha256=zz", &format!("sha256={zeros}"), "sha256:00"]
        {
            let err = format!("https://a/x#{fragment}").parse::<ImageUrl>().unwrap_err();
            assert!(matches!(err, ImageRefError::BadChecksum(_)), "{fragment}: {err}");
        }
        assert!("https://[::1]:8080/x?y=z".parse::<ImageUrl>().is_ok());
    }

    #[test]
    fn passwords_are_not_repeated() {
        let text = "https://user:secret@a/x".parse::<ImageUrl>().unwrap_err().to_string();
        assert!(!text.contains("secret"), "{text}");
    }
}
