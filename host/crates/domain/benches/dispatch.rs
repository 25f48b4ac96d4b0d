//! Benchmarks of the dispatcher with 10,000 waiting requests: time per event, and memory per
//! waiting request.
//!
//! There are 100 lanes in 20 groups, each of which has memory for one lane at a time. Measurement
//! is what the actor does for one event: [`Dispatcher::on`] followed by [`Dispatcher::next_wake`].
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(unsafe_code, reason = "counting bytes needs a custom allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_domain::dispatch::{
    Backoff, Dispatcher, Effect, EngineEvent, Enqueue, Event, FlowId, Generation, GroupSetup,
    LaneSetup, QueueLimits, Report, Residency, Rules, Ticket,
};
use pointsman_domain::{LaneId, Switching};

const LANES: u32 = 100;
const GROUPS: u32 = 20;
const WAITING: u64 = 10_000;
const SLOTS: u32 = 8;
/// Events that are timed together: enough to hide the resolution of the clock, few compared with
/// the number of waiting requests.
const BATCH: u64 = 50;
/// Longer than any wait in this benchmark.
const LONG: Duration = Duration::from_secs(1 << 60);

/// The system allocator with a count of the bytes in use.
struct CountingAllocator;

static BYTES: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

// SAFETY: every call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(to_i64(layout.size()), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(to_i64(layout.size()), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn to_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A dispatcher and its waiting requests.
struct DispatcherBench {
    dispatcher: Dispatcher,
    now: Duration,
    tickets: u64,
    waiting: VecDeque<(Ticket, LaneId)>,
    effects: Vec<Effect>,
    /// The flows of the requests that hold slots, by lane.
    held: HashMap<LaneId, VecDeque<FlowId>>,
}

impl DispatcherBench {
    /// The first lane of each group is loaded; no requests are waiting.
    fn new() -> Self {
        let lane = |index: u32| LaneSetup {
            slots: SLOTS,
            group: (index % GROUPS) as usize,
            need: 20,
            asleep: 0,
            residency: Residency::OnDemand { preload: index < GROUPS, unload_after: None },
            expected_load: Duration::from_secs(40),
            backoff: Backoff {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
                reset_after: Duration::from_secs(60),
                max_failures: 3,
                retry_failed_after: Duration::from_secs(600),
            },
        };
        let many = WAITING as usize * 2;
        let rules = Rules {
            queue: QueueLimits { per_lane: many, total: many },
            starvation_timeout: LONG,
            ..Rules::default()
        };
        let groups = [GroupSetup { budget: 30 }; GROUPS as usize];
        let dispatcher = Dispatcher::new((0..LANES).map(lane).collect(), &groups, rules);
        let (waiting, effects, held) = (VecDeque::new(), Vec::new(), HashMap::new());
        let now = Duration::ZERO;
        let mut bench = Self { dispatcher, now, tickets: 0, waiting, effects, held };
        bench.on(Event::Tick);
        bench.now = Duration::from_secs(40);
        for lane in (0..GROUPS).map(LaneId) {
            bench.on(Event::Engine { lane, news: EngineEvent::Ready });
        }
        bench
    }

    /// As [`DispatcherBench::new`], with all slots in use and 100 requests waiting for each lane.
    /// Requests for loaded lanes have a higher priority, so that no lane is switched however much
    /// time passes.
    fn full() -> Self {
        let mut bench = Self::new();
        for _ in 0..SLOTS {
            (0..GROUPS).map(LaneId).for_each(|lane| bench.arrive(lane));
        }
        bench.waiting.clear();
        while bench.dispatcher.queued() < WAITING as usize {
            (0..LANES).map(LaneId).for_each(|lane| bench.arrive(lane));
        }
        bench
    }

    /// As [`DispatcherBench::new`], with 125 requests waiting for each lane that is not loaded.
    fn half_idle() -> Self {
        let mut bench = Self::new();
        while bench.dispatcher.queued() < WAITING as usize {
            (GROUPS..LANES).map(LaneId).for_each(|lane| bench.arrive(lane));
        }
        bench
    }

    fn on(&mut self, mut event: Event) {
        if let Event::Released { lane, flow, .. } = &mut event
            && let Some(held) = self.held.get_mut(lane).and_then(VecDeque::pop_front)
        {
            *flow = held;
        }
        self.effects.clear();
        self.dispatcher.on(black_box(event), self.now, &mut self.effects);
        black_box(self.dispatcher.next_wake());
        for effect in &self.effects {
            if let Effect::Grant { lane, flow, .. } = effect {
                self.held.entry(*lane).or_default().push_back(*flow);
            }
        }
    }

    /// Creates a request; each lane has 8 flows and 3 priorities.
    fn enqueue(&mut self, lane: LaneId) -> Enqueue {
        self.tickets += 1;
        let loaded_bonus = if lane.0 < GROUPS { 10 } else { 0 };
        Enqueue {
            ticket: Ticket(self.tickets),
            lane,
            priority: i32::try_from(self.tickets / 7 % 3).unwrap_or_default() + loaded_bonus,
            flow: FlowId(self.tickets / u64::from(LANES) % 8),
            weight: 1,
            deadline: LONG + Duration::from_millis(self.tickets * 7919 % 600_000),
            switching: Switching::Allow,
            has_fallback: false,
            has_begun: false,
        }
    }

    fn arrive(&mut self, lane: LaneId) {
        let enqueue = self.enqueue(lane);
        self.waiting.push_back((enqueue.ticket, lane));
        self.on(Event::Arrived(enqueue));
    }

    fn enqueues(&mut self, batch: u64, lanes: u32) -> Vec<Enqueue> {
        (0..batch).map(|index| self.enqueue(LaneId(index as u32 % lanes))).collect()
    }
}

/// Returns the time taken by `iterations` events from `events`, timed in batches. `restore` undoes
/// each batch and is not timed.
fn timed(
    iterations: u64,
    bench: &mut DispatcherBench,
    mut events: impl FnMut(&mut DispatcherBench, u64) -> Vec<Event>,
    mut restore: impl FnMut(&mut DispatcherBench, &[Event]),
) -> Duration {
    let (mut total, mut left) = (Duration::ZERO, iterations);
    while left > 0 {
        let batch = left.min(BATCH);
        let batch_events = events(bench, batch);
        let copy = batch_events.clone();
        let started = Instant::now();
        for event in batch_events {
            bench.on(event);
        }
        total += started.elapsed();
        restore(bench, &copy);
        left -= batch;
    }
    total
}

fn arrived(event: &Event) -> Option<&Enqueue> {
    match event {
        Event::Arrived(enqueue) => Some(enqueue),
        _ => None,
    }
}

fn released(lane: LaneId) -> Event {
    let report = Report {
        held: Duration::from_secs(4),
        first_byte: Some(Duration::from_millis(300)),
        ..Report::default()
    };
    Event::Released { lane, generation: Generation(1), flow: FlowId::default(), report }
}

fn arrivals(criterion: &mut Criterion) {
    let mut bench = DispatcherBench::full();
    let cancel = |bench: &mut DispatcherBench, events: &[Event]| {
        let cancel = |enqueue: &Enqueue| bench.on(Event::Cancelled(enqueue.ticket));
        events.iter().filter_map(arrived).for_each(cancel);
        assert_eq!(bench.dispatcher.queued(), WAITING as usize);
    };
    criterion.bench_function("dispatch, enqueue that waits", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |bench: &mut DispatcherBench, batch| {
                bench.enqueues(batch, LANES).into_iter().map(Event::Arrived).collect()
            };
            timed(iterations, &mut bench, events, cancel)
        });
    });
    let mut bench = DispatcherBench::half_idle();
    criterion.bench_function("dispatch, enqueue that is granted", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |bench: &mut DispatcherBench, batch| {
                bench.enqueues(batch, GROUPS).into_iter().map(Event::Arrived).collect()
            };
            let release = |bench: &mut DispatcherBench, events: &[Event]| {
                assert!(matches!(bench.effects[..], [Effect::Grant { .. }]), "{:?}", bench.effects);
                events
                    .iter()
                    .filter_map(arrived)
                    .for_each(|enqueue| bench.on(released(enqueue.lane)));
            };
            timed(iterations, &mut bench, events, release)
        });
    });
}

fn departures(criterion: &mut Criterion) {
    let mut bench = DispatcherBench::full();
    criterion.bench_function("dispatch, release that grants the next one", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |_: &mut DispatcherBench, batch| {
                (0..batch).map(|index| released(LaneId(index as u32 % GROUPS))).collect()
            };
            let refill = |bench: &mut DispatcherBench, events: &[Event]| {
                assert!(matches!(bench.effects[..], [Effect::Grant { .. }]), "{:?}", bench.effects);
                bench
                    .enqueues(events.len() as u64, GROUPS)
                    .into_iter()
                    .for_each(|enqueue| bench.on(Event::Arrived(enqueue)));
                assert_eq!(bench.dispatcher.queued(), WAITING as usize);
            };
            timed(iterations, &mut bench, events, refill)
        });
    });
    let mut bench = DispatcherBench::full();
    criterion.bench_function("dispatch, cancel", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut left_lanes: Vec<LaneId> = Vec::new();
            let mut total = Duration::ZERO;
            for _ in 0..iterations.div_ceil(BATCH) {
                let leave: Vec<_> = (0..BATCH).filter_map(|_| bench.waiting.pop_front()).collect();
                left_lanes.extend(leave.iter().map(|(_, lane)| *lane));
                let started = Instant::now();
                leave.into_iter().for_each(|(ticket, _)| bench.on(Event::Cancelled(ticket)));
                total += started.elapsed();
                assert_eq!(bench.dispatcher.queued() as u64, WAITING - BATCH);
                left_lanes.drain(..).for_each(|lane| bench.arrive(lane));
            }
            total.mul_f64(iterations as f64 / (iterations.div_ceil(BATCH) * BATCH) as f64)
        });
    });
}

fn ticks(criterion: &mut Criterion) {
    let mut bench = DispatcherBench::full();
    criterion.bench_function("dispatch, tick with nothing due", |bencher| {
        bencher.iter(|| bench.on(Event::Tick));
    });
    criterion.bench_function("dispatch, tick with all 20 groups due", |bencher| {
        bencher.iter(|| {
            bench.now = bench.dispatcher.next_wake().unwrap_or_default();
            bench.on(Event::Tick);
        });
    });
    assert!(
        bench.dispatcher.queued() as u64 == WAITING && bench.effects.is_empty(),
        "ticks alone change nothing"
    );
    criterion.bench_function("dispatch, stats of all 100 lanes", |bencher| {
        bencher.iter(|| bench.dispatcher.stats(bench.now));
    });
}

/// One lane; each waiting request has its own flow.
fn many_flows(criterion: &mut Criterion) {
    let mut bench = DispatcherBench::new();
    for _ in 0..WAITING + u64::from(SLOTS) {
        let enqueue = Enqueue { priority: 0, ..bench.enqueue(LaneId(0)) };
        bench.on(Event::Arrived(Enqueue { flow: FlowId(enqueue.ticket.0), ..enqueue }));
    }
    criterion.bench_function("dispatch, release, 10,000 flows wait for one lane", |bencher| {
        bencher.iter_custom(|iterations| {
            let events =
                |_: &mut DispatcherBench, batch| (0..batch).map(|_| released(LaneId(0))).collect();
            let refill = |bench: &mut DispatcherBench, events: &[Event]| {
                for _ in events {
                    let enqueue = Enqueue { priority: 0, ..bench.enqueue(LaneId(0)) };
                    bench.on(Event::Arrived(Enqueue { flow: FlowId(enqueue.ticket.0), ..enqueue }));
                }
            };
            timed(iterations, &mut bench, events, refill)
        });
    });
}

/// Prints the bytes in use per waiting request.
fn memory(_: &mut Criterion) {
    let mut bench = DispatcherBench::new();
    let arrivals = bench.enqueues(WAITING + u64::from(SLOTS * GROUPS), LANES);
    bench.effects.reserve(100);
    let before = BYTES.load(Ordering::Relaxed);
    arrivals.into_iter().for_each(|enqueue| bench.on(Event::Arrived(enqueue)));
    let (taken, queued) = (BYTES.load(Ordering::Relaxed) - before, bench.dispatcher.queued());
    let each = taken / to_i64(queued);
    println!("dispatch, memory: {each} bytes for each of {queued} waiting requests");
    for group in [1, 10, 100] {
        let (mut bench, many) = (DispatcherBench::new(), to_i64(queued) * group / 100);
        let arrivals: Vec<Enqueue> = (0..many).map(|_| bench.enqueue(LaneId(GROUPS))).collect();
        let before = BYTES.load(Ordering::Relaxed);
        arrivals.into_iter().for_each(|enqueue| bench.on(Event::Arrived(enqueue)));
        let each = (BYTES.load(Ordering::Relaxed) - before) / many;
        println!("dispatch, memory: {each} bytes for each of {many} requests waiting for one lane");
    }
}

criterion_group!(benches, memory, arrivals, departures, ticks, many_flows);
criterion_main!(benches);
