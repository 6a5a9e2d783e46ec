//! Measures fleetbox against what one would do without it, on the same image and the same QEMU.
//!
//! `cargo xtask bench boot`, `bench cluster` and `bench image` build and run it; docs/bench.md says what is compared with what. It
//! needs root, and takes its folder from FLEETBOX_HOME. What is measured goes to stdout, what is going on to stderr. It leaves nothing
//! behind, interrupted or not: its own QEMU dies with it, and fleetbox's machines are bound to it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it measured")]

mod args;
mod cluster;
mod exec;
mod fleet;
mod holder;
mod host;
mod image;
mod ls;
mod markdown;
mod network;
mod process;
mod recipe;
mod report;
mod stats;
mod system_ssh;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fleetbox::{Accel, Host, ImageRef};
use fleetbox_e2e::{interrupted, story};
use fleetbox_image::{Image, Images};
use fleetbox_store::Store;

use args::{Args, Form, What};
use report::{BootPair, Report, Side};
use stats::Summary;

/// How long what a machine had on this host may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// What the shell makes of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// What both sides boot, and with what.
#[derive(Debug)]
struct Bench {
    image: Image,
    accel: Accel,
    cpus: u32,
    memory_mib: u64,
    disk_gib: u64,
    home: PathBuf,
    work: PathBuf,
    cli: PathBuf,
    /// Names of the machines that have been started.
    machines: Mutex<Vec<String>>,
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(e) => return failed(&e),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&e.into()),
    };
    match runtime.block_on(run(args)) {
        Ok(code) => code,
        Err(e) => failed(&e),
    }
}

fn failed(e: &anyhow::Error) -> ExitCode {
    eprintln!("bench: {}", story(&**e));
    ExitCode::FAILURE
}

async fn run(args: Args) -> Result<ExitCode> {
    host::sweep(&args.work);
    let prefix = format!("{}{}-", host::WORK_PREFIX, std::process::id());
    let work = tempfile::Builder::new().prefix(&prefix).tempdir_in(&args.work);
    let work = work.with_context(|| format!("could not make a folder in {}", args.work.display()))?;
    if args.what == What::Image {
        return tokio::select! {
            report = Box::pin(image::measure(&args, work.path())) => {
                let report = report?;
                let json = serde_json::to_string_pretty(&report)?;
                tell(args.form, Told { plain: report.block(), block: report.block(), json });
                Ok(ExitCode::SUCCESS)
            }
            // What ran ends with the future, and its files with the folder.
            signal = interrupted() => stopped(signal?),
        };
    }
    let bench = tokio::select! {
        bench = Box::pin(prepare(&args, work.path().to_owned())) => bench?,
        signal = interrupted() => return stopped(signal?),
    };
    let report = tokio::select! {
        report = Box::pin(measured(&bench, &args)) => Some(report),
        signal = interrupted() => { eprintln!("bench: {}: cleaning up", signal?); None }
    };
    // All that ran has been dropped by now, which is the order to undo it.
    let gone = tokio::select! {
        gone = all_gone(&bench) => gone,
        signal = interrupted() => return stopped(signal?),
    };
    let Some(report) = report else { return gone.map(|()| ExitCode::from(INTERRUPTED)) };
    let report = report?;
    gone?;
    tell(args.form, report);
    Ok(ExitCode::SUCCESS)
}

fn tell(form: Form, report: Told) {
    match form {
        Form::Text => println!("{}", report.plain),
        Form::Markdown => println!("{}", report.block),
        Form::Json => println!("{}", report.json),
        Form::JsonAndMarkdown => {
            eprintln!("{}", report.block);
            println!("{}", report.json);
        }
    }
}

/// What was measured, in each form it can be told in.
struct Told {
    plain: String,
    block: String,
    json: String,
}

async fn measured(bench: &Bench, args: &Args) -> Result<Told> {
    Ok(match args.what {
        What::Boot => {
            let report = measure(bench, args.pairs).await?;
            Told {
                plain: markdown::plain(&report),
                block: markdown::block(&report),
                json: serde_json::to_string_pretty(&report)?,
            }
        }
        What::Cluster => {
            let report = cluster::measure(bench, args.pairs).await?;
            let json = serde_json::to_string_pretty(&report)?;
            Told { plain: report.block(), block: report.block(), json }
        }
        What::Image => bail!("images are measured without machines"),
    })
}

fn stopped(signal: &str) -> Result<ExitCode> {
    eprintln!("bench: {signal}: not waiting for the rest to go by itself");
    Ok(ExitCode::from(INTERRUPTED))
}

/// Whatever may take its time and is not measured: probing the host, getting the image.
async fn prepare(args: &Args, work: PathBuf) -> Result<Bench> {
    let host = Host::capabilities()?;
    let Some(accel) = host.accel().filter(|_| host.can_run_machines()) else {
        bail!("this host cannot run machines; `fleetbox doctor` says why");
    };
    let store = Store::open_default()?;
    let home = store.root().to_owned();
    let reference: ImageRef = args.image.parse()?;
    eprintln!("bench: {reference} in {}", home.display());
    let said = Mutex::new(None);
    let progress = |p: fleetbox_image::ImageProgress| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != Some(p.stage) {
            *said = Some(p.stage);
            eprintln!("bench: image: {}", p.stage);
        }
    };
    let image = Images::new(store).resolve(&reference, &progress).await?;
    if image.kernel.is_none() {
        bail!("{reference} has no kernel that both sides could boot: {}", image.notes.join("; "));
    }
    // Whoever comes first must not be the one that reads it from the disk.
    let files: Vec<PathBuf> = [Some(&image.path), image.kernel.as_ref(), image.initrd.as_ref()]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    tokio::task::spawn_blocking(move || files.iter().try_for_each(|file| host::read_through(file)))
        .await?
        .context("could not read the image")?;
    Ok(Bench {
        image,
        accel,
        cpus: 2,
        memory_mib: match args.what {
            What::Boot => 1024,
            What::Cluster | What::Image => 512,
        },
        disk_gib: 10,
        home,
        work,
        cli: args.cli.clone(),
        machines: Mutex::default(),
    })
}

async fn measure(bench: &Bench, pairs: usize) -> Result<Report> {
    let mut report = Report::new(host::describe(bench).await?, bench);
    let recipe = recipe::Recipe::new(bench).await?;
    report.ls_none = ls::measure(bench).await.context("could not measure `fleetbox ls`")?;

    for index in 0..pairs {
        let first = if index.is_multiple_of(2) { Side::Fleetbox } else { Side::Recipe };
        let (mut fleet, mut plain) = (None, None);
        for side in [first, first.other()] {
            eprintln!("bench: pair {} of {pairs}: {side}", index + 1);
            match side {
                Side::Fleetbox => {
                    let (run, vm) = fleet::boot(bench).await?;
                    fleet::end(bench, vm).await?;
                    eprintln!("bench:   {:.1} s", run.seconds);
                    fleet = Some(run);
                }
                Side::Recipe => {
                    let seconds = recipe.boot().await?;
                    eprintln!("bench:   {seconds:.1} s");
                    plain = Some(seconds);
                }
            }
        }
        let (Some(fleetbox), Some(recipe_s)) = (fleet, plain) else { bail!("half a pair") };
        report.pairs.push(BootPair { first, ratio: fleetbox.seconds / recipe_s, fleetbox, recipe_s });
    }

    eprintln!("bench: one more machine, for what is measured on a running one");
    let (_, vm) = fleet::boot(bench).await?;
    report.holder = Some(holder::measure(&vm).await.context("could not measure the holder")?);
    report.ls_one = ls::measure(bench).await.context("could not measure `fleetbox ls`")?;
    report.exec = Some(exec::measure(&vm).await.context("could not measure exec")?);
    vm.destroy().await?;
    fleet::end(bench, vm).await?;
    report.finish();
    Ok(report)
}

/// Waits until no machine of ours is left.
async fn all_gone(bench: &Bench) -> Result<()> {
    let names = bench.machines.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for name in names {
        let settled = tokio::time::timeout(GONE_LIMIT, fleetbox::settled(&name, None)).await;
        match settled.map_err(|_| anyhow!("machine {name} still has a holder after {GONE_LIMIT:?}"))?? {
            None => {}
            Some(info) => bail!("machine {name} is still there: {}", info.state),
        }
    }
    Ok(())
}

/// Spread of a row of numbers that must not be empty.
fn summary(what: &str, numbers: &[f64]) -> Result<Summary> {
    Summary::of(numbers).with_context(|| format!("nothing was measured of {what}"))
}
