use std::error::Error;
use std::io;
use std::time::Duration;

use fleetbox_spec::HashAlgorithm;

/// A cause from a library whose types are no part of this crate's interface.
type Cause = Box<dyn Error + Send + Sync>;

/// Why an image could not be downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The address cannot be asked for.
    #[error("the address {0:?} cannot be asked for")]
    BadAddress(String),
    /// The host's name could not be resolved, or nothing took the connection.
    #[error("could not connect to {host}")]
    Connect {
        /// The host, or the proxy, with its port.
        host: String,
        /// What the system answered.
        #[source]
        source: Cause,
    },
    /// Name resolution, connection and TLS took too long together.
    #[error("{host} took no connection for {after:?}")]
    ConnectTimeout {
        /// The host, with its port.
        host: String,
        /// How long it was tried.
        after: Duration,
    },
    /// The proxy that the environment names did not connect.
    #[error("the proxy {proxy} made no connection to {host}")]
    Proxy {
        /// The proxy's address.
        proxy: String,
        /// Where to.
        host: String,
        /// What it answered.
        #[source]
        source: Cause,
    },
    /// The proxy that the environment names is of a kind that is not spoken.
    #[error("the proxy {0} is neither http://, socks5:// nor socks5h://")]
    UnknownProxy(String),
    /// The server's certificate was not accepted, or it does not speak TLS.
    #[error("no secure connection to {host} can be made")]
    Tls {
        /// The host, with its port.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing to check a certificate with.
    #[error(
        "this host has no trusted certificates to check {host} with: install ca-certificates, or set SSL_CERT_FILE"
    )]
    NoCertificates {
        /// The host, with its port.
        host: String,
    },
    /// What came back is not HTTP, or the connection broke before an answer.
    #[error("{host} gave no HTTP answer")]
    NoAnswer {
        /// The host, with its port.
        host: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Another answer than a file.
    #[error("the server answered {status}{hint}", hint = hint(*.status))]
    Status {
        /// The status (RFC 9110 §15).
        status: u16,
        /// How long the server asks to wait before another try.
        retry_after: Option<Duration>,
    },
    /// An answer that contradicts itself or the request.
    #[error("the server's answer makes no sense: {0}")]
    BadAnswer(&'static str),
    /// Redirected to where it had been redirected from.
    #[error("the server redirects in a loop: {0} came up twice")]
    RedirectLoop(String),
    /// Redirected again and again.
    #[error("the server redirected more than {limit} times, last to {last}")]
    TooManyRedirects {
        /// How often is accepted.
        limit: usize,
        /// Where the last one led.
        last: String,
    },
    /// Redirected to something that is no `http(s)` address.
    #[error("the server redirects to {0:?}, which is no http or https address")]
    BadRedirect(String),
    /// Redirected from https to http.
    #[error("the server redirects from https to {0}, which is not secure")]
    Downgrade(String),
    /// Nothing came for too long.
    #[error("nothing came for {after:?}, after {}", amount(*.done, *.total))]
    Stalled {
        /// How long was waited.
        after: Duration,
        /// Bytes that had come until then.
        done: u64,
        /// Bytes in all, where the server said so.
        total: Option<u64>,
    },
    /// The connection was closed before the end.
    #[error("the connection was closed after {}", amount(*.done, *.total))]
    Truncated {
        /// Bytes that had come until then.
        done: u64,
        /// Bytes in all, where the server said so.
        total: Option<u64>,
    },
    /// The connection broke.
    #[error("the connection broke after {}", amount(*.done, *.total))]
    Broken {
        /// Bytes that had come until then.
        done: u64,
        /// Bytes in all, where the server said so.
        total: Option<u64>,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A page instead of an image.
    #[error("the server answered {found} instead of a disk image (content type {content_type:?})")]
    NotAnImage {
        /// What it is.
        found: &'static str,
        /// What the server calls it.
        content_type: String,
    },
    /// It is not the file that was asked for. What had been downloaded was deleted.
    #[error("its {algorithm} digest is {found}, but {expected} was expected; what was downloaded is deleted")]
    WrongDigest {
        /// The algorithm of both.
        algorithm: HashAlgorithm,
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The file system became full. What had been downloaded was deleted.
    #[error("the disk is full after {}; what was downloaded is deleted", amount(*.done, *.total))]
    DiskFull {
        /// Bytes that had come until then.
        done: u64,
        /// Bytes in all, where the server said so.
        total: Option<u64>,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// `5 of 10 bytes`
fn amount(done: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => format!("{done} of {total} bytes"),
        None => format!("{done} bytes"),
    }
}

/// What a status means, where that is worth saying.
fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (it does not give this file to everybody)",
        404 => " (not found)",
        407 => " (the proxy wants a user name and password)",
        410 => " (gone)",
        429 => " (too many requests)",
        503 => " (not available now)",
        _ => "",
    }
}
