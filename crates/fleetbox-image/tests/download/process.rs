//! What is read from the environment of a process, or needs a process of its own: proxies, certificates, a full disk.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::lab::{DOWNLOADER, HOME, Lab, Result, disk, sha256};
use crate::server::{Reply, Server, Tunnels};
use crate::{ROOT, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_proxy_is_asked_for_the_whole_address", &["mke2fs"], proxy),
    ("a_tunnel_through_a_proxy_is_secure_to_its_end", &["mke2fs"], tunnel),
    ("a_proxy_that_refuses_is_named", &[], proxy_refuses),
    ("certificates_are_checked", &["mke2fs"], certificates),
    ("a_redirect_from_https_to_http_is_refused", &[], downgrade),
    ("another_site_is_asked_where_the_environment_says_so", &["mke2fs"], mirror),
    ("a_full_disk_is_said_and_emptied", &[ROOT, "unshare", "mount"], full),
];

fn authority() -> (&'static str, String) {
    let ca = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/download/tls/ca.pem");
    ("SSL_CERT_FILE", ca.to_string_lossy().into_owned())
}

fn proxy() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |request, _| Reply::file(request, disk, "\"v1\""))?;
    let proxy = format!("http://user:secret@{}", server.address());
    let url = "http://images.test/disk.raw?x=1";
    assert_eq!(lab.process_says(url, &[("HTTP_PROXY", proxy.clone())])?, Ok(sha256(disk)));
    let request = &server.requests()[0];
    assert_eq!((request.target.as_str(), request.field("host")), (url, Some("images.test")));
    // RFC 7617: user:secret
    assert_eq!(request.field("proxy-authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    // Not for hosts that are excepted: they are asked themselves, and this one is the server.
    let lab = Lab::new()?;
    let own = server.url("/disk.raw");
    let variables = [("all_proxy", "http://127.0.0.1:1".to_owned()), ("no_proxy", "127.0.0.1".to_owned())];
    assert_eq!(lab.process_says(&own, &variables)?, Ok(sha256(disk)));
    assert_eq!(server.requests()[1].target, "/disk.raw");
    Ok(())
}

fn tunnel() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start_tls(move |request, _| Reply::file(request, disk, "\"v1\""))?;
    let tunnels = Tunnels::start()?;
    let variables = [authority(), ("HTTPS_PROXY", tunnels.url())];
    assert_eq!(lab.process_says(&server.url("/disk.raw"), &variables)?, Ok(sha256(disk)));
    let asked = tunnels.asked();
    let target = server.url("").replace("https://", "");
    assert!(asked.len() == 1 && asked[0].starts_with(&format!("CONNECT {target} ")), "{asked:?}");
    assert!(asked[0].to_lowercase().contains("proxy-authorization: basic "), "{asked:?}");
    assert_eq!(server.requests()[0].target, "/disk.raw");
    assert_eq!(server.requests()[0].field("proxy-authorization"), None);
    Ok(())
}

fn proxy_refuses() -> Result {
    let lab = Lab::new()?;
    // It refuses every CONNECT.
    let server = Server::start(|_, _| Reply::new(500))?;
    let variables = [("HTTPS_PROXY", format!("http://{}", server.address()))];
    let said = lab.process_says("https://images.test/x", &variables)?.err().ok_or("downloaded")?;
    assert!(said.contains(&server.address()) && said.contains("images.test"), "{said}");
    let variables = [("HTTP_PROXY", "socks4://127.0.0.1:1".to_owned())];
    let said = lab.process_says("http://images.test/x", &variables)?.err().ok_or("downloaded")?;
    assert!(said.contains("socks4://127.0.0.1:1"), "{said}");
    lab.nothing_left()
}

fn certificates() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start_tls(move |request, _| Reply::file(request, disk, "\"v1\""))?;
    let url = server.url("/disk.raw");
    // Nobody on this host vouches for it.
    let said = lab.process_says(&url, &[])?.err().ok_or("downloaded")?;
    let no_certificates = said.contains("ca-certificates");
    assert!(
        no_certificates || (said.contains("secure connection to localhost") && said.contains("certificate")),
        "{said}"
    );
    assert_eq!(server.requests().len(), 0);
    lab.nothing_left()?;
    assert_eq!(lab.process_says(&url, &[authority()])?, Ok(sha256(disk)));
    // It is no certificate for another host.
    let other = Server::start_tls_at("127.0.0.2", |_, _| Reply::new(200))?;
    let said = lab.process_says(&format!("https://{}/x", other.address()), &[authority()])?;
    let said = said.err().ok_or("downloaded")?;
    assert!(said.contains("secure connection to 127.0.0.2") && said.contains("not valid for"), "{said}");
    assert_eq!(other.requests().len(), 0);
    Ok(())
}

fn downgrade() -> Result {
    let lab = Lab::new()?;
    let plain = Server::start(|_, _| Reply::new(200))?;
    let to = plain.url("/x");
    let server = Server::start_tls(move |_, _| Reply::new(302).field("location", to.clone()))?;
    let said = lab.process_says(&server.url("/x"), &[authority()])?.err().ok_or("downloaded")?;
    assert!(said.contains("from https to") && said.contains(&plain.url("/x")), "{said}");
    assert_eq!(plain.connections(), 0);
    lab.nothing_left()
}

fn mirror() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |request, _| Reply::file(request, disk, "\"v1\""))?;
    let arch = fleetbox_spec::Arch::host().ok_or("an unknown architecture")?.debian();
    let catalog = lab.tmp.path().join("catalog.json");
    let text = format!(
        r#"{{"version": 1, "vendors": {{"acme": {{"base": "https://images.test/pub"}}}},
            "images": [{{"alias": "acme-1", "vendor": "acme", "arch": "{arch}", "snapshot": "1", "format": "raw",
                         "url": "https://images.test/pub/1/disk.raw", "checksum": "sha256:{}"}}]}}"#,
        sha256(disk)
    );
    std::fs::write(&catalog, text)?;
    let variables = [
        ("FLEETBOX_CATALOG", catalog.to_string_lossy().into_owned()),
        ("FLEETBOX_MIRROR_ACME", server.url("/mirror/")),
    ];
    assert_eq!(lab.process_says("acme-1", &variables)?, Ok(sha256(disk)));
    assert_eq!(server.requests()[0].target, "/mirror/1/disk.raw");
    // In the store now: neither the mirror nor anybody else is asked.
    assert_eq!(lab.process_says("acme-1", &variables[..1])?, Ok(sha256(disk)));
    assert_eq!(server.connections(), 1);
    Ok(())
}

fn full() -> Result {
    let lab = Lab::new()?;
    // Without a length nothing can be said beforehand. In a mount namespace of its own, so that nothing stays mounted.
    let server = Server::start(|_, _| Reply { length: false, ..Reply::new(200).body(vec![0xa5; 16 << 20]) })?;
    let script =
        r#"mount -t tmpfs -o size=4m tmpfs "$1" && "$2"; status=$?; ls -A "$1/images" >&2; exit $status"#;
    let home = lab.tmp.path().join("small");
    std::fs::create_dir(&home)?;
    let program = std::env::current_exe()?;
    let download = |server: &Server| {
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .args([&home, &program])
            .env(DOWNLOADER, server.url("/x"))
            .env(HOME, &home)
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .output()
    };
    let out = download(&server)?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{said}");
    let mut lines = said.lines();
    let error = lines.next().unwrap_or_default();
    assert!(error.contains("the disk is full after") && error.contains("No space left on device"), "{said}");
    assert_eq!(lines.collect::<Vec<_>>(), Vec::<&str>::new());
    assert_eq!(server.requests().len(), 1);
    // With a length it is said before.
    let server = Server::start(|_, _| Reply::new(200).body(vec![0xa5; 16 << 20]))?;
    let out = download(&server)?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.trim_end().ends_with("MiB are free") && said.contains("32 MiB are needed"), "{said}");
    Ok(())
}
