use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use fleetbox_spec::{ClusterName, DiskFormat};

use super::uses::tests::overlay;
use super::*;

struct Lab {
    _tmp: tempfile::TempDir,
    store: Store,
    images: Images,
}

fn digest(c: char) -> String {
    String::from(c).repeat(64)
}

impl Lab {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(tmp.path()).unwrap();
        Self { _tmp: tmp, images: Images::new(store.clone()), store }
    }

    /// An image of 64 KiB of data, as an earlier program wrote it.
    fn image(&self, digest: &str, reference: &str) {
        let dir = self.store.image_dir(digest);
        fs::create_dir_all(dir.path()).unwrap();
        fs::write(dir.image("raw"), vec![7u8; 64 << 10]).unwrap();
        let meta = serde_json::json!({
            "version": 1, "digest": digest, "reference": reference, "format": "raw", "virtual_size": 64 << 10,
            "kernel": false, "initrd": false, "root_args": "", "extra_args": "", "os": "Test Linux 1", "arch": "amd64",
            "notes": ["a note"],
        });
        fs::write(dir.meta(), meta.to_string()).unwrap();
    }

    fn machine_dir(&self, name: &str) -> fleetbox_store::MachineDir {
        let dir = self.store.machine_dir(&ClusterName::new("c").unwrap(), &MachineName::new(name).unwrap());
        fs::create_dir_all(dir.path()).unwrap();
        dir
    }

    fn overlay(&self, name: &str, digest: &str) {
        let image = self.store.image_dir(digest).image("raw");
        fs::write(self.machine_dir(name).disk("qcow2"), overlay(image.to_str().unwrap())).unwrap();
    }

    fn record(&self, name: &str, digest: &str, image: &str, disk: &str) {
        let record = serde_json::json!({
            "version": 1, "name": name, "image": image, "image_digest": digest, "cpus": 2, "memory_mib": 1024,
            "disk_gib": 10, "disk": disk, "backend": "qemu", "accel": "tcg", "uuid": "u", "mac": "m",
            "ip": "10.77.3.2", "instance_id": "i", "host_key": "k", "created_at": "t", "ephemeral": false,
        });
        fs::write(self.machine_dir(name).record(), record.to_string()).unwrap();
    }

    fn import_record(&self, path: &str, digest: &str) -> PathBuf {
        let file = self.store.images_dir().join(format!(".{}.json", path_name(Path::new(path))));
        let record = serde_json::json!({ "version": 1, "digest": digest, "fingerprint": {
            "path": path, "dev": 1, "ino": 2, "size": 3, "mtime": [0, 0], "ctime": [0, 0] } });
        fs::write(&file, record.to_string()).unwrap();
        file
    }

    fn digests(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.images.list().unwrap().images.into_iter().map(|i| i.image.digest).collect();
        all.sort();
        all
    }
}

#[test]
fn what_there_is_and_who_needs_it() {
    let lab = Lab::new();
    let (a, b, c) = (digest('a'), digest('b'), digest('c'));
    assert!(lab.images.list().unwrap().images.is_empty());
    lab.image(&a, "bootstrap:bookworm");
    lab.image(&b, "/x/disk.raw");
    lab.import_record("/x/disk.raw", &b);
    lab.import_record("/y/same.raw", &b);
    lab.overlay("web", &a);
    lab.record("web", &a, "bootstrap:bookworm?packages=curl", "disk.qcow2");
    // A disk that stands alone, and one whose machine is only being made.
    lab.record("raw", &a, "bootstrap:bookworm", "disk.raw");
    fs::write(lab.machine_dir("raw").disk("raw"), "").unwrap();
    lab.overlay("new", &a);
    // No image, and one that is damaged.
    fs::create_dir(lab.store.images_dir().join("not-a-digest")).unwrap();
    lab.image(&c, "debian-12");
    fs::write(lab.store.image_dir(&c).meta(), "{\"version\": 1").unwrap();

    let listing = lab.images.list().unwrap();
    let [(damaged, why)] = &listing.damaged[..] else { panic!("{:?}", listing.damaged) };
    assert_eq!((damaged, matches!(why, ImageError::Store(_))), (&c, true), "{why}");
    let find = |digest: &str| listing.images.iter().find(|i| i.image.digest == digest).unwrap();
    let names = |i: &StoredImage| i.references.iter().map(ToString::to_string).collect::<Vec<_>>();
    let used = |i: &StoredImage| i.used_by.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(find(&a)), ["bootstrap:bookworm", "bootstrap:bookworm?packages=curl"]);
    assert_eq!(used(find(&a)), ["new", "web"]);
    assert_eq!(names(find(&b)), ["/x/disk.raw", "/y/same.raw"]);
    assert!(used(find(&b)).is_empty());
    assert!(find(&b).disk_bytes >= 64 << 10, "{}", find(&b).disk_bytes);
    assert_eq!(find(&b).meta["notes"][0], "a note");
    assert_eq!(lab.images.stored(&a).unwrap(), *find(&a));
    for none in [digest('d'), "..".into(), "../clusters".into()] {
        assert!(matches!(lab.images.stored(&none), Err(ImageError::NoSuchImage { .. })), "{none}");
    }
}

#[test]
fn what_a_disk_needs_is_not_removed() {
    let lab = Lab::new();
    let a = digest('a');
    lab.image(&a, "debian-12");
    lab.overlay("web", &a);
    lab.overlay("db", &a);
    lab.record("web", &a, "debian-12", "disk.qcow2");
    let refused = lab.images.remove(&a).unwrap_err().to_string();
    assert_eq!(refused, "image aaaaaaaaaaaa cannot be removed: the disks of these machines need it: db, web");
    fs::remove_dir_all(lab.machine_dir("db").path()).unwrap();
    // A record that is damaged does not make its disk a stranger's ...
    fs::write(lab.machine_dir("web").record(), "{").unwrap();
    let refused = lab.images.remove(&a).unwrap_err();
    assert!(matches!(&refused, ImageError::ImageInUse { machines, .. } if machines.len() == 1), "{refused}");
    // ... nor does a damaged disk, when the record tells.
    lab.record("web", &a, "debian-12", "disk.qcow2");
    fs::write(lab.machine_dir("web").disk("qcow2"), "damaged").unwrap();
    assert!(matches!(lab.images.remove(&a), Err(ImageError::ImageInUse { .. })));
    // When neither tells, it might be any.
    fs::write(lab.machine_dir("web").record(), "{").unwrap();
    let refused = lab.images.remove(&a).unwrap_err();
    assert!(
        matches!(&refused, ImageError::UseUnknown { machine, .. } if machine.as_str() == "web"),
        "{refused}"
    );
    assert_eq!(lab.digests(), std::slice::from_ref(&a));
    // A copy needs none.
    fs::remove_file(lab.machine_dir("web").disk("qcow2")).unwrap();
    lab.record("web", &a, "debian-12", "disk.raw");
    fs::write(lab.machine_dir("web").disk("raw"), "").unwrap();
    assert!(lab.images.remove(&a).unwrap() >= 64 << 10);
    assert!(lab.digests().is_empty());
}

#[test]
fn a_removal_leaves_nothing() {
    let lab = Lab::new();
    let (a, b) = (digest('a'), digest('b'));
    lab.image(&a, "/x/disk.raw");
    lab.image(&b, "/y/disk.raw");
    let (gone, kept) = (lab.import_record("/x/disk.raw", &a), lab.import_record("/y/disk.raw", &b));
    // Of a removal that was cut short before an equal image was made again.
    fs::create_dir(lab.store.image_part_dir(&a)).unwrap();
    fs::write(lab.store.image_part_dir(&a).join("image.raw"), "x").unwrap();
    // What a machine keeps of it is not given back.
    let kernel = lab.store.image_dir(&a).boot().kernel();
    fs::write(&kernel, vec![1u8; 1 << 20]).unwrap();
    fs::hard_link(&kernel, lab.machine_dir("raw").path().join("kernel")).unwrap();
    let freed = lab.images.remove(&a).unwrap();
    assert!((64 << 10..1 << 20).contains(&freed), "{freed}");
    assert!(!lab.store.image_dir(&a).path().exists() && !lab.store.image_part_dir(&a).exists());
    assert!(!gone.exists() && kept.exists());
    assert!(matches!(lab.images.remove(&a), Err(ImageError::NoSuchImage { .. })));
    assert_eq!(lab.digests(), [b]);
}

#[test]
fn whoever_is_at_work_with_it_is_told() {
    let lab = Lab::new();
    let a = digest('a');
    lab.image(&a, "debian-12");
    let builder = Lock::try_take(&lab.store, LockKind::Image, &a).unwrap();
    let refused = lab.images.remove(&a).unwrap_err().to_string();
    assert_eq!(refused, format!("image aaaaaaaaaaaa is being used by pid {}", std::process::id()));
    drop(builder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (image, held) = runtime.block_on(lab.images.get_for_use(&a)).unwrap();
    assert_eq!(image.digest, a);
    let refused = lab.images.remove(&a).unwrap_err().to_string();
    assert_eq!(refused, "image aaaaaaaaaaaa is being used by a machine that is being made from it");
    assert_eq!(lab.images.prune(false).unwrap().removed, []);
    drop(held);
    lab.images.remove(&a).unwrap();
    assert!(matches!(runtime.block_on(lab.images.get_for_use(&a)), Err(ImageError::NoSuchImage { .. })));
}

/// A start that makes its disk, and a removal, at the same moment: one of the two has it, and the other is told.
#[test]
fn neither_a_start_nor_a_removal_loses() {
    let lab = Lab::new();
    let a = digest('a');
    let (made, removed) = (AtomicU32::new(0), AtomicU32::new(0));
    for round in 0..200 {
        lab.image(&a, "debian-12");
        let disk = lab.machine_dir("web").disk("qcow2");
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|s| {
            s.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                together.wait();
                // So that each of the two comes first at times.
                std::thread::park_timeout(Duration::from_micros(round % 7 * 20));
                match runtime.block_on(lab.images.get_for_use(&a)) {
                    Ok((image, held)) => {
                        // As qemu-img does: the header comes last.
                        let file = fs::File::create(&disk).unwrap();
                        file.write_all_at(&overlay(image.path.to_str().unwrap()), 0).unwrap();
                        drop(held);
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(ImageError::NoSuchImage { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            });
            s.spawn(|| {
                together.wait();
                std::thread::park_timeout(Duration::from_micros(round % 5 * 30));
                match lab.images.remove(&a) {
                    Ok(_) => drop(removed.fetch_add(1, Ordering::Relaxed)),
                    Err(ImageError::ImageInUse { .. } | ImageError::ImageBusy { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            });
        });
        let (image, disk_there) = (lab.store.image_dir(&a).image("raw").exists(), disk.exists());
        assert_eq!(
            image, disk_there,
            "round {round}: a disk without its image, or an image that nobody removed"
        );
        let _ = fs::remove_file(&disk);
    }
    assert_eq!(made.into_inner() + removed.into_inner(), 200);
}

#[test]
fn prune_removes_what_no_disk_needs_and_tells_it_before() {
    let lab = Lab::new();
    let all = ['a', 'b', 'c', 'd'].map(digest);
    for (digest, name) in all.iter().zip(["debian-12", "debian-13", "/x/disk.raw", "fedora"]) {
        lab.image(digest, name);
    }
    lab.overlay("web", &all[1]);
    fs::write(lab.store.image_dir(&all[3]).meta(), "{\"version\": 999}").unwrap();
    fs::create_dir(lab.store.image_part_dir("dead")).unwrap();
    let names = |p: &ImagesPruned| {
        let mut all: Vec<String> = p.removed.iter().map(|i| i.image.digest.clone()).collect();
        all.sort();
        all
    };
    let told = lab.images.prune(true).unwrap();
    assert_eq!(lab.digests(), all[..3]);
    assert!(lab.store.image_part_dir("dead").exists() && told.swept.is_empty());
    let done = lab.images.prune(false).unwrap();
    assert_eq!((names(&told), told.freed_bytes), (names(&done), done.freed_bytes));
    assert_eq!(names(&done), [all[0].clone(), all[2].clone()]);
    assert!(done.freed_bytes >= 2 * (64 << 10));
    assert_eq!(done.swept, [lab.store.image_part_dir("dead")]);
    let kept: Vec<&str> = done.kept.iter().map(|(d, _)| d.as_str()).collect();
    assert_eq!(kept, [&all[3], &all[1]], "what cannot be read is kept, too");
    assert_eq!(lab.digests(), [all[1].clone()]);
    assert!(lab.images.prune(false).unwrap().removed.is_empty());
}

#[test]
fn images_by_name() {
    let lab = Lab::new();
    let (a, b) = (digest('a'), format!("aaaab{}", "0".repeat(59)));
    lab.image(&a, "debian-12");
    lab.image(&b, "debian-12");
    let named = |text: &str| lab.images.digest_named(text).map_err(|e| e.to_string());
    assert_eq!(named("aaaaa").unwrap(), a);
    assert_eq!(named("AAAAB").unwrap(), b);
    assert_eq!(named(&a).unwrap(), a);
    let ambiguous = named("aaaa").unwrap_err();
    assert!(
        ambiguous.contains("2 images") && ambiguous.contains(&a) && ambiguous.contains(&b),
        "{ambiguous}"
    );
    assert!(named("debian-12").unwrap_err().contains("2 images"), "it led to both");
    for unknown in ["aaa", "bbbb", "debian-13", "", "..", "bootstrap:trixie", "bootstrap:../x", "/x/disk.raw"]
    {
        let error = named(unknown).unwrap_err();
        assert_eq!(error, format!("there is no image {unknown} in the store"), "{unknown}");
    }
    lab.images.remove(&b).unwrap();
    assert_eq!(named("debian-12").unwrap(), a);
    // By what a machine calls it, by the file it was imported from, and by a recipe.
    lab.record("web", &a, "http://example.test/x.raw", "disk.raw");
    assert_eq!(named("http://example.test/x.raw").unwrap(), a);
    lab.import_record("/x/disk.raw", &a);
    assert_eq!(named("/x/disk.raw").unwrap(), a);
    if let Some(recipe) = bootstrap::digest_of("trixie", &"jq".parse().unwrap()) {
        lab.image(&recipe, "bootstrap:trixie?packages=jq");
        assert_eq!(
            named("bootstrap:trixie?packages=jq,curl").unwrap(),
            recipe,
            "what every image has counts nothing"
        );
        assert!(named("bootstrap:trixie").is_err());
    }
    assert_eq!(DiskFormat::Raw, lab.images.get(&a).unwrap().format);
}
