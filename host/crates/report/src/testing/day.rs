//! A synthetic day with enough data for every part of a report: two lanes that take turns, and an
//! external one. This is not the simulation: a request simply waits for the next turn of its lane.

use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{
    Attempt, AttemptResult, EngineKind, EngineState, LaneId, LaneInfo, PolicyRef,
};

use super::{Collector, EndedRequest, RequestResult, Run, TestRequest, at, lane};

/// Random numbers: Marsaglia's xorshift, with the seed as its state.
struct Random(u64);

impl Random {
    /// Returns a number from 0 to 1, exclusively.
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// An event of the day.
enum Event {
    Engine(u32, EngineState),
    /// Changes of the queue length of a lane and of its slots in use.
    Load(u32, i64, i64),
    Switched(u32),
    Ended(TestRequest, u32, RequestResult, [f64; 3]),
}

pub(crate) const LANES: [&str; 3] = ["coder-32b", "writer-70b", "cloud"];
pub(crate) const CLASSES: [&str; 3] = ["interactive", "agents", "batch"];

/// Returns a run in which the two lanes take turns of `turn` seconds.
pub(crate) fn run(seed: u64, turn: f64, hours: f64, rate: f64) -> Run {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let end = hours * 3600.0;
    let mut events = engines(turn, end);
    let mut free = [[0.0; 4]; 3];
    let (mut now, mut accepted) = (0.0, 0);
    while now < end {
        now -= 3600.0 / rate * libm::log(1.0 - random.fraction());
        // The load falls to a tenth at night.
        let busy = 1.0 - (2.0 * now / 86_400.0 - 1.0).abs() * 0.9;
        if random.fraction() < busy {
            accepted += 1;
            request(&mut random, now, turn, &mut free, &mut events);
        }
    }
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    play(seed, accepted, events, end)
}

fn engines(turn: f64, end: f64) -> Vec<(f64, Event)> {
    let mut events = vec![(0.0, Event::Engine(2, EngineState::Ready))];
    let (mut now, mut lane) = (0.0, 0);
    while now < end {
        let states = [
            (0.0, EngineState::Starting),
            (45.0, EngineState::Ready),
            (turn - 30.0, EngineState::Draining),
            (turn - 6.0, EngineState::Stopping),
            (turn, EngineState::Cold),
        ];
        events.extend(states.map(|(after, state)| (now + after, Event::Engine(lane, state))));
        if now > 0.0 {
            events.push((now + 45.0, Event::Switched(lane)));
        }
        (now, lane) = (now + turn, 1 - lane);
    }
    events
}

/// Returns when a request that arrives at `now` gets a slot of its lane.
fn slot(now: f64, lane: u32, turn: f64, service: f64, free: &mut [f64; 4]) -> f64 {
    let first = (0..4).min_by(|a, b| free[*a].total_cmp(&free[*b])).unwrap_or(0);
    let mut start = free[first].max(now);
    if lane < 2 {
        let (mine, both) = (f64::from(lane) * turn, turn * 2.0);
        let in_turn = (start - mine).rem_euclid(both);
        if in_turn < 45.0 {
            start += 45.0 - in_turn;
        } else if in_turn > turn - 30.0 - service.min(60.0) {
            start += both - in_turn + 45.0;
        }
    }
    free[first] = start + service;
    start
}

fn request(
    random: &mut Random,
    now: f64,
    turn: f64,
    free: &mut [[f64; 4]; 3],
    events: &mut Vec<(f64, Event)>,
) {
    let class = [0, 0, 0, 1, 1, 2][(random.fraction() * 6.0) as usize];
    let lane = match class {
        0 => u32::from(random.fraction() < 0.3),
        1 => 0,
        _ => 1 + u32::from(random.fraction() < 0.2),
    };
    let tenant = format!("team-{}", (random.fraction() * random.fraction() * 12.0) as u32);
    let service = 1.0 + 30.0 * libm::pow(random.fraction(), 3.0);
    let start = slot(now, lane, turn, service, &mut free[lane as usize]);
    let sent = TestRequest::new(now, class, &tenant);
    let wait = start - now;
    let chance = random.fraction();
    let how = match chance {
        _ if wait > 900.0 && class == 0 => RequestResult::ClientGone,
        c if c < 0.004 => RequestResult::Error,
        c if c < 0.02 => RequestResult::FellBack,
        c if c < 0.025 => RequestResult::Rejected,
        _ => RequestResult::Answered,
    };
    events.push((now, Event::Load(lane, 1, 0)));
    events.push((start, Event::Load(lane, -1, 1)));
    events.push((start + service, Event::Load(lane, 0, -1)));
    events.push((
        start + service,
        Event::Ended(sent, lane, how, [wait, wait + service * 0.1, wait + service]),
    ));
}

fn play(seed: u64, accepted: u64, events: Vec<(f64, Event)>, end: f64) -> Run {
    let lanes: [LaneInfo; 3] = [
        lane(0, LANES[0], EngineKind::Vllm),
        lane(1, LANES[1], EngineKind::LlamaCpp),
        lane(2, LANES[2], EngineKind::External),
    ];
    let mut to = Collector::new(&lanes, &CLASSES.map(str::to_owned));
    let mut loads = [[0i64; 2]; 3];
    let mut last = end;
    for (now, event) in events {
        let now = at(now);
        match event {
            Event::Engine(lane, state) => to.engine(now, LaneId(lane), state),
            Event::Load(lane, waiting, running) => {
                let [w, r] = &mut loads[lane as usize];
                (*w, *r) = (*w + waiting, *r + running);
                to.load(now, LaneId(lane), *w as usize, *r as u32);
            }
            Event::Switched(target) => {
                let target = LaneId(target);
                let victims = vec![LaneId(1 - target.0)];
                let report = SwitchReport {
                    target,
                    victims,
                    drain: at(24.0),
                    stop: at(6.0),
                    load: at(45.0),
                    overdue: false,
                };
                to.switched(&report);
            }
            Event::Ended(sent, lane, how, [wait, first, total]) => {
                last = f64::max(last, now.as_secs_f64());
                let policy = PolicyRef::new("cortex", "0.3.0+9f6cf3c7");
                to.arrived(sent.at, sent.class, &[policy]);
                let result =
                    if how.is_success() { AttemptResult::Ok } else { AttemptResult::EngineRestart };
                to.ended(&EndedRequest {
                    result: how,
                    at: sent.at + at(total),
                    wait: at(wait),
                    first_byte: how.is_success().then(|| at(first)),
                    attempts: &[Attempt {
                        result,
                        queue: at(wait),
                        ..Attempt::new(LaneId(lane), Duration::ZERO)
                    }],
                    cached_tokens: 20,
                    output_tokens: 200,
                    reason: match how {
                        RequestResult::Error => {
                            Some("the engine ended while it answered, and no other lane may answer")
                        }
                        RequestResult::Rejected => {
                            Some("the tenant has used up its quota of tokens for today")
                        }
                        _ => None,
                    },
                    ..sent.failed(total, "")
                });
            }
        }
    }
    to.finish(seed, accepted, at(last))
}
