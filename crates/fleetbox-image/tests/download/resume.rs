//! Downloads that are interrupted, and what becomes of the first half.

use std::path::PathBuf;

use fleetbox_image::{DownloadError, ImageError};
use fleetbox_spec::ImageRef;
use fleetbox_store::{Lock, LockKind};

use crate::Test;
use crate::lab::{Lab, Result, SURELY, block_on, disk, make_disk, sha256};
use crate::server::{Reply, Request, Send, Server};

pub(crate) const TESTS: &[Test] = &[
    ("a_broken_connection_is_resumed", &["mke2fs"], broken),
    ("a_dropped_download_is_resumed_by_the_next", &["mke2fs"], dropped),
    ("a_killed_process_is_followed_by_another", &["mke2fs"], killed),
    ("a_server_that_cannot_resume_is_asked_for_all", &["mke2fs"], no_ranges),
    ("a_file_that_changed_between_is_begun_anew", &["mke2fs"], changed),
    ("a_changed_file_is_seen_without_if_range", &["mke2fs"], changed_silently),
    ("a_range_that_is_another_is_not_taken", &["mke2fs"], wrong_range),
    ("without_a_tag_only_a_digest_allows_to_resume", &["mke2fs"], no_validator),
    ("pieces_of_two_files_are_told_by_the_digest", &["mke2fs"], mixed),
    ("what_is_there_whole_is_not_downloaded_again", &["mke2fs"], whole),
    ("what_stays_is_listed_and_can_be_removed", &[], listed),
    ("what_cannot_be_resumed_is_not_kept", &[], not_kept),
];

/// More than is written at once.
const HALF: usize = 3 << 20;

/// The first request gets a half, the others what they ask for.
fn halves(bytes: &'static [u8], first: Send) -> Result<Server> {
    Ok(Server::start(move |request, number| {
        let reply = Reply::file(request, bytes, "\"v1\"");
        if number == 0 { reply.send(first) } else { reply }
    })?)
}

fn resumed(request: &Request, least: usize, most: usize) {
    let from = request.from().unwrap_or(0);
    assert!((least..=most).contains(&from), "{request:?}");
    assert_eq!(request.field("if-range"), Some("\"v1\""));
}

fn broken() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = halves(disk, Send::Cut(HALF))?;
    lab.has(&server.url("/x"), disk)?;
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    // Nothing that came is asked for again.
    resumed(&requests[1], HALF, HALF);
    assert!(lab.told().contains("trying again"), "{}", lab.told());
    Ok(())
}

fn dropped() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = halves(disk, Send::Stall(HALF))?;
    let url: ImageRef = server.url("/x").parse()?;
    let came = block_on(async {
        tokio::select! {
            ended = lab.images.resolve(&url, &|_| {}) => Err(format!("ended: {ended:?}").into()),
            came = async {
                loop {
                    // The last of it is still in memory.
                    match lab.images.downloads()?.first().map_or(0, |d| d.done) {
                        0 => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                        n => break Result::Ok(n),
                    }
                }
            } => came,
        }
    })??;
    let waits = lab.images.downloads()?;
    assert_eq!((waits.len(), waits[0].owner, waits[0].total), (1, None, Some(disk.len() as u64)));
    // Dropping has written down all that had come.
    assert!(waits[0].done >= came && waits[0].done <= HALF as u64, "{waits:?}");
    assert_eq!(lab.images.sweep()?, Vec::<PathBuf>::new());
    lab.has(&server.url("/x"), disk)?;
    resumed(&server.requests()[1], usize::try_from(waits[0].done)?, HALF);
    assert_eq!((server.requests().len(), lab.images.downloads()?), (2, vec![]));
    assert_eq!(lab.left()?, [sha256(disk)]);
    Ok(())
}

fn killed() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = halves(disk, Send::Stall(HALF))?;
    let url = format!("{}#sha256={}", server.url("/x"), sha256(disk));
    let mut child = lab.process(&url, &[])?;
    let came = lab.wait_for_bytes(2 << 20);
    assert_eq!(lab.images.downloads()?.first().and_then(|d| d.owner), Some(child.id()));
    child.kill()?;
    child.wait()?;
    let came = usize::try_from(came?)?;
    let waits = lab.images.downloads()?;
    assert_eq!((waits.len(), waits[0].owner), (1, None));
    assert_eq!(lab.images.sweep()?, Vec::<PathBuf>::new());
    // Another process takes it up.
    assert_eq!(lab.process_says(&url, &[])?, Ok(sha256(disk)));
    let requests = server.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    resumed(&requests[1], came, HALF);
    lab.has(&url, disk)?;
    assert_eq!((lab.left()?, server.requests().len()), (vec![sha256(disk)], 2));
    Ok(())
}

fn no_ranges() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |_, number| {
        let reply = Reply::new(200).field("etag", "\"v1\"").body(disk);
        if number == 0 { reply.send(Send::Cut(HALF)) } else { reply }
    })?;
    lab.has(&server.url("/x"), disk)?;
    assert_eq!(server.requests().len(), 2);
    resumed(&server.requests()[1], HALF, HALF);
    assert!(lab.told().contains("cannot resume; starting anew"), "{}", lab.told());
    Ok(())
}

fn changed() -> Result {
    let (lab, old) = (Lab::new()?, disk()?);
    let new: &'static [u8] = make_disk("two")?.leak();
    let server = Server::start(move |request, number| match number {
        0 => Reply::file(request, old, "\"v1\"").send(Send::Cut(HALF)),
        _ => Reply::file(request, new, "\"v2\""),
    })?;
    lab.has(&server.url("/x"), new)?;
    assert_eq!(server.requests().len(), 2);
    assert!(lab.told().contains("has changed; starting anew"), "{}", lab.told());
    Ok(())
}

fn changed_silently() -> Result {
    let old = disk()?;
    let new: &'static [u8] = make_disk("two")?.leak();
    // It looks at Range alone, as servers did before RFC 2616; and one whose new file is shorter than what is there.
    type Rest = fn(&Request, &'static [u8]) -> Reply;
    let rests: [Rest; 2] = [
        |request, new| {
            let from = request.from().unwrap_or(0);
            let range = format!("bytes {from}-{}/{}", new.len() - 1, new.len());
            Reply::new(206).field("etag", "\"v2\"").field("content-range", range).body(&new[from..])
        },
        |_, _| Reply::new(416),
    ];
    for rest in rests {
        let lab = Lab::new()?;
        let server = Server::start(move |request, number| match (number, request.from()) {
            (0, _) => Reply::file(request, old, "\"v1\"").send(Send::Cut(HALF)),
            (_, Some(_)) => rest(request, new),
            (_, None) => Reply::file(request, new, "\"v2\""),
        })?;
        lab.has(&server.url("/x"), new)?;
        assert_eq!(server.requests().len(), 3);
        assert!(lab.told().contains("has changed; starting anew"), "{}", lab.told());
    }
    Ok(())
}

fn wrong_range() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |request, number| match (number, request.from()) {
        (0, _) => Reply::file(request, disk, "\"v1\"").send(Send::Cut(HALF)),
        (_, Some(from)) => {
            // One byte off, and honest about it.
            let range = format!("bytes {}-{}/{}", from + 1, disk.len() - 1, disk.len());
            Reply::new(206).field("etag", "\"v1\"").field("content-range", range).body(&disk[from + 1..])
        }
        (_, None) => Reply::file(request, disk, "\"v1\""),
    })?;
    lab.has(&server.url("/x"), disk)?;
    assert_eq!(server.requests().len(), 3);
    Ok(())
}

fn no_validator() -> Result {
    let disk = disk()?;
    let serve = || {
        Server::start(move |request, number| {
            let mut reply = Reply::file(request, disk, "\"v1\"");
            reply.fields.retain(|(name, _)| name != "etag");
            if number == 0 { reply.send(Send::Cut(HALF)) } else { reply }
        })
    };
    let (lab, server) = (Lab::new()?, serve()?);
    lab.has(&server.url("/x"), disk)?;
    assert_eq!(server.requests()[1].field("range"), None);
    let (lab, server) = (Lab::new()?, serve()?);
    lab.has(&format!("{}#sha256={}", server.url("/x"), sha256(disk)), disk)?;
    let request = &server.requests()[1];
    assert_eq!((request.from(), request.field("if-range")), (Some(HALF), None));
    Ok(())
}

fn mixed() -> Result {
    let (lab, old) = (Lab::new()?, disk()?);
    let new: &'static [u8] = make_disk("two")?.leak();
    // Neither tag nor date, and another file of the same length from the second request on.
    let server = Server::start(move |request, number| {
        let mut reply = match number {
            0 => Reply::file(request, old, "").send(Send::Cut(HALF)),
            _ => Reply::file(request, new, ""),
        };
        reply.fields.retain(|(name, _)| name != "etag");
        reply
    })?;
    lab.has(&format!("{}#sha256={}", server.url("/x"), sha256(new)), new)?;
    let ranges: Vec<_> = server.requests().iter().map(Request::from).collect();
    assert_eq!(ranges, [None, Some(HALF), None]);
    assert!(lab.told().contains("not of one file; starting anew"), "{}", lab.told());
    Ok(())
}

fn whole() -> Result {
    let (lab, disk) = (Lab::new()?, disk()?);
    let server = Server::start(move |request, _| Reply::file(request, disk, "\"v1\""))?;
    let url: ImageRef = server.url("/x").parse()?;
    // Somebody makes an image of the same content at this moment, so that ours cannot become one yet.
    let lock = Lock::try_take(&lab.store, LockKind::Image, &sha256(disk))?;
    let waits = |lab: &Lab| lab.told().contains("is being built by pid");
    let tell = |p| lab.tell(p);
    block_on(async {
        let begun = std::time::Instant::now();
        tokio::select! {
            ended = lab.images.resolve(&url, &tell) => Err(format!("ended: {ended:?}").into()),
            () = async {
                while !waits(&lab) && begun.elapsed() < SURELY {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            } => Result::Ok(()),
        }
    })??;
    assert!(waits(&lab), "{}", lab.told());
    drop(lock);
    lab.has(&server.url("/x"), disk)?;
    assert_eq!((server.requests().len(), lab.images.downloads()?), (1, vec![]));
    assert_eq!(lab.left()?, [sha256(disk)]);
    Ok(())
}

fn listed() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|request, number| match number {
        0 => Reply::file(request, &[1; HALF], "\"v1\"").send(Send::Cut(HALF / 2)),
        _ => Reply::new(500),
    })?;
    let error = lab.fails(&server.url("/x"))?;
    assert!(matches!(error, DownloadError::Status { status: 500, .. }), "{error:?}");
    let waits = lab.images.downloads()?;
    assert_eq!(waits.len(), 1);
    assert_eq!((waits[0].url.as_str(), waits[0].done), (server.url("/x").as_str(), HALF as u64 / 2));
    assert_eq!(lab.images.remove_downloads()?.len(), 1);
    assert_eq!(lab.images.downloads()?, []);
    lab.nothing_left()
}

fn not_kept() -> Result {
    let lab = Lab::new()?;
    let server = Server::start(|request, number| match number {
        0 => Reply::file(request, &[1; HALF], "\"v1\"").send(Send::Cut(HALF / 2)),
        // It was taken away meanwhile.
        _ => Reply::new(404),
    })?;
    assert!(matches!(lab.fails(&server.url("/x"))?, DownloadError::Status { status: 404, .. }));
    lab.nothing_left()?;
    // Dropped before anything had come.
    let server = Server::start(|_, _| Reply::new(200).send(Send::Stall(0)).body([0; 10]))?;
    let url: ImageRef = server.url("/x").parse()?;
    let ended = block_on(async {
        let asked = async {
            let begun = std::time::Instant::now();
            while server.requests().is_empty() && begun.elapsed() < SURELY {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = lab.images.resolve(&url, &|_| {}) => Some(ended),
            () = asked => None,
        }
    })?;
    assert!(matches!(ended, None | Some(Err(ImageError::Download { .. }))), "{ended:?}");
    lab.nothing_left()
}
