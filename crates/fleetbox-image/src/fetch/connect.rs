//! From an address to a connection: name, TCP, proxy, TLS.

use std::io;
use std::sync::{Arc, OnceLock};

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tower_service::Service;

use super::{DownloadError, DownloadOptions};

/// A connection, whatever it runs over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, and how requests are to be written on it.
pub(super) struct Connection {
    pub(super) io: Box<dyn Io>,
    /// It ends at a proxy that wants the whole address in the request, and perhaps this field with it.
    pub(super) forward: Option<Option<HeaderValue>>,
}

/// Makes connections.
pub(super) struct Connector {
    tcp: HttpConnector,
    proxies: Option<Matcher>,
    tls: OnceLock<Arc<ClientConfig>>,
}

impl Connector {
    pub(super) fn new(options: &DownloadOptions) -> Self {
        let mut tcp = HttpConnector::new();
        // It decides by the scheme which port is meant, and does not speak either.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Of several addresses none may take all the time.
        tcp.set_connect_timeout(Some(options.connect_timeout));
        Self { tcp, proxies: options.proxies.then(Matcher::from_env), tls: OnceLock::new() }
    }

    pub(super) async fn connect(&self, url: &Uri) -> Result<Connection, DownloadError> {
        let secure = url.scheme_str() == Some("https");
        let (tcp, forward) = match self.proxies.as_ref().and_then(|p| p.intercept(url)) {
            None => (self.direct(url).await?, None),
            Some(proxy) => self.through(&proxy, url, secure).await?,
        };
        let io: Box<dyn Io> = if secure { Box::new(self.tls(url, tcp).await?) } else { Box::new(tcp) };
        Ok(Connection { io, forward })
    }

    async fn direct(&self, url: &Uri) -> Result<TcpStream, DownloadError> {
        let tcp = self.tcp.clone().call(url.clone()).await;
        let failed = |e| DownloadError::Connect { host: host(url), source: Box::new(e) };
        Ok(tcp.map_err(failed)?.into_inner())
    }

    async fn through(
        &self,
        proxy: &Intercept,
        url: &Uri,
        secure: bool,
    ) -> Result<(TcpStream, Option<Option<HeaderValue>>), DownloadError> {
        let refused =
            |source| DownloadError::Proxy { proxy: proxy.uri().to_string(), host: host(url), source };
        match proxy.uri().scheme_str() {
            Some("http") if secure => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let tcp = tunnel.call(url.clone()).await.map_err(|e| refused(Box::new(e)))?;
                Ok((tcp.into_inner(), None))
            }
            Some("http") => {
                let tcp =
                    self.tcp.clone().call(proxy.uri().clone()).await.map_err(|e| refused(Box::new(e)))?;
                Ok((tcp.into_inner(), Some(proxy.basic_auth().cloned())))
            }
            Some(scheme @ ("socks5" | "socks5h")) => {
                let mut socks = SocksV5::new(with_port(proxy.uri(), 1080), self.tcp.clone())
                    .local_dns(scheme == "socks5");
                if let Some((user, password)) = proxy.raw_auth() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                let tcp = socks.call(url.clone()).await.map_err(|e| refused(Box::new(e)))?;
                Ok((tcp.into_inner(), None))
            }
            _ => Err(DownloadError::UnknownProxy(proxy.uri().to_string())),
        }
    }

    async fn tls(&self, url: &Uri, tcp: TcpStream) -> Result<impl Io + use<>, DownloadError> {
        let failed = |source| DownloadError::Tls { host: host(url), source };
        let config = match self.tls.get() {
            Some(config) => config,
            None => {
                let config = tls_config(url)?;
                self.tls.get_or_init(|| config)
            }
        };
        let name = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(name.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
        match TlsConnector::from(Arc::clone(config)).connect(name, tcp).await {
            Ok(stream) => Ok(stream),
            // What rustls has to say; anything else is the connection's.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(failed(e)),
            Err(e) => Err(DownloadError::Connect { host: host(url), source: Box::new(e) }),
        }
    }
}

/// The certificates that this host trusts (SSL_CERT_FILE, SSL_CERT_DIR, else the system's), read at the first need.
fn tls_config(url: &Uri) -> Result<Arc<ClientConfig>, DownloadError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of this host's trusted certificates could not be read");
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(DownloadError::NoCertificates { host: host(url) });
    }
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| DownloadError::Tls { host: host(url), source: io::Error::other(e) })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The host of an address with its port, for messages.
pub(super) fn host(url: &Uri) -> String {
    url.authority().map(ToString::to_string).unwrap_or_default()
}

fn with_port(url: &Uri, port: u16) -> Uri {
    if url.port().is_some() {
        return url.clone();
    }
    let with = format!("{}://{}:{port}/", url.scheme_str().unwrap_or("http"), host(url));
    with.parse().unwrap_or_else(|_| url.clone())
}
