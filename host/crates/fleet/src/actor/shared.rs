//! Who handles the messages to the actor.
//!
//! Requests ask for slots and return them on their own threads, under a lock that is held for some
//! microseconds: a switch to a task and back would take many times as long as the decision. Nothing
//! is logged there, where it would be in the span of that request. The task does everything else:
//! messages of engines and operators, commands to supervisors, timers, and publishing the view for
//! those who wait for a change.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::dispatch::{Effect, Event};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Actor;
use crate::handover::PausedFleet;
use crate::mailbox::{Direct, Queue};
use crate::message::{Mailbox, Message};

/// Maximum time that the published view is not the last one. A reader has it refreshed; those who
/// wait for a change hear of it after this time.
const PUBLISH_DELAY: Duration = Duration::from_millis(5);
/// The same if only reports of other hosts have arrived, each of which is one of many.
const REPORTS_DELAY: Duration = Duration::from_millis(50);
/// Lanes of which a view is made for each reader that finds an old one: about 3 us.
const MANY_LANES: usize = 16;
/// Maximum age of the view of more lanes.
const MAX_AGE: Duration = Duration::from_millis(2);
/// The same if only reports of other hosts are missing, which are up to 100 ms old.
const MAX_REPORTS_AGE: Duration = Duration::from_millis(10);

/// What passes from one turn to the next.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Who asks for a pause.
    pub(super) pausing: Option<oneshot::Sender<PausedFleet>>,
    /// When the task wakes by itself.
    armed: Option<Instant>,
    /// Since when the published view is not the last one.
    pub(super) stale_since: Option<Instant>,
    /// Since when it lacks reports of other hosts, and nothing else.
    pub(super) lacks_reports_since: Option<Instant>,
    pub(super) is_stale: Arc<AtomicBool>,
}

impl Turns {
    /// Notes that the published view lacks reports of other hosts.
    fn note_reports(&mut self) {
        self.lacks_reports_since.get_or_insert_with(Instant::now);
        self.is_stale.store(true, Ordering::Release);
    }

    /// Notes that the view is published.
    pub(super) fn published(&mut self) {
        (self.stale_since, self.lacks_reports_since) = (None, None);
        self.is_stale.store(false, Ordering::Release);
    }

    /// Returns when the view is to be published; `None` if it is the last one.
    fn publish_at(&self) -> Option<Instant> {
        let stale = self.stale_since.map(|since| since + PUBLISH_DELAY);
        let reports = self.lacks_reports_since.map(|since| since + REPORTS_DELAY);
        stale.into_iter().chain(reports).min()
    }

    /// Returns true if the view is to be published, also if nothing has happened.
    fn is_publish_due(&self) -> bool {
        self.publish_at().is_none_or(|at| at <= Instant::now())
    }
}

/// What the task does after a turn.
enum Next {
    /// Waits until it is woken, or until this time.
    Wait(Option<Instant>),
    /// Waits until it is decided which host goes on.
    Pause(Box<Actor>, oneshot::Sender<PausedFleet>),
    /// Ends: the fleet has.
    End,
}

/// The actor, as the task and the threads of requests share it.
pub(crate) struct SharedActor {
    /// `None` while it is paused, and at the end.
    actor: Mutex<Option<Box<Actor>>>,
    /// The published view is older than the last message.
    is_stale: Arc<AtomicBool>,
}

impl SharedActor {
    /// Shares an actor, which handles the messages of this mailbox from now on.
    pub(crate) fn new(actor: Actor) -> Arc<Self> {
        actor.publish_statuses();
        let (mailbox, is_stale) = (actor.mailbox.clone(), Arc::clone(&actor.turns.is_stale));
        let shared = Arc::new(Self { actor: Mutex::new(Some(Box::new(actor))), is_stale });
        mailbox.set_direct(Arc::clone(&shared) as Arc<dyn Direct<Message>>);
        shared
    }

    /// Publishes what has changed since the last time. To be called before the view is read.
    pub(crate) fn refresh(&self) {
        if self.is_stale.load(Ordering::Acquire)
            && let Some(actor) = self.actor.lock().as_mut()
        {
            actor.refresh();
        }
    }

    /// Does what is not done on the threads of requests, until the fleet ends.
    pub(crate) async fn run(self: Arc<Self>, mailbox: Mailbox) {
        let queue = mailbox.queue();
        loop {
            let next = self.turn(queue);
            if !queue.is_empty() {
                // Sent meanwhile, by threads that left it to this one. Lets other tasks run, too.
                tokio::task::consume_budget().await;
            }
            match next {
                Next::End => return,
                Next::Wait(_) if !queue.is_empty() => {}
                Next::Wait(until) => tokio::select! {
                    () = queue.woken() => {}
                    () = sleep_until(until) => {}
                },
                Next::Pause(actor, reply) => match actor.pause(reply).await {
                    Some(successor) => return actor.follow(queue, successor).await,
                    None => *self.actor.lock() = Some(actor),
                },
            }
        }
    }

    fn turn(&self, queue: &Queue<Message>) -> Next {
        let mut shared = self.actor.lock();
        let Some(actor) = shared.as_mut() else { return Next::End };
        let until = actor.turn(queue.take());
        if actor.is_settled()
            && let Some(reply) = actor.turns.pausing.take()
            && let Some(actor) = shared.take()
        {
            return Next::Pause(actor, reply);
        }
        Next::Wait(until)
    }

    /// Ends the actor.
    pub(crate) fn end(&self, mailbox: &Mailbox) {
        mailbox.queue().close();
        let actor = self.actor.lock().take();
        // Without the lock, because what the actor holds may send a message when it is dropped.
        drop(actor);
    }
}

impl Direct<Message> for SharedActor {
    fn run(&self, queue: &Queue<Message>) {
        while !queue.is_empty() {
            // The thread that has the lock looks at the queue again.
            let Some(mut actor) = self.actor.try_lock() else { return };
            let has_rest = actor.as_mut().is_none_or(|actor| actor.serve(queue));
            drop(actor);
            if has_rest {
                queue.wake();
                return;
            }
        }
    }
}

impl fmt::Debug for SharedActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedActor").finish_non_exhaustive()
    }
}

impl Actor {
    /// Handles the messages of requests at the front of the queue, on the thread of one of these
    /// requests. Returns true if the task has something to do.
    fn serve(&mut self, queue: &Queue<Message>) -> bool {
        if self.turns.pausing.is_some() || !self.unsettled.is_empty() {
            return true;
        }
        let now = self.started.elapsed();
        let mut has_others = false;
        let mut is_of_request = |message: &Message| {
            has_others = !message.is_of_request();
            !has_others
        };
        while let Some(message) = queue.pop_if(&mut is_of_request) {
            self.handle(message, now);
        }
        self.dispatcher.on(Event::Tick, now, &mut self.effects);
        // Before the effects, so that a request that is granted or rejected finds a view that
        // includes its own result.
        let is_first = self.turns.stale_since.is_none();
        self.turns.stale_since.get_or_insert_with(Instant::now);
        self.turns.is_stale.store(true, Ordering::Release);
        // In order; and what is not about a request is not to be logged in the span of one.
        let others = self.effects.iter().position(|effect| !is_about_request(effect));
        let mut effects = std::mem::take(&mut self.effects);
        effects.drain(..others.unwrap_or(effects.len())).for_each(|effect| self.apply(effect));
        self.effects = effects;
        let wake = self.dispatcher.next_wake().map(|wake| self.started + wake);
        let is_earlier = wake.is_some_and(|wake| self.turns.armed.is_none_or(|armed| wake < armed));
        has_others || is_first || is_earlier || !self.effects.is_empty()
    }

    /// Handles these messages, and all that is due. Returns when the next turn is due.
    fn turn(&mut self, messages: VecDeque<Message>) -> Option<Instant> {
        let now = self.started.elapsed();
        let is_report = !messages.is_empty() && messages.iter().all(Message::is_peer_report);
        let has_news = !(messages.is_empty() || is_report) || !self.effects.is_empty();
        for message in messages {
            self.handle(message, now);
        }
        self.dispatcher.on(Event::Tick, now, &mut self.effects);
        // Before the effects, so that a load is commanded to the new supervisor.
        self.settle();
        if is_report {
            self.turns.note_reports();
        }
        // Before the effects, as in `serve`.
        if has_news || self.turns.is_publish_due() || !self.effects.is_empty() {
            self.publish(now);
        }
        let mut effects = std::mem::take(&mut self.effects);
        effects.drain(..).for_each(|effect| self.apply(effect));
        self.effects = effects;
        self.turns.armed = self.dispatcher.next_wake().map(|wake| self.started + wake);
        self.turns.armed.into_iter().chain(self.turns.publish_at()).min()
    }

    /// Publishes the view if it is too old for a reader.
    fn refresh(&mut self) {
        let (max_age, max_reports_age) = match self.topology.lanes().len() {
            0..=MANY_LANES => (Duration::ZERO, Duration::ZERO),
            _ => (MAX_AGE, MAX_REPORTS_AGE),
        };
        let is_older =
            |since: Option<Instant>, age| since.is_some_and(|since| since.elapsed() >= age);
        if is_older(self.turns.stale_since, max_age)
            || is_older(self.turns.lacks_reports_since, max_reports_age)
        {
            self.publish(self.started.elapsed());
        }
    }
}

/// Returns true if an effect is the answer to a request.
fn is_about_request(effect: &Effect) -> bool {
    match effect {
        Effect::Grant { .. } | Effect::Reject { .. } => true,
        Effect::Load(_) | Effect::Unload { .. } | Effect::Abort { .. } | Effect::Switched(_) => {
            false
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
