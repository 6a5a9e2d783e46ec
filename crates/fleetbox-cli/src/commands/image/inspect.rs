//! `fleetbox image inspect`

use fleetbox::ImageInfo;
use jiff::Timestamp;
use serde_json::Value;

use super::ls::{Row, age, made};
use crate::args::ImageInspect;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::{output, size};

pub(super) async fn run(args: &ImageInspect) -> Result {
    let image = fleetbox::images()?.inspect(&args.name).await?;
    output::print(&if args.json { json(&image)? } else { render(&image, Timestamp::now()) })?;
    Ok(Exit::Ok)
}

/// What `image ls --json` has of it, and under `record` all that is on disk.
fn json(image: &ImageInfo) -> Result<String> {
    let mut object = serde_json::to_value(Row::from(image)).map_err(CliError::Json)?;
    if let Value::Object(fields) = &mut object {
        fields.insert("dir".into(), image.dir.display().to_string().into());
        fields.insert("record".into(), image.record.clone());
    }
    Ok(serde_json::to_string_pretty(&object).map_err(CliError::Json)? + "\n")
}

/// Fields of the record that are shown in words already.
const TOLD: [&str; 11] = [
    "version",
    "digest",
    "reference",
    "format",
    "virtual_size",
    "kernel",
    "initrd",
    "os",
    "arch",
    "notes",
    "root_args",
];

fn render(image: &ImageInfo, now: Timestamp) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |label: &str, value: String| rows.push((label.to_owned(), value));
    add("digest", image.digest.clone());
    image.references.iter().for_each(|r| add("reference", r.to_string()));
    add("system", image.os.clone());
    add("architecture", image.arch.debian().to_owned());
    add(
        "virtual size",
        format!("{} ({} bytes)", size::short_bytes(image.virtual_bytes), image.virtual_bytes),
    );
    add("on disk", size::short_bytes(image.disk_bytes));
    add("format", image.format.as_str().to_owned());
    let at = made(image).map_or_else(|| "-".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
    add("made", format!("{at} ({} ago)", age(image.made, now)));
    let machines: Vec<&str> = image.used_by.iter().map(|m| m.as_str()).collect();
    add("used by", if machines.is_empty() { "no machine".to_owned() } else { machines.join(", ") });
    let boots = if image.has_kernel { "its own kernel, without firmware" } else { "through firmware" };
    add("boots", boots.to_owned());
    if let Some(Value::String(args)) = image.record.get("root_args").filter(|_| image.has_kernel) {
        add("root", args.clone());
    }
    add("folder", image.dir.display().to_string());
    // What later versions know of an image is shown by the names it has in its record.
    if let Value::Object(fields) = &image.record {
        for (name, value) in fields.iter().filter(|(name, _)| !TOLD.contains(&name.as_str())) {
            flatten(&name.replace('_', " "), value, &mut rows);
        }
    }
    rows.extend(image.notes.iter().map(|note| ("note".to_owned(), note.clone())));
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut last = "";
    for (label, value) in &rows {
        // Several of a kind stand below each other.
        let shown = if label == last { "" } else { label };
        text += &format!("{shown:<width$}  {}\n", printable(value));
        last = label;
    }
    text
}

fn flatten(label: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => rows.push((label.to_owned(), text.clone())),
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{label} {}", name.replace('_', " ")), value, rows);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| flatten(label, item, rows)),
        other => rows.push((label.to_owned(), other.to_string())),
    }
}

/// What stands in an image was written by others.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_later_versions_know_is_shown_by_its_name() {
        let mut rows = Vec::new();
        let value = json!({"cloud_init": "22.4", "partitions": [{"fs": "ext4"}, {"fs": "vfat"}], "none": null, "n": 3});
        flatten("inspection", &value, &mut rows);
        rows.sort();
        let rows: Vec<(&str, &str)> = rows.iter().map(|(l, v)| (l.as_str(), v.as_str())).collect();
        assert_eq!(
            rows,
            [
                ("inspection cloud init", "22.4"),
                ("inspection n", "3"),
                ("inspection partitions fs", "ext4"),
                ("inspection partitions fs", "vfat"),
            ]
        );
        assert_eq!(printable("a\x1b[31m\nb"), "a [31m b");
    }
}
