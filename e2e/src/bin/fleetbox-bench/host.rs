//! What it is measured on.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::report::HostReport;
use crate::{Bench, recipe};

pub(crate) async fn describe(bench: &Bench) -> Result<HostReport> {
    let qemu = Command::new(recipe::qemu()?).arg("--version").output().await.context("could not run QEMU")?;
    let ssh = Command::new("ssh").arg("-V").output().await.context("could not run ssh")?;
    Ok(HostReport {
        date: date(),
        cpu: cpu(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: fleetbox_os::host::memory()?.total_mib,
        kernel: kernel(),
        accel: bench.accel.to_string(),
        qemu: first_line(&qemu.stdout),
        openssh: first_line(&ssh.stderr),
        load_before: load(),
    })
}

/// The host and the programs that images are measured against, in one line.
pub(crate) async fn about_image_tools() -> Result<String> {
    let mut tools = Vec::new();
    for program in ["qemu-img", "sha256sum", "gzip", "xz", "zstd"] {
        let output = Command::new(program).arg("--version").output().await;
        let output = output.with_context(|| format!("could not run {program}"))?;
        tools.push(first_line(&output.stdout));
    }
    let load = load().map(|l| format!(", load {l:.1}")).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!("{}: {cpus} cores of {}, Linux {}; {}{load}", date(), cpu(), kernel(), tools.join("; ")))
}

fn date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

fn cpu() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or("unknown").to_owned()
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn load() -> Option<f64> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_ascii_whitespace().next()?.parse().ok()
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned()
}

/// What the names of working folders begin with; the process's id and some random letters follow.
pub(crate) const WORK_PREFIX: &str = "bench-";

/// Removes the working folders of processes that were killed outright.
pub(crate) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(owner);
        if pid.is_some_and(|pid| fleetbox_os::process::stat(pid).is_err())
            && let Err(e) = fs::remove_dir_all(entry.path())
        {
            eprintln!("bench: could not remove {}: {e}", entry.path().display());
        }
    }
}

/// Whose working folder has this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(WORK_PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Reads a file once, so that it is in the page cache.
pub(crate) fn read_through(path: &Path) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_processes_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        // Pid 0 is nobody's.
        let (dead, mine) =
            (format!("{WORK_PREFIX}0-abc"), format!("{WORK_PREFIX}{}-abc", std::process::id()));
        for name in [dead.as_str(), mine.as_str(), "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path());
        assert!(!dir.path().join(dead).exists());
        assert!(dir.path().join(mine).exists() && dir.path().join("other").exists());
    }
}
