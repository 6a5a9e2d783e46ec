//! A store of its own for each test, an image to serve, and processes that download.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use fleetbox_image::{DownloadError, DownloadOptions, Image, ImageError, ImageProgress, Images};
use fleetbox_spec::ImageRef;
use fleetbox_store::Store;
use libtest_mimic::Failed;
use sha2::{Digest, Sha256, Sha512};

pub(crate) type Result<T = ()> = std::result::Result<T, Failed>;

/// Makes this program a downloader: the image, and in a further variable the home.
pub(crate) const DOWNLOADER: &str = "FLEETBOX_TEST_DOWNLOADER";
pub(crate) const HOME: &str = "FLEETBOX_TEST_DOWNLOADER_HOME";

/// The longest that something is waited for that must happen.
pub(crate) const SURELY: Duration = Duration::from_secs(60);

/// A bare ext4 file system of 8 MiB with a small system in it, half of it random.
pub(crate) fn disk() -> Result<&'static [u8]> {
    static DISK: OnceLock<std::result::Result<Vec<u8>, String>> = OnceLock::new();
    match DISK.get_or_init(|| make_disk("one").map_err(|e| format!("{e:?}"))) {
        Ok(bytes) => Ok(bytes),
        Err(e) => Err(e.as_str().into()),
    }
}

pub(crate) fn make_disk(name: &str) -> Result<Vec<u8>> {
    let tmp = tempfile::tempdir()?;
    let (tree, path) = (tmp.path().join("tree"), tmp.path().join("disk"));
    for dir in ["etc", "boot", "usr/bin", "usr/sbin"] {
        std::fs::create_dir_all(tree.join(dir))?;
    }
    std::fs::write(tree.join("etc/os-release"), format!("PRETTY_NAME=\"{name}\"\n"))?;
    // As much of a kernel for PCs as tells that it is one.
    let mut kernel = vec![0u8; 1024];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    std::fs::write(tree.join("boot/vmlinuz-6.1"), kernel)?;
    std::fs::write(tree.join("boot/initrd.img-6.1"), "initrd")?;
    std::fs::write(tree.join("usr/bin/cloud-init"), "")?;
    std::fs::write(tree.join("usr/sbin/sshd"), "")?;
    // Nothing to compress, nothing to skip (xorshift64).
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take((4 << 20) / 8)
    .flatten()
    .collect();
    std::fs::write(tree.join("noise"), noise)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&path).arg("8M");
    run(&mut mke2fs)?;
    Ok(std::fs::read(path)?)
}

pub(crate) fn run(command: &mut Command) -> Result {
    let out = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin").output()?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned().into()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn sha512(bytes: &[u8]) -> String {
    hex(&Sha512::digest(bytes))
}

/// Patient with a busy host, quick to try again, and without the proxies of whoever runs the tests.
pub(crate) fn options() -> DownloadOptions {
    let mut options = DownloadOptions::default();
    options.backoff = Duration::from_millis(5);
    options.tries = 3;
    options.proxies = false;
    options
}

pub(crate) struct Lab {
    pub(crate) tmp: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) images: Images,
    told: Mutex<Vec<ImageProgress>>,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        Self::with(options())
    }

    pub(crate) fn with(options: DownloadOptions) -> Result<Self> {
        Self::within(tempfile::tempdir()?, options)
    }

    pub(crate) fn within(tmp: tempfile::TempDir, options: DownloadOptions) -> Result<Self> {
        let store = Store::open(&tmp.path().join("home"))?;
        let images = Images::with_options(store.clone(), options);
        Ok(Self { tmp, store, images, told: Mutex::default() })
    }

    pub(crate) fn home(&self) -> &Path {
        self.store.root()
    }

    pub(crate) fn tell(&self, progress: ImageProgress) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(progress);
    }

    /// All that was told of the work.
    pub(crate) fn told(&self) -> String {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().map(|p| format!("{}\n", p.detail)).collect()
    }

    pub(crate) fn resolve(&self, image: &str) -> Result<std::result::Result<Image, ImageError>> {
        let image: ImageRef = image.parse()?;
        Ok(block_on(self.images.resolve(&image, &|p| self.tell(p)))?)
    }

    pub(crate) fn pull(&self, image: &str) -> Result<std::result::Result<Image, ImageError>> {
        let image: ImageRef = image.parse()?;
        Ok(block_on(self.images.pull(&image, &|p| self.tell(p)))?)
    }

    /// It is the image, by its content.
    pub(crate) fn has(&self, image: &str, bytes: &[u8]) -> Result<Image> {
        let got = self.resolve(image)??;
        assert!(std::fs::read(&got.path)? == bytes, "{image} has other bytes");
        assert_eq!(got.digest, sha256(bytes));
        assert_eq!(got.reference, image.parse::<ImageRef>()?);
        assert!(got.kernel.is_some(), "{:?}", got.notes);
        Ok(got)
    }

    /// The download fails; what it says, and whether anything of it stays.
    pub(crate) fn fails(&self, image: &str) -> Result<DownloadError> {
        match self.resolve(image)? {
            Err(ImageError::Download { url, source }) => {
                assert!(image.starts_with(&url), "{url} is said of {image}");
                Ok(*source)
            }
            other => Err(format!("{image}: {other:?}").into()),
        }
    }

    /// What is in the images' folder beside what is only remembered.
    pub(crate) fn left(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.store.images_dir())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".json") {
                all.push(name);
            }
        }
        all.sort();
        Ok(all)
    }

    pub(crate) fn nothing_left(&self) -> Result {
        let left = self.left()?;
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}").into()) }
    }

    /// Waits until so much of a download has arrived on the disk.
    pub(crate) fn wait_for_bytes(&self, least: u64) -> Result<u64> {
        let begun = std::time::Instant::now();
        loop {
            let done = self.images.downloads()?.first().map_or(0, |d| d.done);
            if done >= least {
                return Ok(done);
            }
            if begun.elapsed() > SURELY {
                return Err(format!("only {done} bytes have come; told:\n{}", self.told()).into());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Another process that downloads into this store, with these variables and no others that matter.
    pub(crate) fn process(&self, image: &str, variables: &[(&str, String)]) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env(DOWNLOADER, image).env(HOME, self.home());
        command.envs(variables.iter().map(|(k, v)| (k, v)));
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// The same to its end: the digest, or what went wrong.
    pub(crate) fn process_says(
        &self,
        image: &str,
        variables: &[(&str, String)],
    ) -> Result<std::result::Result<String, String>> {
        let out = self.process(image, variables)?.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) })
    }
}

pub(crate) fn block_on<T>(f: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(f))
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text += &format!(": {e}");
        source = e.source();
    }
    text
}

/// This program as a downloader.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "how this process tells the test what came of it"
)]
pub(crate) fn download_as_child(image: &str, home: PathBuf) -> ExitCode {
    let work = || -> std::result::Result<Image, Box<dyn std::error::Error>> {
        let images = Images::new(Store::open(&home)?);
        Ok(block_on(images.resolve(&image.parse()?, &|_| {}))??)
    };
    match work() {
        Ok(image) => {
            println!("{}", image.digest);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{}", chain(&*e));
            ExitCode::FAILURE
        }
    }
}
