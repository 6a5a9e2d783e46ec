//! Mounts, loop devices, and what is in a FLEETBOX_HOME only while something runs.

use std::fs;
use std::path::Path;

use super::{Collect, Kind};

pub(super) fn collect(collect: &mut Collect, home: Option<&Path>) {
    match fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => text.lines().filter_map(mount).for_each(|m| collect.add(Kind::Mount, m)),
        Err(e) => collect.unread("mounts", e),
    }
    for device in names(Path::new("/sys/block")).filter(|n| n.starts_with("loop")) {
        if let Ok(file) = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")) {
            collect.add(Kind::LoopDevice, format!("{device}: {}", file.trim()));
        }
    }
    if let Some(home) = home {
        in_home(collect, home);
    }
}

/// Mount point, type and source of a line of proc_pid_mountinfo(5); its ids change with every mount.
fn mount(line: &str) -> Option<String> {
    let (left, right) = line.split_once(" - ")?;
    let point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    Some(format!("{point} ({} of {})", right.next()?, right.next()?))
}

/// What the store keeps on purpose (finished images, the key, logs, locks, the host probe) is no leak.
fn in_home(collect: &mut Collect, home: &Path) {
    for dir in ["run", "journal"] {
        for name in names(&home.join(dir)).filter(|n| !n.starts_with("probe-")) {
            collect.add(Kind::File, format!("{dir}/{name}"));
        }
    }
    // `.file-<hash>.json` remembers the digest of a user's file, so that it is hashed once: kept on purpose, too.
    for name in names(&home.join("images")).filter(|n| n.starts_with('.') && !n.starts_with(".file-")) {
        collect.add(Kind::File, format!("images/{name}"));
    }
    for cluster in names(&home.join("clusters")) {
        collect.add(Kind::File, format!("clusters/{cluster}"));
        for name in names(&home.join("clusters").join(&cluster)) {
            collect.add(Kind::File, format!("clusters/{cluster}/{name}"));
        }
    }
}

/// Names in a folder; one that is not there holds none.
fn names(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_without_their_ids() {
        let line = "36 35 98:0 /mnt1 /mnt/x rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount(line).as_deref(), Some("/mnt/x (ext3 of /dev/root)"));
        assert_eq!(mount("garbage"), None);
    }
}
