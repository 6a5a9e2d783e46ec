//! The other side: the usual recipe by hand, with QEMU, cloud-localds and the system's ssh.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleetbox::Accel;
use fleetbox_os::child::{Child, Spawn};
use tokio::process::Command;

use crate::Bench;
use crate::system_ssh::{self, Destination};

/// What both sides run first.
pub(crate) const COMMAND: &str = "echo up";
/// What it prints.
pub(crate) const ANSWER: &str = "up";

/// How long the recipe may take to answer.
const LIMIT: Duration = Duration::from_secs(900);
/// Between two attempts to log in.
const PAUSE: Duration = Duration::from_millis(100);

/// QEMU of this host's architecture.
pub(crate) fn qemu() -> Result<PathBuf> {
    let name = if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("there is no {name} in PATH"))
}

/// What is made once: a key, as there is one on anybody's machine.
#[derive(Debug)]
pub(crate) struct Recipe<'a> {
    bench: &'a Bench,
    key: PathBuf,
    public_key: String,
}

impl<'a> Recipe<'a> {
    pub(crate) async fn new(bench: &'a Bench) -> Result<Self> {
        let key = bench.work.join("id_ed25519");
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "recipe", "-f"])
            .arg(&key))
        .await?;
        let public_key = std::fs::read_to_string(key.with_extension("pub"))?.trim().to_owned();
        Ok(Self { bench, key, public_key })
    }

    /// From nothing to the first command's output, in seconds. The machine is gone afterwards.
    pub(crate) async fn boot(&self) -> Result<f64> {
        let dir = tempfile::tempdir_in(&self.bench.work)?;
        let destination = Destination {
            host: "127.0.0.1".into(),
            port: free_port()?,
            options: vec![
                format!("IdentityFile={}", self.key.display()),
                "IdentitiesOnly=yes".into(),
                "User=fleetbox".into(),
                "StrictHostKeyChecking=no".into(),
                "UserKnownHostsFile=/dev/null".into(),
                "LogLevel=ERROR".into(),
                // Goes for the key exchange, too: long enough for one under emulation.
                "ConnectTimeout=5".into(),
            ],
        };
        let began = Instant::now();
        self.make_disks(dir.path()).await?;
        let mut qemu = self.start_qemu(dir.path(), destination.port)?;
        self.wait_for_login(&destination, &mut qemu, dir.path()).await?;
        let took = began.elapsed();
        // Dropping it kills it and reaps it; its disks go with the folder.
        drop(qemu);
        Ok(took.as_secs_f64())
    }

    async fn make_disks(&self, dir: &Path) -> Result<()> {
        let Bench { image, disk_gib, .. } = self.bench;
        let overlay = dir.join("disk.qcow2");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", image.format.as_str(), "-b"])
            .arg(&image.path)
            .arg(&overlay)
            .arg(format!("{disk_gib}G")))
        .await?;
        let user_data = dir.join("user-data");
        let text = format!(
            "#cloud-config\nusers:\n  - name: fleetbox\n    sudo: ALL=(ALL) NOPASSWD:ALL\n    shell: /bin/bash\n    \
             ssh_authorized_keys:\n      - {}\n",
            self.public_key
        );
        std::fs::write(&user_data, text)?;
        run(Command::new("cloud-localds").arg(dir.join("seed.img")).arg(&user_data)).await
    }

    fn start_qemu(&self, dir: &Path, port: u16) -> Result<Child> {
        let Bench { image, accel, cpus, memory_mib, .. } = self.bench;
        let (machine, console) =
            if cfg!(target_arch = "aarch64") { ("virt", "ttyAMA0") } else { ("q35", "ttyS0") };
        let (accel, cpu) = match accel {
            Accel::Kvm => ("kvm", "host"),
            _ => ("tcg", "max"),
        };
        let mut spawn = Spawn::new(qemu()?)
            .args(["-machine", machine, "-accel", accel, "-cpu", cpu])
            .args(["-smp".to_owned(), cpus.to_string(), "-m".to_owned(), memory_mib.to_string()])
            .args(["-display", "none"])
            .args([OsString::from("-serial"), joined("file:", &dir.join("serial.log"), "")])
            .args([
                OsString::from("-drive"),
                joined("if=virtio,format=qcow2,file=", &dir.join("disk.qcow2"), ""),
            ])
            .args([OsString::from("-drive"), joined("if=virtio,format=raw,file=", &dir.join("seed.img"), "")])
            .args(["-netdev".to_owned(), format!("user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22")])
            .args(["-device", "virtio-net-pci,netdev=net0"]);
        if let Some(kernel) = &image.kernel {
            spawn = spawn.arg("-kernel").arg(kernel);
        }
        if let Some(initrd) = &image.initrd {
            spawn = spawn.arg("-initrd").arg(initrd);
        }
        spawn = spawn.arg("-append").arg(format!("{} console={console}", image.root_args));
        spawn.stderr = Some(OwnedFd::from(File::create(dir.join("qemu.log"))?));
        // It dies with this process, even if that is killed outright.
        spawn.spawn().context("could not start QEMU")
    }

    async fn wait_for_login(&self, destination: &Destination, qemu: &mut Child, dir: &Path) -> Result<()> {
        let began = Instant::now();
        loop {
            let output =
                system_ssh::command(destination, COMMAND).output().await.context("could not run ssh")?;
            if output.status.success() {
                let said = String::from_utf8_lossy(&output.stdout);
                if said.trim_end() != ANSWER {
                    bail!("the recipe's machine answered {said:?} to {COMMAND:?}");
                }
                return Ok(());
            }
            let last = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if let Some(status) = qemu.try_wait()? {
                let log = std::fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
                bail!("QEMU ended with {status}: {}", log.trim());
            }
            if began.elapsed() > LIMIT {
                let console = std::fs::read(dir.join("serial.log")).unwrap_or_default();
                let console = String::from_utf8_lossy(&console);
                let tail: Vec<&str> = console.lines().rev().take(15).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("no login within {LIMIT:?}; ssh last said {last:?}; the console:\n{}", tail.join("\n"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A port that nobody listens on at the moment.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("could not find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// An option of QEMU's with a path in it; a comma in the path is doubled.
fn joined(before: &str, path: &Path, after: &str) -> OsString {
    OsString::from(format!("{before}{}{after}", path.display().to_string().replace(',', ",,")))
}

/// Runs a program that has nothing to say when it succeeds.
async fn run(command: &mut Command) -> Result<()> {
    let output = command.kill_on_drop(true).output().await;
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = output.with_context(|| format!("could not run {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
