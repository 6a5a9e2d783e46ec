//! Three machines of one cluster at once, against three times one machine; and a network without machines.

use std::sync::PoisonError;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fleetbox::Vm;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::report::{HostReport, MachineReport};
use crate::stats::Summary;
use crate::{Bench, host, network, recipe, summary};

/// Machines of the cluster.
const MEMBERS: usize = 3;
/// How often a network is made and closed.
const NETWORKS: usize = 10;

/// Which of the two came first in a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum First {
    One,
    Three,
}

#[derive(Debug, Clone, Serialize)]
struct Pair {
    first: First,
    /// One machine in a cluster of its own, from nothing to its first command's output.
    one_s: f64,
    /// Three at once in one cluster, from nothing to the first command's output of the last.
    three_s: f64,
    /// `three_s` / (3 × `one_s`).
    ratio: f64,
}

/// What was measured. It is the JSON, too: fields are only ever added.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Three members at once against three times one: the median of the pairs' ratios. Below 1 is gained.
    ratio: f64,
    ratio_spread: Summary,
    one_s: Summary,
    three_s: Summary,
    /// A cluster's network without machines, its holder's start included.
    network_create_ms: Summary,
    /// Until the call answers, which is after the network is undone.
    network_close_ms: Summary,
    pairs: Vec<Pair>,
    machine: MachineReport,
    host: HostReport,
}

pub(crate) async fn measure(bench: &Bench, count: usize) -> Result<Report> {
    let host = host::describe(bench).await?;
    eprintln!("bench: {NETWORKS} networks");
    let (mut create, mut close) = (Vec::new(), Vec::new());
    for _ in 0..NETWORKS {
        let took = network::make_and_close(&new_name(bench, "n")).await?;
        create.push(took.create.as_secs_f64() * 1e3);
        close.push(took.close.as_secs_f64() * 1e3);
    }
    let (create, close) = (summary("networks", &create)?, summary("networks", &close)?);
    eprintln!("bench:   create {:.0} ms, close {:.0} ms", create.median, close.median);
    let mut pairs = Vec::new();
    for index in 0..count {
        let first = if index.is_multiple_of(2) { First::Three } else { First::One };
        eprintln!("bench: pair {} of {count}", index + 1);
        let (one_s, three_s);
        match first {
            First::One => {
                one_s = boot(bench, 1).await?;
                three_s = boot(bench, MEMBERS).await?;
            }
            First::Three => {
                three_s = boot(bench, MEMBERS).await?;
                one_s = boot(bench, 1).await?;
            }
        }
        pairs.push(Pair { first, one_s, three_s, ratio: three_s / (3.0 * one_s) });
    }
    let of = |what, f: fn(&Pair) -> f64| summary(what, &pairs.iter().map(f).collect::<Vec<_>>());
    let ratio_spread = of("ratios", |p| p.ratio)?;
    Ok(Report {
        ratio: ratio_spread.median,
        ratio_spread,
        one_s: of("one machine", |p| p.one_s)?,
        three_s: of("three machines", |p| p.three_s)?,
        network_create_ms: create,
        network_close_ms: close,
        machine: MachineReport::of(bench),
        host,
        pairs,
    })
}

fn new_name(bench: &Bench, kind: &str) -> String {
    let machines = bench.machines.lock().unwrap_or_else(PoisonError::into_inner);
    // The number stands before a letter: what is behind a hyphen would be a member's.
    format!("bench-p{:x}n{}{kind}", std::process::id(), machines.len())
}

/// Seconds from nothing until each of so many new machines has answered its first command. They are gone afterwards.
async fn boot(bench: &Bench, members: usize) -> Result<f64> {
    let cluster = new_name(bench, "c");
    let names: Vec<String> = (1..=members).map(|n| format!("{cluster}-{n}")).collect();
    bench.machines.lock().unwrap_or_else(PoisonError::into_inner).extend(names.iter().cloned());
    let mut starts = JoinSet::new();
    let began = Instant::now();
    for name in names {
        let builder = Vm::builder(&name)
            .image(bench.image.reference.to_string())
            .cpus(bench.cpus)
            .memory_mib(bench.memory_mib)
            .disk_gib(bench.disk_gib)
            .ephemeral();
        starts.spawn(async move {
            let vm = builder.start().await?;
            let output = vm.ssh(recipe::COMMAND).await?;
            if output != recipe::ANSWER {
                bail!("machine {name} answered {output:?} to {:?}", recipe::COMMAND);
            }
            Ok((vm, Instant::now()))
        });
    }
    let mut up = Vec::new();
    while let Some(started) = starts.join_next().await {
        up.push(started??);
    }
    let last = up.iter().map(|(_, at)| *at).max().context("no machine")?;
    let took = (last - began).as_secs_f64();
    eprintln!("bench:   {members} in {took:.1} s");
    for (vm, _) in up {
        vm.destroy().await?;
    }
    crate::all_gone(bench).await?;
    Ok(took)
}

impl Report {
    /// The block for docs/bench.md, which is readable on a terminal, too.
    pub(crate) fn block(&self) -> String {
        let spread = crate::markdown::spread;
        let mut text = crate::markdown::about(&self.host, &self.machine, "Each machine");
        text.push_str("\n| what | measured |\n|---|---|\n");
        let rows = [
            ("one machine, until its first command is answered", spread(&self.one_s, " s")),
            ("three members at once, until the last has answered", spread(&self.three_s, " s")),
            ("three members / (3 × one machine)", spread(&self.ratio_spread, "")),
            ("a network without machines: create", spread(&self.network_create_ms, " ms")),
            ("a network without machines: close", spread(&self.network_close_ms, " ms")),
        ];
        for (what, measured) in rows {
            text.push_str(&format!("| {what} | {measured} |\n"));
        }
        text
    }
}
