//! `fleetbox image` where it needs neither root nor a holder, on a store that is written by hand.

mod support;

use std::path::Path;

use support::{Fleet, text};

fn digest(c: char) -> String {
    String::from(c).repeat(64)
}

#[expect(clippy::unwrap_used, reason = "only tests call this")]
fn image(fleet: &Fleet, digest: &str, reference: &str, notes: &[&str]) {
    let dir = fleet.home().join("images").join(digest);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("image.raw"), vec![7u8; 64 << 10]).unwrap();
    let meta = serde_json::json!({
        "version": 1, "digest": digest, "reference": reference, "format": "raw", "virtual_size": 2u64 << 30,
        "kernel": true, "initrd": true, "root_args": "root=UUID=1 ro", "extra_args": "", "os": "Test Linux 1",
        "arch": "amd64", "notes": notes,
    });
    std::fs::write(dir.join("meta.json"), meta.to_string()).unwrap();
}

/// The header of a disk that is an overlay on an image.
#[expect(clippy::unwrap_used, reason = "only tests call this")]
fn overlay(image: &Path) -> Vec<u8> {
    let name = image.to_str().unwrap();
    let mut head = vec![0u8; 512];
    head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    head[8..16].copy_from_slice(&512u64.to_be_bytes());
    head[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
    head.extend(name.as_bytes());
    head
}

#[expect(clippy::unwrap_used, reason = "only tests call this")]
fn machine(fleet: &Fleet, name: &str, digest: &str) {
    fleet.write_record(name, &support::record(name).replace(&"0".repeat(64), digest));
    let image = fleet.home().join("images").join(digest).join("image.raw");
    let disk = fleet.home().join("clusters").join(name).join(name).join("disk.qcow2");
    std::fs::write(disk, overlay(&image)).unwrap();
}

#[test]
fn an_empty_store() {
    let fleet = Fleet::without_machines();
    for args in [&["image", "ls"][..], &["images"], &["image", "list", "-q"]] {
        assert_eq!(fleet.ok(args), "", "{args:?}");
    }
    assert_eq!(fleet.ok(&["image", "ls", "--json"]), "[]\n");
    assert_eq!(fleet.ok(&["image", "prune"]), "");
    for args in [&["image", "inspect", "abcd"][..], &["image", "rm", "debian-12"]] {
        let error = fleet.fails(3, args);
        assert!(
            error.starts_with("error: there is no image ") && error.contains("fleetbox image ls"),
            "{error}"
        );
    }
    assert_eq!(fleet.ok(&["image", "rm", "-f", "debian-12"]), "");
    for args in
        [&["image", "nonsense"][..], &["image", "rm"], &["image", "ls", "--json", "-q"], &["image", "build"]]
    {
        assert_eq!(fleet.run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn what_there_is_is_shown() {
    let fleet = Fleet::without_machines();
    let (a, b) = (digest('a'), digest('b'));
    image(&fleet, &a, "bootstrap:bookworm", &["an odd thing"]);
    image(&fleet, &b, "/x/disk.raw", &[]);
    machine(&fleet, "web", &a);
    let table = fleet.ok(&["image", "ls"]);
    let line = |digest: &str| table.lines().find(|l| l.contains(&digest[..12])).unwrap_or("").to_owned();
    assert!(line(&a).contains("bootstrap:bookworm") && line(&a).contains(" web "), "{table}");
    assert!(line(&b).contains("/x/disk.raw") && line(&b).contains(" 2G "), "{table}");
    let json: serde_json::Value = serde_json::from_str(&fleet.ok(&["images", "ls", "--json"])).unwrap();
    let of = |digest: &str| json.as_array().unwrap().iter().find(|i| i["digest"] == digest).unwrap().clone();
    assert_eq!(of(&a)["used_by"], serde_json::json!(["web"]));
    assert_eq!(of(&a)["notes"], serde_json::json!(["an odd thing"]));
    assert_eq!((of(&b)["virtual_bytes"].as_u64(), &of(&b)["kernel"]), (Some(2 << 30), &true.into()));
    assert!(of(&b)["created_at"].as_str().unwrap().ends_with('Z'));
    let mut quiet: Vec<String> = fleet.ok(&["image", "ls", "-q"]).lines().map(str::to_owned).collect();
    quiet.sort();
    assert_eq!(quiet, [a.clone(), b.clone()]);

    let shown = fleet.ok(&["image", "inspect", "aaaa"]);
    for (label, value) in [
        ("digest", a.as_str()),
        ("reference", "bootstrap:bookworm"),
        ("system", "Test Linux 1"),
        ("virtual size", "2G (2147483648 bytes)"),
        ("used by", "web"),
        ("boots", "its own kernel, without firmware"),
        ("root", "root=UUID=1 ro"),
        ("note", "an odd thing"),
    ] {
        let line = shown.lines().find(|l| l.starts_with(label)).unwrap_or_default();
        assert!(line.ends_with(value), "{label}: {shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&fleet.ok(&["image", "show", "/x/disk.raw", "--json"])).unwrap();
    assert_eq!((json["digest"].as_str(), json["record"]["version"].as_u64()), (Some(b.as_str()), Some(1)));
}

#[test]
fn what_a_disk_needs_is_kept_and_the_rest_can_go() {
    let fleet = Fleet::without_machines();
    let all = ['a', 'b', 'c'].map(digest);
    for (digest, name) in all.iter().zip(["bootstrap:bookworm", "/x/disk.raw", "debian-12"]) {
        image(&fleet, digest, name, &[]);
    }
    machine(&fleet, "web", &all[0]);
    machine(&fleet, "db", &all[0]);
    let refused = fleet.fails(4, &["image", "rm", "-f", "aaaaaa"]);
    assert!(refused.contains("need it: db, web") && refused.contains("fleetbox rm NAME"), "{refused}");
    // What can be removed is, and the first failure decides the code.
    let out = fleet.run(&["image", "remove", "aaaa", "nothing", "/x/disk.raw"]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(4), "{said}");
    assert!(
        said.contains("/x/disk.raw (bbbbbbbbbbbb) is removed; 6") && said.contains("no image nothing"),
        "{said}"
    );

    let dry = fleet.run(&["image", "prune", "--dry-run"]);
    let (stdout, stderr) = (text(&dry.stdout), text(&dry.stderr));
    assert!(
        stdout.contains("would be removed: debian-12 (cccccccccccc)") && !stdout.contains("aaaa"),
        "{stdout}"
    );
    assert!(stderr.contains("kept: image aaaaaaaaaaaa") && stderr.contains("1 would be removed"), "{stderr}");
    assert_eq!(fleet.ok(&["image", "ls", "-q"]).lines().count(), 2);
    assert!(fleet.ok(&["image", "prune"]).starts_with("removed: debian-12"));
    assert_eq!(fleet.ok(&["image", "ls", "-q"]), format!("{}\n", all[0]));
    assert!(fleet.home().join("images").join(&all[0]).join("image.raw").exists());
}

#[test]
fn a_damaged_image_does_not_hide_the_others() {
    let fleet = Fleet::without_machines();
    let (a, b) = (digest('a'), digest('b'));
    image(&fleet, &a, "bootstrap:bookworm", &[]);
    image(&fleet, &b, "debian-12", &[]);
    std::fs::write(fleet.home().join("images").join(&b).join("meta.json"), "{\"version\": 999}").unwrap();
    let out = fleet.run(&["image", "ls", "-q"]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(8), format!("{a}\n")));
    assert!(text(&out.stderr).contains("newer fleetbox"), "{}", text(&out.stderr));
    let out = fleet.run(&["image", "prune"]);
    assert_eq!(out.status.code(), Some(8), "{}", text(&out.stderr));
    assert!(fleet.home().join("images").join(&b).exists(), "what cannot be read is nobody's to prune");
}

#[test]
fn what_is_no_image_is_refused_with_9() {
    let fleet = Fleet::without_machines();
    let page = fleet.home().join("page.raw");
    std::fs::write(&page, "<!DOCTYPE html><title>404</title>").unwrap();
    let page = page.to_str().unwrap();
    for args in
        [&["image", "import", page][..], &["image", "pull", page], &["image", "import", "/nonexistent"]]
    {
        let error = fleet.fails(9, args);
        assert!(error.contains("error: ") && !error.contains("panicked"), "{error}");
    }
    fleet.fails(2, &["image", "build", "../x"]);
    fleet.fails(2, &["image", "build", "bookworm", "--packages", "a b"]);
    fleet.fails(2, &["image", "pull", "bootstrap:../x"]);
    assert_eq!(fleet.ok(&["image", "ls", "-q"]), "");
}

#[test]
fn an_import_is_an_image() {
    let fleet = Fleet::without_machines();
    let file = fleet.home().join("disk.raw");
    // A boot sector, and nothing that it could load.
    let mut disk = vec![0u8; 2 << 20];
    disk[0] = 0xeb;
    disk[446 + 4] = 0x83;
    disk[446 + 8] = 1;
    disk[446 + 13] = 8;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&file, disk).unwrap();
    let file = file.to_str().unwrap();
    let out = fleet.run(&["image", "import", file]);
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{stderr}");
    // Nothing in it: what follows from that is told at once.
    assert!(stderr.contains("note: boots through firmware"), "{stderr}");
    let digest = stdout.trim_end();
    assert_eq!(digest.len(), 64);
    assert_eq!(fleet.ok(&["image", "pull", file]), stdout);
    assert!(fleet.ok(&["image", "inspect", file]).contains("through firmware"));
    fleet.ok(&["image", "rm", &digest[..6]]);
    fleet.fails(3, &["image", "inspect", file]);
}
