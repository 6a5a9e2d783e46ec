//! Processes that fleetbox started, directly or not.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fleetbox_os::process;

use super::{Collect, Kind};

/// Programs that run only because something of fleetbox's started them, as far as tests go.
const PROGRAMS: [&str; 4] = ["qemu-system-", "cloud-hypervisor", "mmdebstrap", "virtiofsd"];

/// The variable that says where the store is; one that users set for their whole shell.
const HOME_VARIABLE: &str = "FLEETBOX_HOME";

pub(super) fn collect(collect: &mut Collect, home: Option<&Path>) {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(e) => return collect.unread("processes", e),
    };
    for pid in entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
        // One that ends while it is looked at is none.
        let Ok(stat) = process::stat(pid) else { continue };
        // A zombie executes and holds nothing.
        if stat.is_dead() {
            continue;
        }
        let (Ok(argv), environ) = (words(pid, "cmdline"), words(pid, "environ").unwrap_or_default()) else {
            continue;
        };
        if is_ours(&argv, &environ, home) {
            let mut command = argv.join(" ");
            truncate(&mut command, 160);
            collect.add(Kind::Process, format!("pid {pid} (started at tick {}): {command}", stat.start_time));
        }
    }
}

/// By its program's name, or by its environment: a holder and all it starts carry a variable of fleetbox's.
fn is_ours(argv: &[String], environ: &[String], home: Option<&Path>) -> bool {
    let program = argv.first().map(|a| a.rsplit('/').next().unwrap_or(a)).unwrap_or_default();
    // A script's name is its interpreter's argument.
    let script = argv.get(1).map(|a| a.rsplit('/').next().unwrap_or(a)).unwrap_or_default();
    let named = |name: &str| PROGRAMS.iter().any(|p| name.starts_with(p));
    if named(program) || (matches!(program, "perl" | "sh" | "bash" | "python3") && named(script)) {
        return true;
    }
    environ.iter().filter(|e| e.starts_with("FLEETBOX_")).filter_map(|e| e.split_once('=')).any(
        |(name, value)| match name {
            HOME_VARIABLE => home.is_some_and(|h| h.as_os_str().as_bytes() == value.as_bytes()),
            _ => true,
        },
    )
}

fn words(pid: u32, file: &str) -> io::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/{file}"))?;
    let words = bytes.split(|b| *b == 0).filter(|w| !w.is_empty());
    Ok(words.map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}

fn truncate(text: &mut String, chars: usize) {
    if let Some((at, _)) = text.char_indices().nth(chars) {
        text.truncate(at);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostSnapshot;
    use std::time::Duration;

    #[test]
    fn by_program_and_by_environment() {
        let ours = |argv: &[&str], env: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
            is_ours(&own(argv), &own(env), Some(Path::new("/tmp/home")))
        };
        assert!(ours(&["/usr/bin/qemu-system-x86_64", "-M", "q35"], &[]));
        assert!(ours(&["/usr/bin/perl", "/usr/bin/mmdebstrap"], &[]));
        assert!(!ours(&["vi", "mmdebstrap.txt"], &[]));
        assert!(ours(&["/tmp/test-1234"], &["A=1", "FLEETBOX_HOLDER_FD=3"]));
        assert!(ours(&["sleep"], &["FLEETBOX_HOME=/tmp/home"]));
        assert!(!ours(&["sleep"], &["FLEETBOX_HOME=/home/user/.fleetbox"]));
        assert!(!ours(&[], &[]));
    }

    #[test]
    fn a_running_child_is_found_until_it_has_ended() {
        let tmp = tempfile::tempdir().unwrap();
        let leaks_of = |before: &HostSnapshot, pid: u32| {
            let after = HostSnapshot::take(Some(tmp.path()));
            before.diff(&after).into_iter().any(|l| l.what.starts_with(&format!("pid {pid} ")))
        };
        let before = HostSnapshot::take(Some(tmp.path()));
        let mut child =
            std::process::Command::new("sleep").arg("1000").env(HOME_VARIABLE, tmp.path()).spawn().unwrap();
        crate::wait_for("the child to be seen", Duration::from_secs(30), || {
            leaks_of(&before, child.id()).then_some(()).ok_or("not seen")
        })
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!leaks_of(&before, child.id()));
    }
}
