//! Downloads that go well, and using what is there.

use std::sync::Arc;
use std::time::Duration;

use fleetbox_image::{ImageError, ImageStage};
use fleetbox_spec::ImageRef;

use crate::Test;
use crate::lab::{Lab, Result, block_on, disk, make_disk, options, sha256, sha512};
use crate::server::{Reply, Send, Server};

pub(crate) const TESTS: &[Test] = &[
    ("what_is_in_the_store_is_not_asked_for", &["mke2fs"], once),
    ("a_digest_is_one_image_wherever_it_comes_from", &["mke2fs"], pinned),
    ("a_compressed_name_of_the_format_does_not_matter", &["mke2fs", "qemu-img"], qcow2),
    ("twenty_who_wait_make_one_download", &["mke2fs"], twenty),
    ("redirects_are_followed", &["mke2fs"], redirects),
    ("a_server_that_is_busy_is_asked_again", &["mke2fs"], busy),
    ("without_a_length_it_works_too", &["mke2fs"], no_length),
    ("a_pull_asks_whether_there_is_a_newer_file", &["mke2fs"], pull),
    ("a_file_without_content_is_refused", &[], empty),
];

fn serve(bytes: &'static [u8]) -> Result<Server> {
    Ok(Server::start(move |request, _| Reply::file(request, bytes, "\"v1\""))?)
}

fn once() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = serve(disk)?;
    let url = server.url("/disk.raw");
    lab.has(&url, disk)?;
    assert!(lab.told().contains(&format!("downloading {url}")), "{}", lab.told());
    assert_eq!((server.connections(), lab.left()?.len()), (1, 1));
    lab.has(&url, disk)?;
    assert_eq!(server.connections(), 1);
    // Nor with the server gone.
    drop(server);
    lab.has(&url, disk)?;
    assert_eq!(lab.images.downloads()?, []);
    Ok(())
}

fn pinned() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = serve(disk)?;
    let (short, long) = (sha256(disk), sha512(disk));
    let first = lab.has(&format!("{}#sha512={long}", server.url("/a")), disk)?;
    assert_eq!(server.connections(), 1);
    // Known by the digest that was given, and by the one that was computed.
    for (path, digest) in [("/b", format!("sha512={long}")), ("/c", format!("sha256={short}"))] {
        let again = lab.has(&format!("{}#{digest}", server.url(path)), disk)?;
        assert_eq!(again.path, first.path);
    }
    assert_eq!(server.connections(), 1);
    // Another address without a digest has to be asked; the image is the same one.
    assert_eq!(lab.has(&server.url("/d"), disk)?.path, first.path);
    assert_eq!((server.connections(), lab.left()?), (2, vec![short]));
    Ok(())
}

fn qcow2() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let (raw, qcow2) = (lab.tmp.path().join("raw"), lab.tmp.path().join("qcow2"));
    std::fs::write(&raw, disk)?;
    crate::lab::run(
        std::process::Command::new("qemu-img").args(["convert", "-c", "-O", "qcow2"]).arg(&raw).arg(&qcow2),
    )?;
    let bytes = std::fs::read(&qcow2)?;
    let digest = sha256(&bytes);
    let server = Server::start(move |request, _| Reply::file(request, &bytes, "\"v1\""))?;
    let image = lab.resolve(&server.url("/disk.img"))??;
    assert!(std::fs::read(&image.path)? == disk);
    assert_eq!((lab.left()?, image.digest), (vec![digest.clone()], digest));
    Ok(())
}

fn twenty() -> Result {
    let (lab, disk) = (Arc::new(Lab::new()?), disk()?);
    // Slow enough for all to come while it is under way: the second half when nineteen wait.
    let waiting = Arc::clone(&lab);
    let server = Server::start(move |request, _| {
        let begun = std::time::Instant::now();
        while waiting.told().matches("is being downloaded by pid").count() < 19
            && begun.elapsed() < crate::lab::SURELY
        {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Reply::file(request, disk, "\"v1\"")
    })?;
    let url: ImageRef = server.url("/disk.raw").parse()?;
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let (lab, url) = (Arc::clone(&lab), url.clone());
            std::thread::spawn(move || {
                let seen = |p: fleetbox_image::ImageProgress| {
                    // Once for each who waits, however often they are told.
                    if p.stage != ImageStage::Waiting || p.progress.is_none() {
                        lab.tell(p);
                    }
                };
                block_on(lab.images.resolve(&url, &seen)).map(|r| r.map(|i| i.digest))
            })
        })
        .collect();
    for thread in threads {
        let digest = thread.join().map_err(|_| "a thread panicked")???;
        assert_eq!(digest, sha256(disk));
    }
    assert_eq!(server.requests().len(), 1, "{:?}", server.requests());
    assert!(
        lab.told().contains(&format!("is being downloaded by pid {}", std::process::id())),
        "{}",
        lab.told()
    );
    assert_eq!(lab.left()?, [sha256(disk)]);
    Ok(())
}

fn redirects() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let there = serve(disk)?;
    let target = there.url("/there");
    let server = Server::start(move |request, _| match request.target.as_str() {
        "/a/disk?x=1" => Reply::new(301).field("location", "../b/disk"),
        "/b/disk" => Reply::new(307).field("location", target.clone()),
        _ => Reply::new(404),
    })?;
    lab.has(&server.url("/a/disk?x=1"), disk)?;
    assert_eq!((server.requests().len(), there.requests().len()), (2, 1));
    Ok(())
}

fn busy() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |request, number| match number {
        0 => Reply::new(503).field("retry-after", "0"),
        1 => Reply::new(429),
        _ => Reply::file(request, disk, "\"v1\""),
    })?;
    lab.has(&server.url("/disk.raw"), disk)?;
    assert_eq!(server.requests().len(), 3);
    assert!(lab.told().contains("503") && lab.told().contains("429"), "{}", lab.told());
    Ok(())
}

fn no_length() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |_, _| Reply { length: false, ..Reply::new(200).body(disk) })?;
    lab.has(&server.url("/disk.raw"), disk)?;
    Ok(())
}

fn pull() -> Result {
    let (lab, old) = (Lab::new()?, disk()?);
    let new: &'static [u8] = make_disk("two")?.leak();
    let server = Server::start(move |request, number| match number {
        0 | 1 => Reply::file(request, old, "\"v1\""),
        2 => Reply::file(request, new, "\"v2\"").send(Send::Cut(3 << 20)),
        _ => Reply::file(request, new, "\"v2\""),
    })?;
    let url = server.url("/disk.raw");
    let first = lab.has(&url, old)?;
    assert_eq!(lab.pull(&url)??, first);
    assert_eq!(server.requests()[1].field("if-none-match"), Some("\"v1\""));
    let second = lab.pull(&url)??;
    assert_eq!(second.digest, sha256(new));
    // Its rest was asked for as a rest of the new one.
    assert_eq!(server.requests()[3].field("if-range"), Some("\"v2\""));
    assert_eq!(lab.has(&url, new)?, second);
    assert!(std::fs::read(&first.path)? == old);
    assert_eq!((server.requests().len(), lab.left()?.len()), (4, 2));
    // With a digest there is nothing to ask.
    lab.pull(&format!("{url}#sha256={}", sha256(old)))??;
    assert_eq!(server.requests().len(), 4);
    // A pull that fails leaves what there was.
    let port = server.url("");
    drop(server);
    assert!(matches!(lab.pull(&url)?, Err(ImageError::Download { .. })), "{port}");
    assert_eq!(lab.has(&url, new)?, second);
    Ok(())
}

fn empty() -> Result {
    let lab = Lab::with(options())?;
    let server = Server::start(|_, _| Reply::new(200))?;
    let error = lab.resolve(&server.url("/disk.raw"))?.err().ok_or("it is an image")?;
    assert!(matches!(error, ImageError::Empty(_) | ImageError::TooSmall { .. }), "{error:?}");
    lab.nothing_left()
}
