use proptest::prelude::*;

use super::*;

const BUDGET: Budget = Budget { bytes: 100, age: Duration::from_secs(1000) };
const LANE: &str = "coder";

fn prompt(tenant: &str, blocks: &[u64]) -> ConversationPrompt {
    let owner = Owner { tenant: Some(tenant.into()), key: None };
    ConversationPrompt { owner, blocks: blocks.into() }
}

fn record(tenant: &str, blocks: &[u64], bytes: u64, used: u64) -> Record {
    Record {
        lane: LANE.to_owned(),
        fingerprint: 1,
        prompt: prompt(tenant, blocks),
        prompt_tokens: 1000,
        saved_tokens: 1100,
        bytes,
        used: Duration::from_secs(used),
    }
}

fn insert(index: &mut Index, file: u128, record: Record) -> Vec<u128> {
    let now = record.used;
    index.insert(FileId(file), record, now).into_iter().map(|(file, _)| file.0).collect()
}

#[test]
fn longest_conversation_of_the_same_engine_and_tenant_is_found() {
    let mut index = Index::new(BUDGET, false);
    insert(&mut index, 1, record("a", &[1, 2, 3, 4], 10, 1));
    insert(&mut index, 2, record("a", &[1, 2, 9], 10, 2));
    insert(&mut index, 3, record("b", &[1, 2, 3, 4, 5], 10, 3));
    let find = |lane: &str, fingerprint, tenant: &str, blocks: &[u64], min_tokens| {
        index.best(lane, fingerprint, &prompt(tenant, blocks), min_tokens).map(|found| found.file.0)
    };
    let blocks = [1, 2, 3, 4, 5, 6];
    assert_eq!(find(LANE, 1, "a", &blocks, 256), Some(1));
    assert_eq!(find(LANE, 1, "b", &blocks, 256), Some(3));
    assert_eq!(find(LANE, 1, "c", &blocks, 256), None);
    assert_eq!(find(LANE, 2, "a", &blocks, 256), None, "another model");
    assert_eq!(find("other", 1, "a", &blocks, 256), None);
    assert_eq!(find(LANE, 1, "a", &[1], 1), None, "too little of any");
    assert_eq!(find(LANE, 1, "a", &[1, 2], 667), None, "too few tokens");
    assert_eq!(find(LANE, 1, "a", &[1, 2], 666), Some(2));
    let mut shared = Index::new(BUDGET, true);
    insert(&mut shared, 3, record("b", &[1, 2], 10, 3));
    assert!(shared.best(LANE, 1, &prompt("a", &[1, 2]), 1).is_some());
}

#[test]
fn later_turn_replaces_earlier_ones() {
    let mut index = Index::new(BUDGET, false);
    insert(&mut index, 1, record("a", &[1, 2], 10, 1));
    insert(&mut index, 2, record("b", &[1, 2], 10, 1));
    insert(&mut index, 3, record("a", &[1, 7], 10, 1));
    assert_eq!(insert(&mut index, 4, record("a", &[1, 2, 3], 10, 2)), [1]);
    assert_eq!((index.files(LANE), index.bytes(None)), (3, 30));
}

#[test]
fn erasure_takes_all_of_a_tenant() {
    let mut index = Index::new(BUDGET, false);
    insert(&mut index, 1, record("a", &[1], 10, 1));
    insert(&mut index, 2, record("a", &[2], 10, 1));
    insert(&mut index, 3, record("b", &[3], 10, 1));
    let erased = index.erase(|owner| owner.tenant.as_deref() == Some("a"));
    assert_eq!(erased.len(), 2);
    assert_eq!((index.files(LANE), index.get(FileId(1))), (1, None));
}

proptest! {
    /// The budget always holds, the file used longest ago goes first, and every file is either kept
    /// or returned for deletion once.
    #[test]
    fn budget_holds(
        steps in prop::collection::vec((0u64..60, 0u64..40, 0u64..1500, any::<bool>()), 1..80),
    ) {
        let mut index = Index::new(BUDGET, false);
        let (mut now, mut deleted) = (0, 0);
        for (number, (bytes, conversation, pause, touch)) in steps.into_iter().enumerate() {
            now += pause;
            if touch {
                index.touch(FileId(number as u128 / 2), Duration::from_secs(now));
            }
            let added = record("a", &[conversation, conversation + 100], bytes, now);
            deleted += insert(&mut index, number as u128, added).len();
            prop_assert!(index.bytes(None) <= BUDGET.bytes);
            prop_assert_eq!(index.files(LANE) + deleted, number + 1);
            let oldest = Duration::from_secs(now).saturating_sub(BUDGET.age);
            prop_assert!(index.records.values().all(|record| record.used >= oldest));
        }
    }

    #[test]
    fn expected_tokens_grow_with_the_common_prefix(blocks in 1usize..50, common in 0usize..60) {
        let record = record("a", &vec![0; blocks], 1, 1);
        let expected = record.expected_tokens(common);
        prop_assert!(expected <= record.prompt_tokens);
        prop_assert!(expected <= record.expected_tokens(common + 1));
        prop_assert_eq!(record.expected_tokens(blocks), record.prompt_tokens);
    }
}
