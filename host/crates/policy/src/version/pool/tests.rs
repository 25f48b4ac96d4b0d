//! Calls and changes of versions in random interleavings. A failure prints the seed and the
//! schedule; `SHUTTLE_SEED` repeats it.

use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use shuttle::thread;

use super::*;

/// Schedules of each test.
const ITERATIONS: usize = 2_000;
/// Threads that call.
const CALLERS: usize = 3;
/// Calls of each thread.
const CALLS: usize = 2;

impl<T: Default> Lock<T> for shuttle::sync::Mutex<T> {
    fn with<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        access(&mut self.lock().unwrap())
    }
}

/// An instance that detects calls at the same time, and counts the instances that exist.
struct TestInstance {
    is_called: AtomicBool,
    existing: Arc<AtomicUsize>,
}

impl TestInstance {
    fn new(existing: &Arc<AtomicUsize>) -> Box<Self> {
        existing.fetch_add(1, Ordering::SeqCst);
        Box::new(Self { is_called: AtomicBool::new(false), existing: Arc::clone(existing) })
    }

    fn call(&self) {
        assert!(!self.is_called.swap(true, Ordering::SeqCst), "two calls have the same instance");
        thread::yield_now();
        self.is_called.store(false, Ordering::SeqCst);
    }
}

impl Drop for TestInstance {
    fn drop(&mut self) {
        self.existing.fetch_sub(1, Ordering::SeqCst);
    }
}

type TestPool = Pool<TestInstance, shuttle::sync::Mutex<Idle<TestInstance>>>;

/// Calls as a version does: with an idle instance, or a new one.
fn call(pool: &TestPool, existing: &Arc<AtomicUsize>) {
    let instance = pool.take().unwrap_or_else(|| TestInstance::new(existing));
    instance.call();
    pool.put(instance);
}

fn start_callers(pool: &Arc<TestPool>, existing: &Arc<AtomicUsize>) -> Vec<thread::JoinHandle<()>> {
    let start = |_| {
        let (pool, existing) = (Arc::clone(pool), Arc::clone(existing));
        thread::spawn(move || (0..CALLS).for_each(|_| call(&pool, &existing)))
    };
    (0..CALLERS).map(start).collect()
}

/// Runs `test` in random interleavings, from a seed that differs from run to run.
fn check(test: impl Fn() + Send + Sync + 'static) {
    let seed = std::env::var("SHUTTLE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("SHUTTLE_SEED={seed}");
    shuttle::check_random_with_seed(test, seed, ITERATIONS);
}

#[test]
fn instances_are_called_by_one_thread_at_a_time_and_kept() {
    check(|| {
        let (pool, existing) = (Arc::new(TestPool::default()), Arc::new(AtomicUsize::new(0)));
        for caller in start_callers(&pool, &existing) {
            caller.join().unwrap();
        }
        let idle = pool.len();
        assert!((1..=CALLERS).contains(&idle), "{idle} idle instances");
        assert_eq!(existing.load(Ordering::SeqCst), idle, "no instance is lost");
    });
}

#[test]
fn closed_pool_keeps_no_instance_of_calls_that_were_running() {
    check(|| {
        let (pool, existing) = (Arc::new(TestPool::default()), Arc::new(AtomicUsize::new(0)));
        let callers = start_callers(&pool, &existing);
        pool.close();
        for caller in callers {
            caller.join().unwrap();
        }
        assert_eq!((pool.len(), existing.load(Ordering::SeqCst)), (0, 0));
    });
}

#[test]
fn reopened_pool_keeps_instances() {
    check(|| {
        let (pool, existing) = (Arc::new(TestPool::default()), Arc::new(AtomicUsize::new(0)));
        pool.close();
        let callers = start_callers(&pool, &existing);
        pool.open();
        for caller in callers {
            caller.join().unwrap();
        }
        call(&pool, &existing);
        assert!(pool.len() >= 1);
        assert_eq!(existing.load(Ordering::SeqCst), pool.len());
    });
}
