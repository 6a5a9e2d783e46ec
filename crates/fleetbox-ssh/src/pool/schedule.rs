//! Which command gets which connection, and when another connection is opened. Pure: the shell in
//! `pool/mod.rs` feeds it what happened and does what it says.
//!
//! Rules:
//! - a connection carries at most its capacity of commands; the first connection with room is taken, so
//!   that the others fall idle and are closed;
//! - there are at most `connections` of them, and one is opened at a time;
//! - with none, one is opened at once; a further one only when commands have queued for a while;
//! - commands are served in the order they came;
//! - a failed attempt answers everybody who waits, unless there is a connection that will serve them.

use std::collections::VecDeque;

/// A queued or served command's number.
pub(super) type Ticket = u64;
/// A connection's number; never used twice.
pub(super) type ConnectionId = u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// This command may open a channel on this connection.
    Grant(Ticket, ConnectionId),
    /// Open a connection; answer with `connected` or `connect_failed`.
    Connect,
    /// Call `grow` a little later, the longer the more attempts in a row have failed.
    GrowLater { failures: u32 },
    /// The attempt failed, and nothing else will serve these.
    Fail(Vec<Ticket>),
    /// Call `idle` for this connection a while later.
    IdleLater(ConnectionId),
    /// Forget this connection, which closes it.
    Close(ConnectionId),
}

#[derive(Debug)]
pub(super) struct Schedule {
    capacity: usize,
    connections: usize,
    open: Vec<Slot>,
    queue: VecDeque<Ticket>,
    connecting: bool,
    growing: bool,
    failures: u32,
    next_ticket: Ticket,
}

#[derive(Debug)]
struct Slot {
    id: ConnectionId,
    used: usize,
    capacity: usize,
}

impl Schedule {
    pub(super) fn new(capacity: usize, connections: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            connections: connections.max(1),
            open: Vec::new(),
            queue: VecDeque::new(),
            connecting: false,
            growing: false,
            failures: 0,
            next_ticket: 0,
        }
    }

    /// A command wants a channel.
    pub(super) fn request(&mut self) -> (Ticket, Vec<Action>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back(ticket);
        (ticket, self.settle())
    }

    /// A queued command no longer wants one.
    pub(super) fn cancel(&mut self, ticket: Ticket) {
        self.queue.retain(|queued| *queued != ticket);
    }

    /// A command's channel is closed.
    pub(super) fn release(&mut self, id: ConnectionId) -> Vec<Action> {
        if let Some(slot) = self.slot(id) {
            slot.used = slot.used.saturating_sub(1);
        }
        let mut actions = self.settle();
        if self.open.iter().skip(1).any(|slot| slot.id == id && slot.used == 0) {
            actions.push(Action::IdleLater(id));
        }
        actions
    }

    /// The server refused a channel on a connection that carries others: it allows fewer than we assumed,
    /// and one of those is kept free for kills. False if it carries no others, so that no smaller number
    /// would help.
    pub(super) fn refused(&mut self, id: ConnectionId) -> bool {
        match self.slot(id) {
            Some(slot) if slot.used > 1 => {
                slot.capacity = (slot.used - 2).max(1);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// Claims the right to open a connection outside the queue's needs. False if one is being opened or
    /// there are enough.
    pub(super) fn claim(&mut self) -> bool {
        let free = !self.connecting && self.open.len() < self.connections;
        self.connecting |= free;
        free
    }

    pub(super) fn connected(&mut self, id: ConnectionId) -> Vec<Action> {
        self.connecting = false;
        self.failures = 0;
        self.open.push(Slot { id, used: 0, capacity: self.capacity });
        self.settle()
    }

    pub(super) fn connect_failed(&mut self) -> Vec<Action> {
        self.connecting = false;
        self.failures = self.failures.saturating_add(1);
        if self.open.is_empty() && !self.queue.is_empty() {
            return vec![Action::Fail(self.queue.drain(..).collect())];
        }
        self.settle()
    }

    /// An attempt was given up without a result.
    pub(super) fn connect_abandoned(&mut self) -> Vec<Action> {
        self.connecting = false;
        self.settle()
    }

    /// A connection has ended, or is given up.
    pub(super) fn lost(&mut self, id: ConnectionId) -> Vec<Action> {
        let before = self.open.len();
        self.open.retain(|slot| slot.id != id);
        // Closed first, so that there are never too many.
        let close = (self.open.len() < before).then_some(Action::Close(id));
        close.into_iter().chain(self.settle()).collect()
    }

    /// Some time has passed since `GrowLater`.
    pub(super) fn grow(&mut self) -> Vec<Action> {
        self.growing = false;
        if !self.queue.is_empty() && self.claim() { vec![Action::Connect] } else { self.settle() }
    }

    /// Some time has passed since `IdleLater`.
    pub(super) fn idle(&mut self, id: ConnectionId) -> Vec<Action> {
        if self.open.iter().skip(1).any(|slot| slot.id == id && slot.used == 0) {
            self.lost(id)
        } else {
            Vec::new()
        }
    }

    /// Ids of the open connections, the kept one first.
    pub(super) fn open(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.open.iter().map(|slot| slot.id)
    }

    fn slot(&mut self, id: ConnectionId) -> Option<&mut Slot> {
        self.open.iter_mut().find(|slot| slot.id == id)
    }

    fn settle(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for slot in &mut self.open {
            while slot.used < slot.capacity
                && let Some(ticket) = self.queue.pop_front()
            {
                slot.used += 1;
                actions.push(Action::Grant(ticket, slot.id));
            }
        }
        if self.queue.is_empty() || self.connecting {
            return actions;
        }
        if self.open.is_empty() {
            self.connecting = true;
            actions.push(Action::Connect);
        } else if !self.growing && self.open.len() < self.connections {
            self.growing = true;
            actions.push(Action::GrowLater { failures: self.failures });
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_command_connects_at_once_and_the_second_waits_for_it() {
        let mut schedule = Schedule::new(2, 2);
        assert_eq!(schedule.request(), (0, vec![Action::Connect]));
        assert_eq!(schedule.request(), (1, vec![]));
        assert_eq!(schedule.connected(7), [Action::Grant(0, 7), Action::Grant(1, 7)]);
        assert_eq!(schedule.request(), (2, vec![Action::GrowLater { failures: 0 }]));
        assert_eq!(schedule.release(7), [Action::Grant(2, 7)]);
        assert_eq!(schedule.grow(), [], "nobody waits any more");
    }

    #[test]
    fn a_failed_attempt_answers_all_unless_a_connection_serves_them() {
        let mut schedule = Schedule::new(1, 2);
        let _ = (schedule.request(), schedule.request());
        assert_eq!(schedule.connect_failed(), [Action::Fail(vec![0, 1])]);
        assert_eq!(schedule.request(), (2, vec![Action::Connect]));
        assert_eq!(schedule.connected(1), [Action::Grant(2, 1)]);
        assert_eq!(schedule.request(), (3, vec![Action::GrowLater { failures: 0 }]));
        assert_eq!(schedule.grow(), [Action::Connect]);
        assert_eq!(schedule.connect_failed(), [Action::GrowLater { failures: 1 }]);
        assert_eq!(schedule.release(1), [Action::Grant(3, 1)]);
    }

    #[test]
    fn further_connections_close_when_idle_and_the_first_stays() {
        let mut schedule = Schedule::new(1, 2);
        let _ = (schedule.request(), schedule.connected(1), schedule.request(), schedule.grow());
        assert_eq!(schedule.connected(2), [Action::Grant(1, 2)]);
        assert_eq!(schedule.release(1), []);
        assert_eq!(schedule.idle(1), [], "the first one is kept");
        assert_eq!(schedule.release(2), [Action::IdleLater(2)]);
        assert_eq!(schedule.idle(2), [Action::Close(2)]);
        assert_eq!(schedule.idle(2), []);
    }

    #[test]
    fn a_refusal_lowers_that_connections_capacity() {
        let mut schedule = Schedule::new(9, 1);
        let _ = (schedule.request(), schedule.connected(1), schedule.request());
        assert!(schedule.refused(1));
        assert_eq!(schedule.release(1), []);
        assert_eq!(schedule.request(), (2, vec![]), "one at a time now");
        assert!(!schedule.refused(1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Request,
        Cancel(usize),
        Release(usize),
        Connect(bool),
        Lose(usize),
        Grow,
        Idle(usize),
        Refuse(usize),
        Claim,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Request),
            1 => any::<usize>().prop_map(Step::Cancel),
            4 => any::<usize>().prop_map(Step::Release),
            4 => prop::bool::weighted(0.8).prop_map(Step::Connect),
            1 => any::<usize>().prop_map(Step::Lose),
            2 => Just(Step::Grow),
            1 => any::<usize>().prop_map(Step::Idle),
            1 => any::<usize>().prop_map(Step::Refuse),
            1 => Just(Step::Claim),
        ];
        proptest::collection::vec(step, 0..120)
    }

    /// The world around the schedule, as far as its rules speak about it.
    #[derive(Default)]
    struct World {
        waiting: BTreeSet<Ticket>,
        running: BTreeMap<Ticket, ConnectionId>,
        open: BTreeSet<ConnectionId>,
        connecting: bool,
        grow_pending: bool,
        last_granted: Option<Ticket>,
    }

    impl World {
        fn apply(&mut self, actions: Vec<Action>, limits: (usize, usize)) {
            for action in actions {
                match action {
                    Action::Grant(ticket, id) => {
                        assert!(self.waiting.remove(&ticket), "granted to somebody who does not wait");
                        assert!(self.open.contains(&id), "granted on a connection that is not open");
                        assert!(self.last_granted < Some(ticket), "served out of order");
                        self.last_granted = Some(ticket);
                        self.running.insert(ticket, id);
                        let on_it = self.running.values().filter(|used| **used == id).count();
                        assert!(on_it <= limits.0, "more than its capacity");
                    }
                    Action::Connect => {
                        assert!(!self.connecting, "two attempts at once");
                        self.connecting = true;
                        assert!(self.open.len() < limits.1, "too many connections");
                    }
                    Action::GrowLater { .. } => {
                        assert!(!self.grow_pending);
                        self.grow_pending = true;
                    }
                    Action::Fail(tickets) => {
                        assert!(self.open.is_empty(), "failed although a connection is open");
                        for ticket in tickets {
                            assert!(self.waiting.remove(&ticket));
                        }
                    }
                    Action::IdleLater(id) => assert!(self.open.contains(&id)),
                    Action::Close(id) => {
                        self.open.remove(&id);
                        self.running.retain(|_, used| *used != id);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_rules_hold_and_nobody_is_forgotten(steps in steps(), capacity in 1usize..4, connections in 1usize..4) {
            let limits = (capacity, connections);
            let (mut schedule, mut world, mut next_id) = (Schedule::new(capacity, connections), World::default(), 0);
            for step in steps {
                let pick = |n: usize, len: usize| if len == 0 { None } else { Some(n % len) };
                let actions = match step {
                    Step::Request => {
                        let (ticket, actions) = schedule.request();
                        world.waiting.insert(ticket);
                        actions
                    }
                    Step::Cancel(n) => {
                        if let Some(ticket) = pick(n, world.waiting.len()).and_then(|n| world.waiting.iter().nth(n).copied()) {
                            world.waiting.remove(&ticket);
                            schedule.cancel(ticket);
                        }
                        vec![]
                    }
                    Step::Release(n) => {
                        let chosen = pick(n, world.running.len()).and_then(|n| world.running.keys().nth(n).copied());
                        match chosen.and_then(|ticket| world.running.remove(&ticket)) {
                            Some(id) => schedule.release(id),
                            None => vec![],
                        }
                    }
                    Step::Connect(ok) if world.connecting => {
                        world.connecting = false;
                        if ok {
                            next_id += 1;
                            world.open.insert(next_id);
                            schedule.connected(next_id)
                        } else {
                            schedule.connect_failed()
                        }
                    }
                    Step::Lose(n) | Step::Idle(n) | Step::Refuse(n) => {
                        match (pick(n, world.open.len()).and_then(|n| world.open.iter().nth(n).copied()), step) {
                            (Some(id), Step::Lose(_)) => schedule.lost(id),
                            (Some(id), Step::Idle(_)) => schedule.idle(id),
                            (Some(id), _) => { schedule.refused(id); vec![] }
                            (None, _) => vec![],
                        }
                    }
                    Step::Grow if world.grow_pending => {
                        world.grow_pending = false;
                        schedule.grow()
                    }
                    Step::Claim => {
                        if schedule.claim() {
                            prop_assert!(!world.connecting && world.open.len() < connections);
                            world.connecting = true;
                        }
                        vec![]
                    }
                    Step::Connect(_) | Step::Grow => vec![],
                };
                world.apply(actions, limits);
                prop_assert!(world.open.len() <= connections);
                // Whoever waits has something to wait for: an attempt, a timer, or a running command.
                let hope = world.connecting || world.grow_pending || !world.running.is_empty();
                prop_assert!(world.waiting.is_empty() || hope, "forgotten: {:?}", schedule);
            }
        }
    }
}
