//! Namespaces, and what a test sees of the host's network.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fleetbox_net::{Journal, Network, Opened};
use fleetbox_spec::{ClusterName, MachineName};
use fleetbox_store::Store;
use libtest_mimic::{Failed, Trial};

/// Why this tier cannot run here; empty when it can.
pub(crate) fn cannot_run() -> Vec<String> {
    let mut reasons = Vec::new();
    if !fleetbox_os::host::is_root() {
        reasons.push("not root".to_owned());
    }
    for (program, arg) in [("ip", "-V"), ("nft", "-v")] {
        if Command::new(program).arg(arg).output().is_err() {
            reasons.push(format!("no `{program}` program"));
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        reasons.push("no /dev/net/tun".to_owned());
    }
    reasons
}

/// A test in a new network namespace, with a store of its own.
pub(crate) fn trial<F, T>(name: &'static str, test: T) -> Trial
where
    F: Future<Output = ()>,
    T: FnOnce(Host) -> F + Send + 'static,
{
    Trial::test(name, move || {
        let result = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                fleetbox_os::netns::enter_new().expect("a network namespace");
                sh("ip link set lo up");
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let tmp = tempfile::tempdir().expect("a folder");
                runtime.block_on(test(Host::at(tmp)));
            })
            .expect("a thread")
            .join();
        // libtest-mimic sees only panics of its own thread.
        result.map_err(|e| {
            let text =
                e.downcast_ref::<String>().map(String::as_str).or_else(|| e.downcast_ref::<&str>().copied());
            Failed::from(text.unwrap_or("panicked"))
        })
    })
}

/// A host with an empty network and an empty store.
pub(crate) struct Host {
    pub(crate) store: Store,
    _tmp: tempfile::TempDir,
}

impl Host {
    pub(crate) fn at(tmp: tempfile::TempDir) -> Self {
        Self { store: Store::open(tmp.path()).expect("a store"), _tmp: tmp }
    }

    pub(crate) fn journal(&self, name: &str) -> Arc<Journal> {
        Arc::new(Journal::open(&self.store, &cluster(name)).expect("a journal"))
    }

    pub(crate) async fn open(&self, name: &str) -> (Network, Arc<Journal>) {
        let journal = self.journal(name);
        let Opened { network, .. } =
            Network::open(&self.store, &cluster(name), None, journal.clone()).await.expect("a network");
        (network, journal)
    }
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName::new(name).expect("a name")
}

pub(crate) fn machine(name: &str) -> MachineName {
    MachineName::new(name).expect("a name")
}

/// Runs a shell command in this thread's namespace; panics when it fails.
pub(crate) fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-c", command]).output().expect("sh");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "`{command}`: {}{text}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// Everything fleetbox may change in this namespace: links, addresses, routes, rules and settings.
pub(crate) fn state() -> BTreeMap<&'static str, String> {
    [
        // Counters, queue states and link numbers differ from one look to the next.
        ("links", "ip -o link | sed 's/^[0-9]*: //'"),
        ("addresses", "ip -o addr | sed 's/^[0-9]*: //; s/valid_lft.*//'"),
        ("routes", "ip route show table all; ip -6 route show table all"),
        ("rules", "nft list ruleset"),
        ("settings", "cd /proc/sys/net && grep -r . ipv4/conf ipv6/conf ipv4/ip_forward 2>/dev/null | grep -v stable_secret | sort"),
    ]
    .into_iter()
    .map(|(what, command)| (what, sh(command)))
    .collect()
}

/// Fails with the lines that differ.
#[track_caller]
pub(crate) fn assert_unchanged(before: &BTreeMap<&'static str, String>, what: &str) {
    let after = state();
    let mut different = String::new();
    for (key, was) in before {
        let is = &after[key];
        let lines = |a: &str, b: &str, sign: &str| {
            a.lines()
                .filter(|l| !b.lines().any(|m| m == *l))
                .map(|l| format!("{sign} {key}: {l}\n"))
                .collect::<String>()
        };
        different.push_str(&lines(was, is, "-"));
        different.push_str(&lines(is, was, "+"));
        if was != is && different.is_empty() {
            different = format!("{key}: the same lines in another order or number:\n{was}\n{is}");
        }
    }
    assert!(different.is_empty(), "{what}\n{different}");
}

/// A network namespace that this thread is not in: the internet, or a guest.
pub(crate) struct Ns(Arc<OwnedFd>);

impl Ns {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            fleetbox_os::netns::enter_new().expect("a network namespace");
            sh("ip link set lo up");
            fleetbox_os::netns::current().expect("this namespace")
        });
        Self(Arc::new(made.join().expect("a thread")))
    }

    /// The namespace that this thread is in.
    pub(crate) fn here() -> Self {
        Self(Arc::new(fleetbox_os::netns::current().expect("this namespace")))
    }

    /// As `ip` takes it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Starts a thread in the namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let ns = self.0.clone();
        std::thread::spawn(move || {
            fleetbox_os::netns::enter(&*ns).expect("to enter the namespace");
            work()
        })
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.spawn(move || sh(&command)).join().expect("the command")
    }

    /// A TCP server that tells each client the address it comes from. Lives as long as this process.
    pub(crate) fn serve(&self, port: u16) {
        self.spawn(move || {
            let any = if Path::new("/proc/sys/net/ipv6").exists() { "[::]" } else { "0.0.0.0" };
            let listener = TcpListener::bind(format!("{any}:{port}")).expect("to listen");
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let peer = stream.peer_addr().expect("a peer").ip().to_canonical();
                    let _ = stream.write_all(peer.to_string().as_bytes());
                }
            });
        })
        .join()
        .expect("a server");
    }

    /// Connects from inside and returns what the server says; `None` when nothing answers.
    pub(crate) async fn connect(&self, to: impl Into<IpAddr>, port: u16) -> Option<String> {
        let to = SocketAddr::new(to.into(), port);
        let handle = self.spawn(move || connect(to));
        // Our DNS server runs on this thread, so it must not block.
        while !handle.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        handle.join().expect("a thread")
    }
}

/// Connects from this thread's namespace. A dropped packet is told by silence, so there must be some limit.
pub(crate) fn connect(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(1500)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Waits until a link has its carrier, which the kernel tells a moment after it is up.
fn carrier(link: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let seen = sh(&format!("ip -o link show {link}"));
        if seen.contains("state UP") {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "no carrier: {seen}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// An uplink with the internet behind it: the host is 198.51.100.2 on `up0`, and 203.0.113.1 is far away.
/// The internet routes everything to the host, as a hostile neighbour would.
pub(crate) fn internet() -> Ns {
    let ns = Ns::new();
    sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
    sh(&format!("ip link add up0 type veth peer name in0 netns {}", ns.path()));
    sh("echo 1 > /proc/sys/net/ipv6/conf/up0/disable_ipv6");
    sh("ip addr add 198.51.100.2/24 dev up0 && ip link set up0 up && ip route add default via 198.51.100.1");
    ns.sh("ip addr add 198.51.100.1/24 dev in0 && ip addr add 203.0.113.1/32 dev lo && ip link set in0 up && ip route add 10.0.0.0/8 via 198.51.100.2");
    carrier("up0");
    ns
}

/// A second uplink, `up1`, with forwarding on.
pub(crate) fn second_uplink() -> Ns {
    let ns = Ns::new();
    sh(&format!("ip link add up1 type veth peer name in1 netns {}", ns.path()));
    sh("echo 1 > /proc/sys/net/ipv6/conf/up1/disable_ipv6; echo 1 > /proc/sys/net/ipv4/conf/up1/forwarding");
    sh(
        "ip addr add 192.0.2.2/24 dev up1 && ip link set up1 up && ip route add default via 192.0.2.1 metric 100",
    );
    ns.sh("ip addr add 192.0.2.1/24 dev in1 && ip link set in1 up");
    carrier("up1");
    ns
}

pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// A guest on a network, played by a namespace: a port of the bridge, address and default route.
pub(crate) struct Guest {
    pub(crate) ns: Ns,
    pub(crate) ip: Ipv4Addr,
    port: String,
}

impl Guest {
    pub(crate) fn new(net: &Network, host: u8) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let port = format!("g{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let ns = Ns::new();
        let [a, b, c, _] = net.gateway().octets();
        let ip = Ipv4Addr::new(a, b, c, host);
        sh(&format!("ip link add {port} type veth peer name eth0 netns {}", ns.path()));
        sh(&format!(
            "echo 1 > /proc/sys/net/ipv6/conf/{port}/disable_ipv6; ip link set {port} master {} up",
            net.bridge()
        ));
        ns.sh(&format!(
            "ip addr add {ip}/24 dev eth0 && ip link set eth0 up && ip route add default via {}",
            net.gateway()
        ));
        if let Some(ip6) = net.ipv6_for(ip) {
            ns.sh(&format!(
                "ip addr add {ip6}/64 dev eth0 nodad && ip -6 route add default via {}",
                net.ipv6_gateway().expect("a gateway")
            ));
        }
        Self { ns, ip, port }
    }

    /// Takes its port away; a namespace's own end comes when the kernel gets round to it.
    pub(crate) fn remove(self) {
        sh(&format!("ip link del {}", self.port));
    }
}

pub(crate) fn setting(key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{key}")).expect("a setting").trim().to_owned()
}
