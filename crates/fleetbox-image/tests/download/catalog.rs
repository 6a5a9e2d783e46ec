//! Images by name, and the one that nobody named.

use std::time::Duration;

use fleetbox_image::ImageError;
use fleetbox_spec::Arch;

use crate::Test;
use crate::lab::{Lab, Result, SURELY, block_on, disk, options, sha512};
use crate::server::{Reply, Server};

pub(crate) const TESTS: &[Test] = &[
    ("a_name_is_its_digest", &["mke2fs"], named),
    ("an_unknown_name_says_which_there_are", &[], unknown),
    ("the_default_is_downloaded_where_its_site_answers", &["mke2fs"], default_there),
    ("the_default_is_built_where_its_site_does_not_answer", &[], default_not_there),
    ("the_default_is_not_waited_for", &[], default_silent),
];

/// A store whose catalog has one image under these names, at a path of the server.
fn lab(server: &Server, names: [&str; 2], checksum: &str) -> Result<Lab> {
    let arch = Arch::host().ok_or("an unknown architecture")?.debian();
    let tmp = tempfile::tempdir()?;
    let file = tmp.path().join("catalog.json");
    let text = format!(
        r#"{{"version": 1, "replace": true, "vendors": {{"acme": {{"base": "https://images.test/pub"}}}},
            "images": [{{"alias": "{}", "aliases": ["{}"], "vendor": "acme", "arch": "{arch}", "snapshot": "7",
                         "format": "raw", "url": "https://images.test/pub/7/disk.raw", "checksum": "{checksum}"}}]}}"#,
        names[0], names[1]
    );
    std::fs::write(&file, text)?;
    let mut with = options().mirror("acme", &server.url(""));
    with.catalog = Some(file);
    with.probe_timeout = SURELY;
    Lab::within(tmp, with)
}

fn named() -> Result {
    let disk = disk()?;
    let server = Server::start(move |request, _| match request.target.as_str() {
        "/7/disk.raw" => Reply::file(request, disk, "\"v1\""),
        _ => Reply::new(404),
    })?;
    let lab = lab(&server, ["acme-7", "acme-seven"], &format!("sha512:{}", sha512(disk)))?;
    assert_eq!(lab.images.catalog()?.entries().len(), 1);
    let image = lab.has("acme-7", disk)?;
    assert!(lab.told().contains("downloading acme-7 from 127.0.0.1"), "{}", lab.told());
    assert_eq!(lab.has("acme-seven", disk)?.path, image.path);
    assert_eq!(lab.pull("acme-7")??, image);
    assert_eq!(server.connections(), 1);
    Ok(())
}

fn unknown() -> Result {
    let lab = Lab::new()?;
    let error = lab.resolve("debian-99")?.err().ok_or("there is one")?;
    assert!(matches!(error, ImageError::UnknownAlias { .. }), "{error:?}");
    assert!(error.to_string().contains("debian-12") && error.to_string().contains("./debian-99"), "{error}");
    lab.nothing_left()
}

fn default_of(lab: &Lab) -> Result<(String, String)> {
    let chosen = block_on(lab.images.default_image())??;
    Ok((chosen.image.to_string(), chosen.why))
}

fn default_there() -> Result {
    let disk = disk()?;
    let server = Server::start(move |request, _| Reply::file(request, disk, "\"v1\""))?;
    let lab = lab(&server, ["debian-12", "x"], &format!("sha512:{}", sha512(disk)))?;
    for _ in 0..2 {
        let (image, why) = default_of(&lab)?;
        assert_eq!(image, "debian-12");
        assert!(why.contains("downloaded from 127.0.0.1"), "{why}");
    }
    // Asked once, for nothing but whether it is there.
    assert_eq!(server.requests().iter().map(|r| r.method.as_str()).collect::<Vec<_>>(), ["HEAD"]);
    lab.has("debian-12", disk)?;
    assert_eq!(default_of(&lab)?, ("debian-12".to_owned(), "from the store".to_owned()));
    assert_eq!(server.connections(), 2);
    Ok(())
}

fn default_not_there() -> Result {
    let server = Server::start(|_, _| Reply::new(404))?;
    let lab = lab(&server, ["debian-12", "x"], &format!("sha512:{}", sha512(b"")))?;
    for _ in 0..3 {
        let (image, why) = default_of(&lab)?;
        assert_eq!(image, "bootstrap:bookworm");
        assert!(why.contains("cannot be had from 127.0.0.1"), "{why}");
    }
    // Not asked again so soon.
    assert_eq!(server.connections(), 1);
    // A catalog without it.
    let lab = self::lab(&server, ["acme-7", "x"], &format!("sha512:{}", sha512(b"")))?;
    assert_eq!(default_of(&lab)?.0, "bootstrap:bookworm");
    assert_eq!(server.connections(), 1);
    Ok(())
}

fn default_silent() -> Result {
    // Takes the connection and says nothing: longer than this test, if it were waited for.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let server = Server::start(|_, _| Reply::new(200))?;
    let lab = lab(&server, ["debian-12", "x"], &format!("sha512:{}", sha512(b"")))?;
    let mut silent = options().mirror("debian", &format!("http://{}", listener.local_addr()?));
    silent.probe_timeout = Duration::from_millis(100);
    let lab_silent = Lab::with(silent)?;
    assert_eq!(default_of(&lab_silent)?.0, "bootstrap:bookworm");
    // And one that is there answers in time.
    assert_eq!(default_of(&lab)?.0, "debian-12");
    Ok(())
}
