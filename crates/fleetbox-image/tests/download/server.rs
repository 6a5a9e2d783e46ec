//! An HTTP server on the loopback interface that answers as a test tells it to, however wrong, and counts.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// By name in lower case.
    pub(crate) fields: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// Where a Range field begins.
    pub(crate) fn from(&self) -> Option<usize> {
        self.field("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How much of the body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Send {
    All,
    /// So many bytes, and then the connection is closed.
    Cut(usize),
    /// So many bytes, and then nothing, for as long as the other side waits.
    Stall(usize),
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) send: Send,
    /// Say how long the body is.
    pub(crate) length: bool,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, fields: Vec::new(), body: Vec::new(), send: Send::All, length: true }
    }

    pub(crate) fn field(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn send(mut self, send: Send) -> Self {
        self.send = send;
        self
    }

    /// A file as a good server gives it: ranges, If-Range, If-None-Match.
    pub(crate) fn file(request: &Request, bytes: &[u8], etag: &str) -> Self {
        if request.field("if-none-match") == Some(etag) {
            return Self::new(304).field("etag", etag);
        }
        let same = request.field("if-range").is_none_or(|tag| tag == etag);
        match request.from().filter(|_| same) {
            Some(from) if from >= bytes.len() => Self::new(416),
            Some(from) => Self::new(206)
                .field("etag", etag)
                .field("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
                .body(&bytes[from..]),
            None => Self::new(200).field("etag", etag).body(bytes),
        }
    }
}

type Handler = dyn Fn(&Request, usize) -> Reply + std::marker::Send + Sync;

/// What all connections share.
struct Shared {
    handler: Box<Handler>,
    tls: Option<Arc<ServerConfig>>,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    stop: AtomicBool,
}

/// A server; it ends when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Answers each request by a function of it and of how many came before.
    pub(crate) fn start(
        handler: impl Fn(&Request, usize) -> Reply + std::marker::Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::listen("127.0.0.1", Box::new(handler), None)
    }

    /// The same over TLS, with a certificate for `localhost` that only the authority in `tls/ca.pem` vouches for.
    pub(crate) fn start_tls(
        handler: impl Fn(&Request, usize) -> Reply + std::marker::Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::start_tls_at("127.0.0.1", handler)
    }

    /// The same at an address that the certificate does not name, perhaps.
    pub(crate) fn start_tls_at(
        host: &str,
        handler: impl Fn(&Request, usize) -> Reply + std::marker::Send + Sync + 'static,
    ) -> io::Result<Self> {
        let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/download/tls").join(name);
        let chain = CertificateDer::pem_file_iter(file("server.pem")).map_err(io::Error::other)?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_file(file("server.key")).map_err(io::Error::other)?;
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(io::Error::other)?;
        Self::listen(host, Box::new(handler), Some(Arc::new(config)))
    }

    fn listen(host: &str, handler: Box<Handler>, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let listener = TcpListener::bind((host, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            handler,
            tls,
            requests: Mutex::new(Vec::new()),
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let server = Self { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&shared)) else { continue };
                shared.connections.fetch_add(1, Ordering::AcqRel);
                std::thread::spawn(move || {
                    // What becomes of a connection is the client's to tell.
                    let _ = shared.accepted(stream);
                });
            }
        });
        Ok(server)
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        match self.shared.tls {
            Some(_) => format!("https://localhost:{}{path}", self.address.port()),
            None => format!("http://{}{path}", self.address),
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests().clone()
    }

    /// How many connections were made, requests or not.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // So that `incoming` looks.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accepted(&self, tcp: TcpStream) -> io::Result<()> {
        tcp.set_read_timeout(Some(Duration::from_millis(50)))?;
        match &self.tls {
            None => self.serve(tcp),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                self.serve(StreamOwned::new(connection, tcp))
            }
        }
    }

    fn serve(&self, mut stream: impl Read + Write) -> io::Result<()> {
        let Some(request) = self.read_request(&mut stream)? else { return Ok(()) };
        if request.method.is_empty() {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
        if request.method == "CONNECT" {
            self.requests().push(request);
            return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
        }
        let number = {
            let mut requests = self.requests();
            requests.push(request.clone());
            requests.len() - 1
        };
        let reply = (self.handler)(&request, number);
        let mut head = format!("HTTP/1.1 {} Whatever\r\nconnection: close\r\n", reply.status);
        if reply.length {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        for (name, value) in &reply.fields {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        let until = match reply.send {
            Send::All => reply.body.len(),
            Send::Cut(n) | Send::Stall(n) => n.min(reply.body.len()),
        };
        if request.method != "HEAD" {
            for piece in reply.body[..until].chunks(64 * 1024) {
                stream.write_all(piece)?;
            }
        }
        stream.flush()?;
        if matches!(reply.send, Send::Stall(_)) {
            // Until the other side has gone.
            while !self.stop.load(Ordering::Acquire) {
                match stream.read(&mut [0; 64]) {
                    Ok(0) => break,
                    Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                        break;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn read_request(&self, stream: &mut impl Read) -> io::Result<Option<Request>> {
        let (mut bytes, mut byte) = (Vec::new(), [0]);
        while !bytes.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => bytes.push(byte[0]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if is_tls(&bytes) {
                        break;
                    }
                    if self.stop.load(Ordering::Acquire) {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = if is_tls(&bytes) { "" } else { &text };
        let mut lines = text.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fields = lines.filter_map(|l| l.split_once(':'));
        Ok(Some(Request {
            method: method.to_owned(),
            target: target.to_owned(),
            fields: fields.map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned())).collect(),
        }))
    }
}

/// A TLS handshake (RFC 8446 §5.1), which will not end like a request.
fn is_tls(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x16)
}

/// A proxy that makes tunnels, and says for where.
pub(crate) struct Tunnels {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let new = Self { address: listener.local_addr()?, asked: Arc::default() };
        let asked = Arc::clone(&new.asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = Arc::clone(&asked);
                std::thread::spawn(move || tunnel(stream, &asked));
            }
        });
        Ok(new)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://user:secret@{}", self.address)
    }

    /// The heads of the requests that came.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn tunnel(mut near: TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") {
        near.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    let Some(target) = head.strip_prefix("CONNECT ").and_then(|r| r.split(' ').next()) else {
        return near.write_all(b"HTTP/1.1 405 No\r\n\r\n");
    };
    let mut far = TcpStream::connect(target)?;
    near.write_all(b"HTTP/1.1 200 Yes\r\n\r\n")?;
    let (mut near_too, mut far_too) = (near.try_clone()?, far.try_clone()?);
    let back = std::thread::spawn(move || {
        let _ = io::copy(&mut far_too, &mut near_too);
        let _ = near_too.shutdown(std::net::Shutdown::Both);
    });
    let _ = io::copy(&mut near, &mut far);
    let _ = far.shutdown(std::net::Shutdown::Both);
    let _ = back.join();
    Ok(())
}
