//! Local files as images, and disks made from them. Needs no privilege; what needs a program that is not installed is
//! counted as ignored, with its name.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fleetbox_image::{
    DiskMade, Image, ImageError, Images, ImportOptions, Qcow2Problem, create_disk, disk_size, grow_disk,
};
use fleetbox_spec::{DiskFormat, ImageRef};
use fleetbox_store::{Lock, LockKind, Store};
use libtest_mimic::{Arguments, Failed, Trial};

type Result<T = ()> = std::result::Result<T, Failed>;

/// A name, the programs it needs, and the test.
type Test = (&'static str, &'static [&'static str], fn() -> Result);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let lacks = |tools: &[&'static str]| {
        tools.iter().copied().find(|t| {
            !["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"]
                .iter()
                .any(|d| Path::new(d).join(t).exists())
        })
    };
    let tests: [Test; 13] = [
        ("what_is_no_image_says_what_it_is", &[], no_images),
        ("a_digest_that_is_none_names_no_image", &[], no_digest),
        ("a_raw_file_is_imported_once", &["mke2fs"], raw),
        ("a_change_of_the_file_is_another_image", &["mke2fs"], changed),
        ("a_qcow2_file_is_converted", &["mke2fs", "qemu-img"], qcow2),
        ("a_packed_file_is_unpacked", &["mke2fs", "qemu-img", "gzip", "xz", "zstd", "tar"], packed),
        ("what_cannot_be_unpacked_leaves_nothing", &["mke2fs", "gzip", "tar"], packed_refused),
        ("backing_files_are_followed_where_allowed", &["mke2fs", "qemu-img"], backing),
        ("backing_files_that_go_in_circles_are_refused", &["qemu-img"], backing_refused),
        ("a_qcow2_file_that_names_others_is_refused", &["qemu-img"], qcow2_refused),
        ("disks_are_made_and_grow_and_never_shrink", &["mke2fs", "qemu-img"], disks),
        ("a_dropped_import_leaves_nothing", &[], dropped),
        ("sweep_leaves_what_is_being_made", &[], sweep),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, tools, test)| match lacks(tools) {
            Some(tool) => Trial::test(name, test)
                .with_kind(format!("ignored: {tool} is not installed"))
                .with_ignored_flag(true),
            None => Trial::test(name, test),
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

struct Lab {
    tmp: tempfile::TempDir,
    images: Images,
    store: Store,
}

impl Lab {
    fn new() -> Result<Self> {
        let tmp = tempfile::tempdir()?;
        let store = Store::open(&tmp.path().join("home"))?;
        Ok(Self { tmp, images: Images::new(store.clone()), store })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// A resolved image and how often progress was told.
    fn resolve(&self, path: &Path) -> std::result::Result<(Image, u32), ImageError> {
        let told = AtomicU32::new(0);
        let count = |_| {
            told.fetch_add(1, Ordering::Relaxed);
        };
        let reference = ImageRef::File(path.to_owned());
        let image = block_on(self.images.resolve(&reference, &count))?;
        Ok((image, told.load(Ordering::Relaxed)))
    }

    fn refused(&self, path: &Path) -> Result<ImageError> {
        match self.resolve(path) {
            Ok(image) => Err(format!("{} was taken: {image:?}", path.display()).into()),
            Err(e) => {
                assert_eq!(self.in_store()?, Vec::<String>::new(), "left by {e}");
                Ok(e)
            }
        }
    }

    fn in_store(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.store.images_dir())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // The short cut that spares reading a file again is no image.
            if !name.ends_with(".json") {
                all.push(name);
            }
        }
        all.sort();
        Ok(all)
    }

    /// A bare ext4 file system with a system in it, last changed long ago.
    fn raw(&self, name: &str, os: &str) -> Result<PathBuf> {
        let (tree, path) = (self.path("tree"), self.path(name));
        for dir in ["etc", "boot", "usr/bin", "usr/sbin"] {
            std::fs::create_dir_all(tree.join(dir))?;
        }
        std::fs::write(tree.join("etc/os-release"), format!("PRETTY_NAME=\"{os}\"\n"))?;
        std::fs::write(tree.join("boot/vmlinuz-6.1"), kernel())?;
        std::fs::write(tree.join("usr/sbin/sshd"), "")?;
        std::fs::write(tree.join("boot/initrd.img-6.1"), "initrd")?;
        std::fs::write(tree.join("usr/bin/cloud-init"), "")?;
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&path).arg("8M"))?;
        std::fs::remove_dir_all(&tree)?;
        Ok(path)
    }
}

/// The least that is taken for a kernel: the marks of a bzImage.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![0u8; 1024];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

fn run(command: &mut Command) -> Result {
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
    let out = command.output()?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned().into()) }
}

fn block_on<T>(f: impl Future<Output = T>) -> T {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(f),
        Err(e) => panic!("no runtime: {e}"),
    }
}

fn no_images() -> Result {
    let lab = Lab::new()?;
    let said = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = lab.path(name);
        std::fs::write(&path, bytes)?;
        Ok(lab.refused(&path)?.to_string())
    };
    assert!(matches!(lab.refused(&lab.path("missing"))?, ImageError::Io { source, .. }
        if source.kind() == std::io::ErrorKind::NotFound));
    assert!(matches!(lab.refused(lab.tmp.path())?, ImageError::NotAFile { kind: "folder", .. }));
    assert!(matches!(lab.refused(Path::new("/dev/null"))?, ImageError::NotAFile { kind: "device", .. }));
    assert!(said("empty.raw", b"")?.contains("0 bytes"));
    assert!(said("short.raw", &[0xff; 1000])?.contains("only 1000 bytes"));
    assert!(said("a.qcow2", b"<!DOCTYPE html><title>404 Not Found</title>")?.contains("HTML"));
    assert!(said("zeros.raw", &vec![0; 2 << 20])?.contains("no partition table"));
    let mut gz = vec![0x1f, 0x8b, 8];
    gz.resize(2 << 20, 3);
    assert!(said("disk.raw", &gz)?.contains("could not unpack") && said("disk.img", &gz)?.contains("gzip"));
    std::os::unix::fs::symlink("loop", lab.path("loop"))?;
    assert!(matches!(lab.refused(&lab.path("loop"))?, ImageError::Io { .. }));
    Ok(())
}

fn no_digest() -> Result {
    let lab = Lab::new()?;
    assert!(matches!(lab.images.get("../../etc"), Err(ImageError::NoSuchImage { .. })));
    Ok(())
}

fn raw() -> Result {
    let lab = Lab::new()?;
    let path = lab.raw("disk.img", "Test Linux")?;
    // Old enough for its times to tell a later change.
    std::thread::park_timeout(Duration::from_millis(3100));
    let (image, told) = lab.resolve(&path)?;
    assert!(told > 0);
    assert_eq!(
        (image.os.as_str(), image.virtual_size, image.format),
        ("Test Linux", 8 << 20, DiskFormat::Raw)
    );
    assert_eq!(image.notes, Vec::<String>::new());
    assert_eq!(std::fs::read(image.kernel.as_ref().ok_or("kernel")?)?, kernel());
    assert_eq!(std::fs::read(image.initrd.as_ref().ok_or("initrd")?)?, b"initrd");
    assert!(image.root_args.starts_with("root=UUID=") && image.root_args.ends_with(" ro"));
    assert_eq!(lab.in_store()?, std::slice::from_ref(&image.digest));
    assert_eq!(lab.images.get(&image.digest)?, image);
    // Again: not even read. Under another name: read, and found to be the same.
    assert_eq!(lab.resolve(&path)?, (image.clone(), 0));
    let copy = lab.path("copy.img");
    std::fs::copy(&path, &copy)?;
    assert_eq!(lab.resolve(&copy)?.0.digest, image.digest);
    assert_eq!(lab.in_store()?, std::slice::from_ref(&image.digest));
    // A store that lost the image makes it anew.
    std::fs::remove_dir_all(lab.store.image_dir(&image.digest).path())?;
    assert_eq!(lab.resolve(&path)?.0, image);
    Ok(())
}

fn changed() -> Result {
    let lab = Lab::new()?;
    let path = lab.raw("disk.img", "Test Linux")?;
    let (first, _) = lab.resolve(&path)?;
    let before = std::fs::read(&first.path)?;
    // In place, so that a link or a clone by name would show it.
    std::fs::File::options().write(true).open(&path)?.write_all_at(b"boot", 0)?;
    let (second, _) = lab.resolve(&path)?;
    assert_ne!(first.digest, second.digest);
    assert!(std::fs::read(&first.path)? == before);
    assert_eq!(lab.in_store()?.len(), 2);
    Ok(())
}

fn qcow2() -> Result {
    let lab = Lab::new()?;
    let raw = lab.raw("disk.img", "Test Linux")?;
    let path = lab.path("named-wrongly.raw");
    for options in ["compat=0.10", "compression_type=zlib", "compression_type=zstd,extended_l2=on"] {
        let other = lab.path(&format!("{options}.qcow2"));
        run(Command::new("qemu-img")
            .args(["convert", "-c", "-O", "qcow2", "-o", options])
            .arg(&raw)
            .arg(&other))?;
        let (image, _) = lab.resolve(&other)?;
        assert!(std::fs::read(&image.path)? == std::fs::read(&raw)?, "{options}");
        std::fs::rename(other, &path)?;
        std::fs::remove_dir_all(lab.store.image_dir(&image.digest).path())?;
    }
    let (image, _) = lab.resolve(&path)?;
    assert_eq!(
        (image.format, image.virtual_size, image.os.as_str()),
        (DiskFormat::Raw, 8 << 20, "Test Linux")
    );
    assert!(image.kernel.is_some());
    assert!(std::fs::read(&image.path)? == std::fs::read(&raw)?);
    let in_dir: Vec<_> = std::fs::read_dir(lab.store.image_dir(&image.digest).path())?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    assert!(!in_dir.contains(&"source".to_owned()), "{in_dir:?}");
    Ok(())
}

/// Runs a shell line in the lab's folder.
fn shell(lab: &Lab, line: &str) -> Result {
    run(Command::new("sh").args(["-ec", line]).current_dir(lab.tmp.path()))
}

fn packed() -> Result {
    let lab = Lab::new()?;
    let raw = lab.raw("disk.raw", "Test Linux")?;
    let content = std::fs::read(&raw)?;
    // Holes on both sides of the data, as in a disk that was made large and filled little.
    shell(&lab, "qemu-img convert -c -O qcow2 -o compression_type=zstd disk.raw disk.qcow2")?;
    for (line, name) in [
        ("gzip -c disk.raw >a", "a"),
        ("xz -T2 --block-size=1MiB -c disk.raw >b", "b"),
        ("xz -9 --check=sha256 -c disk.raw >c", "c"),
        ("{ head -c 1000000 disk.raw | xz -c; tail -c +1000001 disk.raw | xz -0 -c; } >d", "d"),
        ("zstd -q --ultra -22 --long=27 -c disk.raw >e", "e"),
        ("zstd -q -c <disk.raw >f", "f"),
        ("tar -czf g disk.raw", "g"),
        ("tar -S --format=gnu -cf h disk.raw", "h"),
        ("echo hello >README; tar -cf - README disk.qcow2 | xz -c >i", "i"),
        ("gzip -c disk.qcow2 >j", "j"),
        ("gzip -k disk.raw; tar --format=posix -cf k disk.raw.gz; rm disk.raw.gz", "k"),
    ] {
        shell(&lab, line)?;
        let (image, told) = lab.resolve(&lab.path(name)).map_err(|e| format!("{line}: {e:?}"))?;
        assert!(told > 0);
        assert_eq!((image.os.as_str(), image.virtual_size), ("Test Linux", 8 << 20), "{line}");
        assert!(image.kernel.is_some() && std::fs::read(&image.path)? == content, "{line}");
        assert!(std::fs::metadata(&image.path)?.blocks() * 512 < 8 << 20, "{line}: not sparse");
        let mut files: Vec<_> = std::fs::read_dir(lab.store.image_dir(&image.digest).path())?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?;
        files.sort();
        assert_eq!(files, ["image.raw", "initrd", "kernel", "meta.json"], "{line}");
    }
    Ok(())
}

fn packed_refused() -> Result {
    let lab = Lab::new()?;
    lab.raw("disk.raw", "Test Linux")?;
    let said = |line: &str| -> Result<String> {
        shell(&lab, line)?;
        Ok(lab.refused(&lab.path("packed"))?.to_string())
    };
    assert!(said("gzip -c disk.raw | head -c 5000 >packed")?.contains("could not unpack"));
    assert!(
        said("cp disk.raw other.img; tar -cf packed disk.raw other.img")?.contains("disk.raw, other.img")
    );
    assert!(said("echo x >README; tar -czf packed README")?.contains("none: README"));
    assert!(said("echo '<html>404</html>' | gzip -c >packed")?.contains("HTML"));
    // A gigabyte that is not zero, from a megabyte.
    let bomb = "{ head -c 65536 disk.raw; head -c 1000000000 /dev/zero | tr '\\0' x; } | gzip -c >packed";
    assert!(said(bomb)?.contains("decompression bomb"));
    Ok(())
}

fn backing() -> Result {
    let lab = Lab::new()?;
    let raw = lab.raw("base.raw", "Test Linux")?;
    shell(&lab, "qemu-img create -q -f qcow2 -F raw -b base.raw middle.qcow2")?;
    shell(&lab, "mkdir sub; qemu-img create -q -f qcow2 -F qcow2 -b ../middle.qcow2 sub/top.qcow2 16M")?;
    // Something of its own in the one in front.
    shell(&lab, "qemu-io -f qcow2 -c 'write -P 7 12M 4k' sub/top.qcow2 >io.log || cat io.log >&2")?;
    let top = lab.path("sub/top.qcow2");
    let plain = lab.refused(&top)?;
    assert!(
        matches!(&plain, ImageError::BadQcow2 { reason: Qcow2Problem::BackingFile(name), .. }
            if name == "../middle.qcow2"),
        "{plain:?}"
    );
    // Old enough for its times to tell a later change.
    std::thread::park_timeout(Duration::from_millis(3100));
    let options = ImportOptions::default().allow_backing(true);
    let image = block_on(lab.images.import(&top, options, &|_| {}))?;
    assert_eq!((image.os.as_str(), image.virtual_size), ("Test Linux", 16 << 20));
    let (content, base) = (std::fs::read(&image.path)?, std::fs::read(&raw)?);
    assert!(content[..base.len()] == base);
    assert!(content[12 << 20..][..4096] == [7; 4096] && content[13 << 20..].iter().all(|&b| b == 0));
    // Known from now on, without being asked for it in a special way.
    assert_eq!(lab.resolve(&top)?, (image.clone(), 0));
    // Until something behind it changes.
    std::fs::File::options().write(true).open(&raw)?.write_all_at(b"boot", 0)?;
    assert!(matches!(lab.resolve(&top), Err(ImageError::BadQcow2 { .. })));
    let second = block_on(lab.images.import(&top, options, &|_| {}))?;
    assert_ne!(second.digest, image.digest);
    assert!(std::fs::read(&image.path)? == content);
    Ok(())
}

fn backing_refused() -> Result {
    let lab = Lab::new()?;
    let problem = |name: &str| -> Result<Qcow2Problem> {
        let options = ImportOptions::default().allow_backing(true);
        match block_on(lab.images.import(&lab.path(name), options, &|_| {})) {
            Err(ImageError::BadQcow2 { reason, .. }) => {
                assert_eq!(lab.in_store()?, Vec::<String>::new(), "left by {reason}");
                Ok(reason)
            }
            other => Err(format!("{other:?}").into()),
        }
    };
    let create = |args: &str| shell(&lab, &format!("qemu-img create -q -f qcow2 {args}"));
    create("a 64M")?;
    create("-u -F qcow2 -b a b 64M")?;
    shell(&lab, "qemu-img rebase -u -f qcow2 -F qcow2 -b b a")?;
    assert!(matches!(problem("a")?, Qcow2Problem::BackingCycle(path) if path.ends_with("a")));
    create("self 64M")?;
    shell(&lab, "qemu-img rebase -u -f qcow2 -F qcow2 -b ./self self")?;
    assert!(matches!(problem("self")?, Qcow2Problem::BackingCycle(_)));
    create("-u -F raw -b nbd://localhost/x remote 64M")?;
    assert!(matches!(problem("remote")?, Qcow2Problem::BackingNotLocal(_)));
    create("d0 64M")?;
    for i in 1..20 {
        create(&format!("-F qcow2 -b d{} d{i}", i - 1))?;
    }
    assert!(matches!(problem("d19")?, Qcow2Problem::BackingDepth(16)));
    create("-o data_file=data.raw external 64M")?;
    create("-F qcow2 -b external front")?;
    assert!(matches!(problem("front")?, Qcow2Problem::ExternalData));
    // A file that is not there is told by its name.
    create("-u -F raw -b gone.raw lost 64M")?;
    let options = ImportOptions::default().allow_backing(true);
    let lost = block_on(lab.images.import(&lab.path("lost"), options, &|_| {})).err().ok_or("took it")?;
    assert!(matches!(&lost, ImageError::Io { path, .. } if path.ends_with("gone.raw")), "{lost:?}");
    Ok(())
}

fn qcow2_refused() -> Result {
    let lab = Lab::new()?;
    let base = lab.path("base.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&base).arg("64M"))?;
    let overlay = lab.path("overlay.qcow2");
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(&base)
        .arg(&overlay))?;
    assert!(lab.refused(&overlay)?.to_string().contains("backing file"));
    let external = lab.path("external.qcow2");
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o"])
        .arg(format!("data_file={}", lab.path("data.raw").display()))
        .arg(&external)
        .arg("64M"))?;
    assert!(lab.refused(&external)?.to_string().contains("another file"));
    // Nothing in it, so nothing to boot.
    assert!(lab.refused(&base)?.to_string().contains("no partition table"));
    // Tables beyond the end of the file.
    let cut = lab.path("cut.qcow2");
    let mut bytes = std::fs::read(&base)?;
    bytes.truncate(4096);
    std::fs::write(&cut, bytes)?;
    let err = lab.refused(&cut)?;
    assert!(matches!(err, ImageError::BadQcow2 { reason: Qcow2Problem::L1Outside, .. }), "{err}");
    Ok(())
}

fn disks() -> Result {
    let lab = Lab::new()?;
    let (image, _) = lab.resolve(&lab.raw("disk.img", "Test Linux")?)?;
    let guest_bytes = |disk: &Path, format: DiskFormat| -> Result<Vec<u8>> {
        let out = lab.path("out");
        run(Command::new("qemu-img")
            .args(["convert", "-f", format.as_str(), "-O", "raw"])
            .arg(disk)
            .arg(&out))?;
        Ok(std::fs::read(out)?)
    };
    let content = std::fs::read(&image.path)?;
    for format in [DiskFormat::Qcow2, DiskFormat::Raw] {
        let disk = lab.path(&format!("disk.{}", format.as_str()));
        let small = block_on(create_disk(&image, &disk, format, 1 << 20)).err().ok_or("made a small disk")?;
        assert!(matches!(small, ImageError::DiskTooSmall { image_size, wanted, .. }
            if (image_size, wanted) == (8 << 20, 1 << 20)));
        assert!(!disk.exists());
        let made = block_on(create_disk(&image, &disk, format, (16 << 20) - 100))?;
        match format {
            DiskFormat::Qcow2 => assert_eq!(made, DiskMade::Overlay),
            DiskFormat::Raw => {
                assert!(matches!(made, DiskMade::Reflink | DiskMade::Copied { bytes: 1.. }), "{made:?}")
            }
        }
        assert_eq!(std::fs::metadata(&disk)?.permissions().mode() & 0o777, 0o600);
        let (meta, from) = (std::fs::metadata(&disk)?, std::fs::metadata(&image.path)?);
        assert!(meta.blocks() * 512 < 8 << 20, "{format:?} is not sparse");
        if let DiskMade::Copied { bytes } = made {
            assert!(bytes <= from.blocks() * 512, "{bytes} bytes copied of {} blocks", from.blocks());
        }
        assert_eq!(block_on(disk_size(&disk, format))?, 16 << 20);
        assert!(guest_bytes(&disk, format)?[..content.len()] == content);
        let again = block_on(create_disk(&image, &disk, format, 16 << 20)).err().ok_or("overwrote a disk")?;
        assert!(matches!(again, ImageError::DiskExists(_)));
        block_on(grow_disk(&disk, format, 32 << 20))?;
        block_on(grow_disk(&disk, format, 32 << 20))?;
        let shrink = block_on(grow_disk(&disk, format, 16 << 20)).err().ok_or("shrank a disk")?;
        assert!(
            matches!(shrink, ImageError::Shrink { size, wanted, .. } if (size, wanted) == (32 << 20, 16 << 20))
        );
        assert_eq!(block_on(disk_size(&disk, format))?, 32 << 20);
        assert!(guest_bytes(&disk, format)?[..content.len()] == content);
    }
    let left = std::fs::read_dir(lab.tmp.path())?
        .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with('.')));
    assert_eq!(left.count(), 0);
    Ok(())
}

fn dropped() -> Result {
    let lab = Lab::new()?;
    let path = lab.path("large.raw");
    let file = std::fs::File::create(&path)?;
    // 64 GiB of nothing, which has to be hashed all the same: nobody waits that long.
    file.set_len(64 << 30)?;
    file.write_all_at(&[0x55, 0xaa], 510)?;
    let reference = ImageRef::File(path);
    let ended = block_on(async {
        tokio::time::timeout(Duration::from_millis(300), lab.images.resolve(&reference, &|_| {})).await
    });
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(lab.in_store()?, Vec::<String>::new());
    Ok(())
}

fn sweep() -> Result {
    let lab = Lab::new()?;
    let (dead, alive) = (lab.store.image_part_dir("dead"), lab.store.image_part_dir("alive"));
    for dir in [&dead, &alive] {
        std::fs::create_dir_all(dir.join("work/root"))?;
        std::fs::write(dir.join("work/root/file"), "x")?;
    }
    let lock = Lock::try_take(&lab.store, LockKind::Image, "alive")?;
    assert_eq!(lab.images.sweep()?, [dead]);
    assert!(alive.exists());
    drop(lock);
    assert_eq!(lab.images.sweep()?, [alive]);
    assert_eq!(lab.images.sweep()?, Vec::<PathBuf>::new());
    Ok(())
}
