//! A real OpenSSH server on loopback, with keys and configuration in a temporary directory.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fleetbox_ssh::{Client, KeyPair, Options, Target, ensure_key_pair, generate_host_key, parse_public_line};

pub(crate) struct Sshd {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) target: Target,
    pub(crate) key: KeyPair,
    binary: PathBuf,
    process: Mutex<Option<Child>>,
}

/// The server's program, or why there is none.
pub(crate) fn find() -> Result<PathBuf, String> {
    let places = ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"];
    let found = places.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| format!("no sshd at {} (package openssh-server)", places.join(", ")))
}

impl Sshd {
    /// Everything but the running server. `extra` are further lines of its configuration.
    pub(crate) fn prepare(extra: &str) -> Self {
        let binary = find().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let key = ensure_key_pair(&dir.path().join("id_ed25519")).unwrap();
        let host_key = generate_host_key().unwrap();
        let host_path = dir.path().join("host_key");
        fs::write(&host_path, &host_key.private_openssh).unwrap();
        fs::set_permissions(&host_path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(dir.path().join("authorized_keys"), format!("{}\n", key.public_line)).unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        // HOME: whatever this host's shell start-up files do is none of these tests' business.
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host_key\nAuthorizedKeysFile {0}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nLogLevel ERROR\n\
             SetEnv HOME={0}\n{extra}\n",
            dir.path().display()
        );
        fs::write(dir.path().join("sshd_config"), config).unwrap();
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let target = Target {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            user: String::from_utf8(user).unwrap().trim().to_owned(),
            host_key: parse_public_line(&host_key.public_line).unwrap(),
        };
        Self { dir, target, key, binary, process: Mutex::new(None) }
    }

    /// Starts the server; it may take a moment until it listens.
    pub(crate) fn launch(&self) {
        // sshd insists on this directory when it runs as root; the package's service makes it.
        if self.target.user == "root" {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let mut command = Command::new(&self.binary);
        command.args(["-D", "-e", "-f"]).arg(self.dir.path().join("sshd_config"));
        let log = fs::File::create(self.dir.path().join("sshd.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        *self.process.lock().unwrap() = Some(child);
    }

    pub(crate) fn start(extra: &str) -> Self {
        let sshd = Self::prepare(extra);
        sshd.launch();
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(sshd.target.addr).is_err() {
            let log = fs::read_to_string(sshd.dir.path().join("sshd.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "sshd does not listen: {log}");
            std::thread::yield_now();
        }
        sshd
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(Options::default())
    }

    pub(crate) fn client_with(&self, options: Options) -> Client {
        Client::new(self.target.clone(), self.key.clone(), options)
    }

    /// Process ids of the connections' servers.
    pub(crate) fn connections(&self) -> Vec<u32> {
        let listener = self.process.lock().unwrap().as_ref().map(Child::id);
        processes().filter(|process| Some(process.parent) == listener).map(|process| process.id).collect()
    }

    /// Stops the server and all it started that is still its descendant.
    pub(crate) fn stop(&self) {
        let Some(mut child) = self.process.lock().unwrap().take() else { return };
        let all: Vec<Process> = processes().collect();
        let mut family = vec![child.id()];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            family.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.id));
            next += 1;
        }
        for id in family {
            signal(id, "KILL");
        }
        child.wait().unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn signal(id: u32, name: &str) {
    let status =
        Command::new("kill").args(["-s", name, "--", &id.to_string()]).stderr(Stdio::null()).status();
    status.unwrap();
}

struct Process {
    id: u32,
    parent: u32,
}

fn processes() -> impl Iterator<Item = Process> {
    entries().filter_map(|(id, path)| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        Some(Process { id, parent })
    })
}

fn entries() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

/// A number of seconds that no other process on this host sleeps, to recognize a command by.
pub(crate) fn token() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(100);
    format!("9{:07}{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Live processes with this word in their command line.
pub(crate) fn with_word(word: &str) -> Vec<u32> {
    let has = |path: &Path| fs::read(path.join("cmdline")).is_ok_and(|line| contains(&line, word.as_bytes()));
    entries().filter(|(_, path)| has(path)).map(|(id, _)| id).collect()
}

fn contains(line: &[u8], word: &[u8]) -> bool {
    line.windows(word.len()).any(|window| window == word)
}

/// Waits for a level, with a deadline.
pub(crate) async fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "waited 20 s for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a `sleep` with this word runs, not only the shell that will start it.
pub(crate) async fn wait_asleep(word: &str) {
    let asleep =
        |id: &u32| fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0"));
    wait_for(&format!("sleep {word}"), || with_word(word).iter().any(asleep)).await;
}

pub(crate) async fn wait_gone(word: &str) {
    wait_for(&format!("the end of {word}"), || with_word(word).is_empty()).await;
}

pub(crate) async fn wait_there(word: &str, count: usize) {
    wait_for(&format!("{count} processes with {word}"), || with_word(word).len() >= count).await;
}
