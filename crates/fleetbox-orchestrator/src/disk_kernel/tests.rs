use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use fleetbox_spec::{ClusterName, ImageRef, MachineName};
use fleetbox_store::Store;
use proptest::prelude::*;

use super::*;

/// A kernel that tells its release, as those for PCs do.
fn bzimage(release: &str) -> Vec<u8> {
    let mut bytes = vec![0u8; 0x1000];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
    let text = format!("{release} (builder@host) #1 SMP");
    bytes[0x500..0x500 + text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// A machine whose image has kernel 1, and what is found on its disk.
struct Lab {
    tmp: tempfile::TempDir,
    shared: Shared,
    dir: MachineDir,
    image: Image,
    record: MachineRecord,
}

/// Answers as it was told, and keeps count of how often it was asked.
#[derive(Debug)]
struct Scripted {
    answer: Result<(&'static str, Option<&'static str>, &'static str), &'static str>,
    asked: Mutex<Vec<PathBuf>>,
    /// There is a kernel to be kept.
    had: bool,
}

impl Scripted {
    fn finds(release: &'static str, initrd: Option<&'static str>, root: &'static str) -> Self {
        Self { answer: Ok((release, initrd, root)), asked: Mutex::default(), had: true }
    }

    fn fails(why: &'static str) -> Self {
        Self { answer: Err(why), asked: Mutex::default(), had: true }
    }

    fn had_none(self) -> Self {
        Self { had: false, ..self }
    }
}

/// Finds the files that lie where they were found before.
#[derive(Debug)]
struct Keeps(PathBuf, Option<PathBuf>);

impl DiskInspector for Keeps {
    fn look<'a>(&'a self, _: &'a Path, _: DiskFormat, _: &'a Path, _: Arch) -> Looked<'a> {
        let args = KernelArgs { root: "root=UUID=1 ro".into(), extra: String::new() };
        let found = DiskBoot { kernel: self.0.clone(), initrd: self.1.clone(), args, notes: Vec::new() };
        Box::pin(async move { Ok(found) })
    }
}

impl DiskInspector for Scripted {
    fn look<'a>(&'a self, disk: &'a Path, _: DiskFormat, out: &'a Path, _: Arch) -> Looked<'a> {
        self.asked.lock().unwrap().push(disk.to_owned());
        Box::pin(async move {
            // What there is, for an inspector to keep.
            assert_eq!(out.join("kernel").exists(), self.had);
            let (release, initrd, root) = match self.answer {
                Ok(found) => found,
                Err(why) => {
                    fs::write(out.join(".kernel.part"), "half")?;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why).into());
                }
            };
            // Under a name of its own.
            fs::write(out.join("vmlinuz"), bzimage(release))?;
            let initrd =
                initrd.map(|text| fs::write(out.join("initrd.img"), text).map(|()| out.join("initrd.img")));
            Ok(DiskBoot {
                kernel: out.join("vmlinuz"),
                initrd: initrd.transpose()?,
                args: KernelArgs { root: root.into(), extra: String::new() },
                notes: Vec::new(),
            })
        })
    }
}

impl Lab {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&tmp.path().join("home")).unwrap();
        let (cluster, name) = (ClusterName::new("c").unwrap(), MachineName::new("web").unwrap());
        let dir = store.machine_dir(&cluster, &name);
        store.make_dir(dir.path(), 0o755).unwrap();
        let (kernel, initrd) = (tmp.path().join("kernel"), tmp.path().join("initrd"));
        fs::write(&kernel, bzimage("6.1.0-1-amd64")).unwrap();
        fs::write(&initrd, "initrd 1").unwrap();
        let plain = tmp.path().join("vmlinux");
        fs::write(&plain, "plain 1").unwrap();
        let image = Image {
            digest: "0".repeat(64),
            reference: ImageRef::Alias("debian-12".into()),
            path: tmp.path().join("image.raw"),
            format: DiskFormat::Raw,
            virtual_size: 1 << 20,
            kernel: Some(kernel),
            initrd: Some(initrd),
            plain_kernel: Some(plain),
            plain_initrd: None,
            root_args: "root=UUID=1 ro".into(),
            extra_args: String::new(),
            os: "Test".into(),
            arch: Arch::Amd64,
            notes: Vec::new(),
            inspection: fleetbox_image::Inspection::default(),
        };
        let record = serde_json::json!({
            "name": "web", "image": "debian-12", "image_digest": "0".repeat(64), "cpus": 2, "memory_mib": 1024,
            "disk_gib": 10, "disk": "disk.raw", "backend": "qemu", "accel": "tcg", "uuid": "u", "mac": "m",
            "ip": "10.77.3.2", "instance_id": "i", "host_key": "k", "created_at": "t", "ephemeral": false,
        });
        let record: MachineRecord = serde_json::from_value(record).unwrap();
        Self { shared: Shared::new(store, cluster).unwrap(), tmp, dir, image, record }
    }

    /// With its image's kernel, as after its first preparation.
    fn made(mut self) -> Self {
        let kernel = of_image(&self.image, &self.dir).unwrap().unwrap();
        kernel.note_in(&mut self.record);
        self
    }

    fn look(&self, inspector: &dyn DiskInspector) -> Result<Kernel> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(current(&self.shared, inspector, &self.dir, &self.record, Arch::Amd64))
    }

    fn initrd(&self) -> Option<String> {
        fs::read_to_string(self.dir.boot().initrd()).ok()
    }

    fn kernel(&self) -> Option<String> {
        release(&self.dir.boot().kernel())
    }
}

#[test]
fn the_first_boot_has_the_images_kernel_by_a_link() {
    let lab = Lab::new().made();
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(&lab.dir.boot().kernel()), ino(lab.image.kernel.as_ref().unwrap()));
    let boot = lab.record.boot.clone().unwrap();
    assert_eq!(boot.to_string(), "kernel 6.1.0-1-amd64 of the image");
    assert_eq!(lab.record.kernel_args.as_ref().unwrap().root, "root=UUID=1 ro");
    // It does not need the image any more.
    fs::remove_file(lab.image.kernel.as_ref().unwrap()).unwrap();
    let kernel = Kernel { boot, args: lab.record.kernel_args.clone().unwrap() };
    let own = kernel.over(&lab.image, &lab.dir);
    assert_eq!(own.kernel, Some(lab.dir.boot().kernel()));
    assert_eq!(own.initrd, Some(lab.dir.boot().initrd()));
    assert_eq!((own.plain_kernel, own.plain_initrd), (Some(lab.dir.boot().plain_kernel()), None));
    assert_eq!((own.root_args, own.os), (lab.image.root_args.clone(), lab.image.os.clone()));
    let without = Image { kernel: None, ..lab.image.clone() };
    assert!(of_image(&without, &lab.dir).unwrap().is_none());
}

#[test]
fn a_new_kernel_on_the_disk_is_booted_from_then_on() {
    let mut lab = Lab::new().made();
    let mut events = lab.shared.events.subscribe();
    let inspector = Scripted::finds("6.1.0-2-amd64", Some("initrd 2"), "root=UUID=1 ro");
    let kernel = lab.look(&inspector).unwrap();
    assert_eq!(*inspector.asked.lock().unwrap(), [lab.dir.path().join("disk.raw")]);
    assert_eq!(kernel.boot.to_string(), "kernel 6.1.0-2-amd64 of the disk");
    assert_eq!((lab.kernel().as_deref(), lab.initrd().as_deref()), (Some("6.1.0-2-amd64"), Some("initrd 2")));
    assert!(!lab.dir.boot_part().path().exists());
    let told = events.try_recv().unwrap();
    let Event::PhaseProgress { detail, .. } = &told else { panic!("{told:?}") };
    assert_eq!(detail, "kernel 6.1.0-2-amd64 of the disk instead of kernel 6.1.0-1-amd64 of the image");
    // The image's own is as it was: its file is another.
    assert_eq!(release(lab.image.kernel.as_ref().unwrap()).as_deref(), Some("6.1.0-1-amd64"));
    // What the image's kernel unpacks itself to is no other kernel's.
    assert_eq!(kernel.over(&lab.image, &lab.dir).plain_kernel, None);
    assert_eq!(fs::read_to_string(lab.image.plain_kernel.as_ref().unwrap()).unwrap(), "plain 1");
    kernel.note_in(&mut lab.record);

    // The same once more: nothing is told, nothing changes.
    let ino = fs::metadata(lab.dir.boot().kernel()).unwrap().ino();
    let again = lab.look(&inspector).unwrap();
    assert_eq!((again.boot, again.args), (kernel.boot, kernel.args));
    assert_eq!(fs::metadata(lab.dir.boot().kernel()).unwrap().ino(), ino);
    assert!(events.try_recv().is_err());

    // One without an initramfs has none of another's; other arguments alone are a change, too.
    let kernel = lab.look(&Scripted::finds("6.1.0-2-amd64", None, "root=/dev/vda2")).unwrap();
    assert_eq!((lab.initrd(), kernel.args.root.as_str()), (None, "root=/dev/vda2"));
    assert_eq!(kernel.over(&lab.image, &lab.dir).initrd, None);
}

#[test]
fn an_unchanged_disk_boots_the_images_kernel_on() {
    let lab = Lab::new().made();
    let kernel = lab.look(&Scripted::finds("6.1.0-1-amd64", Some("initrd 1"), "root=UUID=1 ro")).unwrap();
    assert_eq!(kernel.boot.to_string(), "kernel 6.1.0-1-amd64 of the image");
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(&lab.dir.boot().kernel()), ino(lab.image.kernel.as_ref().unwrap()));
    assert!(!lab.dir.boot_part().path().exists());
}

#[test]
fn what_lies_in_the_images_folder_stays_there() {
    let lab = Lab::new().made();
    // Looked at anew, and found to be the image's still.
    let (kernel, initrd) = (lab.image.kernel.clone().unwrap(), lab.image.initrd.clone());
    let found = lab.look(&Keeps(kernel.clone(), initrd)).unwrap();
    assert_eq!(found.boot.to_string(), "kernel 6.1.0-1-amd64 of the image");
    assert!(kernel.exists() && lab.dir.boot().initrd().exists());
    // After another one was there.
    lab.look(&Scripted::finds("6.1.0-2-amd64", None, "root=UUID=1 ro")).unwrap();
    lab.look(&Keeps(kernel.clone(), lab.image.initrd.clone())).unwrap();
    assert_eq!((lab.kernel().as_deref(), lab.initrd().as_deref()), (Some("6.1.0-1-amd64"), Some("initrd 1")));
    assert!(kernel.exists());
}

#[test]
fn a_disk_that_cannot_be_read_boots_what_it_booted_before_and_says_so() {
    let mut lab = Lab::new().made();
    let mut events = lab.shared.events.subscribe();
    let kernel = lab.look(&Scripted::fails("bad superblock")).unwrap();
    let note = kernel.boot.note.clone().unwrap();
    assert!(note.contains("bad superblock") && note.contains("6.1.0-1-amd64 of the image"), "{note}");
    assert_eq!((lab.kernel().as_deref(), lab.initrd().as_deref()), (Some("6.1.0-1-amd64"), Some("initrd 1")));
    assert!(!lab.dir.boot_part().path().exists());
    let told = events.try_recv().unwrap();
    assert!(matches!(&told, Event::Warning { message, .. } if *message == note), "{told:?}");
    kernel.note_in(&mut lab.record);
    // The next that succeeds takes the note back.
    let kernel = lab.look(&Scripted::finds("6.1.0-1-amd64", Some("initrd 1"), "root=UUID=1 ro")).unwrap();
    assert_eq!(kernel.boot.note, None);
    assert_eq!(kernel.boot.source, Some(KernelSource::Image));
}

#[test]
fn without_any_kernel_it_is_an_error() {
    let lab = Lab::new();
    let error = lab.look(&Scripted::fails("bad superblock").had_none()).unwrap_err();
    assert_eq!(error.to_string(), "could not find a kernel on the disk of machine web");
    assert!(error.story().contains("bad superblock"), "{}", error.story());
    assert!(!lab.dir.boot().path().exists() && !lab.dir.boot_part().path().exists());
    // A record alone is of no use, nor is a kernel alone.
    let mut lab = Lab::new().made();
    fs::remove_dir_all(lab.dir.boot().path()).unwrap();
    assert!(lab.look(&Scripted::fails("x").had_none()).is_err());
    lab = Lab::new().made();
    lab.record.kernel_args = None;
    assert!(lab.look(&Scripted::fails("x")).is_err());
    // What a disk of an earlier program's machine has is found all the same.
    let kernel = lab.look(&Scripted::finds("6.1.0-2-amd64", None, "root=UUID=1 ro")).unwrap();
    assert_eq!(kernel.boot.source, Some(KernelSource::Disk));
}

#[test]
fn what_a_crash_left_is_in_nobodys_way() {
    let lab = Lab::new().made();
    let part = lab.dir.boot_part();
    fs::create_dir(part.path()).unwrap();
    fs::write(part.initrd(), "of a dead process").unwrap();
    let kernel = lab.look(&Scripted::finds("6.1.0-2-amd64", None, "root=UUID=1 ro")).unwrap();
    assert_eq!((kernel.boot.kernel.as_deref(), lab.initrd()), (Some("6.1.0-2-amd64"), None));
    assert!(lab.tmp.path().exists());
}

#[test]
fn the_fakes_disk_is_a_text() {
    let lab = Lab::new();
    let disk = lab.dir.path().join("disk.raw");
    fs::write(&disk, "").unwrap();
    assert_eq!(lab.look(&ByText).unwrap().args.root, FAKE_ROOT);
    fs::write(&disk, "root=new\n").unwrap();
    assert_eq!(lab.look(&ByText).unwrap().args.root, "root=new");
    fs::write(&disk, "damaged").unwrap();
    assert!(lab.look(&ByText).is_err());
}

proptest! {
    #[test]
    fn foreign_kernels_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..0x900), head in any::<bool>()) {
        let mut bytes = bytes;
        if head && bytes.len() > 0x210 {
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
        }
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("kernel");
        fs::write(&path, bytes).unwrap();
        if let Some(release) = release(&path) {
            prop_assert!(!release.is_empty() && release.len() <= 128);
        }
    }
}
