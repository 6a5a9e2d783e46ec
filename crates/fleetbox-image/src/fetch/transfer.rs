//! One download, from its first request to its last byte, with all the tries that it takes.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fleetbox_spec::Progress;
use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderValue};

use super::answer::{self, Anew, Answer, Known, Validator};
use super::http::{Client, Piece, Reply};
use super::kept::Kept;
use super::pace::Pace;
use super::retry::{self, Tries};
use super::sink::{Digests, Sink};
use super::{DownloadError, DownloadOptions, Source};
use crate::task::Task;
use crate::{ImageError, ImageProgress, ImageStage};

/// So often it is told how far it is.
const TELL: Duration = Duration::from_millis(200);
/// As much is lost of an unfinished download when the power goes.
const SYNC: u64 = 256 << 20;
/// For the kernel and the initramfs of a small image, and the rounding to blocks.
const SPARE: u64 = 16 << 20;
/// As much of the start tells a page from an image.
const HEAD: usize = 512;

/// A download under way.
pub(super) struct Transfer<'a> {
    client: Client,
    source: &'a Source,
    kept: &'a Kept<'a>,
    options: &'a DownloadOptions,
    task: &'a Task,
    /// The image that is there already: the server shall say whether it has another one.
    unless: Option<Validator>,
    known: Known,
    /// What is there came in several pieces.
    joined: bool,
    sink: Option<Sink>,
    head: Vec<u8>,
    begun: Instant,
    pace: Pace,
    told: Option<Instant>,
}

/// How an attempt ended well.
enum Step {
    Complete,
    NotModified,
    /// What was there is gone; ask for all of it.
    Again,
}

/// How an attempt failed.
enum Failed {
    /// As another one may fare better than.
    Download(DownloadError),
    /// For good.
    Final(ImageError),
}

impl From<DownloadError> for Failed {
    fn from(e: DownloadError) -> Self {
        Self::Download(e)
    }
}

impl From<ImageError> for Failed {
    fn from(e: ImageError) -> Self {
        Self::Final(e)
    }
}

impl<'a> Transfer<'a> {
    /// Begins where an earlier process stopped, if what it left is of use.
    pub(super) fn new(
        source: &'a Source,
        kept: &'a Kept<'a>,
        unless: Option<Validator>,
        options: &'a DownloadOptions,
        task: &'a Task,
    ) -> Result<Self, ImageError> {
        let mut new = Self {
            client: Client::new(options),
            source,
            kept,
            options,
            task,
            unless,
            known: Known::default(),
            joined: false,
            sink: None,
            head: Vec::new(),
            begun: Instant::now(),
            pace: Pace::default(),
            told: None,
        };
        match kept.load(source.url.address()) {
            Some((known, len)) => {
                let total = known.total;
                let each = |done| new.tell_again(done, total);
                let sink = Sink::resume(&kept.body(), len, source.pin.as_ref(), task, each)?;
                (new.sink, new.known, new.joined) = (Some(sink), known, true);
            }
            None => kept.clear()?,
        }
        Ok(new)
    }

    fn done(&self) -> u64 {
        self.sink.as_ref().map_or(0, Sink::done)
    }

    /// Whether the rest of the file can be asked for such that it is the rest of the same file: the server can tell,
    /// or the digest will.
    fn resumable(&self) -> bool {
        self.source.pin.is_some() || self.known.validator.if_range().is_some()
    }

    /// Downloads to the end; false when the server has nothing newer than what is in the store.
    pub(super) async fn run(&mut self) -> Result<bool, ImageError> {
        let mut tries = Tries::new(self.options, self.done());
        loop {
            if self.sink.is_some() && self.known.total == Some(self.done()) {
                return Ok(true);
            }
            let error = match self.attempt().await {
                Ok(Step::Complete) => return Ok(true),
                Ok(Step::NotModified) => return Ok(false),
                Ok(Step::Again) => continue,
                Err(Failed::Final(e)) => return Err(e),
                Err(Failed::Download(e)) => e,
            };
            let Some(pause) = tries.after(&error, self.done(), retry::random()) else {
                return Err(self.error(error));
            };
            tracing::info!(url = %self.source.url, %error, ?pause, "the download is tried again");
            self.tell(&format!("; {error}; trying again"));
            tokio::time::sleep(pause).await;
        }
    }

    fn error(&self, source: DownloadError) -> ImageError {
        ImageError::Download { url: self.source.url.address().to_owned(), source: Box::new(source) }
    }

    async fn attempt(&mut self) -> Result<Step, Failed> {
        if self.done() > 0 && !self.resumable() {
            self.forget(Anew::NoRanges)?;
        }
        let offset = self.done();
        let fields = self.fields(offset)?;
        let reply = self.client.ask(&Method::GET, self.source.url.address(), &fields).await;
        let reply = reply.map_err(|e| match e {
            // It does not know how much there is.
            DownloadError::Stalled { after, .. } => {
                DownloadError::Stalled { after, done: offset, total: self.known.total }
            }
            e => e,
        })?;
        match answer::read(reply.status.as_u16(), &reply.headers, offset, &self.known)? {
            Answer::NotModified if self.unless.is_some() && offset == 0 => return Ok(Step::NotModified),
            Answer::NotModified => {
                return Err(DownloadError::BadAnswer("not modified, though nothing is here").into());
            }
            Answer::Again(why) => {
                self.forget(why)?;
                return Ok(Step::Again);
            }
            Answer::Resumed(known) => {
                (self.known, self.joined) = (known, true);
                self.check_space()?;
            }
            Answer::Whole(known, why) => {
                if let Some(why) = why {
                    self.forget(why)?;
                }
                self.known = known;
                self.check_space()?;
                self.kept.make()?;
                self.kept.save(self.source.url.address(), &self.known, 0)?;
                let body = self.kept.body();
                let sink = Sink::create(&body, self.source.pin.as_ref());
                self.sink = Some(sink.map_err(|e| self.write_error(e))?);
                self.head.clear();
            }
        }
        self.receive(reply).await?;
        Ok(Step::Complete)
    }

    fn fields(&self, offset: u64) -> Result<HeaderMap, DownloadError> {
        let mut fields = HeaderMap::new();
        // What servers sent as text before can be sent back as text.
        let value =
            |text: &str| HeaderValue::from_str(text).map_err(|_| DownloadError::BadAnswer("a bad tag"));
        if offset > 0 {
            fields.insert(header::RANGE, value(&format!("bytes={offset}-"))?);
            if let Some(validator) = self.known.validator.if_range() {
                fields.insert(header::IF_RANGE, value(validator)?);
            }
        } else if let Some((name, text)) = self.unless.as_ref().and_then(Validator::unless_same) {
            fields.insert(name, value(text)?);
        }
        Ok(fields)
    }

    /// Throws away what is there, and says why.
    fn forget(&mut self, why: Anew) -> Result<(), ImageError> {
        tracing::info!(url = %self.source.url, done = self.done(), "{}", why.text());
        (self.sink, self.known, self.joined) = (None, Known::default(), false);
        self.kept.clear()?;
        self.tell(&format!("; {}", why.text()));
        Ok(())
    }

    async fn receive(&mut self, mut reply: Reply) -> Result<(), Failed> {
        let content_type: String =
            reply.text(header::CONTENT_TYPE).unwrap_or("none").chars().take(100).collect();
        loop {
            match reply.piece(self.options.stall_timeout).await {
                Ok(Some(data)) => self.take(&data, &content_type)?,
                Ok(None) => break,
                Err(piece) => return Err(self.interrupted(piece).into()),
            }
        }
        let (done, total) = (self.done(), self.known.total);
        match total {
            Some(total) if done < total => Err(DownloadError::Truncated { done, total: Some(total) }.into()),
            _ => {
                self.check_head(&content_type)?;
                self.known.total = Some(done);
                Ok(())
            }
        }
    }

    fn interrupted(&self, piece: Piece) -> DownloadError {
        let (done, total) = (self.done(), self.known.total);
        match piece {
            Piece::Stalled => DownloadError::Stalled { after: self.options.stall_timeout, done, total },
            Piece::Broken(e) if ends_early(&e) => DownloadError::Truncated { done, total },
            Piece::Broken(e) => DownloadError::Broken { done, total, source: Box::new(e) },
        }
    }

    fn take(&mut self, data: &Bytes, content_type: &str) -> Result<(), Failed> {
        if self.known.total.is_some_and(|total| self.done() + data.len() as u64 > total) {
            return Err(DownloadError::BadAnswer("more bytes than it had announced").into());
        }
        if self.done() < HEAD as u64 && self.head.len() < HEAD {
            let want = HEAD - self.head.len();
            self.head.extend(data.iter().take(want));
            if self.head.len() == HEAD {
                self.check_head(content_type)?;
            }
        }
        let Some(sink) = &mut self.sink else { return Err(ImageError::WorkerLost.into()) };
        let before = sink.done() / SYNC;
        let mut written = sink.write(data);
        if written.is_ok() && sink.done() / SYNC > before {
            written = sink.sync();
        }
        let (done, synced) = (sink.done(), sink.synced());
        written.map_err(|e| self.write_error(e))?;
        if done / SYNC > before {
            self.kept.save(self.source.url.address(), &self.known, synced)?;
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.tell("");
        }
        Ok(())
    }

    /// Whether it can be an image at all. Only a start that is there is looked at.
    fn check_head(&self, content_type: &str) -> Result<(), Failed> {
        match page(&self.head) {
            None => Ok(()),
            Some(found) => {
                let content_type = content_type.to_owned();
                Err(self.error(DownloadError::NotAnImage { found, content_type }).into())
            }
        }
    }

    fn write_error(&self, source: io::Error) -> ImageError {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let (done, total) = (self.done(), self.known.total);
            return self.error(DownloadError::DiskFull { done, total, source });
        }
        ImageError::io("write", self.kept.body())(source)
    }

    fn check_space(&self) -> Result<(), ImageError> {
        let Some(total) = self.known.total else { return Ok(()) };
        let images = self.kept.dir().parent().unwrap_or(self.kept.dir());
        let free = fleetbox_os::host::free_bytes(images)
            .map_err(ImageError::io("ask for the free space of", images))?;
        match lacking(total.saturating_sub(self.done()), free) {
            None => Ok(()),
            Some((need_mib, free_mib)) => {
                Err(ImageError::NoSpace { path: images.to_owned(), need_mib, free_mib })
            }
        }
    }

    fn tell(&mut self, more: &str) {
        let (done, total) = (self.done(), self.known.total);
        let rate = self.pace.at(self.begun.elapsed(), done);
        self.told = Some(Instant::now());
        self.task.report(ImageProgress {
            stage: ImageStage::Download,
            detail: format!("downloading {}{more}", self.source.described()),
            progress: (done > 0 || total.is_some())
                .then(|| Progress::new(done, total, "bytes").at_rate(rate)),
        });
    }

    fn tell_again(&mut self, done: u64, total: Option<u64>) {
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return;
        }
        self.told = Some(Instant::now());
        self.task.report(ImageProgress {
            stage: ImageStage::Download,
            detail: format!("reading again what is there of {}", self.source.described()),
            progress: Some(Progress::new(done, total, "bytes")),
        });
    }

    /// What came is safe on the disk, for the next process; or gone, where it is of no use.
    pub(super) fn stop(&mut self, error: &ImageError) {
        let kept = match &mut self.sink {
            Some(sink) if sink.done() > 0 && is_worth_keeping(error) => {
                sink.sync().is_ok() && {
                    let synced = sink.synced();
                    self.resumable() && self.kept.save(self.source.url.address(), &self.known, synced).is_ok()
                }
            }
            // Interrupted before anything was asked: what an earlier process left is as good as it was.
            _ => false,
        };
        self.sink = None;
        if !kept && let Err(error) = self.kept.clear() {
            tracing::warn!(%error, "what was downloaded stays until the next sweep");
        }
    }

    /// Whether what is there came in several pieces, which may be of different files where no tag told.
    pub(super) fn is_joined(&self) -> bool {
        self.joined
    }

    /// The digests of the whole file, and what the server says of it.
    pub(super) fn finish(mut self) -> Result<(Digests, Validator), ImageError> {
        let total = self.done();
        self.tell("");
        let Some(sink) = self.sink.take() else { return Err(ImageError::WorkerLost) };
        let digests = match sink.finish() {
            Ok(digests) => digests,
            Err(e) => {
                let error = self.write_error(e);
                self.stop(&error);
                return Err(error);
            }
        };
        if let Some(pin) = &self.source.pin {
            let found = digests.of(pin.algorithm()).unwrap_or_default();
            if found != pin.hex() {
                let error = self.error(DownloadError::WrongDigest {
                    algorithm: pin.algorithm(),
                    expected: pin.hex().to_owned(),
                    found: found.to_owned(),
                });
                self.stop(&error);
                return Err(error);
            }
        }
        // All is there: whoever comes next asks the server for nothing.
        let known = Known { total: Some(total), ..self.known };
        self.kept.save(self.source.url.address(), &known, total)?;
        Ok((digests, known.validator))
    }
}

/// Whether the connection was closed in order, only too soon.
fn ends_early(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    error.is_incomplete_message() || cause.is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
}

/// Whether the rest may still come, after such an end.
fn is_worth_keeping(error: &ImageError) -> bool {
    let ImageError::Download { source, .. } = error else {
        return matches!(error, ImageError::Cancelled | ImageError::NoSpace { .. });
    };
    match &**source {
        DownloadError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
        DownloadError::BadAnswer(_)
        | DownloadError::NotAnImage { .. }
        | DownloadError::WrongDigest { .. }
        | DownloadError::DiskFull { .. } => false,
        _ => true,
    }
}

/// What is missing in MiB and what there is, if so many bytes do not fit.
fn lacking(bytes: u64, free: u64) -> Option<(u64, u64)> {
    let need = bytes.saturating_add(SPARE);
    (free < need).then_some((need.div_ceil(1 << 20), free >> 20))
}

/// What a text is that servers send instead of a file.
fn page(head: &[u8]) -> Option<&'static str> {
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let starts =
        |with: &str| start.get(..with.len()).is_some_and(|s| s.eq_ignore_ascii_case(with.as_bytes()));
    match () {
        () if starts("<!doctype html") || starts("<html") => Some("an HTML page"),
        () if starts("<?xml") => Some("an XML document"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_told_from_images() {
        for html in ["<!DOCTYPE html><title>x", "\n <html>", "\u{feff}<!doctype HTML>"] {
            assert_eq!(page(html.as_bytes()), Some("an HTML page"));
        }
        assert_eq!(page(b"<?xml version='1.0'?><Error>"), Some("an XML document"));
        for other in [&b""[..], b"QFI\xfb", b"<<< Oracle VM VirtualBox Disk Image >>>", &[0; 512], b"<ht"] {
            assert_eq!(page(other), None);
        }
    }

    #[test]
    fn room_is_counted_before() {
        assert_eq!(lacking(100 << 20, 116 << 20), None);
        assert_eq!(lacking(100 << 20, (116 << 20) - 1), Some((116, 115)));
        assert_eq!(lacking((100 << 20) + 1, 0), Some((117, 0)));
        assert!(lacking(u64::MAX, u64::MAX - 1).is_some());
        assert_eq!(lacking(0, u64::MAX), None);
    }

    #[test]
    fn what_can_go_on_is_kept() {
        let download = |source| ImageError::Download { url: String::new(), source: Box::new(source) };
        let status = |status| download(DownloadError::Status { status, retry_after: None });
        for error in [
            ImageError::Cancelled,
            status(503),
            status(429),
            download(DownloadError::Truncated { done: 1, total: Some(2) }),
            download(DownloadError::Connect { host: String::new(), source: "x".into() }),
        ] {
            assert!(is_worth_keeping(&error), "{error:?}");
        }
        let wrong = DownloadError::WrongDigest {
            algorithm: fleetbox_spec::HashAlgorithm::Sha256,
            expected: String::new(),
            found: String::new(),
        };
        for error in [status(404), status(403), download(wrong), ImageError::WorkerLost] {
            assert!(!is_worth_keeping(&error), "{error:?}");
        }
    }
}
