//! Each thing that goes wrong is told by its name, and leaves nothing half-made.

use std::time::Duration;

use fleetbox_image::{DownloadError, ImageError};

use crate::Test;
use crate::lab::{Lab, Result, chain, disk, options, sha256, sha512};
use crate::server::{Reply, Send, Server};

pub(crate) const TESTS: &[Test] = &[
    ("not_found_is_said_at_once", &[], not_found),
    ("a_server_that_stays_broken_is_given_up", &[], broken_server),
    ("a_redirect_loop_is_named", &[], redirect_loop),
    ("a_redirect_to_elsewhere_is_refused", &[], bad_redirect),
    ("silence_ends_with_what_had_come", &[], stall),
    ("silence_instead_of_an_answer_ends", &[], no_answer),
    ("a_truncated_body_is_no_image", &[], truncated),
    ("a_wrong_digest_says_both_and_deletes_only_what_came", &["mke2fs"], wrong_digest),
    ("a_page_is_no_image", &[], page),
    ("what_is_no_http_is_said", &[], no_http),
    ("nobody_there_is_said", &[], nobody),
    ("an_https_address_without_tls_is_said", &[], no_tls),
    ("no_room_is_said_before_anything_comes", &[], no_room),
    ("a_bad_image_leaves_nothing", &[], bad_image),
];

/// Bytes that are no page, and no image either.
fn noise() -> Vec<u8> {
    vec![0xa5; 3 << 20]
}

fn not_found() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|_, _| Reply::new(404).body("<html>nothing here"))?;
    let error = lab.fails(&server.url("/x"))?;
    assert!(matches!(error, DownloadError::Status { status: 404, .. }), "{error:?}");
    assert!(error.to_string().contains("404") && error.to_string().contains("not found"), "{error}");
    assert_eq!(server.requests().len(), 1);
    lab.nothing_left()
}

fn broken_server() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|_, _| Reply::new(500))?;
    let error = lab.fails(&server.url("/x"))?;
    assert!(matches!(error, DownloadError::Status { status: 500, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 3);
    // One that wants to be left alone for a day is.
    let server = Server::start(|_, _| Reply::new(503).field("retry-after", "86400"))?;
    let error = lab.fails(&server.url("/x"))?;
    let day = Some(Duration::from_secs(86400));
    assert!(
        matches!(error, DownloadError::Status { status: 503, retry_after } if retry_after == day),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), 1);
    lab.nothing_left()
}

fn redirect_loop() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|request, _| {
        let to = if request.target == "/a" { "/b" } else { "/a" };
        Reply::new(302).field("location", to)
    })?;
    let error = lab.fails(&server.url("/a"))?;
    assert!(matches!(&error, DownloadError::RedirectLoop(url) if *url == server.url("/a")), "{error:?}");
    assert_eq!(server.requests().len(), 2);
    // One that never comes to the same place again.
    let server = Server::start(|_, number| Reply::new(302).field("location", format!("/{number}")))?;
    let error = lab.fails(&server.url("/a"))?;
    assert!(matches!(error, DownloadError::TooManyRedirects { limit: 10, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 11);
    lab.nothing_left()
}

fn bad_redirect() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|request, _| match request.target.as_str() {
        "/file" => Reply::new(302).field("location", "file:///etc/passwd"),
        _ => Reply::new(302),
    })?;
    let error = lab.fails(&server.url("/file"))?;
    assert!(matches!(&error, DownloadError::BadRedirect(to) if to == "file:///etc/passwd"), "{error:?}");
    let error = lab.fails(&server.url("/nowhere"))?;
    assert!(matches!(error, DownloadError::BadAnswer(_)), "{error:?}");
    lab.nothing_left()
}

fn stall() -> Result {
    let mut short = options();
    short.stall_timeout = Duration::from_millis(300);
    let lab = Lab::with(short)?;
    let server = Server::start(|request, number| {
        Reply::file(request, &noise(), "\"v1\"").send(Send::Stall(if number == 0 { 100_000 } else { 0 }))
    })?;
    let error = lab.fails(&server.url("/x"))?;
    let DownloadError::Stalled { done, total, .. } = error else { return Err(format!("{error:?}").into()) };
    // As much of it as the host let through in time.
    assert!(done <= 100_000 && total == Some(3 << 20), "{error}");
    assert!(error.to_string().contains(&format!("{done} of 3145728 bytes")), "{error}");
    assert_eq!(server.requests().len(), 3);
    Ok(())
}

fn no_answer() -> Result {
    let mut short = options();
    short.stall_timeout = Duration::from_millis(100);
    short.tries = 2;
    let lab = Lab::with(short)?;
    // Connections are taken by the kernel, and nobody reads from them.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let error = lab.fails(&format!("http://{}/x", listener.local_addr()?))?;
    assert!(matches!(error, DownloadError::Stalled { done: 0, total: None, .. }), "{error:?}");
    lab.nothing_left()
}

fn truncated() -> Result {
    let lab = Lab::new()?;
    // Neither tag nor date: nothing that the rest could be asked for with.
    let server = Server::start(|_, _| Reply::new(200).body(noise()).send(Send::Cut(100_000)))?;
    let error = lab.fails(&server.url("/x"))?;
    assert!(matches!(error, DownloadError::Truncated { done: 100_000, total: Some(3_145_728) }), "{error:?}");
    assert!(error.to_string().contains("100000 of 3145728 bytes"), "{error}");
    assert_eq!(server.requests().len(), 3);
    assert!(server.requests().iter().all(|r| r.field("range").is_none()));
    lab.nothing_left()
}

fn wrong_digest() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |request, _| match request.target.as_str() {
        "/good" => Reply::file(request, disk, "\"v1\""),
        _ => Reply::file(request, &noise(), "\"v1\""),
    })?;
    let good = lab.has(&server.url("/good"), disk)?;
    for (algorithm, wanted, found) in
        [("sha256", sha256(b""), sha256(&noise())), ("sha512", sha512(b""), sha512(&noise()))]
    {
        let error = lab.fails(&format!("{}#{algorithm}={wanted}", server.url("/bad")))?;
        assert!(matches!(error, DownloadError::WrongDigest { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&wanted) && text.contains(&found) && text.contains(algorithm), "{text}");
    }
    assert_eq!(server.requests().len(), 3);
    assert_eq!(lab.left()?, [good.digest]);
    Ok(())
}

fn page() -> Result {
    let lab = Lab::new()?;
    let html = format!("\n<!DOCTYPE html><title>Log in, please</title>{}", " ".repeat(1 << 20));
    let served = html.clone();
    let server = Server::start(move |_, _| {
        Reply::new(200).field("content-type", "text/html; charset=utf-8").body(served.clone())
    })?;
    for url in [server.url("/x"), format!("{}#sha256={}", server.url("/x"), sha256(html.as_bytes()))] {
        let error = lab.fails(&url)?;
        assert!(matches!(error, DownloadError::NotAnImage { .. }), "{error:?}");
        assert!(error.to_string().contains("HTML") && error.to_string().contains("text/html"), "{error}");
        lab.nothing_left()?;
    }
    // A short one, too.
    let server = Server::start(|_, _| Reply::new(200).body("<html></html>"))?;
    assert!(matches!(lab.fails(&server.url("/x"))?, DownloadError::NotAnImage { .. }));
    lab.nothing_left()
}

fn no_http() -> Result {
    let lab = Lab::new()?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming().take(3).flatten() {
            let mut stream = stream;
            let _ = std::io::Write::write_all(&mut stream, b"220 mail.test ESMTP\r\n");
            // Read to the end, so that what was written arrives.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    let error = lab.fails(&format!("http://{address}/x"))?;
    assert!(matches!(error, DownloadError::NoAnswer { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    thread.join().map_err(|_| "the server panicked")?;
    lab.nothing_left()
}

fn nobody() -> Result {
    let lab = Lab::new()?;
    // Bound and not listened on: nobody else gets the port, and nobody answers.
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address: std::net::SocketAddr = rustix::net::getsockname(&socket)?.try_into()?;
    let error = lab.fails(&format!("http://{address}/x"))?;
    assert!(
        matches!(&error, DownloadError::Connect { host, .. } if *host == address.to_string()),
        "{error:?}"
    );
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
    lab.nothing_left()
}

fn no_tls() -> Result {
    let mut short = options();
    short.connect_timeout = Duration::from_millis(200);
    short.tries = 2;
    let lab = Lab::with(short)?;
    // One that waits for a request, and takes what comes for its beginning.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    match lab.fails(&format!("https://{address}/x"))? {
        DownloadError::ConnectTimeout { host, .. } => assert_eq!(host, address.to_string()),
        DownloadError::NoCertificates { .. } => {}
        other => return Err(format!("{other:?}").into()),
    }
    let lab = Lab::new()?;
    let server = Server::start(|_, _| Reply::new(200))?;
    let error = lab.fails(&format!("https://{}/x", server.address()))?;
    match error {
        // A host without a single trusted certificate says that first.
        DownloadError::Tls { .. } | DownloadError::NoCertificates { .. } => {}
        other => return Err(format!("{other:?}").into()),
    }
    lab.nothing_left()
}

fn no_room() -> Result {
    let lab = Lab::new()?;
    // An EiB, of which nothing comes.
    let server = Server::start(|_, _| {
        let huge = Reply::new(200).field("content-length", (1u64 << 60).to_string());
        Reply { length: false, ..huge }.send(Send::Stall(0))
    })?;
    let error = lab.resolve(&server.url("/x"))?.err().ok_or("it is an image")?;
    assert!(matches!(error, ImageError::NoSpace { need_mib, .. } if need_mib == (1 << 40) + 16), "{error:?}");
    lab.nothing_left()
}

fn bad_image() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|request, _| Reply::file(request, &noise(), "\"v1\""))?;
    let error = lab.resolve(&server.url("/x"))?.err().ok_or("it is an image")?;
    assert!(matches!(error, ImageError::NotAnImage { .. }), "{error:?}");
    assert!(error.to_string().contains(&server.url("/x")), "{error}");
    lab.nothing_left()
}
