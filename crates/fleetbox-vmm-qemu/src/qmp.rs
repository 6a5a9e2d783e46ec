//! A client for QMP, QEMU's control protocol, over a connected socket.
//!
//! ```text
//!  Qmp::execute --request--> task --line--> VMM
//!       ^                     |  ^            |
//!       +---answer by id------+  +---line-----+--> events, in the VMM's order
//! ```
//! One task owns the socket, so a caller that gives up half-way leaves no half line behind: its command has
//! been queued as a whole, and the answer finds nobody.

pub(crate) mod codec;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

pub(crate) use codec::Event;
use codec::{Decoder, Malformed, Message, Refusal};

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QmpError {
    /// The VMM has hung up.
    Closed,
    /// The VMM sent something that is not the protocol.
    Protocol(String),
    /// The time is over.
    NoAnswer(Duration),
    /// The VMM refused.
    Refused(String),
}

struct Request {
    command: &'static str,
    answer: oneshot::Sender<Result<Value, Refusal>>,
}

/// A connection to a VMM, greeted and ready for commands. It closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Qmp {
    requests: mpsc::UnboundedSender<Request>,
    /// What broke the protocol, once something has.
    broken: Arc<OnceLock<String>>,
}

impl Qmp {
    /// Waits for the VMM's greeting, leaves the negotiation mode, and returns the connection and its events.
    ///
    /// It waits as long as the VMM takes: the deadline is the caller's.
    ///
    /// # Errors
    /// [`QmpError::Closed`] when the VMM hangs up, [`QmpError::Protocol`] when it talks of something else.
    pub(crate) async fn open(
        socket: UnixStream,
        deadline: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), QmpError> {
        let mut socket = socket;
        let mut decoder = Decoder::default();
        loop {
            match decoder.next() {
                Some(Ok(Message::Greeting)) => break,
                Some(Ok(other)) => return Err(QmpError::Protocol(format!("{other:?} before the greeting"))),
                Some(Err(Malformed(what))) => return Err(QmpError::Protocol(what)),
                None => {}
            }
            let mut piece = [0; 4096];
            match socket.read(&mut piece).await {
                Ok(0) | Err(_) => return Err(QmpError::Closed),
                Ok(n) => decoder.feed(&piece[..n]),
            }
        }
        let (requests, receiver) = mpsc::unbounded_channel();
        let (events, event_receiver) = mpsc::unbounded_channel();
        let broken = Arc::new(OnceLock::new());
        let link = Link { socket, decoder, waiting: BTreeMap::new(), events, outgoing: Vec::new() };
        tokio::spawn(serve(link, receiver, Arc::clone(&broken)));
        let qmp = Self { requests, broken };
        qmp.execute("qmp_capabilities", deadline).await?;
        Ok((qmp, event_receiver))
    }

    /// Has the VMM carry out a command without arguments.
    ///
    /// When the time is over or the caller is cancelled, the command may still be carried out.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub(crate) async fn execute(&self, command: &'static str, deadline: Duration) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request { command, answer }).is_err() {
            return Err(self.closed());
        }
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(Refusal(text)))) => Err(QmpError::Refused(text)),
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(QmpError::NoAnswer(deadline)),
        }
    }

    fn closed(&self) -> QmpError {
        self.broken.get().map_or(QmpError::Closed, |what| QmpError::Protocol(what.clone()))
    }
}

/// A descriptor of a connected socket, for the current runtime.
pub(crate) fn socket(fd: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(fd);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

struct Link {
    socket: UnixStream,
    decoder: Decoder,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Value, Refusal>>>,
    events: mpsc::UnboundedSender<Event>,
    /// What the socket has not taken yet.
    outgoing: Vec<u8>,
}

/// Runs until the VMM hangs up or breaks the protocol, or the connection's owner is gone.
async fn serve(
    mut link: Link,
    mut requests: mpsc::UnboundedReceiver<Request>,
    broken: Arc<OnceLock<String>>,
) {
    let mut next_id = 1;
    let mut piece = vec![0; 4096];
    loop {
        if let Err(Malformed(what)) = link.deliver() {
            tracing::warn!(what, "the VMM broke its control protocol");
            // First the reason, then the hang-up that makes waiting callers look at it.
            let _ = broken.set(what);
            return;
        }
        let (mut reader, mut writer) = link.socket.split();
        // Reading a whole piece, writing a part and receiving are all safe to cancel.
        tokio::select! {
            read = reader.read(&mut piece) => match read {
                Ok(0) | Err(_) => return,
                Ok(n) => link.decoder.feed(&piece[..n]),
            },
            written = writer.write(&link.outgoing), if !link.outgoing.is_empty() => match written {
                Ok(n) => drop(link.outgoing.drain(..n)),
                // What it said before it hung up is still to be read; the read above tells when that ends.
                Err(_) => link.outgoing.clear(),
            },
            request = requests.recv() => match request {
                Some(Request { command, answer }) => {
                    link.outgoing.extend(codec::encode(next_id, command));
                    // Callers that gave up leave nothing behind, even when no answer ever comes.
                    link.waiting.retain(|_, answer| !answer.is_closed());
                    link.waiting.insert(next_id, answer);
                    next_id += 1;
                }
                None => return,
            },
        }
    }
}

impl Link {
    /// Hands out all messages that are complete.
    fn deliver(&mut self) -> Result<(), Malformed> {
        while let Some(message) = self.decoder.next() {
            match message? {
                Message::Reply { id, result } => {
                    if let Some(answer) = self.waiting.remove(&id) {
                        let _ = answer.send(result);
                    }
                }
                Message::Event(event) => {
                    let _ = self.events.send(event);
                }
                Message::Greeting => return Err(Malformed("a second greeting".to_owned())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
