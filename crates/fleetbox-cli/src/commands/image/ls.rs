//! `fleetbox image ls`

use std::time::SystemTime;

use comfy_table::{Table, presets};
use fleetbox::{Arch, DiskFormat, ImageInfo};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::ImageLs;
use crate::commands::Outcomes;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::{duration, output, size};

/// One object of `image ls --json`. Scripts read it: fields are only ever added.
#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    digest: &'a str,
    references: Vec<String>,
    os: &'a str,
    arch: Arch,
    format: DiskFormat,
    virtual_bytes: u64,
    disk_bytes: u64,
    created_at: Option<String>,
    used_by: Vec<&'a str>,
    /// Its own kernel was found: machines boot it without firmware.
    kernel: bool,
    notes: &'a [String],
}

impl<'a> From<&'a ImageInfo> for Row<'a> {
    fn from(i: &'a ImageInfo) -> Self {
        Self {
            digest: &i.digest,
            references: i.references.iter().map(ToString::to_string).collect(),
            os: &i.os,
            arch: i.arch,
            format: i.format,
            virtual_bytes: i.virtual_bytes,
            disk_bytes: i.disk_bytes,
            created_at: made(i).map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            used_by: i.used_by.iter().map(|m| m.as_str()).collect(),
            kernel: i.has_kernel,
            notes: &i.notes,
        }
    }
}

/// One object of `image ls --available --json`. Scripts read it: fields are only ever added.
#[derive(Debug, Serialize)]
struct AvailableRow<'a> {
    name: &'a str,
    other_names: &'a [String],
    arch: Arch,
    snapshot: &'a str,
    url: &'a str,
    checksum: &'a str,
    in_store: bool,
}

async fn available(args: &ImageLs) -> Result {
    let images = fleetbox::images()?.catalog().await?;
    if args.json {
        let rows: Vec<AvailableRow<'_>> = images
            .iter()
            .map(|i| AvailableRow {
                name: &i.name,
                other_names: &i.other_names,
                arch: i.arch,
                snapshot: &i.snapshot,
                url: &i.url,
                checksum: &i.checksum,
                in_store: i.in_store,
            })
            .collect();
        output::print(&(serde_json::to_string_pretty(&rows).map_err(CliError::Json)? + "\n"))?;
    } else {
        let rows: Vec<[String; 5]> = images
            .iter()
            .map(|i| {
                let there = if i.in_store { "yes" } else { "-" };
                [&i.name, i.arch.debian(), &i.snapshot, there, &i.url].map(str::to_owned)
            })
            .collect();
        output::print(&table(&["IMAGE", "ARCH", "SNAPSHOT", "IN STORE", "FROM"], &rows))?;
    }
    Ok(Exit::Ok)
}

pub(super) async fn run(args: &ImageLs) -> Result {
    if args.available {
        return available(args).await;
    }
    let list = fleetbox::images()?.list().await?;
    if args.json {
        let rows: Vec<Row<'_>> = list.images.iter().map(Row::from).collect();
        output::print(&(serde_json::to_string_pretty(&rows).map_err(CliError::Json)? + "\n"))?;
    } else if args.quiet {
        output::print(&list.images.iter().map(|i| format!("{}\n", i.digest)).collect::<String>())?;
    } else if !list.images.is_empty() {
        let rows: Vec<Cells> = list.images.iter().map(|i| cells(i, Timestamp::now())).collect();
        output::print(&table(&HEADER, &rows))?;
    } else if list.damaged.is_empty() {
        output::note("there are no images; `fleetbox up NAME` gets the one it needs");
    }
    let mut outcomes = Outcomes::default();
    for (_, error) in list.damaged {
        outcomes.failed(error).await;
    }
    Ok(outcomes.exit())
}

/// When it was made; `None` where the file system's clock is beyond all calendars.
pub(super) fn made(image: &ImageInfo) -> Option<Timestamp> {
    Timestamp::try_from(image.made).ok()
}

pub(super) fn age(made: SystemTime, now: Timestamp) -> String {
    match Timestamp::try_from(made) {
        // A clock that was set back makes an image new, not negative.
        Ok(made) => duration::age(u64::try_from(now.as_second() - made.as_second()).unwrap_or(0)),
        Err(_) => "-".into(),
    }
}

/// A line of the table.
type Cells = [String; 8];

fn cells(i: &ImageInfo, now: Timestamp) -> Cells {
    let mut names: Vec<String> = i.references.iter().map(ToString::to_string).collect();
    // A long list of names is what `inspect` is for.
    if names.len() > 2 {
        let more = names.len() - 2;
        names.truncate(2);
        names.push(format!("{more} more"));
    }
    let machines: Vec<&str> = i.used_by.iter().map(|m| m.as_str()).collect();
    [
        names.join(", "),
        i.short_digest().to_owned(),
        i.os.clone(),
        i.arch.debian().to_owned(),
        size::short_bytes(i.disk_bytes),
        size::short_bytes(i.virtual_bytes),
        if machines.is_empty() { "-".to_owned() } else { machines.join(", ") },
        age(i.made, now),
    ]
}

const HEADER: [&str; 8] = ["IMAGE", "DIGEST", "SYSTEM", "ARCH", "SIZE", "VIRTUAL", "USED BY", "AGE"];

fn table<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    // The first column starts at the edge, and no line ends in blanks.
    table.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_borders() {
        let row = |cells: [&str; 8]| cells.map(str::to_owned);
        let rows = [
            row([
                "bootstrap:bookworm",
                "3f2a00000000",
                "Debian GNU/Linux 12",
                "amd64",
                "482M",
                "1.4G",
                "db, web",
                "2h",
            ]),
            row(["/x/a.raw", "9c0100000000", "unknown", "amd64", "1M", "2G", "-", "3d"]),
        ];
        assert_eq!(
            table(&HEADER, &rows),
            "\
IMAGE               DIGEST        SYSTEM               ARCH   SIZE  VIRTUAL  USED BY  AGE
bootstrap:bookworm  3f2a00000000  Debian GNU/Linux 12  amd64  482M  1.4G     db, web  2h
/x/a.raw            9c0100000000  unknown              amd64  1M    2G       -        3d
"
        );
    }

    #[test]
    fn ages() {
        let now = Timestamp::from_second(10_000).unwrap();
        let at = |s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s);
        assert_eq!((age(at(2800), now), age(at(20_000), now)), ("2h".to_owned(), "0s".to_owned()));
    }
}
