//! What to try, in which order. Pure.
//!
//! QEMU is special on Debian: its packages must all have one version, and a host that already has one of them
//! from backports cannot take the others from the release. So backports come in as the last thing tried, through
//! a private list of sources.

/// Packages that are installed with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Those that a release always has in matching versions.
    Plain,
    /// QEMU's, which may have to come from backports.
    Qemu,
}

/// One way to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// With the package lists as they are.
    Plain,
    /// After `apt-get update`.
    Updated,
    /// From backports, through private package lists.
    Backports,
}

/// What apt says before anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// It has heard of each package.
    pub(super) known: bool,
    /// A simulated installation comes out.
    pub(super) resolvable: bool,
    /// The host is Debian itself, so that its release has backports.
    pub(super) has_backports: bool,
}

/// What to try until one works.
pub(super) fn attempts(group: Group, facts: Facts) -> Vec<Attempt> {
    let mut all = match facts {
        // May still fail: the lists can be older than what the mirror has.
        Facts { known: true, resolvable: true, .. } => vec![Attempt::Plain, Attempt::Updated],
        Facts { known: false, .. } => vec![Attempt::Updated],
        // The lists are there and do not fit what is installed: newer lists would hardly help where backports do.
        Facts { known: true, resolvable: false, .. } => vec![],
    };
    if group == Group::Qemu && facts.has_backports {
        all.push(Attempt::Backports);
    }
    if !all.contains(&Attempt::Updated) {
        all.push(Attempt::Updated);
    }
    all
}

/// A line of `apt-get indextargets`: a suite that the host installs from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Base address of the mirror.
    pub(super) uri: String,
    /// The suite's name, such as `bookworm` or `bookworm-updates`.
    pub(super) release: String,
}

/// Reads lines of `<uri>|<release>`.
pub(super) fn sources(text: &str) -> Vec<Source> {
    let source = |line: &str| {
        let (uri, release) = line.trim().split_once('|')?;
        Some(Source { uri: uri.to_owned(), release: release.to_owned() })
    };
    let mut all: Vec<Source> = text.lines().filter_map(source).collect();
    all.dedup();
    all
}

/// The private list of sources: the release and its backports, from the mirror that the host uses anyway.
///
/// `None` when the host installs its release from no mirror, or names it otherwise than by its code name.
pub(super) fn backports_list(sources: &[Source], codename: &str, keyring: Option<&str>) -> Option<String> {
    let uri = &sources.iter().find(|s| s.release == codename)?.uri;
    let signed_by = keyring.map(|k| format!("[signed-by={k}] ")).unwrap_or_default();
    let mut list = String::new();
    for suite in [codename.to_owned(), format!("{codename}-updates"), format!("{codename}-backports")] {
        // What the host has switched off stays off; backports are what this list is for.
        if suite.ends_with("-backports") || sources.iter().any(|s| s.release == suite && s.uri == *uri) {
            list.push_str(&format!("deb {signed_by}{uri} {suite} main\n"));
        }
    }
    Some(list)
}

/// A field of os-release(5), unquoted.
pub(super) fn os_field<'a>(os_release: &'a str, key: &str) -> Option<&'a str> {
    let value = os_release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\''])).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Attempt::{Backports, Plain, Updated};

    #[test]
    fn the_order_of_attempts() {
        let facts = |known, resolvable, has_backports| Facts { known, resolvable, has_backports };
        for (group, facts, expected) in [
            (Group::Plain, facts(true, true, true), &[Plain, Updated][..]),
            // A new container: no lists yet.
            (Group::Plain, facts(false, false, true), &[Updated]),
            (Group::Plain, facts(true, false, true), &[Updated]),
            (Group::Qemu, facts(true, true, true), &[Plain, Updated, Backports]),
            (Group::Qemu, facts(false, false, true), &[Updated, Backports]),
            // qemu-utils of backports is installed.
            (Group::Qemu, facts(true, false, true), &[Backports, Updated]),
            // Ubuntu.
            (Group::Qemu, facts(true, true, false), &[Plain, Updated]),
            (Group::Qemu, facts(true, false, false), &[Updated]),
        ] {
            assert_eq!(attempts(group, facts), expected, "{group:?} {facts:?}");
        }
    }

    #[test]
    fn backports_come_from_the_hosts_own_mirror() {
        let text = "http://mirror.example/debian/|bookworm\nhttp://mirror.example/debian/|bookworm\n\
                    http://mirror.example/debian/|bookworm-updates\nhttp://mirror.example/sec/|bookworm-security\n\
                    https://other.example/|nodistro\nnonsense\n";
        let all = sources(text);
        assert_eq!(all.len(), 4);
        let list = backports_list(&all, "bookworm", Some("/k.gpg")).unwrap();
        assert_eq!(
            list,
            "deb [signed-by=/k.gpg] http://mirror.example/debian/ bookworm main\n\
             deb [signed-by=/k.gpg] http://mirror.example/debian/ bookworm-updates main\n\
             deb [signed-by=/k.gpg] http://mirror.example/debian/ bookworm-backports main\n"
        );
        assert_eq!(
            backports_list(&all[..1], "bookworm", None).unwrap(),
            "deb http://mirror.example/debian/ bookworm main\n\
             deb http://mirror.example/debian/ bookworm-backports main\n"
        );
        assert_eq!(backports_list(&all, "trixie", None), None);
    }

    #[test]
    fn os_release_fields() {
        let text = "ID=debian\nVERSION_CODENAME=\"bookworm\"\nEMPTY=\n";
        assert_eq!(os_field(text, "ID"), Some("debian"));
        assert_eq!(os_field(text, "VERSION_CODENAME"), Some("bookworm"));
        assert_eq!(os_field(text, "VERSION"), None);
        assert_eq!(os_field(text, "EMPTY"), None);
    }
}
