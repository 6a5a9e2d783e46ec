//! A web server with one file, that fails as it is told.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a client may take to say what it wants, or to hang up on a server that says nothing more.
const CLIENT_LIMIT: Duration = Duration::from_secs(600);

/// What a client asked for, and what it got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// The first byte asked for.
    pub(crate) from: u64,
    /// It asked for that only if the file is still the one it knows.
    pub(crate) if_range: bool,
    /// Bytes of the file that were sent.
    pub(crate) sent: u64,
}

/// Where an answer stops, as an offset in the file, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// Nothing more is sent; the connection stays.
    Silent(u64),
    /// The connection is closed.
    Cut(u64),
}

/// The server; it ends when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    file: File,
    len: u64,
    /// Of the first, second, … request for the file; those after them are answered in full.
    stops: Vec<Stop>,
    requests: Mutex<Vec<Request>>,
    ended: AtomicBool,
}

impl Server {
    pub(crate) fn start(file: &Path, stops: Vec<Stop>) -> io::Result<Self> {
        let file = File::open(file)?;
        let len = file.metadata()?.len();
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let (requests, ended) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { file, len, stops, requests, ended });
        let all = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if all.ended.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&all);
                // A client that hangs up early is none of the server's concern.
                std::thread::spawn(move || {
                    let _ = shared.answer(&client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// The address of the file under a name.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// The requests for the file so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.lock().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Wakes the thread, which then sees that.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut client: &TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(CLIENT_LIMIT))?;
        client.set_write_timeout(Some(CLIENT_LIMIT))?;
        let head = Head::read(client)?;
        let etag = format!("\"{:x}\"", self.len);
        // RFC 9110, 13.1.5: another file than the one that the client has begun with is sent in full.
        let from = head.from.filter(|_| head.if_range.as_ref().is_none_or(|tag| *tag == etag));
        let status = match from {
            Some(from) if from >= self.len => "416 Range Not Satisfiable".to_owned(),
            Some(from) => format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
                self.len.saturating_sub(1),
                self.len
            ),
            None => "200 OK".to_owned(),
        };
        let at = from.unwrap_or(0).min(self.len);
        write!(
            client,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/octet-stream\r\n\
             Accept-Ranges: bytes\r\nETag: {etag}\r\nConnection: close\r\n\r\n",
            self.len - at
        )?;
        if head.only_asks {
            return Ok(());
        }
        let number = {
            let mut requests = self.lock();
            requests.push(Request { from: at, if_range: head.if_range.is_some(), sent: 0 });
            requests.len() - 1
        };
        self.send(client, number, at)
    }

    fn send(&self, mut client: &TcpStream, number: usize, mut at: u64) -> io::Result<()> {
        let stop = self.stops.get(number).copied();
        let end = match stop {
            Some(Stop::Silent(end) | Stop::Cut(end)) => end.min(self.len),
            None => self.len,
        };
        let mut buffer = vec![0; 256 << 10];
        while at < end {
            let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut buffer[..want], at)?;
            client.write_all(&buffer[..want])?;
            at += want as u64;
            self.lock()[number].sent += want as u64;
        }
        if let Some(Stop::Silent(_)) = stop {
            // Until the client is gone.
            let _ = client.read(&mut [0])?;
        }
        Ok(())
    }
}

/// The part of a request that matters here.
struct Head {
    only_asks: bool,
    from: Option<u64>,
    if_range: Option<String>,
}

impl Head {
    fn read(client: &TcpStream) -> io::Result<Self> {
        // Nobody sends more headers than that.
        let mut lines = BufReader::new(client.take(64 << 10)).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut head = Self { only_asks: first.starts_with("HEAD "), from: None, if_range: None };
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let from = value.trim().strip_prefix("bytes=").and_then(|v| v.strip_suffix('-'));
                    head.from = from.and_then(|n| n.parse().ok());
                }
                "if-range" => head.if_range = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        Ok(head)
    }
}
