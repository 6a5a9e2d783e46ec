//! `cargo xtask fuzz [--seconds N] [--keep] [TARGET..]`: each parser of foreign bytes for a short time under libFuzzer.
//!
//! The targets (`fuzz/`, in cargo-fuzz's layout) are built once, by the stable compiler and without a sanitizer: there
//! is no unsafe code in what they run, and coverage needs neither. What a run finds new is kept in the build folder and
//! begun with the next time; `--keep` takes over into `fuzz/corpus` what reaches further than what is there.
//!
//! Without a C++ compiler for libFuzzer the same targets run on inputs that are changed blindly; that is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, find_program, output, run as run_command};

const SECONDS: u64 = 5;

/// What cargo-fuzz gives rustc for coverage that libFuzzer can see; all of it is stable.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    seconds: u64,
    keep: bool,
    targets: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: SECONDS, keep: false, targets: Vec::new() }
    }
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--keep" => options.keep = true,
                "--seconds" => {
                    let number = rest.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                    options.seconds = number.context("--seconds takes a number, 1 or more")?;
                }
                other if other.starts_with('-') => {
                    bail!("fuzz takes --seconds N, --keep and names of targets, not {other:?}")
                }
                target => options.targets.push(target.to_owned()),
            }
        }
        Ok(options)
    }
}

/// The places of a run.
struct Places {
    corpus: PathBuf,
    artifacts: PathBuf,
    /// What earlier runs on this machine found.
    found: PathBuf,
    programs: PathBuf,
}

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    run(workspace, &Options::default())
}

/// Builds and runs the targets; an input that one of them fails on is an error.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let all = targets(workspace)?;
    if let Some(unknown) = options.targets.iter().find(|t| !all.contains(t)) {
        bail!("there is no target {unknown:?}; there are {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    // The versions that the product is built with.
    let root = workspace.root();
    fs::copy(root.join("Cargo.lock"), root.join("fuzz/Cargo.lock")).context("could not copy Cargo.lock")?;
    let coverage = has_cxx();
    if !coverage {
        eprintln!(
            "fuzz: there is no C++ compiler (Debian package g++), which libFuzzer needs: inputs are changed blindly, \
             and what they reach is not looked at"
        );
        if options.keep {
            bail!("--keep needs libFuzzer");
        }
    }
    let began = Instant::now();
    let programs = build(workspace, chosen, coverage)?;
    println!("fuzz: built in {:.1} s", began.elapsed().as_secs_f64());
    let places = Places {
        corpus: root.join("fuzz/corpus"),
        artifacts: root.join("fuzz/artifacts"),
        found: workspace.scratch("fuzz-corpus")?,
        programs,
    };
    let failed = run_all(chosen, &places, options, coverage)?;
    if !failed.is_empty() {
        bail!("{} of {} targets failed:\n{}", failed.len(), chosen.len(), failed.join("\n"));
    }
    Ok(())
}

fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("could not read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            names.extend(path.file_stem().and_then(|s| s.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a C++ program can be compiled, as cc's build script would.
fn has_cxx() -> bool {
    match std::env::var("CXX") {
        Ok(cxx) => find_program(cxx.split_whitespace().next().unwrap_or_default()).is_some(),
        Err(_) => ["c++", "g++", "clang++"].iter().any(|p| find_program(p).is_some()),
    }
}

/// Builds the targets, or `mutate`, which holds them all; gives the folder of the programs.
fn build(workspace: &Workspace, chosen: &[String], coverage: bool) -> Result<PathBuf> {
    let (triple, dir) = (workspace.host_triple()?, workspace.target().join("fuzz"));
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target named, build scripts and macros are built without the flags.
    cargo.args(["--target", &triple, "--target-dir"]).arg(&dir);
    if coverage {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}")).env_remove("RUSTFLAGS");
        for target in chosen {
            cargo.args(["--bin", target]);
        }
    } else {
        cargo.args(["--no-default-features", "--example", "mutate"]);
    }
    run_command(&mut cargo)?;
    let programs = dir.join(triple).join("debug");
    Ok(if coverage { programs } else { programs.join("examples") })
}

/// Runs the targets, as many at a time as there are processors. Gives what is to be said of those that failed.
fn run_all(chosen: &[String], places: &Places, options: &Options, coverage: bool) -> Result<Vec<String>> {
    let queue = Mutex::new(chosen.iter());
    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(chosen.len());
    let mut results = std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            while let Some(target) = next() {
                let result = match coverage {
                    true => run_one(target, places, options),
                    false => run_blindly(target, places, options),
                };
                match &result {
                    Ok(None) | Err(_) => {}
                    Ok(Some(text)) => eprintln!("{text}"),
                }
                done.push((target.clone(), result));
            }
            done
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    if results.len() != chosen.len() {
        bail!("a thread that ran targets died");
    }
    results.sort_by(|a, b| a.0.cmp(&b.0));
    let mut failed = Vec::new();
    for (target, result) in results {
        if result?.is_some() {
            failed.push(format!("  {target}"));
        }
    }
    Ok(failed)
}

/// Runs a target under libFuzzer; what is to be said if it failed.
fn run_one(target: &str, places: &Places, options: &Options) -> Result<Option<String>> {
    let (program, artifacts) = (places.programs.join(target), places.artifacts.join(target));
    let (corpus, found) = (places.corpus.join(target), places.found.join(target));
    for dir in [&artifacts, &corpus, &found] {
        fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    }
    let before = files(&artifacts)?;
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={}", options.seconds))
        // Of one input: none is large, so a second is a hang.
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        // New finds go to the first.
        .args([&found, &corpus]);
    let done = command.output().with_context(|| format!("could not run {}", program.display()))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() {
        println!("fuzz: {target:<16} {}", summary(&said));
        if options.keep {
            let mut merge = Command::new(&program);
            output(merge.arg("-merge=1").args([&corpus, &found]))?;
        }
        let _ = fs::remove_dir(&artifacts);
        return Ok(None);
    }
    let inputs: Vec<_> = files(&artifacts)?.into_iter().filter(|f| !before.contains(f)).collect();
    Ok(Some(failure(target, &said, &inputs, |input| format!("{} {}", program.display(), input.display()))))
}

/// Runs a target without libFuzzer.
fn run_blindly(target: &str, places: &Places, options: &Options) -> Result<Option<String>> {
    let (program, artifacts) = (places.programs.join("mutate"), places.artifacts.join(target));
    let corpus = places.corpus.join(target);
    let before = files(&artifacts)?;
    let mut command = Command::new(&program);
    command.args([target, &options.seconds.to_string()]).arg(&artifacts).arg("1").arg(&corpus);
    let done = command.output().with_context(|| format!("could not run {}", program.display()))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() {
        println!("fuzz: {target:<16} {}", String::from_utf8_lossy(&done.stdout).trim());
        return Ok(None);
    }
    let inputs: Vec<_> = files(&artifacts)?.into_iter().filter(|f| !before.contains(f)).collect();
    let again = |input: &Path| format!("{} {target} {}", program.display(), input.display());
    Ok(Some(failure(target, &said, &inputs, again)))
}

fn failure(target: &str, said: &str, inputs: &[PathBuf], again: impl Fn(&Path) -> String) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
    let mut text = format!("fuzz: {target} failed:\n{tail}\n");
    for input in inputs {
        text += &format!("fuzz: the input: {}\nfuzz: again: {}\n", input.display(), again(input));
    }
    text
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| Ok(e?.path())).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("could not read {}", dir.display())),
    }
}

/// From libFuzzer's last lines: how many inputs, and how much of the code they reach.
fn summary(said: &str) -> String {
    let stat = |name: &str| said.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let runs = stat("stat::number_of_executed_units:").unwrap_or("?");
    let reached = said.lines().rev().find_map(|l| {
        let mut words = l.split_whitespace().skip_while(|w| *w != "cov:");
        words.nth(1)
    });
    format!("{runs} runs, {} edges reached", reached.unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let parse =
            |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse("").unwrap(), Options::default());
        let some = parse("--seconds 60 dns --keep qmp").unwrap();
        assert_eq!(some, Options { seconds: 60, keep: true, targets: vec!["dns".into(), "qmp".into()] });
        for bad in ["--seconds", "--seconds 0", "--second 3"] {
            parse(bad).unwrap_err();
        }
    }

    #[test]
    fn what_libfuzzer_says() {
        let said = "#2\tINITED cov: 10 ft: 11\n#900\tNEW    cov: 123 ft: 456 corp: 7/1Kb\nDone\n\
                    stat::number_of_executed_units: 4711\n";
        assert_eq!(summary(said), "4711 runs, 123 edges reached");
        assert_eq!(summary(""), "? runs, ? edges reached");
    }

    /// A target that lacks its program or its seeds would never be run, or begin with nothing.
    #[test]
    fn each_target_is_complete() {
        let workspace = Workspace::find().unwrap();
        let manifest = fs::read_to_string(workspace.root().join("fuzz/Cargo.toml")).unwrap();
        let lib = fs::read_to_string(workspace.root().join("fuzz/src/lib.rs")).unwrap();
        let targets = targets(&workspace).unwrap();
        assert!(targets.len() > 10, "{targets:?}");
        for target in targets {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
                "{target}: no program"
            );
            assert!(lib.contains(&format!("(\"{target}\", {target})")), "{target}: not in TARGETS");
            let seeds = files(&workspace.root().join("fuzz/corpus").join(&target)).unwrap();
            assert!(!seeds.is_empty(), "{target}: no seeds");
        }
    }
}
