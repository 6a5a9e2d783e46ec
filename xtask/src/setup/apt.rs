//! Carrying out the plan with apt-get.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::plan::{self, Attempt, Facts, Group};
use crate::workspace::{Workspace, output, run, show};

/// Debian's archive keys, backports included.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long another apt (an unattended upgrade, say) is waited for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a failing update is tried again: it has no lock timeout of its own, and mirrors stumble.
const UPDATE_DEADLINE: Duration = Duration::from_secs(60);

/// Installs packages, trying one way after another.
pub(super) fn install(workspace: &Workspace, group: Group, packages: &[&str], dry_run: bool) -> Result<()> {
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = plan::os_field(&os_release, "VERSION_CODENAME");
    let is_debian = plan::os_field(&os_release, "ID") == Some("debian");
    let facts = Facts {
        known: packages.iter().all(|p| quietly(query("apt-cache").args(["show", "--no-all-versions", p]))),
        resolvable: quietly(apt_get(&[]).args(["install", "--simulate"]).args(packages)),
        has_backports: is_debian && codename.is_some(),
    };
    let attempts = plan::attempts(group, facts);
    println!("setup: {} ({}): to try: {attempts:?}", packages.join(", "), describe(facts));
    let mut failures = Vec::new();
    for attempt in attempts {
        let done = match attempt {
            Attempt::Plain => install_with(&[], packages, dry_run),
            Attempt::Updated => update(&[], dry_run).and_then(|()| install_with(&[], packages, dry_run)),
            Attempt::Backports => from_backports(workspace, codename.unwrap_or_default(), packages, dry_run),
        };
        match done {
            // A dry run cannot know whether the next ones would be needed.
            Ok(()) if !dry_run => return Ok(()),
            Ok(()) => {}
            Err(e) => failures.push(format!("{attempt:?}: {e:#}")),
        }
    }
    if dry_run {
        return Ok(());
    }
    bail!("could not install {}:\n  {}", packages.join(", "), failures.join("\n  "))
}

fn describe(facts: Facts) -> &'static str {
    match facts {
        Facts { known: false, .. } => "not in the package lists yet",
        Facts { resolvable: true, .. } => "in the package lists",
        Facts { .. } => "in the package lists, but not for what is installed here",
    }
}

fn install_with(options: &[String], packages: &[&str], dry_run: bool) -> Result<()> {
    carry_out(apt_get(options).arg("install").args(packages), dry_run)
}

fn update(options: &[String], dry_run: bool) -> Result<()> {
    let started = Instant::now();
    loop {
        match carry_out(apt_get(options).arg("update"), dry_run) {
            Err(e) if started.elapsed() < UPDATE_DEADLINE => {
                eprintln!("setup: {e:#}; trying again");
                thread::park_timeout(Duration::from_secs(3));
            }
            done => return done,
        }
    }
}

/// Installs with package lists of our own that go again afterwards: the host's sources and lists stay as they are.
fn from_backports(workspace: &Workspace, codename: &str, packages: &[&str], dry_run: bool) -> Result<()> {
    let format = "$(REPO_URI)|$(RELEASE)";
    let targets =
        output(query("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let sources = plan::sources(&String::from_utf8_lossy(&targets.stdout));
    let keyring = Path::new(KEYRING).exists().then_some(KEYRING);
    let list = plan::backports_list(&sources, codename, keyring)
        .with_context(|| format!("apt installs {codename} from no mirror here"))?;
    let dir = Private(workspace.scratch("apt")?);
    for sub in ["sources", "lists/partial"] {
        fs::create_dir_all(dir.0.join(sub)).with_context(|| format!("could not create {sub}"))?;
    }
    fs::write(dir.0.join("sources/backports.list"), &list).context("could not write a list of sources")?;
    let option = |name: &str, path: PathBuf| format!("-o{name}={}", path.display());
    let options = [
        "-oDir::Etc::sourcelist=/dev/null".to_owned(),
        option("Dir::Etc::sourceparts", dir.0.join("sources")),
        option("Dir::State::lists", dir.0.join("lists")),
        // The cached form of the host's lists is none of these.
        "-oDir::Cache::pkgcache=".to_owned(),
        "-oDir::Cache::srcpkgcache=".to_owned(),
        // Fetched as root: our folder need not be open to apt's own user.
        "-oAPT::Sandbox::User=root".to_owned(),
        format!("-oAPT::Default-Release={codename}-backports"),
    ];
    update(&options, dry_run)?;
    install_with(&options, packages, dry_run)
}

/// A folder that goes when it is dropped.
struct Private(PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("setup: could not remove {}: {e}", self.0.display());
        }
    }
}

/// apt-get, made not to ask, not to install more than it must, not to remove anything, and to wait for its locks.
///
/// Without `--no-remove` it "solves" a conflict of the release's QEMU with backports' qemu-utils by removing these.
fn apt_get(options: &[String]) -> Command {
    let mut command = query("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1");
    // invoke-rc.d then takes this for single-user mode, in which no installed daemon is started.
    command.env("RUNLEVEL", "1");
    command.args(["-q", "-y", "--no-install-recommends", "--no-remove", "-oDpkg::Use-Pty=0"]);
    // Whoever changed a configuration file wants to keep it.
    command.args(["-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold"]);
    command.arg(format!("-oDPkg::Lock::Timeout={}", LOCK_TIMEOUT.as_secs()));
    command.args(options);
    command
}

/// A command with untranslated messages and no input.
fn query(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Whether it succeeds; what it says is of no interest.
fn quietly(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn carry_out(command: &mut Command, dry_run: bool) -> Result<()> {
    if dry_run {
        println!("would run: {}", show(command));
        return Ok(());
    }
    run(command)
}
