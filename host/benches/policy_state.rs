//! The cost of a durable state for a call of a policy: an increment and a write, in memory only and
//! while a thread saves what changes.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_policy::{StateBacking, StateBackingError, StateBench, StateChanges, StateEntry};

/// The interval of the host.
const INTERVAL: Duration = Duration::from_millis(500);
const CALLS: u32 = 2_000_000;

/// A disk that takes everything at once: calls never wait for a real one.
#[derive(Debug)]
struct Nowhere;

impl StateBacking for Nowhere {
    fn load(&self, _: &str) -> Result<Vec<StateEntry>, StateBackingError> {
        Ok(Vec::new())
    }

    fn save(&self, changes: &[StateChanges]) -> Result<(), StateBackingError> {
        assert!(!changes.is_empty());
        Ok(())
    }

    fn policies(&self) -> Result<Vec<String>, StateBackingError> {
        Ok(Vec::new())
    }
}

/// Runs `work` with a state that is in memory only, or is saved meanwhile.
fn with_state<T>(is_durable: bool, work: impl FnOnce(&StateBench) -> T) -> T {
    let backing = is_durable.then(|| Arc::new(Nowhere) as Arc<dyn StateBacking>);
    let (state, stop) = (StateBench::new(backing), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let saver = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                #[expect(clippy::disallowed_methods, reason = "the interval of the writer")]
                std::thread::park_timeout(INTERVAL);
                state.save().unwrap();
            }
        });
        let result = work(&state);
        stop.store(true, Ordering::Relaxed);
        saver.thread().unpark();
        result
    })
}

fn per_call(is_durable: bool) -> Duration {
    with_state(is_durable, |state| {
        let begun = Instant::now();
        let sum = (0..CALLS).map(|call| state.increment(key(call))).fold(0, i64::wrapping_add);
        assert_ne!(sum, 0);
        begun.elapsed() / CALLS
    })
}

/// Returns a key of a few, as a quota has for two tenants.
fn key(call: u32) -> &'static str {
    const KEYS: [&str; 4] = ["requests/1/t=a", "requests/1/t=b", "tokens/1/t=a", "tokens/1/t=b"];
    KEYS[call as usize % KEYS.len()]
}

fn policy_state(criterion: &mut Criterion) {
    for (name, is_durable) in [("memory", false), ("durable", true)] {
        with_state(is_durable, |state| {
            let mut call = 0_u32;
            criterion.bench_function(&format!("state increment, {name}"), |bench| {
                bench.iter(|| {
                    call = call.wrapping_add(1);
                    black_box(state.increment(key(call)))
                });
            });
            criterion.bench_function(&format!("state put, {name}"), |bench| {
                bench.iter(|| state.put(black_box("text"), black_box(b"0123456789")));
            });
        });
    }
    // The faster of some rounds each: other work of the machine only makes them slower.
    let fastest = |is_durable| (0..5).map(|_| per_call(is_durable)).min().unwrap();
    let (memory, durable) = (fastest(false), fastest(true));
    let ratio = durable.as_secs_f64() / memory.as_secs_f64();
    println!("increment: {memory:?} in memory, {durable:?} durable, ratio {ratio:.2}");
}

criterion_group!(benches, policy_state);
criterion_main!(benches);
