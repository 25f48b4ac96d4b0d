//! Random changes of the configuration.

use proptest::prelude::*;

use super::{Engine, Model};
use crate::dispatch::*;
use crate::fleet_view::LaneId;

/// A change of the configuration.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// A lane with a new command, and perhaps another need of memory.
    Restart {
        lane: usize,
        need_gib: u64,
    },
    Remove {
        lane: usize,
    },
    /// A lane like one of the first ones.
    Add {
        like: usize,
    },
    Slots {
        lane: usize,
        slots: u32,
    },
    /// The lane joins another group: at once, or with a new command.
    Move {
        lane: usize,
        group: usize,
        restarts: bool,
    },
    Budget {
        group: usize,
        gib: u64,
    },
    /// All groups and lanes are written in another order.
    SwapGroups,
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (any::<usize>(), 1..12u64)
            .prop_map(|(lane, need_gib)| Change::Restart { lane, need_gib }),
        2 => any::<usize>().prop_map(|lane| Change::Remove { lane }),
        2 => (0..7usize).prop_map(|like| Change::Add { like }),
        1 => (any::<usize>(), 1..5u32).prop_map(|(lane, slots)| Change::Slots { lane, slots }),
        1 => (any::<usize>(), 0..3usize, any::<bool>())
            .prop_map(|(lane, group, restarts)| Change::Move { lane, group, restarts }),
        1 => (0..2usize, 5..30u64).prop_map(|(group, gib)| Change::Budget { group, gib }),
        1 => Just(Change::SwapGroups),
    ]
}

impl Model {
    /// Changes the configuration, unless the result would not be valid.
    pub(super) fn configure(&mut self, change: &Change) -> Result<(), TestCaseError> {
        let live: Vec<usize> =
            (0..self.setups.len()).filter(|lane| self.setups[*lane].is_some()).collect();
        let pick = |lane: usize| live.get(lane % live.len().max(1)).copied();
        let (mut setups, mut budgets) = (self.setups.clone(), self.budgets);
        let (mut restarted, mut added) = (None, None);
        let mut order = [Some(0), Some(1)];
        match *change {
            Change::Restart { lane, need_gib } => {
                restarted = pick(lane);
                if let Some(setup) = restarted.and_then(|lane| setups[lane].as_mut())
                    && setup.residency != Residency::External
                {
                    setup.need = need_gib << 30;
                    setup.asleep = setup.asleep.min(setup.need);
                }
            }
            Change::Remove { lane } => {
                let Some(lane) = pick(lane) else { return Ok(()) };
                setups[lane] = None;
            }
            Change::Add { like } => {
                let setup = Some(self.first[like].clone());
                let ids = 0..u32::try_from(setups.len()).unwrap();
                let vacant = ids.map(LaneId).find(|id| self.dispatcher.is_vacant(*id));
                added = Some(vacant.map_or(setups.len(), LaneId::index));
                match vacant {
                    Some(id) => setups[id.index()] = setup,
                    None if setups.len() < 12 => setups.push(setup),
                    None => return Ok(()),
                }
            }
            Change::Slots { lane, slots } => {
                let setup = pick(lane).and_then(|lane| setups[lane].as_mut());
                if let Some(setup) = setup {
                    setup.slots = slots;
                }
            }
            Change::Move { lane, group, restarts } => {
                let Some(lane) = pick(lane) else { return Ok(()) };
                if let Some(setup) = &mut setups[lane]
                    && setup.residency != Residency::External
                {
                    setup.group = group;
                }
                restarted = restarts.then_some(lane);
            }
            Change::Budget { group, gib } => budgets[group] = gib << 30,
            Change::SwapGroups => {
                let swapped = |group: usize| if group < 2 { 1 - group } else { group };
                setups.iter_mut().flatten().for_each(|setup| setup.group = swapped(setup.group));
                self.held.iter_mut().for_each(|held| held.0 = swapped(held.0));
                (budgets, order) = ([budgets[1], budgets[0]], [Some(1), Some(0)]);
            }
        }
        if !is_valid(&setups, &budgets) {
            return Ok(());
        }
        (self.setups, self.budgets) = (setups, budgets);
        self.unloaded.clear();
        self.take_up(restarted, added, order)
    }

    /// Lets the dispatcher take up the configuration.
    fn take_up(
        &mut self,
        restarted: Option<usize>,
        added: Option<usize>,
        order: [Option<usize>; 2],
    ) -> Result<(), TestCaseError> {
        let mut lanes = Vec::new();
        for (lane, setup) in self.setups.iter().enumerate() {
            lanes.push(match setup.clone() {
                None => LaneUpdate::Retired,
                Some(setup) if added == Some(lane) => LaneUpdate::Added(setup),
                Some(setup) if restarted == Some(lane) => LaneUpdate::Restarted(setup),
                Some(setup) => LaneUpdate::Kept(setup),
            });
        }
        if let Some(lane) = added {
            let setup = self.setups[lane].clone().unwrap();
            let is_external = setup.residency == Residency::External;
            let held = (setup.group, setup.need, setup.asleep);
            self.engines.resize(self.setups.len(), Engine::Off);
            self.held.resize(self.setups.len(), held);
            self.max_running.resize(self.setups.len(), setup.slots);
            (self.held[lane], self.max_running[lane]) = (held, setup.slots);
            self.engines[lane] = if is_external { Engine::Loading } else { Engine::Off };
        }
        for (lane, setup) in self.setups.iter().enumerate() {
            let id = LaneId(u32::try_from(lane).unwrap());
            let is_restarting = self.dispatcher.is_restart_pending(id) || restarted == Some(lane);
            match setup {
                None => {
                    // Nothing is commanded of an engine that the host does not run.
                    let lanes = &self.dispatcher.lanes;
                    if lanes[lane].setup.residency == Residency::External {
                        self.engines[lane] = Engine::Off;
                    }
                }
                Some(setup) if setup.residency == Residency::External => {
                    if restarted == Some(lane) {
                        self.engines[lane] = Engine::Loading;
                        self.generations.remove(&id);
                    }
                }
                Some(setup) => {
                    if !is_restarting {
                        self.held[lane] = (setup.group, setup.need, setup.asleep);
                    }
                }
            }
            let slots = setup.as_ref().map_or(0, |setup| setup.slots);
            self.max_running[lane] = self.max_running[lane].max(slots);
        }
        let groups = self.budgets.map(|budget| GroupSetup { budget }).into_iter().zip(order);
        let new = Reconfiguration { lanes, groups: groups.collect(), rules: self.rules };
        let mut effects = Vec::new();
        self.dispatcher.reconfigure(new, self.now, &mut effects);
        for effect in effects {
            self.apply(effect)?;
        }
        self.check()
    }

    /// Returns true if nothing is left of the lanes that were removed or restarted, and the groups
    /// keep to their budgets.
    pub(super) fn is_settled(&self) -> bool {
        let lanes = (0..).map(LaneId).zip(self.setups.iter().zip(&self.engines));
        let mut lanes = lanes.map(|(id, (setup, engine))| match setup {
            None => self.dispatcher.is_vacant(id) && *engine == Engine::Off,
            Some(_) => {
                let is_leaving = self.dispatcher.lanes[id.index()].leaving;
                !is_leaving && (self.dispatcher.lane_mode(id).is_none() || self.may_not_fit(id))
            }
        });
        lanes.all(|is_settled| is_settled)
            && (0..2).all(|group| self.held(group) <= self.budgets[group])
    }
}

impl Model {
    /// Notes whether a command leaves nothing that may load the lane.
    pub(super) fn note_command(&mut self, lane: LaneId, command: LaneCommand) {
        self.unloaded.remove(&lane);
        let setup = self.setups[lane.index()].as_ref();
        let is_on_demand =
            setup.is_some_and(|setup| matches!(setup.residency, Residency::OnDemand { .. }));
        let mut loaders = self.waiting.keys().filter_map(|ticket| self.loaders.get(ticket));
        let is_demanded = loaders.any(|other| *other == lane);
        if matches!(command, LaneCommand::Unload { .. }) && is_on_demand && !is_demanded {
            self.unloaded.insert(lane);
        }
    }

    /// Returns true if lanes that sleep may leave too little memory for a lane. A request waits in
    /// vain then, until its deadline, and a load by hand until it is revoked.
    fn may_not_fit(&self, id: LaneId) -> bool {
        let Some(setup) = &self.setups[id.index()] else { return false };
        let Some(budget) = self.budgets.get(setup.group) else { return false };
        let others = self.setups.iter().enumerate().filter(|(lane, _)| *lane != id.index());
        let others = others.filter_map(|(_, other)| other.as_ref());
        let kept = others.filter(|other| other.group == setup.group).map(|other| {
            let is_always = other.residency == Residency::Always;
            if is_always { other.need } else { other.asleep }
        });
        kept.sum::<u64>() + setup.need > *budget
    }
}

/// Returns true if the lanes of each group can be loaded, one on-demand lane at a time.
fn is_valid(setups: &[Option<LaneSetup>], budgets: &[u64; 2]) -> bool {
    budgets.iter().enumerate().all(|(group, budget)| {
        let lanes = || setups.iter().flatten().filter(|setup| setup.group == group);
        let is_always = |setup: &&LaneSetup| setup.residency == Residency::Always;
        let always: u64 = lanes().filter(is_always).map(|setup| setup.need).sum();
        let most = lanes().filter(|setup| !is_always(setup)).map(|setup| setup.need).max();
        always + most.unwrap_or(0) <= *budget
    })
}
