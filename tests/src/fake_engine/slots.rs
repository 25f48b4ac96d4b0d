//! llama.cpp's slots: which prompt each has.
//!
//! As captured with b11549. A slot that a request names beyond the last one wraps around; anything
//! but a number is ignored.

use serde_json::Value;

/// What a slot has.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) prompt: String,
    pub(super) tokens: u64,
    pub(super) used: u64,
}

/// All slots.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    pub(super) clock: u64,
    /// The slot that each request named.
    pub(super) named: Vec<Option<i64>>,
    pub(super) saves: u64,
    pub(super) restores: u64,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        let slots = vec![Slot::default(); count.max(1)];
        Self { slots, clock: 0, named: Vec::new(), saves: 0, restores: 0 }
    }

    /// Notes a request for a completion.
    pub(super) fn serve(&mut self, named: &Value, prompt: &str, tokens: u64) {
        let named = named.as_i64();
        self.named.push(named);
        let slot = match named.filter(|slot| *slot >= 0) {
            Some(slot) => self.wrapped(slot.unsigned_abs()),
            None => self.chosen(prompt),
        };
        self.clock += 1;
        self.slots[slot] = Slot { prompt: prompt.to_owned(), tokens, used: self.clock };
    }

    /// Returns the slot with the longest common prefix, if it is a tenth of the prompt, else the
    /// one that was not used for longest.
    fn chosen(&self, prompt: &str) -> usize {
        let common = |slot: &Slot| {
            slot.prompt
                .bytes()
                .zip(prompt.bytes())
                .take_while(|(left, right)| left == right)
                .count()
        };
        let similar = self.slots.iter().map(common).enumerate().max_by_key(|(_, common)| *common);
        match similar.filter(|(_, common)| common * 10 > prompt.len()) {
            Some((slot, _)) => slot,
            None => (0..self.slots.len()).min_by_key(|slot| self.slots[*slot].used).unwrap_or(0),
        }
    }

    pub(super) fn wrapped(&self, slot: u64) -> usize {
        usize::try_from(slot % self.slots.len() as u64).unwrap_or(0)
    }

    /// Returns the tokens of a slot.
    pub(super) fn tokens(&self, slot: usize) -> u64 {
        self.slots.get(slot).map_or(0, |slot| slot.tokens)
    }
}
