//! Which Debian mirror this host's apt uses.

use std::path::PathBuf;
use std::time::Duration;

use fleetbox_os::child::Spawn;

use crate::ImageError;
use crate::task::Task;
use crate::tool::{self, Limits, Tool};

const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
const APT_CONFIG: Tool = Tool { name: "apt-config", package: "apt" };

/// Neither program asks the network.
const LIMITS: Limits = Limits { silence: Duration::from_secs(30), total: Duration::from_secs(60) };

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sources {
    /// sources.list(5) lines; none: mmdebstrap's own default.
    pub(crate) lines: Vec<String>,
    /// apt.conf(5) text: this host's proxies and timing rules.
    pub(crate) apt_conf: String,
}

/// The sources for a suite, by what this host's apt has for its own.
pub(crate) fn of_this_host(suite: &str, task: &Task) -> Result<Sources, ImageError> {
    // No apt (another distribution): mmdebstrap has one as a dependency, and a default mirror.
    let (Ok(apt_get), Ok(apt_config)) = (APT_GET.find("find a mirror"), APT_CONFIG.find("find a proxy"))
    else {
        return Ok(Sources::default());
    };
    let format = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(LABEL)";
    let targets = output(
        APT_GET,
        apt_get.clone(),
        &["indextargets", "--format", format, "Created-By: Packages"],
        task,
    )?;
    let mut mirrors = from_targets(&targets);
    if mirrors.is_empty() {
        // A host that has not fetched its lists yet knows just the addresses.
        mirrors = from_uris(&output(APT_GET, apt_get, &["update", "--print-uris"], task)?);
    }
    let dump = output(APT_CONFIG, apt_config, &["dump", "--format", "%F \"%v\";%n", "Acquire"], task)?;
    Ok(Sources { lines: lines_for(suite, &mirrors), apt_conf: relevant_conf(&dump) })
}

fn output(tool: Tool, program: PathBuf, args: &[&str], task: &Task) -> Result<String, ImageError> {
    let mut text = String::new();
    let ended = tool::run(tool, Spawn::new(program).args(args), LIMITS, task, |line| {
        text.push_str(line);
        text.push('\n');
        Ok(())
    })?;
    if !ended.status.success() {
        // A broken source of the host's is not ours to report: the default mirror may do.
        tracing::warn!(tool = tool.name, tail = %ended.tail.text(), "apt on this host could not say what it uses");
        return Ok(String::new());
    }
    Ok(text)
}

/// The mirrors of Debian's archives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Mirrors {
    main: Option<String>,
    security: Option<String>,
    /// The host takes point updates, too.
    updates: bool,
}

impl Mirrors {
    fn is_empty(&self) -> bool {
        self.main.is_none()
    }

    fn add(&mut self, uri: &str, release: &str, is_security: bool) {
        // A guest must reach it too, and so must apt outside of this host's folders.
        if !(uri.starts_with("http://") || uri.starts_with("https://")) || uri.contains(char::is_whitespace) {
            return;
        }
        if is_security {
            self.security.get_or_insert_with(|| uri.to_owned());
        } else if release.ends_with("-updates") {
            self.updates = true;
        } else if !release.contains('-') {
            self.main.get_or_insert_with(|| uri.to_owned());
        }
    }
}

/// From `apt-get indextargets`: address, suite, origin and label, as the fetched Release files have them.
fn from_targets(text: &str) -> Mirrors {
    let mut mirrors = Mirrors::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        // Third parties' repositories have other origins; backports have the label "Debian Backports".
        match fields[..] {
            [uri, release, "Debian", "Debian"] => mirrors.add(uri, release, false),
            [uri, release, "Debian", "Debian-Security"] => mirrors.add(uri, release, true),
            _ => {}
        }
    }
    mirrors
}

/// From `apt-get update --print-uris`: lines such as `'http://host/debian/dists/bookworm/InRelease' …`.
fn from_uris(text: &str) -> Mirrors {
    let mut mirrors = Mirrors::default();
    for line in text.lines() {
        let Some(uri) = line.strip_prefix('\'').and_then(|l| l.split('\'').next()) else { continue };
        let Some((base, rest)) = uri.split_once("/dists/") else { continue };
        let Some(release) = rest.strip_suffix("/InRelease") else { continue };
        // Nothing but the path tells Debian's archive from a third party's here.
        match base.trim_end_matches('/').rsplit('/').next() {
            Some("debian") => mirrors.add(base, release, false),
            Some("debian-security") => mirrors.add(base, release, true),
            _ => {}
        }
    }
    mirrors
}

fn lines_for(suite: &str, mirrors: &Mirrors) -> Vec<String> {
    let Some(main) = &mirrors.main else { return Vec::new() };
    let mut lines = vec![format!("deb {main} {suite} main")];
    // Unstable is its own update.
    if !matches!(suite, "sid" | "unstable" | "experimental") {
        if mirrors.updates {
            lines.push(format!("deb {main} {suite}-updates main"));
        }
        if let Some(security) = &mirrors.security {
            lines.push(format!("deb {security} {suite}-security main"));
        }
    }
    lines
}

/// The settings that decide whether a mirror can be reached and believed; all others stay the new system's own.
fn relevant_conf(dump: &str) -> String {
    dump.lines()
        .filter(|l| {
            ["Acquire::http::", "Acquire::https::", "Acquire::Check-Valid-Until ", "Acquire::Check-Date "]
                .iter()
                .any(|p| l.starts_with(p))
                // Empty values are containers of the settings below them.
                && !l.ends_with(" \"\";")
        })
        .map(|l| format!("{l}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_own_archives_are_told_from_others() {
        let text = "\
            https://other.test/node/|nodistro|. nodistro|. nodistro\n\
            http://mirror.test/debian/|bookworm|Debian|Debian\n\
            http://mirror.test/debian/|bookworm-updates|Debian|Debian\n\
            http://mirror.test/debian/|bookworm-backports|Debian Backports|Debian Backports\n\
            http://second.test/debian/|bookworm|Debian|Debian\n\
            http://mirror.test/sec/|bookworm-security|Debian|Debian-Security\n";
        let mirrors = from_targets(text);
        assert_eq!(
            lines_for("trixie", &mirrors),
            [
                "deb http://mirror.test/debian/ trixie main",
                "deb http://mirror.test/debian/ trixie-updates main",
                "deb http://mirror.test/sec/ trixie-security main"
            ]
        );
        assert_eq!(lines_for("sid", &mirrors), ["deb http://mirror.test/debian/ sid main"]);
    }

    #[test]
    fn addresses_will_do_where_no_lists_are() {
        let text = "\
            'http://mirror.test/debian/dists/bookworm/InRelease' mirror.test_debian_dists_bookworm_InRelease 0 \n\
            'http://mirror.test/debian-security/dists/bookworm-security/InRelease' x 0 \n\
            'https://other.test/node/dists/nodistro/InRelease' y 0 \n";
        assert_eq!(
            from_uris(text),
            Mirrors {
                main: Some("http://mirror.test/debian".into()),
                security: Some("http://mirror.test/debian-security".into()),
                updates: false
            }
        );
    }

    #[test]
    fn what_only_this_host_can_reach_is_left_out() {
        for text in
            ["file:/srv/debian/|bookworm|Debian|Debian\n", "cdrom://x/|bookworm|Debian|Debian", "", "|||\n|"]
        {
            assert_eq!(lines_for("bookworm", &from_targets(text)), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn proxies_are_taken_over_and_other_settings_are_not() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://proxy.test:3128\";\n\
                    Acquire::https::Proxy::mirror.test \"DIRECT\";\nAcquire::Languages \"\";\n\
                    Acquire::Check-Valid-Until \"false\";\nAcquire::GzipIndexes \"true\";\n";
        assert_eq!(
            relevant_conf(dump),
            "Acquire::http::Proxy \"http://proxy.test:3128\";\nAcquire::https::Proxy::mirror.test \"DIRECT\";\n\
             Acquire::Check-Valid-Until \"false\";\n"
        );
    }
}
