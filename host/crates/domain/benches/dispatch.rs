//! What one decision of the dispatcher costs while 10,000 requests wait, and how much memory each of them
//! takes.
//!
//! 100 lanes in 20 groups, of which each has room for one lane at a time. What is measured is what the actor
//! does for one event: [`Dispatcher::on`], and [`Dispatcher::next_wake`] after it.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(unsafe_code, reason = "counting bytes takes an allocator of our own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_domain::dispatch::{
    BackOff, Dispatcher, Effect, EngineEvent, Enqueue, Event, FlowId, Generation, GroupSetup,
    LaneSetup, QueueLimits, Report, Residency, Rules, Ticket,
};
use pointsman_domain::{LaneId, Switching};

const LANES: u32 = 100;
const GROUPS: u32 = 20;
const WAITING: u64 = 10_000;
const SLOTS: u32 = 8;
/// Events that are timed together: enough for the clock not to matter, few against those who wait.
const BATCH: u64 = 50;
/// More than any wait that ages by it.
const LONG: Duration = Duration::from_secs(1 << 60);

/// The system's allocator, and how many bytes it has handed out.
struct Counting;

static BYTES: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all of it is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(bytes(layout.size()), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(bytes(layout.size()), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn bytes(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A dispatcher with loaded lanes, and those who wait for it.
struct Desk {
    dispatcher: Dispatcher,
    now: Duration,
    tickets: u64,
    waiting: VecDeque<(Ticket, LaneId)>,
    effects: Vec<Effect>,
}

impl Desk {
    /// The first lane of each group is loaded, and nobody waits.
    fn new() -> Self {
        let lane = |index: u32| LaneSetup {
            slots: SLOTS,
            group: (index % GROUPS) as usize,
            need: 20,
            asleep: 0,
            residency: Residency::OnDemand { preload: index < GROUPS, unload_after: None },
            expected_load: Duration::from_secs(40),
            back_off: BackOff {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
                reset_after: Duration::from_secs(60),
                give_up: 3,
                failed_retry: Duration::from_secs(600),
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
        let (waiting, effects) = (VecDeque::new(), Vec::new());
        let mut desk = Self { dispatcher, now: Duration::ZERO, tickets: 0, waiting, effects };
        desk.on(Event::Tick);
        desk.now = Duration::from_secs(40);
        for lane in (0..GROUPS).map(LaneId) {
            desk.on(Event::Engine { lane, news: EngineEvent::Ready });
        }
        desk
    }

    /// As [`Desk::new`], with all slots in use and 100 waiting for each lane. Those who wait for loaded lanes
    /// have a higher priority: nothing is exchanged, however much time passes.
    fn full() -> Self {
        let mut desk = Self::new();
        for _ in 0..SLOTS {
            (0..GROUPS).map(LaneId).for_each(|lane| desk.arrive(lane));
        }
        desk.waiting.clear();
        while desk.dispatcher.queued() < WAITING as usize {
            (0..LANES).map(LaneId).for_each(|lane| desk.arrive(lane));
        }
        desk
    }

    /// As [`Desk::new`], with 125 waiting for each lane that is not loaded.
    fn half_idle() -> Self {
        let mut desk = Self::new();
        while desk.dispatcher.queued() < WAITING as usize {
            (GROUPS..LANES).map(LaneId).for_each(|lane| desk.arrive(lane));
        }
        desk
    }

    fn on(&mut self, event: Event) {
        self.effects.clear();
        self.dispatcher.on(black_box(event), self.now, &mut self.effects);
        black_box(self.dispatcher.next_wake());
    }

    /// 8 flows and 3 priorities for each lane.
    fn arrival(&mut self, lane: LaneId) -> Enqueue {
        self.tickets += 1;
        let of_loaded = if lane.0 < GROUPS { 10 } else { 0 };
        Enqueue {
            ticket: Ticket(self.tickets),
            lane,
            priority: i32::try_from(self.tickets / 7 % 3).unwrap_or_default() + of_loaded,
            flow: FlowId(self.tickets / u64::from(LANES) % 8),
            deadline: LONG + Duration::from_millis(self.tickets * 7919 % 600_000),
            switching: Switching::Allow,
            has_fallback: false,
        }
    }

    fn arrive(&mut self, lane: LaneId) {
        let arrival = self.arrival(lane);
        self.waiting.push_back((arrival.ticket, lane));
        self.on(Event::Arrived(arrival));
    }

    fn arrivals(&mut self, batch: u64, lanes: u32) -> Vec<Enqueue> {
        (0..batch).map(|index| self.arrival(LaneId(index as u32 % lanes))).collect()
    }
}

/// Time of `events`, in batches; `restore` undoes each batch, and is not timed.
fn timed(
    iterations: u64,
    desk: &mut Desk,
    mut events: impl FnMut(&mut Desk, u64) -> Vec<Event>,
    mut restore: impl FnMut(&mut Desk, &[Event]),
) -> Duration {
    let (mut total, mut left) = (Duration::ZERO, iterations);
    while left > 0 {
        let batch = left.min(BATCH);
        let batch_events = events(desk, batch);
        let copy = batch_events.clone();
        let begun = Instant::now();
        for event in batch_events {
            desk.on(event);
        }
        total += begun.elapsed();
        restore(desk, &copy);
        left -= batch;
    }
    total
}

fn arrived(event: &Event) -> Option<&Enqueue> {
    match event {
        Event::Arrived(arrival) => Some(arrival),
        _ => None,
    }
}

fn released(lane: LaneId) -> Event {
    let report = Report {
        held: Duration::from_secs(4),
        first_byte: Some(Duration::from_millis(300)),
        ..Report::default()
    };
    Event::Released { lane, generation: Generation(1), report }
}

fn arrivals(criterion: &mut Criterion) {
    let mut desk = Desk::full();
    let cancel = |desk: &mut Desk, events: &[Event]| {
        let cancel = |arrival: &Enqueue| desk.on(Event::Cancelled(arrival.ticket));
        events.iter().filter_map(arrived).for_each(cancel);
        assert_eq!(desk.dispatcher.queued(), WAITING as usize);
    };
    criterion.bench_function("dispatch, arrival that waits", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |desk: &mut Desk, batch| {
                desk.arrivals(batch, LANES).into_iter().map(Event::Arrived).collect()
            };
            timed(iterations, &mut desk, events, cancel)
        });
    });
    let mut desk = Desk::half_idle();
    criterion.bench_function("dispatch, arrival that is granted", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |desk: &mut Desk, batch| {
                desk.arrivals(batch, GROUPS).into_iter().map(Event::Arrived).collect()
            };
            let release = |desk: &mut Desk, events: &[Event]| {
                assert!(matches!(desk.effects[..], [Effect::Grant { .. }]), "{:?}", desk.effects);
                events
                    .iter()
                    .filter_map(arrived)
                    .for_each(|arrival| desk.on(released(arrival.lane)));
            };
            timed(iterations, &mut desk, events, release)
        });
    });
}

fn departures(criterion: &mut Criterion) {
    let mut desk = Desk::full();
    criterion.bench_function("dispatch, release that grants the next one", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |_: &mut Desk, batch| {
                (0..batch).map(|index| released(LaneId(index as u32 % GROUPS))).collect()
            };
            let refill = |desk: &mut Desk, events: &[Event]| {
                assert!(matches!(desk.effects[..], [Effect::Grant { .. }]), "{:?}", desk.effects);
                desk.arrivals(events.len() as u64, GROUPS)
                    .into_iter()
                    .for_each(|arrival| desk.on(Event::Arrived(arrival)));
                assert_eq!(desk.dispatcher.queued(), WAITING as usize);
            };
            timed(iterations, &mut desk, events, refill)
        });
    });
    let mut desk = Desk::full();
    criterion.bench_function("dispatch, cancel", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut gone: Vec<LaneId> = Vec::new();
            let mut total = Duration::ZERO;
            for _ in 0..iterations.div_ceil(BATCH) {
                let leave: Vec<_> = (0..BATCH).filter_map(|_| desk.waiting.pop_front()).collect();
                gone.extend(leave.iter().map(|(_, lane)| *lane));
                let begun = Instant::now();
                leave.into_iter().for_each(|(ticket, _)| desk.on(Event::Cancelled(ticket)));
                total += begun.elapsed();
                assert_eq!(desk.dispatcher.queued() as u64, WAITING - BATCH);
                gone.drain(..).for_each(|lane| desk.arrive(lane));
            }
            total.mul_f64(iterations as f64 / (iterations.div_ceil(BATCH) * BATCH) as f64)
        });
    });
}

fn ticks(criterion: &mut Criterion) {
    let mut desk = Desk::full();
    criterion.bench_function("dispatch, tick with nothing due", |bencher| {
        bencher.iter(|| desk.on(Event::Tick));
    });
    criterion.bench_function("dispatch, tick with all 20 groups due", |bencher| {
        bencher.iter(|| {
            desk.now = desk.dispatcher.next_wake().unwrap_or_default();
            desk.on(Event::Tick);
        });
    });
    assert!(
        desk.dispatcher.queued() as u64 == WAITING && desk.effects.is_empty(),
        "time alone changes nothing"
    );
    criterion.bench_function("dispatch, stats of all 100 lanes", |bencher| {
        bencher.iter(|| desk.dispatcher.stats(desk.now));
    });
}

/// One lane, and each who waits for it is a tenant of his own.
fn many_flows(criterion: &mut Criterion) {
    let mut desk = Desk::new();
    for _ in 0..WAITING + u64::from(SLOTS) {
        let arrival = Enqueue { priority: 0, ..desk.arrival(LaneId(0)) };
        desk.on(Event::Arrived(Enqueue { flow: FlowId(arrival.ticket.0), ..arrival }));
    }
    criterion.bench_function("dispatch, release, 10,000 flows wait for one lane", |bencher| {
        bencher.iter_custom(|iterations| {
            let events = |_: &mut Desk, batch| (0..batch).map(|_| released(LaneId(0))).collect();
            let refill = |desk: &mut Desk, events: &[Event]| {
                for _ in events {
                    let arrival = Enqueue { priority: 0, ..desk.arrival(LaneId(0)) };
                    desk.on(Event::Arrived(Enqueue { flow: FlowId(arrival.ticket.0), ..arrival }));
                }
            };
            timed(iterations, &mut desk, events, refill)
        });
    });
}

/// No timing, but a count: bytes for each request that waits.
fn memory(_: &mut Criterion) {
    let mut desk = Desk::new();
    let arrivals = desk.arrivals(WAITING + u64::from(SLOTS * GROUPS), LANES);
    desk.effects.reserve(100);
    let before = BYTES.load(Ordering::Relaxed);
    arrivals.into_iter().for_each(|arrival| desk.on(Event::Arrived(arrival)));
    let (taken, queued) = (BYTES.load(Ordering::Relaxed) - before, desk.dispatcher.queued());
    let each = taken / bytes(queued);
    println!("dispatch, memory: {each} bytes for each of {queued} who wait");
    for group in [1, 10, 100] {
        let (mut desk, many) = (Desk::new(), bytes(queued) * group / 100);
        let arrivals: Vec<Enqueue> = (0..many).map(|_| desk.arrival(LaneId(GROUPS))).collect();
        let before = BYTES.load(Ordering::Relaxed);
        arrivals.into_iter().for_each(|arrival| desk.on(Event::Arrived(arrival)));
        let each = (BYTES.load(Ordering::Relaxed) - before) / many;
        println!("dispatch, memory: {each} bytes for each of {many} who wait for one lane");
    }
}

criterion_group!(benches, memory, arrivals, departures, ticks, many_flows);
criterion_main!(benches);
