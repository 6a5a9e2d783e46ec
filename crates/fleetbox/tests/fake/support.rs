//! What the tests of this tier share.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use fleetbox::blocking::{Cluster, Vm, start_n};
use fleetbox::{MachineInfo, StartOptions, State};
use fleetbox_os::process::{PidFd, stat};
use fleetbox_testkit::wait_for;
use libtest_mimic::{Failed, Trial};

/// How long everything of a dead owner may take to be gone by itself. The promise is 2 s.
pub(crate) const PROMISE: Duration = Duration::from_secs(2);
/// A deadline for what is no promise, on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const OWNER: &str = "FLEETBOX_TEST_OWNER";

pub(crate) fn trial(name: &str, f: impl FnOnce(&Home) -> TestResult + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let home = Home::new();
        let result = f(&home);
        let clear = home.clear();
        result.and(clear).map_err(|e| Failed::from(chain(&*e)))
    })
}

/// How a test is set apart from the others: a process of its own that runs nothing else.
#[derive(Clone, Copy, Default)]
pub(crate) struct Isolated {
    /// In a network namespace of its own, where nobody else's links, memory and turns are seen.
    pub(crate) namespace: bool,
    /// With this in its environment, which its holders inherit.
    pub(crate) env: &'static [(&'static str, &'static str)],
}

const ISOLATED: &str = "FLEETBOX_TEST_ISOLATED";

/// A test that runs in a process of its own.
pub(crate) fn trial_in(
    name: &'static str,
    isolated: Isolated,
    f: impl FnOnce(&Home) -> TestResult + Send + 'static,
) -> Trial {
    if std::env::var_os(ISOLATED).is_some() {
        return trial(name, f);
    }
    Trial::test(name, move || {
        let run = move || {
            if isolated.namespace {
                // Of this thread only, and of what it starts.
                fleetbox_os::netns::enter_new()?;
            }
            let mut command = Command::new("/proc/self/exe");
            command.args(["--exact", name]).env(ISOLATED, "1").envs(isolated.env.iter().copied());
            command.output()
        };
        let out = std::thread::spawn(run).join().unwrap().map_err(|e| Failed::from(e.to_string()))?;
        let said = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        said.lines().filter(|l| l.starts_with(MEASURED)).for_each(|l| eprintln!("{l}"));
        if out.status.success() && said.contains("1 passed") { Ok(()) } else { Err(said.into()) }
    })
}

/// What begins a line that an isolated test wants to be seen.
const MEASURED: &str = "many: ";

pub(crate) type TestResult = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

/// Starts this program once more, with the backend in its environment, in place of this process.
pub(crate) fn run_again_with_the_fake() -> ! {
    let error = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env("FLEETBOX_BACKEND", "fake")
        // No guest, no memory: what is tested of these limits sets its own.
        .env("FLEETBOX_MEMORY", "1000000")
        .env("FLEETBOX_BOOTS", "64")
        .exec();
    panic!("could not execute itself again: {error}");
}

/// A fleetbox home of a test's own.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("fb").tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn start(&self, name: &str) -> fleetbox::Result<Vm> {
        Vm::start(Vm::builder(name).home(self.path()))
    }

    pub(crate) fn file(&self, below: &str) -> PathBuf {
        self.path().join(below)
    }

    pub(crate) fn machine_dir(&self, name: &str) -> PathBuf {
        self.file(&format!("clusters/{name}/{name}"))
    }

    /// The link name of a cluster's bridge, as recorded.
    pub(crate) fn bridge(&self, cluster: &str) -> String {
        let text = std::fs::read_to_string(self.file(&format!("clusters/{cluster}/network.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["bridge"].as_str().unwrap().to_owned()
    }

    /// Undoes what dead owners left, in a process of its own, and tells what that was.
    pub(crate) fn prune(&self) -> Result<String, Box<dyn std::error::Error>> {
        let undone =
            Command::new("/proc/self/exe").env(PRUNER, "1").env("FLEETBOX_HOME", self.path()).output()?;
        Ok(String::from_utf8(undone.stdout)?)
    }

    /// The link name of a cluster's bridge, whether there is one or not.
    pub(crate) fn bridge_name(&self, cluster: &str) -> String {
        let store = fleetbox_store::Store::open(self.path()).unwrap();
        fleetbox_net::bridge_name(&store, &fleetbox_spec::ClusterName::new(cluster).unwrap())
    }

    /// Waits until nothing on the host is left of a cluster: processes, links, socket, journal.
    pub(crate) fn assert_gone(&self, before: &Traces, within: Duration) -> TestResult {
        wait_for("every trace to be gone", within, || {
            let left = before.left(self);
            if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
        })?;
        Ok(())
    }

    /// Ends the test: whatever holds this home must end by itself or, after a failed test, is killed; then what is
    /// left on the host is undone while the journal that names it still exists.
    fn clear(&self) -> TestResult {
        let pids = || processes_with(self.path());
        let by_itself =
            wait_for("all processes of the home to end", Duration::from_secs(5), || match pids() {
                left if left.is_empty() => Ok(()),
                left => Err(format!("{left:?}")),
            });
        for pid in pids() {
            if let Ok(fd) = PidFd::open(pid) {
                let _ = fd.kill();
            }
        }
        wait_for("killed processes to end", PATIENCE, || {
            if pids().is_empty() { Ok(()) } else { Err("they live") }
        })?;
        let mut undone = String::new();
        // A process that was killed may have its taps for a moment after it shows no environment any more; until then
        // what it has is a living owner's.
        wait_for("what the dead had to be undone", PATIENCE, || {
            undone += &self.prune().map_err(|e| e.to_string())?;
            match std::fs::read_dir(self.file("journal")).map_or(0, Iterator::count) {
                0 => Ok(()),
                n => Err(format!("{n} journals are left: {undone}")),
            }
        })?;
        by_itself?;
        if undone.trim().is_empty() { Ok(()) } else { Err(format!("left to be undone: {undone}").into()) }
    }
}

/// Names a process that is to undo what a home's dead owners left, and to print it.
const PRUNER: &str = "FLEETBOX_TEST_PRUNER";

/// Undoes what dead owners left in the default home.
pub(crate) fn become_pruner_if_asked() -> bool {
    if std::env::var_os(PRUNER).is_none() {
        return false;
    }
    match fleetbox::blocking::prune() {
        Ok(pruned) => pruned.undone.iter().chain(&pruned.failed).for_each(|line| println!("{line}")),
        Err(e) => println!("{}", chain(&e)),
    }
    true
}

/// Every process, but this one, that was started with a home's path in its environment: owners, holders, VMMs.
pub(crate) fn processes_with(home: &Path) -> Vec<u32> {
    let needle = home.display().to_string();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let dead = stat(pid).map_or(true, |s| s.is_dead());
        if pid != std::process::id() && !dead && String::from_utf8_lossy(&environ).contains(&needle) {
            pids.push(pid);
        }
    }
    pids
}

/// What a running machine has on the host.
pub(crate) struct Traces {
    pub(crate) info: MachineInfo,
    bridge: String,
}

impl Traces {
    pub(crate) fn of(home: &Home, info: MachineInfo) -> Self {
        let bridge = home.bridge(info.cluster.as_str());
        let traces = Self { info, bridge };
        assert_eq!(
            traces.left(home).len(),
            5,
            "the traces that are looked for must be there: {:?}",
            traces.left(home)
        );
        traces
    }

    fn left(&self, home: &Home) -> Vec<String> {
        let mut left = Vec::new();
        for (what, pid) in [("VMM", self.info.vmm_pid), ("holder", self.info.holder_pid)] {
            if let Some(pid) = pid.filter(|&p| stat(p).is_ok_and(|s| !s.is_dead())) {
                left.push(format!("{what} {pid}"));
            }
        }
        if Path::new("/sys/class/net").join(&self.bridge).exists() {
            left.push(format!("bridge {}", self.bridge));
        }
        for dir in ["run", "journal"] {
            for entry in std::fs::read_dir(home.file(dir)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if !name.starts_with("probe-") {
                    left.push(format!("{dir}/{name}"));
                }
            }
        }
        left
    }
}

/// A process that starts a machine and then does nothing until it is told to end, or killed.
pub(crate) struct Owner {
    child: Child,
    stdin: Option<ChildStdin>,
    said: BufReader<std::process::ChildStdout>,
}

impl Owner {
    /// `wish` is one of `named`, `ephemeral`, `detached`; `fake` the fake's settings as JSON.
    pub(crate) fn spawn(home: &Home, name: &str, wish: &str, fake: &str) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .env(OWNER, format!("{name} {wish}"))
            .env("FLEETBOX_TEST_HOME", home.path())
            .env("FLEETBOX_HOME", home.path())
            .env("FLEETBOX_FAKE", fake)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { stdin: child.stdin.take(), child, said }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for the machine it starts.
    pub(crate) fn up(&mut self) -> Result<MachineInfo, String> {
        let line = self.line();
        match line.strip_prefix("up ") {
            Some(json) => Ok(serde_json::from_str(json).unwrap()),
            None => Err(line),
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end by itself.
    pub(crate) fn finish(mut self) -> std::process::ExitStatus {
        drop(self.stdin.take());
        self.child.wait().unwrap()
    }
}

/// Names the socket that a stranger is to try.
pub(crate) const STRANGER: &str = "FLEETBOX_TEST_STRANGER";

/// Asks a holder for its version, whoever this process is.
pub(crate) fn become_stranger_if_asked() -> bool {
    let Some(socket) = std::env::var_os(STRANGER) else { return false };
    let answer = match std::os::unix::net::UnixStream::connect(socket) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => "denied".to_owned(),
        Err(e) => e.to_string(),
        Ok(mut stream) => {
            // A holder that turns somebody away does not read first; what it says is what counts.
            let _ = stream.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut stream, &mut text);
            text
        }
    };
    println!("{answer}");
    true
}

/// What an [`Owner`] does.
pub(crate) fn become_owner_if_asked() -> bool {
    let Ok(wish) = std::env::var(OWNER) else { return false };
    let home = PathBuf::from(std::env::var_os("FLEETBOX_TEST_HOME").unwrap());
    let (name, kind) = wish.split_once(' ').unwrap();
    let mut out = std::io::stdout();
    match kind {
        "trio" => {
            let started = start_n(name, 3, StartOptions::new().home(&home).ephemeral());
            let said = started.as_ref().map_or_else(chain_of, |_| "up".to_owned());
            // Whoever killed the holder may not be listening.
            let _ = writeln!(out, "{said}");
            wait_for_end_of_input();
            return true;
        }
        "detached-cluster" => {
            let created = Cluster::create(Cluster::builder(name).home(&home).detached());
            writeln!(out, "{}", created.as_ref().map_or_else(chain_of, |_| "up".to_owned())).unwrap();
            wait_for_end_of_input();
            return true;
        }
        "close" => {
            let closed = fleetbox::blocking::close_cluster(name, Some(fleetbox::Members::Destroy));
            let said = closed.map_or_else(|e| format!("{:?} {}", e.kind(), chain(&e)), |()| "closed".into());
            writeln!(out, "{said}").unwrap();
            return true;
        }
        _ => {}
    }
    let mut builder = Vm::builder(name).home(&home);
    builder = match kind {
        "ephemeral" => builder.ephemeral(),
        "detached" => builder.detached(),
        _ => builder,
    };
    let started = Vm::start(builder);
    match &started {
        Ok(vm) => writeln!(out, "up {}", serde_json::to_string(&vm.info().unwrap()).unwrap()).unwrap(),
        Err(e) => writeln!(out, "{:?} {}", e.kind(), chain(e)).unwrap(),
    }
    wait_for_end_of_input();
    true
}

fn chain_of(e: &fleetbox::Error) -> String {
    chain(e)
}

fn wait_for_end_of_input() {
    let mut rest = String::new();
    std::io::stdin().read_line(&mut rest).unwrap();
}

/// Waits for a machine to reach a state.
pub(crate) fn wait_state(vm: &Vm, wanted: State) -> TestResult {
    wait_for(&format!("state {wanted}"), PATIENCE, || match vm.state() {
        Ok(state) if state == wanted => Ok(()),
        Ok(state) => Err(state.to_string()),
        Err(e) => Err(chain(&e)),
    })?;
    Ok(())
}

/// Waits for a process's end.
pub(crate) fn ended(pid: u32, within: Duration) -> TestResult {
    wait_for(&format!("the end of process {pid}"), within, || match stat(pid) {
        Ok(s) if !s.is_dead() => Err(format!("it is in state {}", s.state)),
        _ => Ok(()),
    })?;
    Ok(())
}
