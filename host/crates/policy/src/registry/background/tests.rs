//! The thread of the hooks with requests and the end of the host, in random interleavings. A
//! failure prints the seed and the schedule; `SHUTTLE_SEED` repeats it.

use std::sync::Arc;

use pointsman_domain::{AttemptResult, LaneId};
use shuttle::sync::Mutex;
use shuttle::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use shuttle::thread;

use super::*;

/// Schedules of each test.
const ITERATIONS: usize = 1_000;
/// Requests of each thread.
const REQUESTS: u64 = 3;
/// Outcomes that fit into the queue, less than there are requests.
const QUEUE: usize = 2;

/// Keeps the numbers of the outcomes that were delivered.
#[derive(Default)]
struct TestHost(Mutex<Vec<u64>>);

impl Heartbeat for TestHost {
    type Memory = ();

    fn heartbeat(&self, (): &mut (), ended: &[Outcome], _: Duration) {
        self.0.lock().unwrap().extend(ended.iter().map(|outcome| outcome.topology));
    }
}

fn outcome(number: u64) -> Outcome {
    Outcome {
        request_id: "r".into(),
        tenant: None,
        model: "m".into(),
        lane: LaneId(0),
        topology: number,
        ended: AttemptResult::Ok,
        tries: 1,
        queue: Duration::ZERO,
        ttft: Duration::ZERO,
        total: Duration::ZERO,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        attempts: Vec::new(),
        notes: Vec::new(),
    }
}

/// Collects what is in the queue now: a heartbeat in which no time passes.
fn next_batch(outcomes: &Receiver<Outcome>) -> Option<Vec<Outcome>> {
    thread::yield_now();
    let mut batch = Vec::new();
    loop {
        match outcomes.try_recv() {
            Ok(outcome) => batch.push(outcome),
            Err(TryRecvError::Empty) => return Some(batch),
            Err(TryRecvError::Disconnected) if batch.is_empty() => return None,
            Err(TryRecvError::Disconnected) => return Some(batch),
        }
    }
}

fn start_hooks(host: &Arc<TestHost>, outcomes: Receiver<Outcome>) -> thread::JoinHandle<()> {
    let host = Arc::downgrade(host);
    thread::spawn(move || run_hooks(&host, || next_batch(&outcomes)))
}

/// Reports outcomes as requests do, without waiting. Returns the numbers of those that fitted.
fn report(queue: &SyncSender<Outcome>, from: u64) -> Vec<u64> {
    let fits = |number: &u64| match queue.try_send(outcome(*number)) {
        Ok(()) => true,
        Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
    };
    (from..from + REQUESTS).filter(fits).collect()
}

fn check(test: impl Fn() + Send + Sync + 'static) {
    let seed = std::env::var("SHUTTLE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("SHUTTLE_SEED={seed}");
    shuttle::check_random_with_seed(test, seed, ITERATIONS);
}

#[test]
fn queued_outcomes_are_delivered_once_and_in_order() {
    check(|| {
        let host = Arc::new(TestHost::default());
        let (queue, outcomes) = sync_channel(QUEUE);
        let hooks = start_hooks(&host, outcomes);
        let other = queue.clone();
        let requests = thread::spawn(move || report(&other, 100));
        let mine = report(&queue, 0);
        let others = requests.join().unwrap();
        // The last end of the queue: the thread delivers what is left, and exits.
        drop(queue);
        hooks.join().unwrap();
        let delivered = std::mem::take(&mut *host.0.lock().unwrap());
        let (first, second): (Vec<u64>, Vec<u64>) =
            delivered.into_iter().partition(|number| *number < 100);
        assert_eq!((first, second), (mine, others));
    });
}

#[test]
fn thread_ends_with_its_host_although_requests_still_report() {
    check(|| {
        let host = Arc::new(TestHost::default());
        let (queue, outcomes) = sync_channel(QUEUE);
        let hooks = start_hooks(&host, outcomes);
        let other = queue.clone();
        let requests = thread::spawn(move || report(&other, 0).len());
        drop(host);
        hooks.join().unwrap();
        requests.join().unwrap();
        assert!(report(&queue, 0).is_empty(), "the queue has no reader any more");
    });
}
