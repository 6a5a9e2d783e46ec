//! One request and its answer, redirects followed.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;

use super::connect::{Connector, host};
use super::redirect::Trail;
use super::{DownloadError, DownloadOptions};

const USER_AGENT: &str = concat!("fleetbox/", env!("CARGO_PKG_VERSION"));

/// Asks servers.
pub(super) struct Client {
    connector: Connector,
    connect_timeout: Duration,
    stall_timeout: Duration,
}

/// An answer, with its body still to come.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
}

impl Client {
    pub(super) fn new(options: &DownloadOptions) -> Self {
        Self {
            connector: Connector::new(options),
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
        }
    }

    /// Sends a request without a body, and follows where it leads.
    pub(super) async fn ask(
        &self,
        method: &Method,
        address: &str,
        headers: &HeaderMap,
    ) -> Result<Reply, DownloadError> {
        let bad = |_| DownloadError::BadAddress(address.to_owned());
        let mut url: Uri = address.parse().map_err(bad)?;
        let mut trail = Trail::new(url.clone());
        loop {
            let reply = self.ask_once(method, &url, headers).await?;
            // 300 and 304 to 306 are none that name another place to get the file from (RFC 9110 §15.4).
            if !matches!(reply.status.as_u16(), 301..=303 | 307 | 308) {
                return Ok(reply);
            }
            let location = reply.headers.get(header::LOCATION).map(HeaderValue::to_str);
            let Some(Ok(location)) = location else {
                return Err(DownloadError::BadAnswer("a redirect without a place to go to"));
            };
            let next = trail.follow(&url, location)?;
            tracing::debug!(from = %url, to = %next, "redirected");
            url = next;
        }
    }

    async fn ask_once(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
    ) -> Result<Reply, DownloadError> {
        let connection = tokio::time::timeout(self.connect_timeout, self.connector.connect(url)).await;
        let connection = connection
            .map_err(|_| DownloadError::ConnectTimeout { host: host(url), after: self.connect_timeout })??;
        let lost = |e: hyper::Error| DownloadError::NoAnswer { host: host(url), source: Box::new(e) };
        let (mut sender, driver) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(connection.io)).await.map_err(lost)?;
        // It ends with the connection; what goes wrong on it is told by the answer's body.
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection ended");
            }
        });
        let target = match &connection.forward {
            Some(_) => url.to_string(),
            None => url.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        };
        let bad = |_| DownloadError::BadAddress(url.to_string());
        let mut request =
            Request::builder().method(method).uri(target).body(Empty::new()).map_err(|_| bad(()))?;
        let fields = request.headers_mut();
        fields.extend(headers.clone());
        fields.insert(header::HOST, HeaderValue::try_from(host(url)).map_err(|_| bad(()))?);
        fields.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        fields.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        // The digest and the length are those of the file, not of some compression of it.
        fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(Some(auth)) = connection.forward {
            fields.insert(header::PROXY_AUTHORIZATION, auth);
        }
        let answer = tokio::time::timeout(self.stall_timeout, sender.send_request(request)).await;
        let (head, body) = answer
            .map_err(|_| DownloadError::Stalled { after: self.stall_timeout, done: 0, total: None })?
            .map_err(lost)?
            .into_parts();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }
}

impl Reply {
    /// A header field as text; `None` where it is absent or no text.
    pub(super) fn text(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next piece of the body; `None` at its end.
    pub(super) async fn piece(&mut self, stall: Duration) -> Result<Option<Bytes>, Piece> {
        loop {
            let frame = tokio::time::timeout(stall, self.body.frame()).await.map_err(|_| Piece::Stalled)?;
            match frame.transpose().map_err(Piece::Broken)?.map(hyper::body::Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) => return Ok(Some(data)),
                // Trailer fields.
                Some(Err(_)) => {}
            }
        }
    }
}

/// Why no piece came.
#[derive(Debug)]
pub(super) enum Piece {
    Stalled,
    Broken(hyper::Error),
}
