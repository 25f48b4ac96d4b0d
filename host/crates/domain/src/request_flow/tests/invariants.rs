//! Property tests of the flow: arbitrary events in arbitrary order, and a ledger of what the
//! request holds and of what was sent, which checks every effect.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::policy_ref::PolicyRef;

/// Number of random sequences of the seeded loop.
const SEQUENCES: u64 = 100_000;
/// Maximum number of events of a sequence.
const MAX_EVENTS: usize = 40;
const LANES: usize = 5;

/// A source of numbers below its argument.
type Choose<'a> = dyn FnMut(usize) -> usize + 'a;

/// Returns a pseudorandom source (SplitMix64, by Steele, Lea and Flood).
fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap()
    }
}

fn arbitrary_plan(choose: &mut Choose<'_>) -> Plan {
    let lanes: Vec<u32> = (0..choose(4)).map(|_| u32::try_from(choose(LANES)).unwrap()).collect();
    let on = Triggers::EVERY.into_iter().filter(|_| choose(3) > 0).collect();
    let on_timeout = if choose(4) == 0 { OnTimeout::Reject } else { OnTimeout::FallBack };
    let first_token = (choose(3) == 0).then(|| ms(choose(90_000) as u64));
    let mut plan = Plan { on, on_timeout, first_token, ..plan(&lanes) };
    for step in &mut plan.steps {
        step.context = u32::try_from(choose(4) * 1000).unwrap();
    }
    plan
}

fn rejection() -> Rejection {
    Rejection { status: 429, code: String::new(), message: String::new(), retry_after_s: None }
}

fn arbitrary_decision(choose: &mut Choose<'_>) -> Event<'static> {
    let decision = match choose(12) {
        0 => Decision::NoLane(NoLaneReason::FilteredOut),
        1 => Decision::Reject(PolicyRef::new("p", "1"), rejection()),
        _ => Decision::Route(arbitrary_plan(choose)),
    };
    Event::Decided { decision, has_recovery: choose(2) == 0 }
}

fn arbitrary_recovery(choose: &mut Choose<'_>) -> Recovery {
    match choose(5) {
        0 => Recovery::GiveUp(rejection()),
        1 | 2 => retry(u32::try_from(choose(LANES + 2)).unwrap()),
        _ => Recovery::Planned,
    }
}

fn arbitrary_failure(choose: &mut Choose<'_>) -> Event<'static> {
    Event::Failed(match choose(14) {
        0 | 1 => EngineFailure::Connect,
        2 => EngineFailure::Broken,
        3 => EngineFailure::IdleTimeout,
        4 => EngineFailure::FirstByteTimeout,
        5 => EngineFailure::Status(503),
        6 => EngineFailure::Unfinished,
        7 => EngineFailure::ErrorEvent,
        8 => EngineFailure::NotAStream,
        9 => EngineFailure::Hung,
        10 => EngineFailure::Unsupported(501),
        11 => EngineFailure::Declined {
            status: 404,
            reason: Declined::Configured([Trigger::ServerError, Trigger::Overloaded][choose(2)]),
        },
        12 => EngineFailure::Declined {
            status: 400,
            reason: Declined::TooLong { max_context: u32::try_from(choose(2000)).unwrap() },
        },
        _ => EngineFailure::Evicted,
    })
}

/// The inputs that all sequences share.
struct Inputs {
    fleet: FleetView,
    denials: [AcquireError; 4],
}

impl Inputs {
    fn new() -> Self {
        let denials = [
            AcquireError::TimedOut { state: LaneState::Ready, waited: ms(1), retry_in: ms(1) },
            AcquireError::NotServing { state: LaneState::Down, reason: None, retry_in: ms(1) },
            AcquireError::QueueFull { queued: 1, retry_in: ms(1) },
            AcquireError::Closing,
        ];
        Self { fleet: fleet(LANES), denials }
    }

    fn denied(&self, choose: &mut Choose<'_>) -> Event<'_> {
        Event::Denied(&self.denials[choose(self.denials.len())])
    }

    fn recovered(&self, choose: &mut Choose<'_>) -> Event<'_> {
        Event::Recovered {
            recovered: decided_by_policy(arbitrary_recovery(choose)),
            fleet: &self.fleet,
            endpoint: Endpoint::ChatCompletions,
        }
    }

    /// Returns one of all events.
    fn arbitrary(&self, choose: &mut Choose<'_>) -> Event<'_> {
        match choose(13) {
            0 => Event::Accepted { tenant: None, share: QueueShare::default() },
            1 => Event::Refused,
            2 => arbitrary_decision(choose),
            3 => granted(choose(2) == 0),
            4 => self.denied(choose),
            5 => Event::FirstByte { status: [200, 200, 400, 302][choose(4)] },
            6 => arbitrary_failure(choose),
            7 => Event::Completed,
            8 => Event::Usage(TokenCounts { prompt: 5, cached: 1, output: 2 }),
            9 => self.recovered(choose),
            10 => Event::Stopping,
            11 => Event::Served,
            _ => Event::ClientGone,
        }
    }

    /// Returns an event that follows this action.
    fn following(&self, action: &Action, choose: &mut Choose<'_>) -> Event<'_> {
        match action {
            Action::Wait | Action::End(_) => self.arbitrary(choose),
            Action::Advise => arbitrary_decision(choose),
            Action::Acquire(_) if choose(3) == 0 => self.denied(choose),
            Action::Acquire(_) => granted(choose(2) == 0),
            Action::Send { .. } if choose(3) == 0 => Event::FirstByte { status: 200 },
            Action::Send { .. } => arbitrary_failure(choose),
            Action::Recover(_) => self.recovered(choose),
            Action::Respond if choose(2) == 0 => arbitrary_failure(choose),
            Action::Respond => Event::Completed,
        }
    }
}

/// What the dispatcher, the engines, the client and the policies know of one request.
#[derive(Debug, Default)]
struct Ledger {
    waits: bool,
    holds_lease: bool,
    advised: usize,
    recoveries: usize,
    /// The lanes of all attempts.
    lanes: Vec<LaneId>,
    sent: usize,
    /// The last response was declined by the engine, and is kept with its lease.
    keeps_response: bool,
    /// The first byte of a response was passed on.
    has_first_byte: bool,
    /// The last event was an answer of the host itself.
    is_served_by_host: bool,
    answers: usize,
    ends: Vec<End>,
}

impl Ledger {
    /// Notes what an event means for the dispatcher, before the flow handles it. Returns true if
    /// the event brings a lease that the request does not wait for.
    fn note(&mut self, event: &Event<'_>) -> bool {
        self.is_served_by_host = matches!(event, Event::Served);
        match event {
            Event::Granted { .. } if std::mem::take(&mut self.waits) => {
                self.holds_lease = true;
                false
            }
            Event::Granted { .. } => true,
            Event::Denied(_) => {
                self.waits = false;
                false
            }
            Event::Failed(failure) => {
                self.keeps_response = matches!(failure, EngineFailure::Declined { .. });
                false
            }
            _ => false,
        }
    }

    fn check(&mut self, effects: &Effects, has_unused_lease: bool, left: Duration) {
        if !self.ends.is_empty() {
            assert_eq!((&effects.action, effects.ignored_retry), (&Action::Wait, None));
        }
        assert_eq!(effects.release == Some(Release::Unused), has_unused_lease);
        match effects.release {
            Some(Release::Ticket) => assert!(std::mem::take(&mut self.waits), "no ticket"),
            Some(Release::Lease(_)) => assert!(std::mem::take(&mut self.holds_lease), "no lease"),
            Some(Release::Unused) | None => {}
        }
        let is_idle = !self.waits && !self.holds_lease;
        let is_unanswered = !self.has_first_byte && self.answers == 0;
        match &effects.action {
            Action::Wait => {}
            Action::Advise => self.advised += 1,
            Action::Acquire(request) => {
                assert!(is_idle, "an attempt begins before the last one has ended");
                assert!(is_unanswered, "an attempt after the first byte");
                assert!(request.max_wait <= left);
                self.waits = true;
                self.lanes.push(request.lane);
            }
            Action::Send { timeout } => {
                assert!(self.holds_lease && is_unanswered, "sent without a lease or too late");
                assert!(*timeout <= left);
                self.sent += 1;
            }
            Action::Recover(report) => {
                assert!(is_idle || self.keeps_response && !self.waits);
                assert!(is_unanswered && report.sent_bytes == 0);
                assert_eq!(Some(&report.lane), self.lanes.last());
                self.recoveries += 1;
            }
            Action::Respond => {
                assert!(self.holds_lease && is_unanswered);
                self.has_first_byte = true;
                self.answers += 1;
            }
            Action::End(end) => {
                assert!(is_idle, "a ticket or a lease was not released");
                let is_served = end.result.is_success() && self.lanes.is_empty();
                assert!(!is_served || self.is_served_by_host);
                self.answers += usize::from(end.answer.is_some() || is_served);
                self.ends.push(end.clone());
            }
        }
        assert!(self.answers <= 1 && self.advised <= 1, "{self:?}");
    }

    /// Checks a request that has ended.
    fn check_end(&self, flow: &RequestFlow) {
        let [end] = &self.ends[..] else { panic!("{} ends", self.ends.len()) };
        assert!(self.answers == 1 || end.result == RequestResult::ClientGone, "no answer");
        let attempts = self.lanes.len();
        // An attempt on a lane that was not reached may be repeated once.
        assert!(attempts <= LIMITS.max_steps + 1);
        assert!(self.sent <= attempts && self.recoveries <= attempts);
        assert!(flow.attempts().map(|attempt| attempt.lane).eq(self.lanes.iter().copied()));
        if end.result.is_success() && attempts > 0 {
            let is_same = self.lanes.windows(2).all(|lanes| lanes[0] == lanes[1]);
            assert_eq!(end.result == RequestResult::Answered, is_same);
            assert!(self.has_first_byte && end.last == AttemptResult::Ok);
        }
        let Some(outcome) = flow.outcome(subject()) else { return assert_eq!(attempts, 0) };
        assert_eq!((outcome.tries as usize, outcome.ended), (attempts, end.last));
        assert_eq!(Some(&outcome.lane), self.lanes.last());
        assert!(outcome.queue <= outcome.total && outcome.ttft <= outcome.total);
        assert_eq!(self.has_first_byte, flow.ttft().is_some());
    }
}

/// Drives one flow with events of which most follow the last action. The driver's guard ends every
/// sequence. Returns the number of attempts.
fn run(inputs: &Inputs, choose: &mut Choose<'_>) -> usize {
    let deadline = Deadline::new(DEADLINE);
    let mut flow = RequestFlow::new(deadline, &LIMITS);
    let (mut ledger, mut age, mut action) = (Ledger::default(), Duration::ZERO, Action::Wait);
    let mut handle = |flow: &mut RequestFlow, event: Event<'_>, age: Duration| {
        let has_unused_lease = ledger.note(&event);
        let effects = flow.on(event, age);
        ledger.check(&effects, has_unused_lease, deadline.left(age));
        effects.action
    };
    if choose(8) > 0 {
        action =
            handle(&mut flow, Event::Accepted { tenant: None, share: QueueShare::default() }, age);
    }
    for _ in 0..choose(MAX_EVENTS) {
        age += ms(if choose(10) == 0 { choose(120_000) } else { choose(20) } as u64);
        let event = match choose(6) {
            0 => inputs.arbitrary(choose),
            _ => inputs.following(&action, choose),
        };
        // After an ignored event, the last action is still to be followed.
        match handle(&mut flow, event, age) {
            Action::Wait => {}
            next => action = next,
        }
    }
    handle(&mut flow, Event::ClientGone, age);
    ledger.check_end(&flow);
    ledger.lanes.len()
}

#[test]
fn random_event_orders_keep_the_promises() {
    let inputs = Inputs::new();
    // Another part of all sequences in each run.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = now.as_secs() * SEQUENCES;
    println!("seeds from {first}");
    let mut attempts = [0u64; 8];
    for seed in first..first + SEQUENCES {
        let made = catch_unwind(AssertUnwindSafe(|| run(&inputs, &mut random(seed))));
        attempts[made.unwrap_or_else(|_| panic!("the sequence of seed {seed} fails"))] += 1;
    }
    // The sequences get everywhere: to the end of the plan, and to the repeated attempt after it.
    assert!(attempts[..=LIMITS.max_steps + 1].iter().all(|count| *count > 100), "{attempts:?}");
}

proptest! {
    /// Shrinks a sequence that fails.
    #[test]
    fn arbitrary_event_orders_keep_the_promises(
        choices in prop::collection::vec(any::<usize>(), 0..300)
    ) {
        let mut choices = choices.into_iter();
        run(&Inputs::new(), &mut |below| choices.next().unwrap_or_default() % below);
    }
}
