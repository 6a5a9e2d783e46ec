//! A running command, with its output as it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::command::Command;
use crate::error::{Error, Result};
use crate::io;
use crate::output::{ExitStatus, Stream};
use crate::pool::Pool;
use crate::run::{self, Job, KillRequest, Sink, Stdin};

/// Chunks of standard input that wait to be sent.
const STDIN_QUEUE: usize = 4;

/// Something that a running command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It wrote to standard output.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It ended and closed its output: the last event.
    Exit(ExitStatus),
}

/// A running command: read its events, write to its input, kill it. Dropping it kills the command's
/// session on the machine.
///
/// Output that is not read waits here, up to the command's output limit for each stream; a command that
/// writes more is killed ([`Error::OutputTooLarge`]). It cannot be made to wait instead: one channel that
/// is not read would hold up every other on its connection.
#[derive(Debug)]
pub struct Session {
    items: mpsc::UnboundedReceiver<Item>,
    unread: Arc<[AtomicUsize; 2]>,
    stdin: Option<mpsc::Sender<Bytes>>,
    kills: mpsc::Sender<KillRequest>,
    label: String,
    addr: std::net::SocketAddr,
}

#[derive(Debug)]
enum Item {
    Output(Stream, Bytes),
    End(Result<ExitStatus>),
}

impl Session {
    pub(crate) async fn start(pool: Arc<Pool>, command: Command) -> Result<Self> {
        let (kills, kill_requests) = mpsc::channel(1);
        let (stdin, source) = match command.stdin.clone() {
            Some(bytes) => (None, Stdin::Bytes(bytes)),
            None => {
                let (writer, chunks) = mpsc::channel(STDIN_QUEUE);
                (Some(writer), Stdin::Channel(chunks))
            }
        };
        let job = Job::new(&command, source, kill_requests)?;
        let label = job.label.clone();
        let addr = pool.target.addr;
        let (sender, items) = mpsc::unbounded_channel();
        let (started, dispatched) = oneshot::channel();
        let unread: Arc<[AtomicUsize; 2]> = Arc::default();
        let mut queue =
            Queue { items: sender, unread: unread.clone(), limit: job.output_limit, started: Some(started) };
        io::handle()?.spawn(async move {
            let end = run::run(pool, job, &mut queue).await;
            let _ = queue.items.send(Item::End(end));
        });
        let mut session = Self { items, unread, stdin, kills, label, addr };
        if dispatched.await.is_err() {
            // It ended before it was sent: the first item says why.
            session.next_event().await?;
        }
        Ok(session)
    }

    /// The next event; `None` after [`Event::Exit`] or an error.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`], [`Error::Timeout`], [`Error::OutputTooLarge`], [`Error::ExecRefused`] or
    /// [`Error::NoExitStatus`]: the command has ended for this side; whether it did on the machine is in
    /// the error.
    pub async fn next_event(&mut self) -> Result<Option<Event>> {
        match self.items.recv().await {
            Some(Item::Output(stream, data)) => {
                self.unread[stream as usize].fetch_sub(data.len(), Ordering::Relaxed);
                Ok(Some(match stream {
                    Stream::Stdout => Event::Stdout(data),
                    Stream::Stderr => Event::Stderr(data),
                }))
            }
            Some(Item::End(end)) => {
                self.items.close();
                end.map(|status| Some(Event::Exit(status)))
            }
            None => Ok(None),
        }
    }

    /// Writes to the command's standard input; waits while the command does not read.
    ///
    /// # Errors
    /// [`Error::StdinClosed`] if the command has ended, if the input was closed, or if the command was
    /// given its input by [`Command::stdin`].
    pub async fn write_stdin(&self, data: impl Into<Bytes>) -> Result<()> {
        let closed = || Error::StdinClosed { command: self.label.clone() };
        let stdin = self.stdin.as_ref().ok_or_else(closed)?;
        stdin.send(data.into()).await.map_err(|_| closed())
    }

    /// Sends end of file after what was written.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Kills the command's session on the machine: TERM, and a second later KILL. Returns when nothing of
    /// it is left. The events that remain, the exit among them, can still be read.
    ///
    /// # Errors
    /// [`Error::KillFailed`] if the machine does not confirm that within
    /// [`Options::kill_timeout`](crate::Options::kill_timeout).
    pub async fn kill(&self) -> Result<()> {
        let (asker, answer) = oneshot::channel();
        if self.kills.send(asker).await.is_err() {
            return Ok(());
        }
        match answer.await {
            Ok(true) => Ok(()),
            // Not answered: the command ended in the same moment, with nothing of ours to kill.
            Err(_) if self.kills.is_closed() => Ok(()),
            _ => Err(Error::KillFailed { addr: self.addr, command: self.label.clone() }),
        }
    }
}

struct Queue {
    items: mpsc::UnboundedSender<Item>,
    unread: Arc<[AtomicUsize; 2]>,
    limit: usize,
    started: Option<oneshot::Sender<()>>,
}

impl Sink for Queue {
    fn push(&mut self, stream: Stream, data: Bytes) -> bool {
        let before = self.unread[stream as usize].fetch_add(data.len(), Ordering::Relaxed);
        if before + data.len() > self.limit {
            return false;
        }
        // Nobody there: `abandoned` reports it.
        let _ = self.items.send(Item::Output(stream, data));
        true
    }

    fn dispatched(&mut self) {
        if let Some(started) = self.started.take() {
            let _ = started.send(());
        }
    }

    async fn abandoned(&mut self) {
        self.items.closed().await;
    }
}
