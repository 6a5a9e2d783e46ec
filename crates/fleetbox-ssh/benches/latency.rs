//! Latency of one command over a kept connection against OpenSSH with ControlMaster, and the CPU time of
//! waiting for a machine. Needs sshd on this host: `cargo bench -p fleetbox-ssh --profile dev`.
#![expect(clippy::print_stdout, reason = "a measurement prints")]
#![expect(clippy::unwrap_used, reason = "a measurement may fail loudly")]

#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/sshd/fixture.rs"]
mod fixture;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixture::Sshd;
use fleetbox_ssh::Client;

const ROUNDS: usize = 5;
const COMMANDS: usize = 60;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sshd = Sshd::start("");
    let client = sshd.client();
    runtime.block_on(async { client.exec("true").await.unwrap() });
    let master = Master::start(&sshd);
    master.run();
    println!("median of {COMMANDS} x `true`, in ms: fleetbox-ssh | ssh with ControlMaster | ratio");
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let ours = median(|| runtime.block_on(one(&client)));
        let theirs = median(|| master.run());
        println!("{ours:.2} | {theirs:.2} | {:.2}", ours / theirs);
        ratios.push(ours / theirs);
    }
    ratios.sort_by(f64::total_cmp);
    println!("ratio: {:.2} ({:.2} to {:.2})", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
    runtime.block_on(first_commands(&sshd));
    runtime.block_on(waiting());
}

async fn one(client: &Client) {
    assert!(client.exec("true").await.unwrap().status.success());
}

async fn first_commands(sshd: &Sshd) {
    let start = Instant::now();
    one(&sshd.client()).await;
    println!("first command, with connection and login: {:.1} ms", millis(start.elapsed()));
}

/// CPU time of 10 s of waiting for a port where nothing listens.
async fn waiting() {
    let sshd = Sshd::prepare("");
    let client = sshd.client();
    let (mut attempts, before, span) = (0, cpu(), Duration::from_secs(10));
    let error = client.wait_ready(Instant::now() + span, |_| attempts += 1).await.unwrap_err();
    println!("10 s of waiting, {attempts} attempts: {:.1} ms of CPU ({error})", millis(cpu() - before));
}

fn median(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..COMMANDS)
        .map(|_| {
            let start = Instant::now();
            run();
            millis(start.elapsed())
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[COMMANDS / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// CPU time of all threads of this process.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let nanos = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// OpenSSH's kept connection.
struct Master<'a> {
    sshd: &'a Sshd,
}

impl<'a> Master<'a> {
    fn start(sshd: &'a Sshd) -> Self {
        let master = Self { sshd };
        let status = master.ssh(&["-M", "-N", "-f"]).status().unwrap();
        assert!(status.success());
        master
    }

    fn ssh(&self, arguments: &[&str]) -> Command {
        let (dir, addr): (&Path, _) = (self.sshd.dir.path(), self.sshd.target.addr);
        let host_key = self.sshd.target.host_key.to_openssh().unwrap();
        let known = dir.join("known_hosts");
        std::fs::write(&known, format!("[{}]:{} {host_key}\n", addr.ip(), addr.port())).unwrap();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o"])
            .arg(format!("UserKnownHostsFile={}", known.display()))
            .arg("-o")
            .arg(format!("ControlPath={}/control", dir.display()))
            .arg("-i")
            .arg(dir.join("id_ed25519"))
            .args(["-p", &addr.port().to_string()])
            .args(arguments)
            .arg(format!("{}@{}", self.sshd.target.user, addr.ip()))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        ssh
    }

    fn run(&self) {
        assert!(self.ssh(&[]).arg("true").stdout(Stdio::piped()).output().unwrap().status.success());
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let _ = self.ssh(&["-O", "exit"]).status();
    }
}
