use fleetbox::{Vm, Event};
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let t = std::time::Instant::now();
    let vm = Vm::builder("web").image("bootstrap:bookworm").on_event(move |e| match e {
        Event::PhaseProgress{..} => {}, e => eprintln!("{:6.2} {}", t.elapsed().as_secs_f64(), serde_json::to_string(&e).unwrap()) }).start().await;
    let vm = match vm { Ok(v)=>v, Err(e)=>{ eprintln!("{e}\n{:?}", e); eprintln!("{}", e.console().unwrap_or("")); return } };
    eprintln!("{:6.2} started", t.elapsed().as_secs_f64());
    println!("{}", vm.ssh("uname -a; hostname -f; id; cat /proc/cmdline; ip a; ip r; resolvectl | cat; cat /proc/cpuinfo | grep model.name | head -1").await.unwrap());
    eprintln!("{:6.2} first exec", t.elapsed().as_secs_f64());
    for c in ["true", "systemctl is-system-running --wait", "systemctl --failed", "getent hosts deb.debian.org", "systemd-analyze", "systemd-analyze blame | head -30", "systemd-analyze critical-chain | cat", "df -h /; ls -la /root /home/fleetbox; journalctl -p warning -b | cat"] {
        let t1 = std::time::Instant::now();
        let o = vm.exec(c).await.unwrap();
        println!("--- {c} [{:.3}s] {}\n{}{}", t1.elapsed().as_secs_f64(), o.status(), o.text(), String::from_utf8_lossy(o.stderr()));
    }
    if std::env::args().nth(1).is_some() { let mut s=String::new(); std::io::stdin().read_line(&mut s).unwrap(); }
    let t1 = std::time::Instant::now();
    vm.stop().await.unwrap();
    eprintln!("stop {:.2}", t1.elapsed().as_secs_f64());
    let t1 = std::time::Instant::now();
    vm.start().await.unwrap();
    println!("{}", vm.ssh("uptime").await.unwrap());
    eprintln!("start again {:.2}", t1.elapsed().as_secs_f64());
    vm.destroy().await.unwrap();
}
