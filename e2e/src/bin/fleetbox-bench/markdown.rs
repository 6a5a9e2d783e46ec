//! The results as the block that docs/bench.md holds, which is readable on a terminal, too.

use std::fmt::Write as _;

use crate::report::{
    BOOT_RATIO_TARGET, CPU_MS_TARGET, HOLDER_MIB_TARGET, HostReport, IDLE_CPU_MS_TARGET,
    LATER_EXEC_RATIO_TARGET, MachineReport, Report, mib,
};
use crate::stats::Summary;

/// Row by row: what, fleetbox's number, the other's, the ratio, the target.
type Row = [String; 5];

const HEAD: [&str; 5] = ["what", "fleetbox", "compared with", "ratio", "target"];

/// The table, and what each pair took.
pub(crate) fn block(report: &Report) -> String {
    let mut text = about(&report.host, &report.machine, "Both sides");
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push('\n');
    text.push_str(&line(&HEAD.map(str::to_owned)));
    text.push_str("|---|---|---|---|---|\n");
    for row in rows(report) {
        text.push_str(&line(&row));
    }
    text.push_str(
        "\n| pair | first | fleetbox | recipe | ratio | CPU of client + holder (+ programs it ran) |\n",
    );
    text.push_str("|---|---|---|---|---|---|\n");
    for (index, p) in report.pairs.iter().enumerate() {
        let f = &p.fleetbox;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} s | {:.1} s | {:.2} | {:.0} + {:.0} ms (+ {:.0} ms) |",
            index + 1,
            p.first,
            f.seconds,
            p.recipe_s,
            p.ratio,
            f.client_cpu_ms,
            f.holder_cpu_ms,
            f.programs_cpu_ms
        );
    }
    text
}

/// The same in columns, and which targets were missed.
pub(crate) fn plain(report: &Report) -> String {
    let mut rows = rows(report);
    rows.insert(0, HEAD.map(str::to_owned));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = about(&report.host, &report.machine, "Both sides");
    text.push('\n');
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text.push('\n');
    for target in &report.targets {
        let met = if target.met { "met" } else { "MISSED" };
        let _ = writeln!(
            text,
            "{met:<6}  {} = {:.2}, to be at most {}",
            target.what, target.value, target.at_most
        );
    }
    text
}

/// On what it was measured, and with which machines.
pub(crate) fn about(host: &HostReport, machine: &MachineReport, who: &str) -> String {
    let load = host.load_before.map(|l| format!(", load before {l:.1}")).unwrap_or_default();
    format!(
        "{date}: {cpus} cores of {cpu}, {memory:.0} GiB, Linux {kernel}; {qemu} with {accel}; {openssh}{load}. {who}: \
         {image}, {vcpus} vCPUs, {mib} MiB, {disk} GiB disk. Medians, with the lowest and the highest.\n",
        date = host.date,
        cpus = host.cpus,
        cpu = host.cpu,
        memory = mib(host.memory_mib),
        kernel = host.kernel,
        qemu = host.qemu,
        accel = host.accel,
        openssh = host.openssh,
        image = machine.image,
        vcpus = machine.cpus,
        mib = machine.memory_mib,
        disk = machine.disk_gib,
    )
}

fn rows(report: &Report) -> Vec<Row> {
    let none = String::new;
    let with = |s: &Option<Summary>, unit: &str| s.as_ref().map_or_else(none, |s| spread(s, unit));
    let mut rows: Vec<Row> = vec![
        [
            "nothing to first command".into(),
            with(&report.fleetbox_s, " s"),
            format!("recipe {}", with(&report.recipe_s, " s")),
            with(&report.ratio_spread, ""),
            format!("≤ {BOOT_RATIO_TARGET}"),
        ],
        [
            "CPU of client + holder per start".into(),
            with(&report.cpu_ms_per_start, " ms"),
            none(),
            none(),
            format!("≤ {CPU_MS_TARGET} ms"),
        ],
    ];
    if let Some(e) = &report.exec {
        rows.push([
            "`exec true`, new connection".into(),
            spread(&e.first_exec_ms, " ms"),
            format!("ssh {}", spread(&e.openssh_first_exec_ms, " ms")),
            spread(&e.first_exec_ratio, ""),
            none(),
        ]);
        rows.push([
            "`exec true`, kept connection".into(),
            spread(&e.later_exec_ms, " ms"),
            format!("ssh, ControlMaster {}", spread(&e.openssh_later_exec_ms, " ms")),
            spread(&e.later_exec_ratio, ""),
            format!("≤ {LATER_EXEC_RATIO_TARGET:.1}"),
        ]);
    }
    for (what, ls) in [("no machine", &report.ls_none), ("one running", &report.ls_one)] {
        if let Some(ls) = ls {
            rows.push([
                format!("`fleetbox ls`, {what}"),
                spread(&ls.ls_ms, " ms"),
                format!("`true` {}", spread(&ls.true_ms, " ms")),
                none(),
                none(),
            ]);
        }
    }
    if let Some(h) = &report.holder {
        rows.push([
            "holder's memory, one machine".into(),
            format!(
                "RSS {:.1} MiB, PSS {:.1}, of it not from files {:.1}",
                mib(h.rss_kib),
                mib(h.pss_kib),
                mib(h.anonymous_kib)
            ),
            none(),
            none(),
            format!("≤ {HOLDER_MIB_TARGET} MiB"),
        ]);
        rows.push([
            format!("holder's CPU, {} s idle", h.idle_s),
            format!("{:.0} ms, {} wake-ups", h.idle_cpu_ms, h.idle_wakeups),
            none(),
            none(),
            format!("{IDLE_CPU_MS_TARGET} ms"),
        ]);
    }
    rows
}

pub(crate) fn spread(s: &Summary, unit: &str) -> String {
    // Two digits where they mean something.
    let digits = match unit {
        "" => 2,
        _ => 1,
    };
    format!("{:.digits$}{unit} ({:.digits$} to {:.digits$}, n = {})", s.median, s.min, s.max, s.n)
}
