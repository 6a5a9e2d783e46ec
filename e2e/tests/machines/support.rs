//! What the tests on real machines share.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleetbox::blocking::Vm;
use fleetbox::{Host, MachineInfo, State, VmBuilder};
use fleetbox_e2e::images::{Made, TestImage, TestImages};
pub(crate) use fleetbox_e2e::story as chain;
use fleetbox_os::process::stat;
use fleetbox_testkit::wait_for;
use libtest_mimic::{Failed, Trial};

/// What a killed owner leaves must be gone within this time, by itself.
pub(crate) const PROMISE: Duration = Duration::from_secs(2);
/// A guest under emulation, on a loaded machine, gets this long for what it does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// The image that nearly all machines here are made from.
pub(crate) const IMAGE: &str = "bootstrap:bookworm";

pub(crate) type TestResult = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn trial(name: &'static str, f: fn() -> TestResult) -> Trial {
    Trial::test(name, move || f().map_err(|e| Failed::from(chain(&*e))))
}

/// Why no machine can be run here, if so.
pub(crate) fn lacking() -> Option<String> {
    if !fleetbox_os::host::is_root() {
        return Some("real machines need root".into());
    }
    match Host::capabilities() {
        Ok(host) if host.can_run_machines() => None,
        Ok(_) => Some("this host cannot run machines; `fleetbox doctor` says why".into()),
        Err(e) => Some(chain(&e)),
    }
}

/// The fleetbox home of this tier.
pub(crate) fn home() -> PathBuf {
    let home = std::env::var_os("FLEETBOX_HOME").expect("xtask names a home of its own for the tests");
    PathBuf::from(home)
}

/// Names of this process's machines, so that an earlier, killed run is not in the way.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}-e{:x}", std::process::id())
}

pub(crate) fn builder(name: &str) -> VmBuilder {
    Vm::builder(name).image(IMAGE)
}

/// Makes a machine with a boot so short that it fails: what stays is the image.
fn build_image(image: &str) {
    let name = unique("warm-up");
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (seen, what) = (std::sync::Arc::clone(&done), image.to_owned());
    let builder = Vm::builder(&name).image(image).ephemeral().boot_timeout(Duration::from_secs(1));
    let builder = builder.on_event(move |event| {
        if let fleetbox::Event::PhaseFinished { timing, .. } = &event
            && timing.phase == fleetbox::Phase::Image
        {
            println!("{what} ready after {} ms", timing.ms);
            seen.store(true, std::sync::atomic::Ordering::Release);
        }
    });
    let result = Vm::start(builder);
    if !done.load(std::sync::atomic::Ordering::Acquire) {
        let e = result.err().map(|e| chain(&e)).unwrap_or_default();
        println!("{image} could not be made: {e}");
        panic!("without the image no test can run");
    }
    // It was given one second to boot: it is no more.
    let _ = fleetbox::blocking::remove(&name, true);
}

/// Makes all images that the tests are about to need, two at a time: each build keeps one core busy.
pub(crate) fn build_images(also: Option<&'static str>, mut test_images: Vec<TestImage>) {
    type Job = Box<dyn FnOnce() + Send>;
    let mut jobs: Vec<Job> = vec![Box::new(|| build_image(IMAGE))];
    jobs.extend(also.map(|image| Box::new(move || build_image(image)) as Job));
    test_images.sort();
    test_images.dedup();
    for image in test_images {
        jobs.push(Box::new(move || {
            let started = Instant::now();
            if let Err(e) = made(image) {
                println!("{}", chain(&*e));
                panic!("without the test image {} no test of it can run", image.name());
            }
            println!("test image {} ready after {} ms", image.name(), started.elapsed().as_millis());
        }));
    }
    // Taken from the end.
    jobs.reverse();
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(job) = next() {
                    job();
                }
            });
        }
    });
}

/// A test image, made unless it is there.
pub(crate) fn made(image: TestImage) -> Result<Made, Box<dyn std::error::Error>> {
    Ok(TestImages::open(&home())?.make(image)?)
}

/// The disk image in the store that the machines of [`IMAGE`] are made from.
pub(crate) fn built_image() -> Result<PathBuf, Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(home().join("images"))? {
        let dir = entry?.path();
        let Ok(text) = std::fs::read(dir.join("meta.json")) else { continue };
        let meta: serde_json::Value = serde_json::from_slice(&text)?;
        if meta["reference"] == IMAGE {
            return Ok(dir.join("image.raw"));
        }
    }
    Err("no built image".into())
}

/// What a running machine has on the host.
pub(crate) struct Traces {
    pub(crate) info: MachineInfo,
    bridge: String,
}

impl Traces {
    pub(crate) fn of(info: MachineInfo) -> Self {
        let file = home().join("clusters").join(info.cluster.as_str()).join("network.json");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let traces = Self { bridge: json["bridge"].as_str().unwrap().to_owned(), info };
        let left = traces.left();
        assert_eq!(left.len(), 6, "all traces must be there while it runs: {left:?}");
        traces
    }

    /// What is on the host of it now.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (what, pid) in [("VMM", self.info.vmm_pid), ("holder", self.info.holder_pid)] {
            if pid.is_some_and(|p| stat(p).is_ok_and(|s| !s.is_dead())) {
                left.push(format!("{what} {pid:?}"));
            }
        }
        for link in std::fs::read_dir("/sys/class/net").unwrap() {
            let name = link.unwrap().file_name().into_string().unwrap();
            let on_bridge = std::fs::read_link(format!("/sys/class/net/{name}/master"))
                .is_ok_and(|m| m.ends_with(&self.bridge));
            if name == self.bridge || on_bridge {
                left.push(format!("link {name}"));
            }
        }
        let journal = home().join("journal").join(format!("{}.json", self.info.cluster));
        if journal.exists() {
            left.push(journal.display().to_string());
        }
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        if String::from_utf8_lossy(&tables.stdout).contains(&self.bridge) {
            left.push(format!("nft table of {}", self.bridge));
        }
        left
    }

    /// Waits until nothing is left of it on the host.
    pub(crate) fn assert_gone(&self, within: Duration) -> TestResult {
        wait_for("every trace to be gone", within, || {
            let left = self.left();
            if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
        })?;
        Ok(())
    }
}

const OWNER: &str = "FLEETBOX_E2E_OWNER";

/// A process that starts a machine, says so, and waits to be killed.
pub(crate) struct Owner {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Owner {
    pub(crate) fn spawn(name: &str, image: &str) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.env(OWNER, format!("{name} {image}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::run(command)
    }

    pub(crate) fn spawn_in(home: &std::path::Path, name: &str, image: &str) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.env(OWNER, format!("{name} {image}")).env("FLEETBOX_HOME", home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Waits for a line that starts so; answers with its rest.
    pub(crate) fn says(&mut self, start: &str) -> Result<String, String> {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line).unwrap() == 0 {
                return Err(format!("the owner ended without saying {start:?}; it said: {seen}"));
            }
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return Ok(rest.to_owned());
            }
            seen.push_str(&line);
        }
    }

    pub(crate) fn up(&mut self) -> Result<MachineInfo, String> {
        self.says("up ").map(|json| serde_json::from_str(&json).unwrap())
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What an [`Owner`] does.
pub(crate) fn become_owner_if_asked() -> bool {
    let Ok(wish) = std::env::var(OWNER) else { return false };
    let (name, image) = wish.split_once(' ').unwrap();
    let builder = Vm::builder(name).image(image).on_event(|event| match event {
        fleetbox::Event::PhaseStarted { phase, .. } => println!("phase {phase}"),
        fleetbox::Event::PhaseProgress { phase, detail, .. } => println!("progress {phase} {detail}"),
        fleetbox::Event::BootStageReached { stage, .. } => println!("stage {stage}"),
        _ => {}
    });
    let started = Vm::start(builder);
    match &started {
        Ok(vm) => println!("up {}", serde_json::to_string(&vm.info().unwrap()).unwrap()),
        Err(e) => println!("error {}", chain(e)),
    }
    std::io::stdout().flush().unwrap();
    let mut rest = String::new();
    std::io::stdin().read_line(&mut rest).unwrap();
    true
}

/// Waits for a machine to reach a state.
pub(crate) fn wait_state(vm: &Vm, wanted: State, within: Duration) -> TestResult {
    wait_for(&format!("state {wanted}"), within, || match vm.state() {
        Ok(state) if state == wanted => Ok(()),
        Ok(state) => Err(state.to_string()),
        Err(e) => Err(chain(&e)),
    })?;
    Ok(())
}

/// Waits for a process's end.
pub(crate) fn ended(pid: Option<u32>, within: Duration) -> TestResult {
    let pid = pid.ok_or("there is no such process")?;
    wait_for(&format!("the end of process {pid}"), within, || match stat(pid) {
        Ok(s) if !s.is_dead() => Err(format!("it is in state {}", s.state)),
        _ => Ok(()),
    })?;
    Ok(())
}
