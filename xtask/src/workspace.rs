//! Where the workspace is, what is in it, and how commands are run there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The workspace that this xtask belongs to.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        // cargo sets it at run time too, which stays right when the checkout is moved after the build.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let root = manifest.parent().context("xtask's manifest has no folder above it")?;
        if !root.join("Cargo.toml").is_file() {
            bail!("there is no workspace in {}", root.display());
        }
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The build folder.
    pub(crate) fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR").filter(|t| !t.is_empty()) {
            Some(target) => self.root.join(target),
            None => self.root.join("target"),
        }
    }

    /// A folder of xtask's own in the build folder.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.target().join("xtask").join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
        Ok(dir)
    }

    /// A command that runs in the workspace's root.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// The cargo that runs this xtask.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = self.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What `cargo xtask` set for its own package must not reach another cargo's build scripts.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"))
            {
                command.env_remove(name);
            }
        }
        command
    }

    /// `cargo metadata` with these further arguments.
    pub(crate) fn metadata(&self, args: &[&str]) -> Result<Value> {
        let output = output(self.cargo().args(["metadata", "--format-version", "1"]).args(args))?;
        serde_json::from_slice(&output.stdout).context("cargo metadata printed something else than JSON")
    }

    /// The triple that cargo builds for.
    pub(crate) fn host_triple(&self) -> Result<String> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let text = String::from_utf8(output(self.command(rustc).arg("-vV"))?.stdout)?;
        let triple = text.lines().find_map(|l| l.strip_prefix("host: "));
        Ok(triple.context("rustc -vV names no host")?.to_owned())
    }
}

/// Runs a command for its output; one that fails is an error with what it said.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("could not run {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} ended with {}: {}", output.status, said.trim());
    }
    Ok(output)
}

/// Runs a command in the open: what it prints is the user's to read.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("+ {shown}");
    let status = command.status().with_context(|| format!("could not run {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// A command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // A process's folder belongs to its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Where a program is: by PATH, then in the folders that root's PATH has and a user's often lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(name))
        .find(|p| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}
