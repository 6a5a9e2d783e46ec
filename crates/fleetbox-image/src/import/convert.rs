//! qcow2 to raw, once: then inspection and every VMM read one format, and no VMM parses foreign qcow2 tables.
//!
//! `qemu-img` does it: it knows every kind of cluster (zlib, zstd, extended L2), reads several at a time, and is what
//! the fastest of other ways would be measured against.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use fleetbox_os::child::Spawn;
use fleetbox_spec::Progress;
use serde_json::{Value, json};

use super::backing::Layer;
use super::start;
use crate::copy::room;
use crate::disk::CONVERT_LIMITS;
use crate::qcow2::{self, Header, Qcow2Problem};
use crate::task::Task;
use crate::tool::{Ended, QEMU_IMG, run};
use crate::unpack::Limits;
use crate::{ImageError, ImageProgress, ImageStage};

/// A file of the part that is converted, and those behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct From<'a> {
    /// Its name in the part.
    pub(super) name: &'a str,
    pub(super) layers: &'a [Layer],
    /// What the user calls it.
    pub(super) label: &'a Path,
}

/// Converts `from` to the new raw file `to`, both in the folder `part`.
pub(super) fn convert(part: &Path, from: From<'_>, to: &str, task: &Task) -> Result<(), ImageError> {
    let source = part.join(from.name);
    let bad = |reason| ImageError::BadQcow2 { path: from.label.to_owned(), reason };
    let file = File::open(&source).map_err(ImageError::io("open", &source))?;
    let len = file.metadata().map_err(ImageError::io("look at", &source))?.len();
    // Of our copy, which nobody changes any more: what is checked is what qemu-img reads.
    let head = start(&file, &source, qcow2::HEAD)?;
    let header = Header::parse(&head).map_err(bad)?;
    header.check_importable(len).map_err(bad)?;
    if from.layers.is_empty() {
        header.check_no_backing(&head).map_err(bad)?;
    }
    let image = format!("json:{}", node(from));
    let packed = from.layers.iter().map(|l| l.print.size()).sum::<u64>() + len;
    check_size(part, from, &image, header.virtual_size, packed, task)?;
    let report = |percent: Option<f64>| {
        let done = percent.map(|p| (header.virtual_size as f64 * p / 100.0) as u64);
        task.report(ImageProgress {
            stage: ImageStage::Convert,
            detail: format!("converting {} to raw", from.label.display()),
            progress: done
                .map(|done| Progress::new(done.min(header.virtual_size), Some(header.virtual_size), "bytes")),
        });
    };
    report(None);
    let args = ["convert", "-p", "-O", "raw", "-S", "4k", &image, to];
    qemu_img(part, from.label, "convert the image", &args, task, |line| {
        if let Some(percent) = percent(line) {
            report(Some(percent));
        }
    })
    .map(drop)
}

/// What makes qemu-img take these very files, whatever their headers name.
fn node(from: From<'_>) -> Value {
    let mut behind = Value::Null;
    let front = std::iter::once((from.name, true));
    for (name, qcow2) in front.chain(from.layers.iter().map(|l| (l.name.as_str(), l.qcow2))).rev() {
        let file = json!({ "driver": "file", "filename": name });
        behind = match qcow2 {
            // `null`: none, even if the header should name one.
            true => json!({ "driver": "qcow2", "file": file, "backing": behind }),
            false => json!({ "driver": "raw", "file": file }),
        };
    }
    behind
}

/// Whether there is room for it, and whether it is a bomb: clusters of a qcow2 file may all be the same one.
fn check_size(
    part: &Path,
    from: From<'_>,
    image: &str,
    virtual_size: u64,
    packed: u64,
    task: &Task,
) -> Result<(), ImageError> {
    let mut said = String::new();
    let args = ["measure", "--output", "json", "-O", "raw", image];
    qemu_img(part, from.label, "measure the image", &args, task, |line| said.push_str(line))?;
    // Bytes that a raw file of it takes, holes left out.
    let needed = serde_json::from_str::<Value>(&said).ok().and_then(|v| v.get("required")?.as_u64());
    let needed = needed.unwrap_or(virtual_size).min(virtual_size);
    // What it is beyond its size is not known to be zero: it is judged as data.
    Limits::of(packed)
        .check(virtual_size, needed)
        .map_err(|limit| ImageError::UnpackLimit { path: from.label.to_owned(), limit })?;
    room(part, needed)
}

/// `    (12.50/100%)`
fn percent(line: &str) -> Option<f64> {
    let number = line.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    number.parse().ok().filter(|p| (0.0..=100.0).contains(p))
}

fn qemu_img(
    part: &Path,
    label: &Path,
    action: &'static str,
    args: &[&str],
    task: &Task,
    mut each: impl FnMut(&str),
) -> Result<Ended, ImageError> {
    let mut spawn = Spawn::new(QEMU_IMG.find(action)?).args(args.iter().map(OsString::from));
    // Names without a folder: a ':' in a path means something else to QEMU.
    spawn.cwd = Some(part.to_owned());
    let ended = run(QEMU_IMG, spawn, CONVERT_LIMITS, task, |line| {
        each(line);
        Ok(())
    })?;
    if ended.status.success() {
        return Ok(ended);
    }
    Err(ImageError::ToolFailed {
        tool: QEMU_IMG.name,
        action,
        path: label.to_owned(),
        status: ended.status.to_string(),
        tail: ended.tail.text(),
    })
}

/// What is wrong with a qcow2 file that holds another packed image.
pub(super) fn nested(label: &Path) -> ImageError {
    ImageError::BadQcow2 { path: label.to_owned(), reason: Qcow2Problem::Nested }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents() {
        assert_eq!(percent("    (12.50/100%)"), Some(12.5));
        assert_eq!(percent("(100.00/100%)"), Some(100.0));
        for other in ["", "(x/100%)", "(101/100%)", "qemu-img: error"] {
            assert_eq!(percent(other), None);
        }
    }

    #[test]
    fn the_last_file_has_nothing_behind_it() {
        let from = From { name: "source", layers: &[], label: Path::new("x") };
        assert_eq!(node(from)["backing"], Value::Null);
        assert_eq!(node(from)["file"]["filename"], "source");
    }
}
