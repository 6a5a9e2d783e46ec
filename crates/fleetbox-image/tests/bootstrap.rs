//! Real builds with mmdebstrap: complete, in competition, killed, and cancelled.
//!
//! They take minutes and need root and a Debian mirror, so they run with FLEETBOX_TEST_BOOTSTRAP=1 only and are
//! counted as ignored otherwise.
#![expect(
    clippy::print_stderr,
    reason = "a builder's error and the times measured are for whoever reads the log"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ext4_view::Ext4;
use fleetbox_image::{Image, ImageError, ImageProgress, Images};
use fleetbox_spec::{ImageRef, Packages};
use fleetbox_store::Store;
use libtest_mimic::{Arguments, Failed, Trial};

/// Makes this program a builder, to be killed: the home's path and the suite are in two further variables.
const BUILDER: &str = "FLEETBOX_TEST_BUILDER";
const HOME: &str = "FLEETBOX_TEST_BUILDER_HOME";

type Result<T = ()> = std::result::Result<T, Failed>;

fn main() -> ExitCode {
    if let (Ok(suite), Ok(home)) = (std::env::var(BUILDER), std::env::var(HOME)) {
        return build_as_child(&suite, Path::new(&home));
    }
    let args = Arguments::from_args();
    let skip = std::env::var("FLEETBOX_TEST_BOOTSTRAP").is_err_and(|_| true);
    let kind = if skip { "ignored: takes minutes; set FLEETBOX_TEST_BOOTSTRAP=1" } else { "" };
    let mut trials = Vec::new();
    for suite in ["bookworm", "trixie"] {
        trials.push(Trial::test(format!("{suite}_is_built_once_for_two"), move || built_once_for_two(suite)));
    }
    trials.push(Trial::test("a_killed_builder_leaves_nothing_that_sweep_does_not_remove", killed));
    trials.push(Trial::test("a_dropped_build_leaves_nothing", dropped));
    trials.push(Trial::test("an_unknown_suite_says_what_apt_said", unknown_suite));
    let trials = trials.into_iter().map(|t| t.with_kind(kind).with_ignored_flag(skip)).collect();
    libtest_mimic::run(&args, trials).exit_code()
}

fn reference(suite: &str) -> ImageRef {
    ImageRef::Bootstrap { suite: suite.to_owned(), packages: Packages::default() }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn build_as_child(suite: &str, home: &Path) -> ExitCode {
    let work = || -> Result {
        let images = Images::new(Store::open(home)?);
        runtime()?.block_on(images.resolve(&reference(suite), &|_| {}))?;
        Ok(())
    };
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", e.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

fn start_builder(suite: &str, home: &Path) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .env(BUILDER, suite)
        .env(HOME, home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?)
}

/// Processes and mounts that have to do with a folder, this process and `but` excepted.
fn traces(of: &Path, but: &[u32]) -> Vec<String> {
    let needle = of.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() || but.contains(&pid) {
            continue;
        }
        for file in ["cmdline", "environ", "mountinfo"] {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            if String::from_utf8_lossy(&bytes).contains(&needle) {
                let cmd = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push(format!("{pid} ({}): {file}", String::from_utf8_lossy(&cmd).replace('\0', " ")));
            }
        }
    }
    let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(own.lines().filter(|l| l.contains(&needle)).map(str::to_owned));
    found
}

fn no_traces_within(of: &Path, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let found = traces(of, &[]);
        if found.is_empty() {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > limit {
            return Err(format!("still there after {limit:?}:\n{}", found.join("\n")).into());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(std::fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?)
}

fn built_once_for_two(suite: &str) -> Result {
    let tmp = tempfile::tempdir()?;
    let mut other = start_builder(suite, tmp.path())?;
    let images = Images::new(Store::open(tmp.path())?);
    let dir = tmp.path().join("images");
    // Second in line, as soon as the first has begun.
    let begun = Instant::now();
    while entries(&dir)?.is_empty() {
        if begun.elapsed() > Duration::from_secs(20) {
            return Err("the first builder has not begun".into());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let seen = Mutex::new(Vec::new());
    let sink = |p: ImageProgress| seen.lock().unwrap_or_else(|e| e.into_inner()).push(p.detail);
    let image = runtime()?.block_on(images.resolve(&reference(suite), &sink))?;
    let seen = seen.into_inner()?;
    assert_eq!(seen, [format!("bootstrap:{suite} is being built by pid {}", other.id())]);
    assert!(other.wait()?.success());
    assert_eq!(entries(&dir)?, [dir.join(&image.digest)]);
    assert_eq!(images.get(&image.digest)?, image);
    no_traces_within(tmp.path(), Duration::from_secs(2))?;
    check_content(&image, suite)?;
    // It can be imported as a file, too: inspection finds what the build wrote down.
    let file = ImageRef::File(image.path.clone());
    let imported = runtime()?.block_on(images.resolve(&file, &|_| {}))?;
    assert_eq!(imported.notes, Vec::<String>::new());
    assert_eq!(
        (&imported.root_args, &imported.os, imported.arch, imported.virtual_size),
        (&image.root_args, &image.os, image.arch, image.virtual_size)
    );
    let bytes = |p: &Option<PathBuf>| Ok::<_, Failed>(std::fs::read(p.as_ref().ok_or("no file")?)?);
    assert!(bytes(&imported.kernel)? == bytes(&image.kernel)?);
    assert!(bytes(&imported.initrd)? == bytes(&image.initrd)?);
    Ok(())
}

fn check_content(image: &Image, suite: &str) -> Result {
    assert!(image.os.to_lowercase().contains(suite), "{}", image.os);
    let fs = Ext4::load_from_path(&image.path)?;
    let text = |p: &str| fs.read_to_string(p).map_err(|e| Failed::from(format!("{p}: {e}")));
    assert_eq!(text("/etc/machine-id")?, "");
    assert_eq!(text("/etc/default/locale")?, "LANG=C.UTF-8\n");
    assert_eq!(fs.read_link("/etc/resolv.conf")?.to_str()?, "../run/systemd/resolve/stub-resolv.conf");
    let uuid =
        image.root_args.strip_prefix("root=UUID=").and_then(|r| r.strip_suffix(" ro")).ok_or("root_args")?;
    assert_eq!(fs.uuid().to_string(), uuid);
    assert!(text("/etc/fstab")?.starts_with(&format!("UUID={uuid} / ext4 ")));
    for gone in [
        "/etc/hostname",
        "/fleetbox-build",
        "/etc/apt/apt.conf.d/99mmdebstrap",
        "/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "/etc/dpkg/dpkg.cfg.d/fleetbox-build",
        "/var/lib/cloud/instance",
        "/var/lib/dbus/machine-id",
    ] {
        assert!(!fs.exists(gone)?, "{gone} is in the image");
    }
    let names = |dir: &str| -> Result<Vec<String>> {
        fs.read_dir(dir)?.map(|e| Ok(e?.file_name().as_str()?.to_owned())).collect()
    };
    assert!(!names("/etc/ssh")?.iter().any(|n| n.starts_with("ssh_host_")));
    assert!(!names("/var/lib/apt/lists")?.iter().any(|n| n.contains("Packages") || n.contains("Release")));
    // The stand-ins' work was done after all.
    assert!(fs.exists("/etc/ssl/certs/ca-certificates.crt")?);
    assert!(
        names("/usr/lib/python3/dist-packages/cloudinit/__pycache__")?.iter().any(|n| n.starts_with("util."))
    );
    Ok(())
}

/// Milliseconds after the part has appeared: before, in, and after the handshake with the namespace's first process,
/// among the first mounts, and in every later step. `None`: before there is a part.
const POINTS: [Option<u64>; 12] = [
    None,
    Some(0),
    Some(2),
    Some(5),
    Some(10),
    Some(20),
    Some(40),
    Some(100),
    Some(1000),
    Some(8000),
    Some(25_000),
    Some(40_000),
];

fn has_part(home: &Path) -> bool {
    entries(&home.join("images")).is_ok_and(|e| !e.is_empty())
}

fn killed() -> Result {
    let tmp = tempfile::tempdir()?;
    let images = Images::new(Store::open(tmp.path())?);
    let random =
        u64::from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos());
    for point in POINTS.into_iter().chain([Some(random % 50_000)]) {
        let mut builder = start_builder("bookworm", tmp.path())?;
        let begun = Instant::now();
        while point.is_some() && !has_part(tmp.path()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no build begins");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        std::thread::park_timeout(Duration::from_millis(point.unwrap_or(20)));
        builder.kill()?;
        let status = builder.wait()?;
        if status.success() {
            // This host is fast: what was to be killed is done.
            for image in entries(&tmp.path().join("images"))? {
                std::fs::remove_dir_all(image)?;
            }
            continue;
        }
        let took = no_traces_within(tmp.path(), Duration::from_secs(2)).map_err(|e| {
            Failed::from(format!("killed at {point:?} ms: {}", e.message().unwrap_or_default()))
        })?;
        let left = entries(&tmp.path().join("images"))?;
        assert_eq!(left.is_empty(), point.is_none(), "killed at {point:?} ms: {left:?}");
        assert_eq!(left, images.sweep()?, "killed at {point:?} ms");
        assert_eq!(entries(&tmp.path().join("images"))?, Vec::<PathBuf>::new());
        eprintln!("killed at {point:?} ms of the build: gone within {took:?}");
    }
    Ok(())
}

fn dropped() -> Result {
    let tmp = tempfile::tempdir()?;
    let images = Images::new(Store::open(tmp.path())?);
    for point in POINTS.into_iter().filter(|p| p.is_none_or(|ms| ms < 10_000)) {
        let bookworm = reference("bookworm");
        let drop_took = runtime()?.block_on(async {
            let work = images.resolve(&bookworm, &|_| {});
            let time = async {
                while point.is_some() && !has_part(tmp.path()) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tokio::time::sleep(Duration::from_millis(point.unwrap_or(20))).await;
            };
            // In a box of its own, so that its drop can be timed.
            let mut work = Box::pin(work);
            tokio::select! {
                ended = &mut work => return Err(Failed::from(format!("ended before {point:?} ms: {ended:?}"))),
                () = time => {}
            }
            let begun = Instant::now();
            drop(work);
            Ok(begun.elapsed())
        })?;
        // At once: drop has waited for it.
        assert_eq!(traces(tmp.path(), &[]), Vec::<String>::new(), "dropped at {point:?} ms");
        assert_eq!(entries(&tmp.path().join("images"))?, Vec::<PathBuf>::new(), "dropped at {point:?} ms");
        eprintln!("dropped at {point:?} ms of the build: drop took {drop_took:?}");
    }
    Ok(())
}

fn unknown_suite() -> Result {
    let tmp = tempfile::tempdir()?;
    let images = Images::new(Store::open(tmp.path())?);
    let err = match runtime()?.block_on(images.resolve(&reference("nosuchsuite"), &|_| {})) {
        Err(e) => e,
        Ok(image) => return Err(format!("built {image:?}").into()),
    };
    match &err {
        ImageError::BuildFailed { step, tail, .. } => {
            assert_eq!(step, "packages");
            assert!(tail.contains("nosuchsuite") && tail.contains("E:"), "{tail}");
        }
        other => return Err(format!("{other:?}").into()),
    }
    assert_eq!(entries(&tmp.path().join("images"))?, Vec::<PathBuf>::new());
    Ok(())
}
