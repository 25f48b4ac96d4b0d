//! A mailbox whose messages are handled by the thread that sends them, if they allow that and no
//! other thread is handling messages; by the task that owns the mailbox otherwise. A message that
//! most requests wait for thus costs a lock, and not two switches between tasks.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Handles messages on the threads of their senders.
pub(crate) trait Direct<M>: Send + Sync {
    /// Handles what it can of the queue, unless another thread is doing that: a thread that has
    /// handled messages looks at the queue again. Wakes the task for all that it cannot handle.
    fn run(&self, queue: &Queue<M>);
}

/// The sending half. Unbounded; clones send to the same queue.
pub(crate) struct Mailbox<M>(Arc<Shared<M>>);

struct Shared<M> {
    queue: Queue<M>,
    direct: OnceLock<Arc<dyn Direct<M>>>,
}

/// The messages that have not been handled, in the order in which they were sent.
pub(crate) struct Queue<M> {
    state: Mutex<State<M>>,
    /// Wakes the task.
    wake: Notify,
}

struct State<M> {
    messages: VecDeque<M>,
    is_closed: bool,
}

/// The mailbox is closed, and the message is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl<M> Mailbox<M> {
    /// Creates an empty mailbox. Its messages wait until it has a handler or a task.
    pub(crate) fn new() -> Self {
        let state = State { messages: VecDeque::new(), is_closed: false };
        let queue = Queue { state: Mutex::new(state), wake: Notify::new() };
        Self(Arc::new(Shared { queue, direct: OnceLock::new() }))
    }

    /// Sets what handles messages on the threads of their senders. Only the first call counts.
    pub(crate) fn set_direct(&self, direct: Arc<dyn Direct<M>>) {
        // Set once, when the mailbox is made.
        self.0.direct.set(direct).ok();
    }

    /// Sends a message. Never blocks.
    ///
    /// # Errors
    /// If the mailbox is closed.
    pub(crate) fn send(&self, message: M) -> Result<(), Closed> {
        {
            let mut state = self.0.queue.state.lock();
            if state.is_closed {
                return Err(Closed);
            }
            state.messages.push_back(message);
        }
        match self.0.direct.get() {
            Some(direct) => direct.run(&self.0.queue),
            None => self.0.queue.wake(),
        }
        Ok(())
    }

    /// Returns the queue.
    pub(crate) fn queue(&self) -> &Queue<M> {
        &self.0.queue
    }
}

impl<M> Queue<M> {
    /// Returns true if there is no message.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().messages.is_empty()
    }

    /// Removes the first message if `condition` holds for it.
    pub(crate) fn pop_if(&self, condition: impl FnOnce(&M) -> bool) -> Option<M> {
        let mut state = self.state.lock();
        let first = state.messages.front()?;
        condition(first).then(|| state.messages.pop_front())?
    }

    /// Removes all messages.
    pub(crate) fn take(&self) -> VecDeque<M> {
        std::mem::take(&mut self.state.lock().messages)
    }

    /// Waits for a message; `None` once the mailbox is closed and empty.
    pub(crate) async fn receive(&self) -> Option<M> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(message) = state.messages.pop_front() {
                    return Some(message);
                }
                if state.is_closed {
                    return None;
                }
            }
            self.woken().await;
        }
    }

    /// Wakes the task.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until the task is woken, or was since it has waited the last time.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Refuses all further messages, and drops those that wait.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let messages = std::mem::take(&mut state.messages);
        drop(state);
        // What a message holds may send another one when it is dropped.
        drop(messages);
        self.wake();
    }
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Adds up even numbers, and sends what a number holds.
    struct Sum {
        total: Mutex<u64>,
        mailbox: Mailbox<u64>,
    }

    impl Direct<u64> for Sum {
        fn run(&self, queue: &Queue<u64>) {
            while !queue.is_empty() {
                let Some(mut total) = self.total.try_lock() else { return };
                let mut is_odd = false;
                let mut is_even = |number: &u64| {
                    is_odd = number % 2 == 1;
                    !is_odd
                };
                while let Some(number) = queue.pop_if(&mut is_even) {
                    *total += number;
                    if number == 1000 {
                        // While it is being handled, as a slot does that is dropped.
                        self.mailbox.send(10).unwrap();
                    }
                }
                drop(total);
                if is_odd {
                    return queue.wake();
                }
            }
        }
    }

    fn summed() -> (Arc<Sum>, Mailbox<u64>) {
        let mailbox = Mailbox::new();
        let sum = Arc::new(Sum { total: Mutex::new(0), mailbox: mailbox.clone() });
        mailbox.set_direct(Arc::clone(&sum) as Arc<dyn Direct<u64>>);
        (sum, mailbox)
    }

    #[test]
    fn messages_of_many_threads_are_all_handled_when_they_have_been_sent() {
        for _ in 0..50 {
            let (sum, mailbox) = summed();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..200).for_each(|_| mailbox.send(1000).unwrap()));
                }
            });
            assert_eq!(*sum.total.lock(), 800 * 1010);
            assert!(mailbox.queue().is_empty());
        }
    }

    #[tokio::test]
    async fn the_task_gets_what_cannot_be_handled_directly_in_order() {
        let (sum, mailbox) = summed();
        for number in [2, 3, 4, 5] {
            mailbox.send(number).unwrap();
        }
        assert_eq!(*sum.total.lock(), 2, "what follows an odd number waits behind it");
        mailbox.queue().woken().await;
        for expected in [3, 4, 5] {
            assert_eq!(mailbox.queue().receive().await, Some(expected));
        }
        mailbox.send(7).unwrap();
        mailbox.queue().close();
        assert_eq!(mailbox.queue().receive().await, None);
        assert_eq!(mailbox.send(2), Err(Closed));
    }
}
