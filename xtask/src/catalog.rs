//! `cargo xtask catalog [--check] [--site VENDOR=URL]`: the newest images of the vendors that publish checksum files,
//! into the catalog that is part of the program.
//!
//! Debian and Ubuntu publish each build in a folder of its own, `<release>/<snapshot>/`, with a checksum file in it.
//! The other vendors' images are pinned by hand. What is pinned changes only here, in the open: the digests come over
//! https from the vendor, and a snapshot that is pinned already must still have the digest it had.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, output};

/// Below the workspace's root.
const FILE: &str = "crates/fleetbox-image/src/catalog/catalog.json";
/// So many of the newest snapshots are looked at: the newest may still be on its way there.
const NEWEST: usize = 5;

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Change nothing; fail if anything would change.
    check: bool,
    /// Other sites than the vendors' own, by vendor.
    sites: BTreeMap<String, String>,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let (mut options, mut args) = (Self::default(), args.iter());
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--check" => options.check = true,
                "--site" => {
                    let site =
                        args.next().and_then(|s| s.split_once('=')).context("--site takes VENDOR=URL")?;
                    options.sites.insert(site.0.to_owned(), site.1.trim_end_matches('/').to_owned());
                }
                other => bail!("catalog takes --check and --site VENDOR=URL, not {other:?}"),
            }
        }
        Ok(options)
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let path = workspace.root().join(FILE);
    let old = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut catalog: Value = serde_json::from_str(&old).with_context(|| format!("{FILE} is no JSON"))?;
    let report = refresh(&mut catalog, &options.sites, &|url| get(workspace, url))?;
    for line in &report.lines {
        println!("{line}");
    }
    let new = format!("{}\n", serde_json::to_string_pretty(&catalog)?);
    if new == old {
        println!("{FILE} is as it was");
    } else if options.check {
        println!("{FILE} is not up to date: run `cargo xtask catalog`");
        return Ok(false);
    } else {
        fs::write(&path, new).with_context(|| format!("could not write {}", path.display()))?;
        println!("{FILE} is written; look at the difference before you commit it");
    }
    Ok(!report.failed)
}

fn get(workspace: &Workspace, url: &str) -> Result<String> {
    let mut curl = workspace.command("curl");
    curl.args([
        "--fail",
        "--silent",
        "--show-error",
        "--location",
        "--proto",
        "=http,https",
        "--max-time",
        "120",
    ]);
    text_of(curl.args(["--max-filesize", "50000000", "--", url]))
}

fn text_of(curl: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(curl)?.stdout).into_owned())
}

/// What was done.
#[derive(Debug, Default)]
struct Report {
    lines: Vec<String>,
    failed: bool,
}

/// The images of one name, all architectures: they move together.
#[derive(Debug)]
struct Group {
    vendor: String,
    /// The part of the addresses between the vendor's site and the snapshot.
    folder: String,
    snapshot: String,
    /// Where in the catalog they are, and what follows the snapshot in the address.
    images: Vec<(usize, String)>,
}

/// Moves every image whose vendor has checksum files to its newest snapshot. Goes on after a failure.
fn refresh(
    catalog: &mut Value,
    sites: &BTreeMap<String, String>,
    get: &dyn Fn(&str) -> Result<String>,
) -> Result<Report> {
    let mut report = Report::default();
    for (alias, group) in groups(catalog)? {
        let vendor = &catalog["vendors"][&group.vendor];
        let Some(sums) = vendor["checksums"].as_str().map(str::to_owned) else {
            report.lines.push(format!("{alias}: pinned by hand at {}", group.snapshot));
            continue;
        };
        let base = text(vendor, "base")?.to_owned();
        let site = sites.get(&group.vendor).unwrap_or(&base);
        match newest(catalog, &group, &format!("{site}/{}", group.folder), &sums, get) {
            Err(e) => {
                report.failed = true;
                report.lines.push(format!("{alias}: FAILED: {e:#}"));
            }
            Ok(None) => report.lines.push(format!("{alias}: {} is the newest", group.snapshot)),
            Ok(Some((snapshot, digests))) => {
                for ((at, rest), digest) in group.images.iter().zip(digests) {
                    let rest = rest.replace(&group.snapshot, &snapshot);
                    let image = &mut catalog["images"][*at];
                    image["url"] = format!("{base}/{}/{snapshot}/{rest}", group.folder).into();
                    image["checksum"] = digest.into();
                    image["snapshot"] = snapshot.clone().into();
                }
                report.lines.push(format!("{alias}: {} -> {snapshot}", group.snapshot));
            }
        }
    }
    Ok(report)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("the catalog has an entry without {key:?}: {value}"))
}

fn groups(catalog: &Value) -> Result<BTreeMap<String, Group>> {
    let mut all: BTreeMap<String, Group> = BTreeMap::new();
    for (at, image) in catalog["images"].as_array().context("the catalog has no images")?.iter().enumerate() {
        let (alias, vendor) = (text(image, "alias")?, text(image, "vendor")?);
        let (url, snapshot) = (text(image, "url")?, text(image, "snapshot")?);
        let base = text(&catalog["vendors"][vendor], "base")?;
        let rest = url.strip_prefix(base).and_then(|r| r.strip_prefix('/'));
        let rest = rest.with_context(|| format!("{url} is not below {base}"))?;
        let (folder, file) = rest.split_once(&format!("/{snapshot}/")).unwrap_or((rest, ""));
        let group = all.entry(alias.to_owned()).or_insert_with(|| Group {
            vendor: vendor.to_owned(),
            folder: folder.to_owned(),
            snapshot: snapshot.to_owned(),
            images: Vec::new(),
        });
        if (group.vendor.as_str(), group.snapshot.as_str()) != (vendor, snapshot) {
            bail!("the architectures of {alias} are of different vendors or snapshots");
        }
        group.images.push((at, file.to_owned()));
    }
    Ok(all)
}

/// The newest snapshot that has all images of a group, and their digests; `None` when it is the one that is pinned.
fn newest(
    catalog: &Value,
    group: &Group,
    folder: &str,
    sums: &str,
    get: &dyn Fn(&str) -> Result<String>,
) -> Result<Option<(String, Vec<String>)>> {
    let pinned = order(&group.snapshot, &group.snapshot);
    let found = snapshots(&get(&format!("{folder}/"))?, &group.snapshot);
    for snapshot in found.iter().take(NEWEST) {
        if order(snapshot, &group.snapshot) < pinned {
            break;
        }
        let list = checksums(&get(&format!("{folder}/{snapshot}/{sums}"))?);
        let names = group.images.iter().map(|(_, rest)| rest.replace(&group.snapshot, snapshot));
        let Some(digests) = names.map(|n| list.get(&n).cloned()).collect::<Option<Vec<String>>>() else {
            // Not all of it is there yet.
            continue;
        };
        if *snapshot != group.snapshot {
            return Ok(Some((snapshot.clone(), digests)));
        }
        for ((at, _), digest) in group.images.iter().zip(&digests) {
            let old = text(&catalog["images"][*at], "checksum")?;
            let algorithm = |c: &str| c.split_once(':').map(|(a, _)| a.to_owned());
            if algorithm(old) == algorithm(digest) && old != digest {
                bail!("{snapshot} was pinned with {old}, but now its digest is {digest}");
            }
        }
        return Ok(None);
    }
    bail!("neither {} nor a newer snapshot with all its images is in {folder}/", group.snapshot)
}

/// The folders of a listing that are named like a snapshot, newest first.
fn snapshots(listing: &str, like: &str) -> Vec<String> {
    let links = listing.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut all: Vec<String> = links
        .map(|link| link.trim_start_matches("./").trim_end_matches('/').to_owned())
        .filter(|name| order(name, like).is_some())
        .collect();
    all.sort_by_key(|name| order(name, like));
    all.dedup();
    all.reverse();
    all
}

/// The numbers in a snapshot's name, by which snapshots follow one another: `20260601-2496`, `release-20260515.1`.
fn order(name: &str, like: &str) -> Option<Vec<u64>> {
    let prefix = &like[..like.find(|c: char| c.is_ascii_digit())?];
    let numbers = name.strip_prefix(prefix)?;
    let numbers: Vec<u64> = numbers.split(['-', '.']).map(|n| n.parse().ok()).collect::<Option<_>>()?;
    // A day; a folder such as `12` is something else.
    (numbers.first()? >= &20_000_101).then_some(numbers)
}

/// `<hex digits>  <name>`, with a `*` before names of files that were read as binary ones (sha256sum(1)).
fn checksums(text: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let Some((hex, name)) = line.split_once(char::is_whitespace) else { continue };
        let algorithm = match hex.len() {
            64 => "sha256",
            128 => "sha512",
            _ => continue,
        };
        if hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let name = name.trim().trim_start_matches('*').trim_start_matches("./");
            all.insert(name.to_owned(), format!("{algorithm}:{}", hex.to_ascii_lowercase()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::find_program;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// Plays the vendors' sites until the test program ends.
    fn site(files: BTreeMap<String, String>) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                lines.find(|l| l.as_ref().is_ok_and(String::is_empty));
                let body = files.get(request.split(' ').nth(1).unwrap());
                let (status, body) = body.map_or(("404 Not Found", ""), |b| ("200 OK", b.as_str()));
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        format!("http://{address}")
    }

    fn image(alias: &str, vendor: &str, arch: &str, snapshot: &str, url: &str, checksum: &str) -> Value {
        serde_json::json!({ "alias": alias, "vendor": vendor, "arch": arch, "snapshot": snapshot, "url": url,
                            "checksum": checksum, "format": "raw" })
    }

    fn catalog() -> Value {
        let debian = |arch: &str| {
            let url = format!(
                "https://debian.test/cloud/bookworm/20260601-2496/debian-12-{arch}-20260601-2496.raw"
            );
            image("debian-12", "debian", arch, "20260601-2496", &url, &format!("sha256:{}", "1".repeat(64)))
        };
        let ubuntu = |arch: &str| {
            let url = format!("https://ubuntu.test/noble/release-20260518/ubuntu-{arch}.img");
            image(
                "ubuntu-24.04",
                "ubuntu",
                arch,
                "release-20260518",
                &url,
                &format!("sha256:{}", "2".repeat(64)),
            )
        };
        let fedora =
            image("fedora-44", "fedora", "amd64", "44-1.7", "https://fedora.test/44/f-44-1.7.qcow2", "x");
        serde_json::json!({
            "version": 1,
            "vendors": {
                "debian": { "base": "https://debian.test/cloud", "checksums": "SHA512SUMS" },
                "ubuntu": { "base": "https://ubuntu.test", "checksums": "SHA256SUMS" },
                "fedora": { "base": "https://fedora.test" },
            },
            "images": [debian("amd64"), debian("arm64"), ubuntu("amd64"), ubuntu("arm64"), fedora],
        })
    }

    /// The sites as they look: listings of several servers' making, an unfinished newest snapshot, other files.
    fn files(ubuntu_digit: &str) -> BTreeMap<String, String> {
        let sums = |digit: &str, len: usize, names: &[&str], star: &str| {
            names.iter().map(|n| format!("{} {star}{n}\n", digit.repeat(len))).collect::<String>()
        };
        let listing = |names: &[&str]| {
            names
                .iter()
                .map(|n| format!("<img src=\"x.png\"> <a href=\"{n}\">{n}</a>  2026-07-01\n"))
                .collect()
        };
        let of = |snapshot: &str, arch: &str| format!("debian-12-{arch}-{snapshot}.raw");
        let both = |snapshot: &str| [of(snapshot, "amd64"), of(snapshot, "arm64"), "other.json".to_owned()];
        let (whole, half) = (both("20260712-2537"), both("20260714-2540"));
        let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
        let ubuntu = ["ubuntu-amd64.img", "ubuntu-arm64.img"];
        [
            (
                "/debian/bookworm/",
                listing(&[
                    "../",
                    "20250101-1/",
                    "20260601-2496/",
                    "20260712-2537/",
                    "20260714-2540/",
                    "daily/",
                    "latest/",
                ]),
            ),
            ("/debian/bookworm/20260714-2540/SHA512SUMS", sums("b", 128, &[&half[0]], " ")),
            ("/debian/bookworm/20260712-2537/SHA512SUMS", sums("C", 128, &whole, " ")),
            ("/ubuntu/noble/", listing(&["release/", "release-20260401/", "release-20260518/"])),
            ("/ubuntu/noble/release-20260518/SHA256SUMS", sums(ubuntu_digit, 64, &ubuntu, "*")),
        ]
        .into_iter()
        .map(|(path, text): (&str, String)| (path.to_owned(), text))
        .collect()
    }

    fn refreshed(files: BTreeMap<String, String>) -> Option<(Value, Report)> {
        find_program("curl")?;
        let workspace = Workspace::find().unwrap();
        let (mut catalog, site) = (catalog(), site(files));
        let sites = ["debian", "ubuntu"]
            .map(|v| (v.to_owned(), format!("{site}/{v}")))
            .into_iter()
            .collect::<BTreeMap<_, _>>();
        let report = refresh(&mut catalog, &sites, &|url| get(&workspace, url)).unwrap();
        Some((catalog, report))
    }

    #[test]
    fn the_newest_whole_snapshot_is_taken() {
        let Some((catalog, report)) = refreshed(files("2")) else {
            fleetbox_testkit::skip!("there is no curl here")
        };
        assert!(!report.failed, "{:?}", report.lines);
        for (at, arch) in [(0, "amd64"), (1, "arm64")] {
            let image = &catalog["images"][at];
            assert_eq!(image["snapshot"], "20260712-2537");
            // The vendor's own address, whatever site was asked.
            let url = format!(
                "https://debian.test/cloud/bookworm/20260712-2537/debian-12-{arch}-20260712-2537.raw"
            );
            assert_eq!(image["url"], url);
            assert_eq!(image["checksum"], format!("sha512:{}", "c".repeat(128)));
        }
        // As pinned, with the same digest, and without a checksum file: untouched.
        for at in 2..5 {
            assert_eq!(catalog["images"][at], self::catalog()["images"][at]);
        }
        assert!(report.lines.iter().any(|l| l.contains("fedora-44: pinned by hand")), "{:?}", report.lines);
    }

    #[test]
    fn a_pinned_snapshot_whose_digest_changed_is_an_alarm() {
        let Some((catalog, report)) = refreshed(files("3")) else {
            fleetbox_testkit::skip!("there is no curl here")
        };
        assert!(report.failed);
        assert!(report.lines.iter().any(|l| l.contains("was pinned with")), "{:?}", report.lines);
        assert_eq!(catalog["images"][2], self::catalog()["images"][2]);
        // The others are moved all the same.
        assert_eq!(catalog["images"][0]["snapshot"], "20260712-2537");
    }

    #[test]
    fn a_site_that_is_gone_or_empty_changes_nothing() {
        for without in ["/debian/bookworm/", "/debian/bookworm/20260712-2537/SHA512SUMS"] {
            let mut files = files("2");
            files.remove(without);
            let Some((catalog, report)) = refreshed(files) else {
                fleetbox_testkit::skip!("there is no curl here")
            };
            assert!(report.failed, "{:?}", report.lines);
            assert!(report.lines.iter().any(|l| l.starts_with("debian-12: FAILED")), "{:?}", report.lines);
            assert_eq!(catalog, self::catalog());
        }
        let mut files = files("2");
        files.insert("/debian/bookworm/".to_owned(), "<html>maintenance</html>".to_owned());
        let Some((_, report)) = refreshed(files) else { fleetbox_testkit::skip!("there is no curl here") };
        assert!(report.lines.iter().any(|l| l.contains("nor a newer snapshot")), "{:?}", report.lines);
    }

    #[test]
    fn snapshots_follow_one_another() {
        let names = |listing: &[&str], like| {
            snapshots(&listing.iter().map(|n| format!("<a href=\"{n}\">")).collect::<String>(), like)
        };
        assert_eq!(
            names(
                &["20260601-2496/", "20260601-999/", "20251231-2600/", "latest/", "../", "12/"],
                "20260601-2496"
            ),
            ["20260601-2496", "20260601-999", "20251231-2600"]
        );
        assert_eq!(
            names(
                &["release-20260515/", "./release-20260515.1/", "release/", "20270101/"],
                "release-20260515"
            ),
            ["release-20260515.1", "release-20260515"]
        );
    }

    #[test]
    fn checksum_files_are_read() {
        let (short, long) = ("aB".repeat(32), "0".repeat(128));
        let text = format!("{short} *a.img\n{long}  ./b.raw\nnonsense c\n{} d\n", "g".repeat(64));
        let all = checksums(&text);
        assert_eq!(all.len(), 2);
        assert_eq!(all["a.img"], format!("sha256:{}", "ab".repeat(32)));
        assert_eq!(all["b.raw"], format!("sha512:{long}"));
    }

    #[test]
    fn the_checked_in_catalog_is_as_this_program_writes_it() {
        let workspace = Workspace::find().unwrap();
        let text = fs::read_to_string(workspace.root().join(FILE)).unwrap();
        let catalog: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{}\n", serde_json::to_string_pretty(&catalog).unwrap()), text);
        let groups = groups(&catalog).unwrap();
        // Those that are refreshed have their snapshot as a folder in their address.
        for name in ["debian-11", "debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "ubuntu-26.04"] {
            let group = &groups[name];
            assert_eq!(group.images.len(), 2, "{name}");
            assert!(group.images.iter().all(|(_, file)| !file.is_empty()), "{name}");
            assert!(order(&group.snapshot, &group.snapshot).is_some(), "{name}");
        }
    }

    #[test]
    fn the_command_line() {
        let parse = |args: &[&str]| Options::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        let options = parse(&["--check", "--site", "debian=http://x/y/"]).unwrap();
        assert!(options.check && options.sites["debian"] == "http://x/y");
        assert!(parse(&["--site"]).is_err() && parse(&["--site", "x"]).is_err() && parse(&["-v"]).is_err());
    }
}
