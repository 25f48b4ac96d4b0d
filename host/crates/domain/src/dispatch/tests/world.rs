//! What holds for any sequence of events: a made-up world of engines and clients drives the dispatcher, and a model of what
//! it was told and what it promised watches it.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::super::*;
use super::{rules, s, setup};
use crate::advice::Switching;
use crate::lifecycle::EngineState;

/// One thing that happens.
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
    /// The engine does what it was told to, or fails to.
    Obey {
        which: usize,
        fails: bool,
    },
    /// The engine ends unasked; something of it may be left for a while.
    Crash {
        lane: u32,
        lingers: bool,
    },
    LaneHint {
        lane: u32,
        hint: Option<LaneHint>,
        until: u64,
    },
    /// News that make no sense, as of an engine's earlier life.
    LateNews {
        lane: u32,
        news: u8,
    },
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
    prop_oneof![
        8 => (0..LANES + 1, -2..3, 0..4u64, 0..2000u64, switching, any::<bool>()).prop_map(
            |(lane, priority, flow, wait, switching, has_fallback)| Step::Arrive {
                lane, priority, flow, wait, switching, has_fallback
            }
        ),
        2 => any::<usize>().prop_map(Step::Cancel),
        7 => (any::<usize>(), prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(which, failed, severed)| Step::Release { which, failed, severed }),
        6 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(which, fails)| Step::Obey { which, fails }),
        1 => (0..LANES, any::<bool>()).prop_map(|(lane, lingers)| Step::Crash { lane, lingers }),
        1 => (0..LANES, hint, 0..300u64).prop_map(|(lane, hint, until)| Step::LaneHint { lane, hint, until }),
        1 => (0..LANES, 0..4u8).prop_map(|(lane, news)| Step::LateNews { lane, news }),
        5 => (1..60u64).prop_map(Step::Wait),
    ]
}

/// What an engine is doing, as its supervisor would know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Off,
    Loading,
    On,
    Stopping,
    StoppingFully,
    Dying,
    Asleep,
}

impl Engine {
    fn busy(self) -> bool {
        matches!(self, Self::Loading | Self::Stopping | Self::StoppingFully | Self::Dying)
    }
}

struct World {
    dispatcher: Dispatcher,
    setups: Vec<LaneSetup>,
    budgets: [u64; 2],
    now: Duration,
    engines: Vec<Engine>,
    /// Those who wait, with their deadlines.
    waiting: BTreeMap<u64, Duration>,
    leases: Vec<(LaneId, Generation)>,
    generations: HashMap<LaneId, Generation>,
    tickets: u64,
}

impl World {
    fn new(cut: bool) -> Self {
        let always = LaneSetup { residency: Residency::Always, ..setup(1, 0, 4) };
        let sleeper = LaneSetup { asleep: 3 << 30, ..setup(2, 0, 10) };
        let brief = LaneSetup {
            residency: Residency::OnDemand { preload: true, unload_after: Some(s(30)) },
            ..setup(2, 0, 5)
        };
        let external = LaneSetup { residency: Residency::External, ..setup(2, 99, 0) };
        let setups =
            vec![setup(2, 0, 10), sleeper, brief, always, setup(1, 1, 6), setup(3, 1, 6), external];
        let rules = Rules { queue: LIMITS, drain_timeout: cut.then_some(s(20)), ..rules() };
        let budgets = [20 << 30, 6 << 30];
        let groups = budgets.map(|budget| GroupSetup { budget });
        let mut world = Self {
            dispatcher: Dispatcher::new(setups.clone(), &groups, rules),
            engines: vec![Engine::Off; setups.len()],
            setups,
            budgets,
            now: Duration::ZERO,
            waiting: BTreeMap::new(),
            leases: Vec::new(),
            generations: HashMap::new(),
            tickets: 0,
        };
        world.engines[6] = Engine::Loading;
        world
    }

    fn tell(&mut self, event: Event) -> Result<(), TestCaseError> {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        for effect in effects {
            self.take_in(effect)?;
        }
        self.check()
    }

    fn take_in(&mut self, effect: Effect) -> Result<(), TestCaseError> {
        match effect {
            Effect::Grant { ticket, lane, generation, .. } => {
                prop_assert!(self.waiting.remove(&ticket.0).is_some(), "{ticket:?} ended twice");
                prop_assert_eq!(
                    self.engines[lane.index()],
                    Engine::On,
                    "granted a lane that does not serve"
                );
                self.generations.insert(lane, generation);
                self.leases.push((lane, generation));
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
                self.engines[lane.index()] = Engine::Loading;
                let group = self.setups[lane.index()].group;
                if let Some(budget) = self.budgets.get(group) {
                    prop_assert!(
                        self.held(group) <= *budget,
                        "loaded without room: {:?}",
                        self.dispatcher
                    );
                }
            }
            Effect::Unload { lane, fully } => {
                let engine = self.engines[lane.index()];
                let wanted = if fully { Engine::Asleep } else { Engine::On };
                prop_assert_eq!(engine, wanted, "a lane that does not serve is no victim");
                prop_assert_eq!(self.held_leases(lane), 0, "unloaded under a lease");
                prop_assert_ne!(self.setups[lane.index()].residency, Residency::Always);
                self.engines[lane.index()] =
                    if fully { Engine::StoppingFully } else { Engine::Stopping };
            }
            Effect::Abort { .. } | Effect::Switched(_) => {}
        }
        Ok(())
    }

    fn held(&self, group: usize) -> u64 {
        let of_group =
            self.setups.iter().zip(&self.engines).filter(|(setup, _)| setup.group == group);
        of_group
            .map(|(setup, engine)| match engine {
                Engine::Off => 0,
                Engine::Asleep | Engine::StoppingFully => setup.asleep,
                _ => setup.need,
            })
            .sum()
    }

    fn held_leases(&self, lane: LaneId) -> usize {
        let current = self.generations.get(&lane);
        self.leases
            .iter()
            .filter(|(of, generation)| *of == lane && Some(generation) == current)
            .count()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.dispatcher.queued(), self.waiting.len());
        prop_assert!(self.waiting.len() <= LIMITS.total);
        for stat in self.dispatcher.stats(self.now) {
            let slots = self.setups[stat.id.index()].slots;
            prop_assert!(stat.running <= slots && stat.queued as usize <= LIMITS.per_lane);
            if self.engines[stat.id.index()] == Engine::On {
                prop_assert_eq!(stat.running as usize, self.held_leases(stat.id));
                let state = self.dispatcher.engine_state(stat.id);
                let suspect = self.dispatcher.lanes[stat.id.index()].suspect_until > self.now;
                let idle_slot =
                    state == Some(EngineState::Ready) && stat.running < slots && !suspect;
                prop_assert!(
                    !idle_slot || stat.queued == 0,
                    "a slot is free while somebody waits for it"
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

    /// Go forward in time, as far as wanted, waking up as the dispatcher asks.
    fn wait(&mut self, time: Duration) -> Result<(), TestCaseError> {
        let end = self.now + time;
        while let Some(wake) = self.dispatcher.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.tell(Event::Tick)?;
            let next = self.dispatcher.next_wake();
            prop_assert!(
                next.is_none_or(|next| next > self.now),
                "awake for nothing at {:?}",
                self.now
            );
        }
        self.now = end;
        Ok(())
    }

    fn news(
        &mut self,
        lane: usize,
        engine: Engine,
        news: EngineEvent,
    ) -> Result<(), TestCaseError> {
        self.engines[lane] = engine;
        let lane = LaneId(u32::try_from(lane).unwrap());
        if engine == Engine::On {
            // A new life: its generation is the one of its first grant.
            self.generations.remove(&lane);
        }
        self.tell(Event::Engine { lane, news })
    }

    fn obey(&mut self, which: usize, fails: bool) -> Result<(), TestCaseError> {
        let busy: Vec<usize> =
            (0..self.engines.len()).filter(|lane| self.engines[*lane].busy()).collect();
        let Some(lane) = busy.get(which % busy.len().max(1)).copied() else { return Ok(()) };
        let sleeps = self.setups[lane].asleep > 0 && which.is_multiple_of(2);
        match (self.engines[lane], fails) {
            (Engine::Loading, true) => {
                self.news(lane, Engine::Off, EngineEvent::LoadFailed("oom".into()))
            }
            (Engine::Loading, false) => self.news(lane, Engine::On, EngineEvent::Ready),
            (Engine::Dying, _) => self.news(lane, Engine::Off, EngineEvent::Lost("crashed".into())),
            (Engine::Stopping, false) if sleeps => {
                self.news(lane, Engine::Asleep, EngineEvent::Stopped { asleep: true })
            }
            (_, _) => self.news(lane, Engine::Off, EngineEvent::Stopped { asleep: false }),
        }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive { lane, priority, flow, wait, switching, has_fallback } => {
                self.tickets += 1;
                let deadline = self.now + Duration::from_secs(wait);
                self.waiting.insert(self.tickets, deadline.max(self.now));
                self.tell(Event::Arrived(Enqueue {
                    ticket: Ticket(self.tickets),
                    lane: LaneId(lane),
                    priority,
                    flow: FlowId(flow),
                    deadline,
                    switching,
                    has_fallback,
                }))
            }
            Step::Cancel(which) => {
                let Some(ticket) =
                    self.waiting.keys().nth(which % self.waiting.len().max(1)).copied()
                else {
                    return self.tell(Event::Cancelled(Ticket(u64::MAX)));
                };
                self.waiting.remove(&ticket);
                self.tell(Event::Cancelled(Ticket(ticket)))
            }
            Step::Release { which, failed, severed } => {
                if self.leases.is_empty() {
                    return Ok(());
                }
                let (lane, generation) = self.leases.swap_remove(which % self.leases.len());
                let first_byte = (!failed).then_some(s(1));
                let report = Report { held: s(5), first_byte, failed, severed };
                self.tell(Event::Released { lane, generation, report })
            }
            Step::Obey { which, fails } => self.obey(which, fails),
            Step::Crash { lane, lingers } => match self.engines[lane as usize] {
                Engine::On if lingers && lane != 6 => {
                    self.news(lane as usize, Engine::Dying, EngineEvent::Dying("crashed".into()))
                }
                Engine::On => {
                    self.news(lane as usize, Engine::Off, EngineEvent::Lost("crashed".into()))
                }
                _ => Ok(()),
            },
            Step::LaneHint { lane, hint, until } => {
                self.tell(Event::Hinted { lane: LaneId(lane), hint, until: self.now + s(until) })
            }
            Step::LateNews { lane, news } => {
                let engine = self.engines[lane as usize];
                let news = match news {
                    0 if engine != Engine::Loading => EngineEvent::Ready,
                    1 if engine == Engine::Off => EngineEvent::Lost("late".into()),
                    2 if engine == Engine::Off => EngineEvent::LoadFailed("late".into()),
                    3 if matches!(engine, Engine::On | Engine::Loading) => {
                        EngineEvent::Stopped { asleep: true }
                    }
                    _ => return Ok(()),
                };
                // The engine of somebody else may well come back without having been lost.
                if self.setups[lane as usize].residency == Residency::External {
                    return Ok(());
                }
                self.tell(Event::Engine { lane: LaneId(lane), news })
            }
            Step::Wait(seconds) => self.wait(s(seconds)),
        }
    }

    /// From here on everything goes well and nobody comes any more: within a while nobody may be left waiting.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        if self.engines[6] == Engine::Off {
            self.news(6, Engine::On, EngineEvent::Ready)?;
        }
        let begun = self.now;
        while !self.waiting.is_empty() || !self.leases.is_empty() {
            prop_assert!(self.now < begun + s(4000), "stuck: {:?}", self.dispatcher);
            self.wait(s(5))?;
            for turns in 0.. {
                if !self.engines.iter().any(|engine| engine.busy()) {
                    break;
                }
                prop_assert!(
                    turns < 100,
                    "lanes take turns for ever in no time: {:?}",
                    self.dispatcher
                );
                self.obey(0, false)?;
            }
            for _ in 0..self.leases.len() {
                self.take(Step::Release { which: 0, failed: false, severed: false })?;
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// At least 100,000 steps a run: every ticket ends exactly once; no lane runs more than its slots or is unloaded under a
    /// lease; no group holds more than its budget; no wait outlives its deadline; no slot is free while somebody waits for
    /// it; nothing is awake for nothing; nobody is left waiting once everything goes well.
    #[test]
    fn promises_hold_for_any_sequence_of_events(
        cut in any::<bool>(),
        steps in prop::collection::vec(step(), 100..250),
    ) {
        let mut world = World::new(cut);
        world.tell(Event::Tick)?;
        for step in steps {
            world.take(step)?;
        }
        world.settle()?;
        world.tell(Event::Closed)?;
        prop_assert!(world.waiting.is_empty());
    }
}
