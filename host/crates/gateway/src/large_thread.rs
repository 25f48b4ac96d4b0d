//! Threads for the work on large request bodies.
//!
//! They have a lower priority than the threads that serve requests: if the CPUs are busy, a large
//! request is slow, and not all others. The priority of a thread cannot be raised again without a
//! privilege, so these threads are not those of the runtime's pool. Starting one takes some
//! microseconds, and the work milliseconds.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// Niceness of the threads: about a third of the CPU time of a busy thread with the default one.
const NICENESS: i32 = 5;
/// Stack size of a thread in bytes; as that of the runtime's threads, because policies are called.
const STACK: usize = 4 << 20;

/// Runs `work` on a thread of its own. The caller limits how much runs at a time. Work that was
/// started ends, even if this future is dropped.
///
/// # Panics
/// If `work` panics.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    // Shared, because a closure is lost with the thread that does not start.
    let work = Arc::new(Mutex::new(Some(move || {
        // The client may be gone.
        sender.send(catch_unwind(AssertUnwindSafe(work))).ok();
    })));
    let run = {
        let work = Arc::clone(&work);
        move || {
            lower_priority();
            take(&work);
        }
    };
    let thread = thread::Builder::new().name("large-request".to_owned()).stack_size(STACK);
    if let Err(error) = thread.spawn(run) {
        tracing::warn!(%error, "failed to start a thread for a large request");
        // Ends with the runtime.
        drop(spawn_blocking(move || take(&work)));
    }
    match receiver.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => resume_unwind(panic),
        // The runtime stops, and this task with it.
        Err(_) => std::future::pending().await,
    }
}

fn take(work: &Mutex<Option<impl FnOnce()>>) {
    let taken = work.lock().take();
    if let Some(work) = taken {
        work();
    }
}

/// Lowers the priority of this thread; on Linux, niceness belongs to threads.
fn lower_priority() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "failed to lower the priority of a thread");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_with_a_lower_priority_than_its_caller() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let caller = niceness();
        let (worker, name) =
            run(move || (niceness(), thread::current().name().map(str::to_owned))).await;
        assert_eq!((worker, name.as_deref()), (caller + NICENESS, Some("large-request")));
        assert_eq!(niceness(), caller);
    }

    #[tokio::test]
    async fn panic_of_the_work_is_that_of_the_caller() {
        let running = tokio::task::JoinSet::from_iter([run(|| panic!("work"))]).join_next().await;
        assert!(running.unwrap().unwrap_err().is_panic());
    }
}
