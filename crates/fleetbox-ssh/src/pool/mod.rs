//! The connections of one client: opened when needed, kept, replaced when dead.

mod schedule;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use russh::Channel;
use russh::client::{self, Msg};
use tokio::sync::oneshot;

use crate::connection::{self, Connection, OpenError};
use crate::error::{Error, Result};
use crate::keys::KeyPair;
use crate::target::{Options, Target};
use schedule::{Action, ConnectionId, Schedule, Ticket};

/// A further connection that nobody used for this long is closed: sshd keeps a process of several MiB
/// for each.
const IDLE: Duration = Duration::from_secs(10);
/// Connections that a command may find dead or refusing before it gives up. Nothing has been sent yet,
/// so each one only costs time.
const OPEN_ATTEMPTS: u32 = 4;

pub(crate) struct Pool {
    pub(crate) target: Target,
    pub(crate) options: Options,
    key: KeyPair,
    config: Arc<client::Config>,
    state: Mutex<State>,
}

struct State {
    schedule: Schedule,
    connections: HashMap<ConnectionId, Arc<Connection>>,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Lease>>>,
    next_id: ConnectionId,
}

/// A place on a connection for one command. Dropping it gives the place to the next.
pub(crate) struct Lease {
    pool: Arc<Pool>,
    pub(crate) connection: Arc<Connection>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let actions = self.pool.state().schedule.release(self.connection.id);
        self.pool.apply(actions);
    }
}

/// Takes a ticket back if the command stops waiting.
struct Waiting<'a>(&'a Pool, Ticket);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting.remove(&self.1);
        state.schedule.cancel(self.1);
    }
}

impl Pool {
    pub(crate) fn new(target: Target, key: KeyPair, options: Options) -> Arc<Self> {
        let schedule = Schedule::new(options.channels_per_connection, options.max_connections);
        let state = State { schedule, connections: HashMap::new(), waiting: HashMap::new(), next_id: 0 };
        let config = Arc::new(connection::config(&options));
        Arc::new(Self { target, options, key, config, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of open connections.
    pub(crate) fn len(&self) -> usize {
        self.state().connections.values().filter(|connection| !connection.is_closed()).count()
    }

    /// Forgets all connections; each closes when its last command has ended. Runs on the SSH thread, as
    /// everything that takes connections away.
    pub(crate) fn clear(self: &Arc<Self>) {
        let ids: Vec<_> = self.state().schedule.open().collect();
        ids.into_iter().for_each(|id| self.discard(id));
    }

    /// Opens a channel for a command, on a kept or a new connection. Nothing of the command is sent
    /// here, so a dead connection is replaced as often as sensible. Runs on the SSH thread.
    pub(crate) async fn channel(self: &Arc<Self>) -> Result<(Lease, Channel<Msg>)> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let lease = self.lease().await?;
            let (addr, limit) = (self.target.addr, self.options.handshake_timeout);
            // In a task of its own: when the command is cancelled meanwhile, the channel is still
            // received and closed, and its place stays taken until then.
            let (answer, opened) = oneshot::channel();
            tokio::spawn(async move {
                let result = lease.connection.open_channel(limit).await;
                if let Err((_, Ok(channel))) = answer.send((lease, result)) {
                    // The lease in the same tuple is dropped after this.
                    let _ = channel.close().await;
                }
            });
            let Ok((lease, result)) = opened.await else { return Err(self.gone(None)) };
            let id = lease.connection.id;
            let error = match result {
                Ok(channel) => return Ok((lease, channel)),
                Err(OpenError::Lost(source)) => {
                    self.discard(id);
                    self.gone(source)
                }
                Err(OpenError::Timeout) => {
                    self.discard(id);
                    return Err(Error::ConnectTimeout { addr, stage: "opening a channel", after: limit });
                }
                Err(OpenError::Refused(source)) => {
                    let error = Error::ChannelRefused { addr, source };
                    if !self.state().schedule.refused(id) {
                        return Err(error);
                    }
                    error
                }
            };
            tracing::debug!(%error, attempt, "no channel for a command yet");
            if attempt == OPEN_ATTEMPTS {
                return Err(error);
            }
        }
    }

    async fn lease(self: &Arc<Self>) -> Result<Lease> {
        let (answer, granted) = oneshot::channel();
        let (ticket, actions) = {
            let mut state = self.state();
            let (ticket, actions) = state.schedule.request();
            state.waiting.insert(ticket, answer);
            (ticket, actions)
        };
        let _waiting = Waiting(self, ticket);
        self.apply(actions);
        granted.await.unwrap_or_else(|_| Err(self.gone(None)))
    }

    fn gone(&self, source: Option<Arc<russh::Error>>) -> Error {
        let source = source.unwrap_or_else(|| Arc::new(russh::Error::Disconnect));
        Error::Handshake { addr: self.target.addr, source }
    }

    /// A connection is no longer to be used.
    pub(crate) fn discard(self: &Arc<Self>, id: ConnectionId) {
        let actions = self.state().schedule.lost(id);
        self.apply(actions);
    }

    /// The kept connection, if there is one.
    pub(crate) fn kept(&self) -> Option<Arc<Connection>> {
        let state = self.state();
        let first = state.schedule.open().next()?;
        state.connections.get(&first).cloned()
    }

    /// One attempt to open a connection with a TCP limit of its own; `Ok(false)` if somebody else's
    /// attempt is under way. Runs on the SSH thread.
    pub(crate) async fn attempt(
        self: &Arc<Self>,
        connect_timeout: Duration,
        handshake: Duration,
    ) -> Result<bool> {
        if !self.state().schedule.claim() {
            return Ok(false);
        }
        let options = Options { connect_timeout, handshake_timeout: handshake, ..self.options.clone() };
        self.connect(&options).await.map(|()| true)
    }

    /// Opens a connection and tells the schedule what came of it, also when dropped half-way.
    async fn connect(self: &Arc<Self>, options: &Options) -> Result<()> {
        struct Abandoned<'a>(&'a Arc<Pool>, bool);
        impl Drop for Abandoned<'_> {
            fn drop(&mut self) {
                if self.1 {
                    let actions = self.0.state().schedule.connect_abandoned();
                    self.0.apply(actions);
                }
            }
        }
        let mut abandoned = Abandoned(self, true);
        let id = {
            let mut state = self.state();
            state.next_id += 1;
            state.next_id
        };
        let result = Connection::open(id, &self.target, &self.key, self.config.clone(), options).await;
        abandoned.1 = false;
        let (connection, ended) = match result {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, cause = ?std::error::Error::source(&error), "ssh connection failed");
                let actions = self.state().schedule.connect_failed();
                self.apply_with(actions, Some(&error));
                return Err(error);
            }
        };
        let pool: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            // Errors mean that the sender was dropped, which is how it tells.
            let _ = ended.await;
            if let Some(pool) = pool.upgrade() {
                pool.discard(id);
            }
        });
        let actions = {
            let mut state = self.state();
            state.connections.insert(id, Arc::new(connection));
            state.schedule.connected(id)
        };
        self.apply(actions);
        Ok(())
    }

    fn apply(self: &Arc<Self>, actions: Vec<Action>) {
        self.apply_with(actions, None);
    }

    /// Does what the schedule says. Never called with the state locked: leases that find nobody waiting
    /// are dropped here, which locks it.
    fn apply_with(self: &Arc<Self>, actions: Vec<Action>, error: Option<&Error>) {
        for action in actions {
            match action {
                Action::Grant(ticket, id) => self.grant(ticket, id),
                Action::Connect => self.later(Duration::ZERO, |pool| {
                    Box::pin(async move {
                        // The error has been given to everybody who waited for this.
                        let _ = pool.connect(&pool.options).await;
                    })
                }),
                Action::GrowLater { failures } => {
                    let wait = self.options.grow_after * (1 << failures.min(6));
                    self.later(wait, |pool| {
                        Box::pin(async move {
                            let actions = pool.state().schedule.grow();
                            pool.apply(actions);
                        })
                    });
                }
                Action::Fail(tickets) => {
                    for ticket in tickets {
                        let waiting = self.state().waiting.remove(&ticket);
                        if let (Some(waiting), Some(error)) = (waiting, error) {
                            let _ = waiting.send(Err(error.clone()));
                        }
                    }
                }
                Action::IdleLater(id) => self.later(IDLE, move |pool| {
                    Box::pin(async move {
                        let actions = pool.state().schedule.idle(id);
                        pool.apply(actions);
                    })
                }),
                Action::Close(id) => drop(self.state().connections.remove(&id)),
            }
        }
    }

    fn grant(self: &Arc<Self>, ticket: Ticket, id: ConnectionId) {
        let (waiting, connection) = {
            let mut state = self.state();
            (state.waiting.remove(&ticket), state.connections.get(&id).cloned())
        };
        // A connection that the schedule knows is in the table: both change under one lock.
        let Some(connection) = connection else { return };
        let lease = Lease { pool: self.clone(), connection };
        if let Some(waiting) = waiting {
            // A command that has just stopped waiting hands the lease back, and its drop frees the place.
            let _ = waiting.send(Ok(lease));
        }
    }

    /// Runs something on the SSH thread after a while, if the pool still exists then.
    fn later<F>(self: &Arc<Self>, wait: Duration, then: F)
    where
        F: FnOnce(Arc<Self>) -> futures_util::future::BoxFuture<'static, ()> + Send + 'static,
    {
        // An attempt to connect keeps the pool alive; a timer does not.
        let strong = wait.is_zero().then(|| self.clone());
        let weak = Arc::downgrade(self);
        match crate::io::handle() {
            Ok(handle) => drop(handle.spawn(async move {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                if let Some(pool) = strong.or_else(|| weak.upgrade()) {
                    then(pool).await;
                }
            })),
            Err(error) => tracing::warn!(%error, "ssh pool"),
        }
    }
}
