//! Property tests of the dispatcher: simulated engines and clients send arbitrary events, and a
//! model of the dispatcher's inputs and promises checks its effects.

mod changes;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use self::changes::{Change, change};
use super::super::*;
use super::{rules, s, setup};
use crate::advice::Switching;
use crate::lifecycle::EngineState;

/// One step of a test.
#[derive(Debug, Clone)]
enum Step {
    Arrive {
        lane: u32,
        priority: i32,
        flow: u64,
        wait: u64,
        switching: Switching,
        has_fallback: bool,
    },
    Cancel(usize),
    Release {
        which: usize,
        failed: bool,
        severed: bool,
    },
    /// A busy engine completes the operation that it was told to do, or fails.
    FinishOperation {
        which: usize,
        fails: bool,
    },
    /// The engine crashes; remains of it may linger for a while.
    Crash {
        lane: u32,
        lingers: bool,
    },
    LaneHint {
        lane: u32,
        hint: Option<LaneHint>,
        until: u64,
    },
    /// An event that the engine's state does not allow, as of an earlier generation.
    LateEvent {
        lane: u32,
        event: u8,
    },
    /// The operator does something with a lane by hand.
    Command {
        lane: u32,
        command: LaneCommand,
    },
    /// The operator changes the configuration.
    Configure(Change),
    Wait(u64),
}

const LANES: u32 = 7;
const LIMITS: QueueLimits = QueueLimits { per_lane: 12, total: 30 };

fn step() -> impl Strategy<Value = Step> {
    let switching = prop_oneof![
        6 => Just(Switching::Allow),
        1 => Just(Switching::WhenIdle),
        1 => Just(Switching::Never)
    ];
    let hint = prop_oneof![
        Just(None),
        Just(Some(LaneHint::Load)),
        Just(Some(LaneHint::Release)),
        Just(Some(LaneHint::Keep))
    ];
    let command = prop_oneof![
        2 => Just(LaneCommand::Load),
        1 => any::<bool>().prop_map(|hold| LaneCommand::Unload { hold }),
        1 => Just(LaneCommand::Drain),
        1 => Just(LaneCommand::Resume),
        1 => Just(LaneCommand::Restart)
    ];
    prop_oneof![
        2 => (0..LANES, command).prop_map(|(lane, command)| Step::Command { lane, command }),
        2 => change().prop_map(Step::Configure),
        8 => (0..LANES + 1, -2..3, 0..4u64, 0..2000u64, switching, any::<bool>()).prop_map(
            |(lane, priority, flow, wait, switching, has_fallback)| Step::Arrive {
                lane, priority, flow, wait, switching, has_fallback
            }
        ),
        2 => any::<usize>().prop_map(Step::Cancel),
        7 => (any::<usize>(), prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(which, failed, severed)| Step::Release { which, failed, severed }),
        6 => (any::<usize>(), prop::bool::weighted(0.2))
            .prop_map(|(which, fails)| Step::FinishOperation { which, fails }),
        1 => (0..LANES, any::<bool>()).prop_map(|(lane, lingers)| Step::Crash { lane, lingers }),
        1 => (0..LANES, hint, 0..300u64)
            .prop_map(|(lane, hint, until)| Step::LaneHint { lane, hint, until }),
        1 => (0..LANES, 0..4u8).prop_map(|(lane, event)| Step::LateEvent { lane, event }),
        5 => (1..60u64).prop_map(Step::Wait),
    ]
}

/// The state of an engine, as its supervisor knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Off,
    Loading,
    On,
    Stopping,
    StoppingFully,
    /// Being stopped, and not put to sleep, while it holds all of its memory.
    Ending,
    Dying,
    Asleep,
}

impl Engine {
    fn is_busy(self) -> bool {
        matches!(
            self,
            Self::Loading | Self::Stopping | Self::StoppingFully | Self::Ending | Self::Dying
        )
    }
}

struct Model {
    dispatcher: Dispatcher,
    /// The configuration; `None` for a lane that has been removed.
    setups: Vec<Option<LaneSetup>>,
    budgets: [u64; 2],
    /// The group, need and memory asleep of each engine when it was loaded.
    held: Vec<(usize, u64, u64)>,
    /// The most slots since the running requests last fitted.
    max_running: Vec<u32>,
    with_drain_timeout: bool,
    now: Duration,
    engines: Vec<Engine>,
    /// Waiting tickets, with their deadlines.
    waiting: BTreeMap<u64, Duration>,
    leases: Vec<(LaneId, Generation, FlowId)>,
    generations: HashMap<LaneId, Generation>,
    tickets: u64,
    rules: Rules,
    /// The setups at the start.
    first: Vec<LaneSetup>,
    /// The lanes that waiting or earlier requests may load.
    loaders: HashMap<u64, LaneId>,
    /// Lanes that the operator has unloaded, and nothing that may load them has happened since.
    unloaded: BTreeSet<LaneId>,
}

impl Model {
    fn new(with_drain_timeout: bool) -> Self {
        let always = LaneSetup { residency: Residency::Always, ..setup(1, 0, 4) };
        let sleeper = LaneSetup { asleep: 3 << 30, ..setup(2, 0, 10) };
        let brief = LaneSetup {
            residency: Residency::OnDemand { preload: true, unload_after: Some(s(30)) },
            ..setup(2, 0, 5)
        };
        let external = LaneSetup { residency: Residency::External, ..setup(2, 99, 0) };
        let setups =
            vec![setup(2, 0, 10), sleeper, brief, always, setup(1, 1, 6), setup(3, 1, 6), external];
        let rules =
            Rules { queue: LIMITS, drain_timeout: with_drain_timeout.then_some(s(20)), ..rules() };
        let budgets = [20 << 30, 6 << 30];
        let groups = budgets.map(|budget| GroupSetup { budget });
        let first = setups.clone();
        let mut model = Self {
            dispatcher: Dispatcher::new(setups.clone(), &groups, rules),
            engines: vec![Engine::Off; setups.len()],
            held: setups.iter().map(|setup| (setup.group, setup.need, setup.asleep)).collect(),
            max_running: setups.iter().map(|setup| setup.slots).collect(),
            setups: setups.into_iter().map(Some).collect(),
            budgets,
            with_drain_timeout,
            now: Duration::ZERO,
            waiting: BTreeMap::new(),
            leases: Vec::new(),
            generations: HashMap::new(),
            tickets: 0,
            rules,
            first,
            loaders: HashMap::new(),
            unloaded: BTreeSet::new(),
        };
        model.engines[6] = Engine::Loading;
        model
    }

    fn send(&mut self, event: Event) -> Result<(), TestCaseError> {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        for effect in effects {
            self.apply(effect)?;
        }
        self.check()
    }

    fn apply(&mut self, effect: Effect) -> Result<(), TestCaseError> {
        match effect {
            Effect::Grant { ticket, lane, generation, flow, .. } => {
                prop_assert!(self.waiting.remove(&ticket.0).is_some(), "{ticket:?} ended twice");
                prop_assert_eq!(
                    self.engines[lane.index()],
                    Engine::On,
                    "granted a slot of a lane that does not serve"
                );
                let mode = self.dispatcher.lane_mode(lane);
                prop_assert!(mode.is_none_or(|mode| !mode.is_paused()), "granted while {mode:?}");
                self.generations.insert(lane, generation);
                self.leases.push((lane, generation, flow));
            }
            Effect::Reject { ticket, .. } => {
                prop_assert!(self.waiting.remove(&ticket.0).is_some(), "{ticket:?} ended twice");
            }
            Effect::Load(lane) => {
                let engine = self.engines[lane.index()];
                prop_assert!(
                    matches!(engine, Engine::Off | Engine::Asleep),
                    "load while {engine:?}"
                );
                let mode = self.dispatcher.lane_mode(lane);
                prop_assert!(mode != Some(LaneMode::Held), "loaded a lane that is held");
                prop_assert!(!self.unloaded.contains(&lane), "loaded after it was unloaded");
                let setup = self.setups[lane.index()].as_ref();
                let Some(setup) = setup else { panic!("loaded a lane that was removed") };
                self.engines[lane.index()] = Engine::Loading;
                let group = setup.group;
                self.held[lane.index()] = (group, setup.need, setup.asleep);
                if let Some(budget) = self.budgets.get(group) {
                    prop_assert!(
                        self.held(group) <= *budget,
                        "loaded beyond the memory budget: {:?}",
                        self.dispatcher
                    );
                }
            }
            Effect::Unload { lane, fully } => {
                let engine = self.engines[lane.index()];
                let is_on = engine == Engine::On;
                prop_assert!(!is_on || self.held_leases(lane) == 0, "unloaded a lane with leases");
                let is_leaving = self.dispatcher.lanes[lane.index()].leaving;
                let residency = self.setups[lane.index()].as_ref().map(|setup| setup.residency);
                prop_assert!(is_leaving || residency != Some(Residency::Always));
                self.engines[lane.index()] = match (engine, fully) {
                    (Engine::Asleep, true) => Engine::StoppingFully,
                    (Engine::On, false) => Engine::Stopping,
                    (Engine::On | Engine::Loading, true) if is_leaving => Engine::Ending,
                    _ => return Err(TestCaseError::fail(format!("unloaded while {engine:?}"))),
                };
            }
            Effect::Abort { .. } => {
                prop_assert!(self.with_drain_timeout, "aborted a stream without a timeout");
            }
            Effect::Switched(_) => {}
        }
        Ok(())
    }

    fn held(&self, group: usize) -> u64 {
        let of_group = self.held.iter().zip(&self.engines).filter(|((of, ..), _)| *of == group);
        of_group
            .map(|((_, need, asleep), engine)| match engine {
                Engine::Off => 0,
                Engine::Asleep | Engine::StoppingFully => *asleep,
                _ => *need,
            })
            .sum()
    }

    fn held_leases(&self, lane: LaneId) -> usize {
        let current = self.generations.get(&lane);
        self.leases
            .iter()
            .filter(|(of, generation, _)| *of == lane && Some(generation) == current)
            .count()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.dispatcher.queued(), self.waiting.len());
        prop_assert!(self.waiting.len() <= LIMITS.total);
        for stat in self.dispatcher.stats(self.now) {
            let Some(setup) = &self.setups[stat.id.index()] else {
                return Err(TestCaseError::fail("shows a lane that was removed"));
            };
            let (slots, max_running) = (setup.slots, &mut self.max_running[stat.id.index()]);
            prop_assert!(stat.running <= *max_running && stat.queued as usize <= LIMITS.per_lane);
            *max_running = slots.max(stat.running);
            let is_paused = self.dispatcher.lane_mode(stat.id).is_some_and(LaneMode::is_paused);
            prop_assert!(!is_paused || stat.queued == 0, "waits for a lane that is paused");
            if self.engines[stat.id.index()] == Engine::On {
                prop_assert_eq!(stat.running as usize, self.held_leases(stat.id));
                let state = self.dispatcher.engine_state(stat.id);
                let suspect = self.dispatcher.lanes[stat.id.index()].suspect_until > self.now;
                let idle_slot = state == Some(EngineState::Ready)
                    && stat.running < slots
                    && !suspect
                    && !is_paused;
                prop_assert!(
                    !idle_slot || stat.queued == 0,
                    "a slot is free while a request waits for it"
                );
            }
        }
        let overdue = self.waiting.iter().find(|(_, deadline)| **deadline < self.now);
        prop_assert!(
            overdue.is_none(),
            "{:?} waits beyond its deadline at {:?}",
            overdue,
            self.now
        );
        Ok(())
    }

    /// Advances the clock by `time` and sends the ticks that the dispatcher asks for.
    fn wait(&mut self, time: Duration) -> Result<(), TestCaseError> {
        let end = self.now + time;
        while let Some(wake) = self.dispatcher.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.send(Event::Tick)?;
            let next = self.dispatcher.next_wake();
            prop_assert!(
                next.is_none_or(|next| next > self.now),
                "unnecessary wake-up at {:?}",
                self.now
            );
        }
        self.now = end;
        Ok(())
    }

    fn engine_event(
        &mut self,
        lane: usize,
        engine: Engine,
        event: EngineEvent,
    ) -> Result<(), TestCaseError> {
        self.engines[lane] = engine;
        let lane = LaneId(u32::try_from(lane).unwrap());
        if engine == Engine::On {
            // A new generation begins; its number is known from the first grant.
            self.generations.remove(&lane);
        }
        self.send(Event::Engine { lane, news: event })
    }

    fn finish_operation(&mut self, which: usize, fails: bool) -> Result<(), TestCaseError> {
        let busy: Vec<usize> =
            (0..self.engines.len()).filter(|lane| self.engines[*lane].is_busy()).collect();
        let Some(lane) = busy.get(which % busy.len().max(1)).copied() else { return Ok(()) };
        let sleeps = self.held[lane].2 > 0 && which.is_multiple_of(2);
        let stopped = EngineEvent::Stopped { asleep: false };
        match (self.engines[lane], fails) {
            (Engine::Loading, true) => {
                self.engine_event(lane, Engine::Off, EngineEvent::LoadFailed("oom".into()))
            }
            (Engine::Loading, false) => self.engine_event(lane, Engine::On, EngineEvent::Ready),
            (Engine::Dying, _) => {
                self.engine_event(lane, Engine::Off, EngineEvent::Lost("crashed".into()))
            }
            (Engine::Stopping, false) if sleeps => {
                self.engine_event(lane, Engine::Asleep, EngineEvent::Stopped { asleep: true })
            }
            (Engine::Ending, true) => {
                // It failed before it was stopped; the command is answered after that. The
                // answer does not count if the engine has been replaced.
                let id = LaneId(u32::try_from(lane).unwrap());
                let was_pending = self.dispatcher.is_restart_pending(id);
                self.engine_event(lane, Engine::Off, EngineEvent::LoadFailed("late".into()))?;
                let is_replaced = was_pending || self.setups[lane].is_none();
                if is_replaced {
                    Ok(())
                } else {
                    self.send(Event::Engine { lane: id, news: stopped })
                }
            }
            (_, _) => self.engine_event(lane, Engine::Off, stopped),
        }
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive { lane, priority, flow, wait, switching, has_fallback } => {
                self.tickets += 1;
                let deadline = self.now + Duration::from_secs(wait);
                self.waiting.insert(self.tickets, deadline.max(self.now));
                if switching != Switching::Never {
                    self.loaders.insert(self.tickets, LaneId(lane));
                    self.unloaded.remove(&LaneId(lane));
                }
                self.send(Event::Arrived(Enqueue {
                    ticket: Ticket(self.tickets),
                    lane: LaneId(lane),
                    priority,
                    flow: FlowId(flow),
                    weight: u32::try_from(flow).unwrap() + 1,
                    deadline,
                    switching,
                    has_fallback,
                    has_begun: false,
                }))
            }
            Step::Cancel(which) => {
                let Some(ticket) =
                    self.waiting.keys().nth(which % self.waiting.len().max(1)).copied()
                else {
                    return self.send(Event::Cancelled(Ticket(u64::MAX)));
                };
                self.waiting.remove(&ticket);
                self.send(Event::Cancelled(Ticket(ticket)))
            }
            Step::Release { which, failed, severed } => {
                if self.leases.is_empty() {
                    return Ok(());
                }
                let (lane, generation, flow) = self.leases.swap_remove(which % self.leases.len());
                let first_byte = (!failed).then_some(s(1));
                let report = Report { held: s(5), first_byte, failed, severed };
                self.send(Event::Released { lane, generation, flow, report })
            }
            Step::FinishOperation { which, fails } => self.finish_operation(which, fails),
            Step::Configure(change) => self.configure(&change),
            Step::Crash { lane, lingers } => self.crash(lane as usize, lingers),
            Step::LaneHint { lane, hint, until } => {
                self.unloaded.remove(&LaneId(lane));
                self.send(Event::Hinted { lane: LaneId(lane), hint, until: self.now + s(until) })
            }
            Step::LateEvent { lane, event } => {
                let engine = self.engines[lane as usize];
                let event = match event {
                    0 if engine != Engine::Loading => EngineEvent::Ready,
                    1 if engine == Engine::Off => EngineEvent::Lost("late".into()),
                    2 if engine == Engine::Off => EngineEvent::LoadFailed("late".into()),
                    3 if matches!(engine, Engine::On | Engine::Loading) => {
                        EngineEvent::Stopped { asleep: true }
                    }
                    _ => return Ok(()),
                };
                // An external engine may become ready without having been lost.
                if self.is_external(lane as usize) {
                    return Ok(());
                }
                self.send(Event::Engine { lane: LaneId(lane), news: event })
            }
            Step::Command { lane, command } => self.command(LaneId(lane), command),
            Step::Wait(seconds) => self.wait(s(seconds)),
        }
    }

    fn crash(&mut self, lane: usize, lingers: bool) -> Result<(), TestCaseError> {
        // Its waiting requests are served by the next engine.
        self.unloaded.remove(&LaneId(u32::try_from(lane).unwrap()));
        match self.engines[lane] {
            Engine::On if lingers && !self.is_external(lane) => {
                self.engine_event(lane, Engine::Dying, EngineEvent::Dying("crashed".into()))
            }
            Engine::On => self.engine_event(lane, Engine::Off, EngineEvent::Lost("crashed".into())),
            _ => Ok(()),
        }
    }

    /// Carries out a command of the operator. One that is rejected changes nothing.
    fn command(&mut self, lane: LaneId, command: LaneCommand) -> Result<(), TestCaseError> {
        let before = self.dispatcher.lane_mode(lane);
        let mut effects = Vec::new();
        let result = self.dispatcher.command(lane, command, self.now, &mut effects);
        match result {
            Err(_) => prop_assert_eq!(self.dispatcher.lane_mode(lane), before),
            Ok(()) => self.note_command(lane, command),
        }
        for effect in effects {
            self.apply(effect)?;
        }
        self.check()
    }

    fn is_external(&self, lane: usize) -> bool {
        let setup = self.setups[lane].as_ref();
        setup.is_some_and(|setup| setup.residency == Residency::External)
    }

    /// Lets everything succeed without new requests: no request may be left waiting after a while.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for lane in 0..self.engines.len() {
            if self.is_external(lane) && self.engines[lane] == Engine::Off {
                self.engine_event(lane, Engine::On, EngineEvent::Ready)?;
            }
            let id = LaneId(u32::try_from(lane).unwrap());
            if self.dispatcher.lane_mode(id).is_some_and(LaneMode::is_paused) {
                self.command(id, LaneCommand::Load)?;
            }
        }
        let started = self.now;
        while !self.waiting.is_empty() || !self.leases.is_empty() || !self.is_settled() {
            prop_assert!(self.now < started + s(4000), "stuck: {:?}", self.dispatcher);
            self.wait(s(5))?;
            for round in 0.. {
                if !self.engines.iter().any(|engine| engine.is_busy()) {
                    break;
                }
                prop_assert!(
                    round < 100,
                    "endless switching without time passing: {:?}",
                    self.dispatcher
                );
                self.finish_operation(0, false)?;
            }
            for _ in 0..self.leases.len() {
                self.run(Step::Release { which: 0, failed: false, severed: false })?;
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// At least 100,000 steps per run, also with lanes that are added, restarted, moved and removed
    /// meanwhile: nothing is left of a removed lane at the end; every ticket ends exactly once; no
    /// lane runs more requests than it has slots or is unloaded with leases; no group exceeds its
    /// memory budget; no wait exceeds its deadline; no slot is free while a request waits for it;
    /// no lane that the operator has paused gets a request; no wake-up is unnecessary; no request
    /// is left waiting once everything succeeds.
    #[test]
    fn invariants_hold_for_any_sequence_of_events(
        with_drain_timeout in any::<bool>(),
        steps in prop::collection::vec(step(), 100..250),
    ) {
        let mut model = Model::new(with_drain_timeout);
        model.send(Event::Tick)?;
        for step in steps {
            model.run(step)?;
        }
        model.settle()?;
        model.send(Event::Closed)?;
        prop_assert!(model.waiting.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// No request is rejected because the queue is full while another flow could give a place and
    /// keep at least as many for its weight as the flow of the request would get. A displaced
    /// request leaves its flow at least as many for its weight as the flow that took the place.
    #[test]
    fn places_of_a_full_queue_are_shared_between_flows(
        arrivals in prop::collection::vec((0..6u64, -1..2, any::<bool>()), 1..150),
        weights in prop::array::uniform6(1u32..5),
        are_equal in any::<bool>(),
    ) {
        let rules = Rules { queue: QueueLimits { per_lane: 9, total: 9 }, ..rules() };
        let groups = [GroupSetup { budget: 20 << 30 }];
        // Its engine never becomes ready, so that all requests wait.
        let mut dispatcher = Dispatcher::new(vec![setup(1, 0, 10)], &groups, rules);
        let mut waiting: BTreeMap<u64, u64> = BTreeMap::new();
        let weight = |flow: u64| if are_equal { 1 } else { weights[flow as usize] };
        for (ticket, (flow, priority, cancels)) in (1..).zip(arrivals) {
            let mut effects = Vec::new();
            if cancels && let Some((ticket, _)) = waiting.pop_first() {
                dispatcher.on(Event::Cancelled(Ticket(ticket)), s(0), &mut effects);
            }
            waiting.insert(ticket, flow);
            dispatcher.on(Event::Arrived(Enqueue {
                ticket: Ticket(ticket),
                lane: LaneId(0),
                priority,
                flow: FlowId(flow),
                weight: weight(flow),
                deadline: s(1000),
                switching: Switching::Allow,
                has_fallback: false,
                has_begun: false,
            }), s(0), &mut effects);
            for effect in effects {
                let Effect::Reject { ticket: rejected, refusal } = effect else { continue };
                prop_assert!(matches!(refusal, AcquireError::QueueFull { .. }), "{refusal:?}");
                let loser = waiting.remove(&rejected.0).unwrap();
                let count = |flow| waiting.values().filter(|other| **other == flow).count() as u32;
                for other in 0..6 {
                    let keeps = count(other).saturating_sub(1) * weight(loser);
                    let lacks = (count(loser) + 1) * weight(other);
                    prop_assert!(keeps < lacks, "{waiting:?} without {loser}");
                }
                if rejected.0 != ticket {
                    let (keeps, gets) = (count(loser) * weight(flow), count(flow) * weight(loser));
                    prop_assert!(keeps >= gets, "{waiting:?} without {loser}");
                }
            }
            prop_assert_eq!(dispatcher.queued(), waiting.len());
            prop_assert!(waiting.len() <= 9);
        }
    }
}
