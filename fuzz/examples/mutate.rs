//! The targets without libFuzzer, where there is no C++ compiler: seeds, changed at random, without looking at what
//! they reach. It finds less; it finds something.
//!
//! `mutate TARGET SECONDS ARTIFACTS SEED CORPUS..` runs a target for so long and ends with 1 at the first panic, after
//! writing the input to ARTIFACTS. `mutate TARGET FILE` runs it once.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fleetbox_fuzz::{TARGETS, Target};

const MAX_LEN: usize = 64 << 10;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("mutate: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let [name, rest @ ..] = args else { return Err("which target?".into()) };
    let target = TARGETS.iter().find(|(n, _)| n == name).ok_or("there is no such target")?.1;
    match rest {
        [file] => {
            target(&std::fs::read(file)?);
            Ok(ExitCode::SUCCESS)
        }
        [seconds, artifacts, seed, corpus @ ..] => {
            let mut seeds = vec![Vec::new()];
            for dir in corpus {
                for entry in std::fs::read_dir(dir)? {
                    seeds.push(std::fs::read(entry?.path())?);
                }
            }
            let random = Random(seed.parse::<u64>()? | 1);
            Ok(mutate(target, Duration::from_secs(seconds.parse()?), artifacts.into(), random, seeds)?)
        }
        _ => Err("mutate TARGET SECONDS ARTIFACTS SEED CORPUS..".into()),
    }
}

fn mutate(
    target: Target,
    time: Duration,
    artifacts: PathBuf,
    mut random: Random,
    seeds: Vec<Vec<u8>>,
) -> std::io::Result<ExitCode> {
    let begun = Instant::now();
    let mut runs = 0u64;
    // Each seed as it is, first.
    let mut fresh = seeds.iter();
    while begun.elapsed() < time || fresh.len() > 0 {
        let input = match fresh.next() {
            Some(seed) => seed.clone(),
            None => random.changed(&seeds),
        };
        runs += 1;
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            std::fs::create_dir_all(&artifacts)?;
            let path = artifacts.join(format!("panic-{runs}"));
            std::fs::write(&path, input)?;
            println!("panic after {runs} runs: {}", path.display());
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("{runs} runs, no panic");
    Ok(ExitCode::SUCCESS)
}

/// xorshift64 (Marsaglia, 2003): the same numbers from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn changed(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(input.len() + 1);
            let end = (at + 1 + self.below(16)).min(input.len());
            match self.below(6) {
                0 => input.insert(at, self.below(256) as u8),
                1 => drop(input.drain(at.min(end)..end)),
                2 => input.truncate(at),
                3 if at < input.len() => input[at] ^= 1 << self.below(8),
                4 if at < input.len() => input[at] = [0, 0xff, 0x7f, 0x80, b'\n'][self.below(5)],
                // A piece of another one.
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    let until = (from + self.below(64)).min(other.len());
                    input.splice(at..at, other[from..until].iter().copied());
                }
            }
        }
        input.truncate(MAX_LEN);
        input
    }
}
