//! A fleetbox home of a test's own, and the command run in it.
#![expect(dead_code, reason = "each test program uses its own part of this")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "only tests call this")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fleetbox_testkit::wait_for;
use rustix::process::{Pid, Signal};

/// For what happens in milliseconds, on a host that is busy with something else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A home that is cleared away with its machines when the test ends, however it ends.
#[derive(Debug)]
pub(crate) struct Fleet {
    home: tempfile::TempDir,
    fake: Option<String>,
    machines: bool,
}

impl Fleet {
    /// For what needs neither root nor a holder.
    pub(crate) fn without_machines() -> Self {
        Self::new(false)
    }

    /// For machines of the fake backend, in a network namespace of the calling thread's own. `None`, once said why, where
    /// that cannot be had.
    pub(crate) fn of_fakes() -> Option<Self> {
        if let Err(e) = fleetbox_os::netns::enter_new() {
            fleetbox_testkit::report_skip(&format!("needs root for a network namespace of its own: {e}"));
            return None;
        }
        Some(Self::new(true))
    }

    fn new(machines: bool) -> Self {
        Self { home: tempfile::tempdir().unwrap(), fake: None, machines }
    }

    /// Sets how the fake behaves, as JSON.
    pub(crate) fn fake(&mut self, options: &str) {
        self.fake = Some(options.to_owned());
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetbox"));
        command.args(args).env("FLEETBOX_HOME", self.home.path()).stdin(Stdio::null());
        command.env_remove("NO_COLOR").env_remove("FLEETBOX_FAKE").env_remove("FLEETBOX_BACKEND");
        if self.machines {
            command.env("FLEETBOX_BACKEND", "fake");
            // There is no guest to use memory, or to boot.
            command.env("FLEETBOX_MEMORY", "1000000").env("FLEETBOX_BOOTS", "64");
        }
        if let Some(fake) = &self.fake {
            command.env("FLEETBOX_FAKE", fake);
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must succeed, and returns its stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}: {}", out.status, text(&out.stderr));
        text(&out.stdout)
    }

    /// Runs what must fail with that code, and returns its stderr.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out.stderr));
        text(&out.stderr)
    }

    /// Starts it with its output kept for later.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn list(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ok(&["ls", "--json"])).unwrap()
    }

    /// The state of a machine, `None` when there is none of that name.
    pub(crate) fn state(&self, name: &str) -> Option<String> {
        let machine = self.list().into_iter().find(|m| m["name"] == name)?;
        machine["state"].as_str().map(str::to_owned)
    }

    /// Makes a machine of a cluster of its own that has never been started by anybody.
    pub(crate) fn write_record(&self, name: &str, record: &str) {
        let dir = self.home().join("clusters").join(name).join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("machine.json"), record).unwrap();
    }

    /// Everything of this home that is there only while something runs, in words.
    pub(crate) fn running(&self) -> Vec<String> {
        let mut all = self
            .processes()
            .into_iter()
            .map(|(pid, what)| format!("process {pid} {what}"))
            .collect::<Vec<_>>();
        for dir in ["run", "journal"] {
            let names = std::fs::read_dir(self.home().join(dir)).into_iter().flatten().flatten();
            // The verdict on this host's KVM is kept on purpose.
            let names = names
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .filter(|n| !n.starts_with("probe-"));
            all.extend(names.map(|n| format!("{dir}/{n}")));
        }
        // The namespace is this test's own, so every link but lo is, too.
        let links = Command::new("ip").args(["-o", "link", "show"]).output().unwrap();
        let links = text(&links.stdout);
        all.extend(links.lines().filter(|l| !l.contains(": lo: ")).map(|l| format!("link {l}")));
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        all.extend(text(&tables.stdout).lines().map(|l| format!("nft {l}")));
        all
    }

    /// Processes that carry this home in their environment.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let home = format!("FLEETBOX_HOME={}", self.home().display());
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let mut all = Vec::new();
        for pid in entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let ended = fleetbox_os::process::stat(pid).map_or(true, |s| s.is_dead());
            if !ended && environ.split(|b| *b == 0).any(|v| v == home.as_bytes()) {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                all.push((pid, text(&command).replace('\0', " ")));
            }
        }
        all
    }

    /// Waits until nothing of this home runs any more, nor is left on the host.
    pub(crate) fn assert_quiet(&self, within: Duration) {
        let quiet = wait_for("nothing to be left", within, || {
            let left = self.running();
            if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
        });
        quiet.unwrap();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if !self.machines {
            return;
        }
        let folders = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let machines = folders(self.home().join("clusters")).flat_map(folders).filter(|p| p.is_dir());
        let names: Vec<String> = machines.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect();
        for name in names {
            let out = self.run(&["rm", "-f", &name]);
            if !out.status.success() {
                eprintln!("could not clean up {name}: {}", text(&out.stderr));
            }
        }
        // A start that was under way has no machine yet.
        for (pid, what) in self.processes() {
            eprintln!("left over, killed: {pid} {what}");
            let _ = fleetbox_os::process::PidFd::open(pid).and_then(|p| p.kill());
        }
    }
}

/// What is sent to a process that this test started and has not reaped.
pub(crate) fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// A machine's record as the store has it.
pub(crate) fn record(name: &str) -> String {
    serde_json::json!({
        "version": 1, "name": name, "image": "bootstrap:bookworm", "image_digest": "0".repeat(64), "cpus": 2,
        "memory_mib": 1024, "disk_gib": 10, "disk": "disk.qcow2", "backend": "qemu", "accel": "tcg",
        "uuid": "5f3c2a54-0000-4000-8000-000000000000", "mac": "52:54:00:aa:bb:cc", "ip": "10.77.3.2",
        "instance_id": "iid-1", "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA", "created_at": "2026-01-02T03:04:05Z",
        "ephemeral": false,
    })
    .to_string()
}
