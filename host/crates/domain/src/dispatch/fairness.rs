//! Shares the slots of a lane, and the turns in its queue, between flows by their weights.
//!
//! The *share* of a flow is its part of the slots: its weight, divided by the weights of all flows
//! that wait in the same level or hold slots of the lane. A free slot goes to
//!
//! 1. the flows that can have one more whole slot of their share,
//! 2. then those whose share has a part of a slot left,
//! 3. then the others, so that no slot stays free.
//!
//! Long requests of one flow can therefore not hold all slots while other flows wait. Flows of the
//! same kind take turns by *stride scheduling*: each turn costs a flow `1 / weight`, and the flow
//! that has spent least is next. A flow that begins to wait joins at the end of the current round,
//! and gets no credit for the time before.

use std::collections::{BTreeMap, HashMap};

use super::events::FlowId;

/// The cost of a turn at weight 1. Large, so that the costs at other weights are precise.
const TURN: u64 = 1 << 24;

/// Turns that a flow may make up for at most, after it was passed over because it held its share.
const MAX_TURNS_OWED: u64 = 8;

/// The flows that hold slots of a lane.
#[derive(Debug, Default)]
pub(super) struct SlotHolders {
    flows: BTreeMap<FlowId, Holder>,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    slots: u32,
    weight: u32,
}

/// The slots that a flow holds, compared with its share. Lower values are served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    WholeSlot,
    PartOfSlot,
    Nothing,
}

/// The flows that wait in a level, and the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    flows: HashMap<FlowId, (u32, Turn)>,
    /// The flows of each weight, in the order of their turns.
    order: BTreeMap<u32, BTreeMap<Turn, FlowId>>,
    /// The weights of the flows.
    total_weight: u64,
    /// What a flow had spent before its turn: the maximum so far.
    spent: u64,
    turns: u64,
}

/// The position of a flow in the order of turns: by what it has spent, and then by when it had its
/// last turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    spent: u64,
    number: u64,
}

impl SlotHolders {
    pub(super) fn add(&mut self, flow: FlowId, weight: u32) {
        let holder = self.flows.entry(flow).or_insert(Holder { slots: 0, weight });
        holder.slots += 1;
        holder.weight = weight;
    }

    pub(super) fn remove(&mut self, flow: FlowId) {
        if let Some(holder) = self.flows.get_mut(&flow) {
            // Saturating, as the number of the lane's requests.
            holder.slots = holder.slots.saturating_sub(1);
            if holder.slots == 0 {
                self.flows.remove(&flow);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.flows.clear();
    }

    fn slots(&self, flow: FlowId) -> u32 {
        self.flows.get(&flow).map_or(0, |holder| holder.slots)
    }
}

impl Claim {
    /// Returns the claim of a flow that holds `held` of all `slots`, if the weights of all flows
    /// have this total.
    fn new(held: u32, slots: u32, weight: u32, total_weight: u64) -> Self {
        // The share is `slots * weight / total_weight`.
        let share = u128::from(slots) * u128::from(weight);
        let part = |slots: u32| u128::from(slots) * u128::from(total_weight);
        if part(held.saturating_add(1)) <= share {
            Self::WholeSlot
        } else if part(held) < share {
            Self::PartOfSlot
        } else {
            Self::Nothing
        }
    }
}

impl Turns {
    /// Notes that a request of a flow waits. The weight of its newest request counts.
    pub(super) fn join(&mut self, flow: FlowId, weight: u32) {
        let turn = match self.remove(flow) {
            Some((_, turn)) => turn,
            None => {
                let spent = self.spent.saturating_add(cost(weight));
                Turn { spent, number: self.next_number() }
            }
        };
        self.insert(flow, weight, turn);
    }

    /// Notes that no request of a flow waits any more.
    pub(super) fn leave(&mut self, flow: FlowId) {
        self.remove(flow);
    }

    /// Returns the flow that gets a free slot of a lane with so many slots, which has its turn.
    pub(super) fn next(&mut self, slots: u32, holders: &SlotHolders) -> Option<FlowId> {
        let others = holders.flows.iter().filter(|(flow, _)| !self.flows.contains_key(flow));
        let others: u64 = others.map(|(_, holder)| u64::from(holder.weight)).sum();
        let total = self.total_weight + others;
        let mut best: Option<(Claim, Turn, FlowId)> = None;
        for (weight, flows) in &self.order {
            for (turn, flow) in flows {
                let held = holders.slots(*flow);
                let claim = Claim::new(held, slots, *weight, total);
                if best.is_none_or(|(other, last, _)| (claim, *turn) < (other, last)) {
                    best = Some((claim, *turn, *flow));
                }
                // Of the same weight, none has a better claim: only the few flows that hold slots
                // are passed over, however many wait.
                if held == 0 {
                    break;
                }
            }
        }
        let (_, turn, flow) = best?;
        let (weight, _) = self.remove(flow)?;
        let cost = cost(weight);
        self.spent = self.spent.max(turn.spent);
        let earliest = self.spent.saturating_sub(MAX_TURNS_OWED.saturating_mul(cost));
        let spent = turn.spent.max(earliest).saturating_add(cost);
        let number = self.next_number();
        self.insert(flow, weight, Turn { spent, number });
        Some(flow)
    }

    fn next_number(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    fn insert(&mut self, flow: FlowId, weight: u32, turn: Turn) {
        self.total_weight += u64::from(weight);
        self.order.entry(weight).or_default().insert(turn, flow);
        self.flows.insert(flow, (weight, turn));
    }

    fn remove(&mut self, flow: FlowId) -> Option<(u32, Turn)> {
        let (weight, turn) = self.flows.remove(&flow)?;
        self.total_weight -= u64::from(weight);
        if let Some(flows) = self.order.get_mut(&weight) {
            flows.remove(&turn);
            if flows.is_empty() {
                self.order.remove(&weight);
            }
        }
        Some((weight, turn))
    }
}

/// Returns what a turn costs a flow.
fn cost(weight: u32) -> u64 {
    (TURN / u64::from(weight.max(1))).max(1)
}
