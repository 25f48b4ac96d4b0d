use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn prompt(tenant: &str, blocks: &[u64]) -> ConversationPrompt {
    let owner = Owner { tenant: Some(tenant.into()), key: None };
    ConversationPrompt { owner, blocks: blocks.into() }
}

fn held(prompt: &ConversationPrompt, tokens: u32) -> Held {
    Held { prompt: prompt.clone(), prompt_tokens: tokens / 2, tokens, file: None }
}

/// A prompt that goes on with another one.
fn longer(prompt: &ConversationPrompt, block: u64) -> ConversationPrompt {
    let blocks: Vec<u64> = prompt.blocks.iter().copied().chain([block]).collect();
    ConversationPrompt { owner: prompt.owner.clone(), blocks: blocks.into() }
}

#[test]
fn conversation_gets_its_own_slot_again() {
    let mut table = SlotTable::new(2, false);
    let (first, second) = (prompt("a", &[1, 2]), prompt("a", &[7, 8]));
    let slots: Vec<u32> = [&first, &second]
        .map(|prompt| table.place(prompt, None).unwrap().slot)
        .into_iter()
        .collect();
    assert_ne!(slots[0], slots[1]);
    // No slot is free.
    assert_eq!(table.place(&first, None), None);
    table.release(slots[0], Some(held(&first, 1000)));
    table.release(slots[1], Some(held(&second, 1000)));
    for _ in 0..3 {
        for (slot, prompt) in slots.iter().zip([&first, &second]) {
            let placement = table.place(&longer(prompt, 9), None).unwrap();
            assert_eq!((placement.slot, placement.restore), (*slot, None));
            table.release(*slot, Some(held(prompt, 1000)));
        }
    }
}

#[test]
fn slot_of_another_tenant_is_not_its_own() {
    for share in [false, true] {
        let mut table = SlotTable::new(2, share);
        let slot = table.place(&prompt("a", &[1, 2]), None).unwrap().slot;
        table.release(slot, Some(held(&prompt("a", &[1, 2]), 1000)));
        let placement = table.place(&prompt("b", &[1, 2, 3]), None).unwrap();
        assert_eq!(placement.slot == slot, share);
    }
}

#[test]
fn restore_spares_what_it_would_overwrite() {
    let mut table = SlotTable::new(1, false);
    let (old, new) = (prompt("a", &[1, 2]), prompt("a", &[7, 8]));
    assert_eq!(table.place(&old, None).unwrap().slot, 0);
    table.release(0, Some(held(&old, 1000)));
    let stored = Stored { file: FileId(5), common: 2 };
    let placement = table.place(&new, Some(stored.clone())).unwrap();
    assert_eq!(placement.restore, Some(stored.clone()));
    assert_eq!(placement.overwritten, Some(held(&old, 1000)));
    // What the slot has is better than the file.
    table.release(0, Some(held(&longer(&new, 9), 1000)));
    let placement = table.place(&longer(&longer(&new, 9), 10), Some(stored)).unwrap();
    assert_eq!((placement.restore, placement.overwritten), (None, None));
}

#[test]
fn only_known_and_long_conversations_are_saved() {
    let mut table = SlotTable::new(5, false);
    let prompts: Vec<_> = (0..5).map(|n| prompt("a", &[n])).collect();
    for prompt in &prompts {
        table.place(prompt, None).unwrap();
    }
    table.release(0, Some(held(&prompts[0], 1000)));
    table.release(1, Some(held(&prompts[1], 100)));
    // Its response was cut.
    table.release(2, Some(held(&prompts[2], 0)));
    table.release(3, Some(Held { file: Some(FileId(1)), ..held(&prompts[3], 1000) }));
    // Slot 4 is busy.
    let unsaved = table.take_unsaved(256);
    assert_eq!(unsaved, [(0, held(&prompts[0], 1000))]);
    assert_eq!(table.busy(), 2);
}

#[test]
fn erased_conversations_are_not_saved() {
    let mut table = SlotTable::new(2, false);
    for (slot, tenant) in [(0, "a"), (1, "b")] {
        table.place(&prompt(tenant, &[slot]), None).unwrap();
        table.release(u32::try_from(slot).unwrap(), Some(held(&prompt(tenant, &[slot]), 1000)));
    }
    table.forget(|owner| owner.tenant.as_deref() == Some("a"));
    let saved: Vec<u32> = table.take_unsaved(1).into_iter().map(|(slot, _)| slot).collect();
    assert_eq!(saved, [1]);
}

proptest! {
    #[test]
    fn common_prefix_is_that_of_a_comparison(
        prefix in prop::collection::vec(0u64..9, 0..20),
        left in prop::collection::vec(10u64..19, 0..20),
        right in prop::collection::vec(20u64..29, 0..20),
    ) {
        let join = |rest: &[u64]| [prefix.as_slice(), rest].concat();
        prop_assert_eq!(prompt("a", &join(&left)).common(&join(&right)), prefix.len());
    }

    /// Whatever happens: a slot has one request at a time, a tenant never gets the slot with
    /// another's conversation as its own, and each request gives back what it took.
    #[test]
    fn slots_have_one_request_at_a_time(
        slots in 1u32..5,
        steps in prop::collection::vec((0u8..3, 0u64..4, 0u8..2, 0u32..2000), 1..200),
    ) {
        let mut table = SlotTable::new(slots, false);
        let mut running: BTreeMap<u32, ConversationPrompt> = BTreeMap::new();
        for (step, conversation, tenant, tokens) in steps {
            let tenant = if tenant == 0 { "a" } else { "b" };
            let prompt = prompt(tenant, &[conversation, conversation + 10]);
            match step {
                0 => match table.place(&prompt, None) {
                    Some(placement) => {
                        prop_assert!(placement.slot < slots);
                        prop_assert!(running.insert(placement.slot, prompt).is_none());
                    }
                    None => prop_assert_eq!(running.len(), slots as usize),
                },
                1 => if let Some((slot, prompt)) = running.pop_first() {
                    table.release(slot, Some(held(&prompt, tokens)));
                },
                _ => {
                    let unsaved = table.take_unsaved(256);
                    let distinct: BTreeSet<u32> = unsaved.iter().map(|(slot, _)| *slot).collect();
                    prop_assert_eq!(distinct.len(), unsaved.len());
                    for (slot, held) in unsaved {
                        prop_assert!(held.tokens >= 256 && !running.contains_key(&slot));
                        table.release(slot, Some(held));
                    }
                }
            }
            prop_assert_eq!(table.busy(), running.len());
        }
    }
}
