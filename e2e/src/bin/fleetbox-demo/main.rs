//! Boots one real machine, runs two commands in it, tells where the time went, and leaves nothing behind.
//!
//! `cargo xtask demo` builds and runs it. It needs root, and takes its folder from FLEETBOX_HOME.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a demonstration talks to its user")]

mod timeline;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleetbox::{Event, Phase, Vm};
use fleetbox_e2e::{Traces, interrupted, story};
use fleetbox_store::Store;

use timeline::Timeline;

/// Stock Debian 12, built on this host the first time.
const IMAGE: &str = "bootstrap:bookworm";

/// What is run in the machine.
const COMMANDS: [&str; 2] = ["uname -a", "systemctl is-system-running --wait"];

/// How long what the machine had on this host may take to go. Two seconds are promised; a loaded host is slower.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// What the shell makes of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

type Shared<T> = Arc<Mutex<T>>;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&anyhow::Error::from(e)),
    };
    match runtime.block_on(demonstrate()) {
        Ok(code) => code,
        Err(e) => failed(&e),
    }
}

fn failed(e: &anyhow::Error) -> ExitCode {
    eprintln!("demo: {}", story(&**e));
    ExitCode::FAILURE
}

async fn demonstrate() -> Result<ExitCode> {
    // A name of this process's own: a second demonstration at the same time is none of its business.
    let name = format!("demo-p{:x}", std::process::id());
    let home = Store::default_root()?;
    let traces = Arc::new(Mutex::new(Traces::new(&home, &name)));
    println!("A machine named {name} from {IMAGE}, kept in {}\n", home.display());
    let outcome = tokio::select! {
        outcome = Box::pin(show(&name, &traces)) => Some(outcome),
        signal = interrupted() => {
            eprintln!("\n{}: cleaning up (once more leaves at once; the machine then goes by itself)", signal?);
            None
        }
    };
    // Whatever was under way has been dropped by now, which is the order to undo it.
    let gone = tokio::select! {
        gone = Box::pin(nothing_left(&name, &traces)) => gone,
        signal = interrupted() => {
            eprintln!("{}: not waiting for the rest to go", signal?);
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    match (outcome, gone) {
        (Some(outcome), gone) => outcome.and(gone).map(|()| ExitCode::SUCCESS),
        (None, gone) => gone.map(|()| ExitCode::from(INTERRUPTED)),
    }
}

/// The machine's whole life.
async fn show(name: &str, traces: &Shared<Traces>) -> Result<()> {
    let began = Instant::now();
    let timeline = Arc::new(Mutex::new(Timeline::new()));
    let (seen, noted) = (Arc::clone(&timeline), Arc::clone(traces));
    let start = Vm::builder(name).image(IMAGE).cpus(2).memory_gib(1).ephemeral().on_event(move |event| {
        if matches!(&event, Event::PhaseFinished { timing, .. } if timing.phase == Phase::Network) {
            lock(&noted).note_network();
        }
        if let Some(line) = lock(&seen).event(&event) {
            println!("{line}");
        }
    });
    let vm = start.start().await?;
    let up = began.elapsed();
    let info = vm.info().await?;
    lock(traces).note_machine(&info);
    println!("\nUp at {} after {:.1} s. In it:", vm.ip(), up.as_secs_f64());

    let mut commands = Vec::new();
    let mut wrong = Vec::new();
    for command in COMMANDS {
        let asked = Instant::now();
        let output = vm.exec(command).await?;
        commands.push((command, asked.elapsed()));
        println!("\n$ {command}\n{}", output.text());
        eprint!("{}", String::from_utf8_lossy(output.stderr()));
        if !output.success() {
            wrong.push(format!("{command:?} ended with {}", output.status()));
        }
    }
    if !wrong.is_empty() {
        // Which of them is what a reader asks next.
        println!("\n$ systemctl --failed\n{}", vm.exec("systemctl --failed --no-pager").await?.text());
    }
    let ending = Instant::now();
    vm.destroy().await?;
    let destroyed = ending.elapsed();
    println!("\n{}", lock(&timeline).table(up, &commands, destroyed));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

/// Waits until the holder has ended, and looks for whatever else there could be.
async fn nothing_left(name: &str, traces: &Shared<Traces>) -> Result<()> {
    let settled = tokio::time::timeout(GONE_LIMIT, fleetbox::settled(name, None)).await;
    let machine =
        settled.with_context(|| format!("machine {name} still has a holder after {GONE_LIMIT:?}"))?;
    if let Some(info) = machine? {
        bail!("machine {name} is still there: {}", info.state);
    }
    let left = lock(traces).left().context("could not look for what is left")?;
    if !left.is_empty() {
        bail!("left on this host: {}", left.join(", "));
    }
    println!("Nothing is left on this host: no process, link, rule or file of {name}.");
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
