//! What the tests share.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox_spec::{Accel, Arch, MachineName};
use fleetbox_vmm::{Backend, Boot, Disk, DiskFormat, LaunchConfig, Launched, MachineEvent};
use fleetbox_vmm_qemu::{QemuBackend, QemuConfig, find};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take here, even on a host that does much else.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Names the folder in which this binary, started again, shall own a machine.
pub(crate) const OWNER_VARIABLE: &str = "FLEETBOX_TEST_QEMU_OWNER";

/// The QEMU of this host.
#[derive(Debug)]
pub(crate) struct Host {
    qemu: QemuConfig,
    backend: QemuBackend,
    scripts: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new(qemu: QemuConfig) -> Self {
        use std::os::unix::fs::PermissionsExt;
        // Written before there are threads: a fork at the wrong moment keeps the file open for writing, and then it
        // cannot be executed ("text file busy").
        let scripts = tempfile::tempdir().unwrap();
        let hangs = scripts.path().join("hangs");
        std::fs::write(&hangs, "#!/bin/sh\nsleep 1000\n").unwrap();
        std::fs::set_permissions(&hangs, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { backend: QemuBackend::new(qemu.clone()), qemu, scripts }
    }

    pub(crate) fn qemu(&self) -> &QemuConfig {
        &self.qemu
    }

    pub(crate) fn backend(&self) -> &QemuBackend {
        &self.backend
    }

    /// A program that takes any arguments and never says a word.
    pub(crate) fn program_that_hangs(&self) -> PathBuf {
        self.scripts.path().join("hangs")
    }

    /// A machine whose firmware finds nothing to boot.
    pub(crate) fn firmware(&self, dir: &Path) -> LaunchConfig {
        firmware(dir)
    }

    /// A machine that executes these instructions in real mode.
    pub(crate) fn boot_sector(&self, dir: &Path, code: &[u8]) -> LaunchConfig {
        let mut sector = vec![0; 1024 * 1024];
        sector[..code.len()].copy_from_slice(code);
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        let config = firmware(dir);
        std::fs::write(&config.disks[0].path, sector).unwrap();
        config
    }
}

fn firmware(dir: &Path) -> LaunchConfig {
    let disk = dir.join("disk.raw");
    std::fs::write(&disk, vec![0; 1024 * 1024]).unwrap();
    LaunchConfig {
        name: MachineName::new("web").unwrap(),
        uuid: "12345678-1234-1234-1234-123456789abc".into(),
        cpus: 1,
        memory_mib: 64,
        boot: Boot::Bios,
        disks: vec![Disk { id: "root".into(), path: disk, format: DiskFormat::Raw, read_only: false }],
        nic: None,
        serial_log: dir.join("serial.log"),
        vmm_log: dir.join("vmm.log"),
    }
}

/// Runs a future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Waits until something is so.
pub(crate) async fn wait_for(what: &str, so: impl FnMut() -> bool) {
    wait_within(DEADLINE, what, so).await;
}

/// Waits until something is so, which has to be soon.
pub(crate) async fn wait_within(deadline: Duration, what: &str, mut so: impl FnMut() -> bool) {
    let poll = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(deadline, poll).await;
    assert!(waited.is_ok(), "waited {deadline:?} for {what} in vain");
}

/// The machine's next event.
pub(crate) async fn next(launched: &mut Launched) -> Option<MachineEvent> {
    let event = tokio::time::timeout(DEADLINE, launched.events.recv()).await;
    event.unwrap_or_else(|_| panic!("no event within {DEADLINE:?}"))
}

/// The machine's events to their end.
pub(crate) async fn rest(launched: &mut Launched) -> Vec<MachineEvent> {
    let mut all = Vec::new();
    while let Some(event) = next(launched).await {
        all.push(event);
    }
    all
}

/// Other processes that have a file open.
pub(crate) fn users_of(file: &Path) -> Vec<u32> {
    let pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file))
    };
    pids.filter(|&pid| pid != std::process::id()).filter(has_it).collect()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

pub(crate) fn kill_9(pid: u32) {
    signal(pid, Signal::KILL);
}

pub(crate) fn signal_stop(pid: u32) {
    signal(pid, Signal::STOP);
}

/// Whether a process has ended; nobody may have reaped it yet.
pub(crate) fn stat_dead(pid: u32) -> bool {
    fleetbox_os::process::stat(pid).map_or(true, |stat| stat.is_dead())
}

/// Why no tap can be made here.
pub(crate) fn why_no_tap() -> Option<String> {
    if !fleetbox_os::host::is_root() {
        return Some("making a tap needs root".to_owned());
    }
    let tun = std::fs::File::open("/dev/net/tun");
    tun.err().map(|error| format!("/dev/net/tun: {error}"))
}

#[expect(clippy::print_stderr, reason = "a skip says why, on stderr")]
pub(crate) fn prompt(line: &str) {
    eprintln!("{line}");
}

/// The life of an owner that will be killed: launches a machine, tells its VMM's pid, waits.
pub(crate) fn own_a_machine(dir: &Path) -> ! {
    let owner = async {
        let found = find(Arch::Amd64).await.unwrap();
        let backend = QemuBackend::new(QemuConfig::new(found, Arch::Amd64, Accel::Tcg));
        let launched = backend.launch(firmware(dir)).await.unwrap();
        std::fs::write(dir.join("tmp"), launched.machine.pid().unwrap().to_string()).unwrap();
        std::fs::rename(dir.join("tmp"), dir.join("vmm-pid")).unwrap();
        // Should nobody kill it, it still ends.
        tokio::time::sleep(DEADLINE * 2).await;
        panic!("the owner outlived its test");
    };
    block_on(owner)
}
