use std::collections::HashSet;

use proptest::prelude::*;

use super::lane::{GENERATIONS, LanePrefixes};
use super::*;
use crate::fleet_view::{EngineKind, LaneInfo, LaneState, Topology};

const A: LaneId = LaneId(0);
const B: LaneId = LaneId(1);

/// A prompt of blocks that are filled with these bytes.
fn prompt(index: &PrefixIndex, blocks: &[u8]) -> PromptHashes {
    let text: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; BLOCK_BYTES]).collect();
    index.hasher().hash("m", [text.as_slice()])
}

/// Tokens of this number of blocks, at four bytes per token.
fn tokens(blocks: usize) -> u32 {
    u32::try_from(blocks * BLOCK_BYTES / 4).unwrap()
}

#[test]
fn hashes_cover_model_and_all_bytes_before_them() {
    let hasher = PromptHasher::default();
    let text = [b'x'; 3 * BLOCK_BYTES];
    let hashes = hasher.hash("m", [text.as_slice()]);
    assert_eq!((hashes.blocks.len(), hashes.bytes), (3, 3 * BLOCK_BYTES as u64));
    assert_ne!(hashes.blocks[0], hashes.blocks[1]);
    assert_ne!(hashes, hasher.hash("n", [text.as_slice()]));
    assert_ne!(hashes, PromptHasher::default().hash("m", [text.as_slice()]), "keys are random");
    assert!(hasher.hash("m", [&text[..BLOCK_BYTES - 1]]).blocks.is_empty());
    let long = vec![b'x'; (MAX_PROMPT_BLOCKS + 2) * BLOCK_BYTES];
    let long = hasher.hash("m", [long.as_slice()]);
    assert_eq!(long.blocks.len(), MAX_PROMPT_BLOCKS);
    assert_eq!(long.bytes, ((MAX_PROMPT_BLOCKS + 2) * BLOCK_BYTES) as u64);
}

#[test]
fn second_turn_is_cached_on_the_lane_that_served_the_first() {
    let index = PrefixIndex::new(2);
    let (first, second) = (prompt(&index, b"abc"), prompt(&index, b"abcde"));
    assert_eq!(index.cached_tokens(A, &first), 0);
    index.served(A, &first);
    assert_eq!(index.cached_tokens(A, &second), tokens(3));
    assert_eq!(index.cached_tokens(B, &second), 0);
    assert_eq!(index.cached_tokens(A, &prompt(&index, b"abx")), tokens(2));
    assert_eq!(index.cached_tokens(A, &prompt(&index, b"xbc")), 0);
    assert_eq!(index.cached_tokens(LaneId(9), &second), 0, "unknown lane");
    index.reset(A, None);
    assert_eq!(index.cached_tokens(A, &second), 0, "the engine has restarted");
}

#[test]
fn view_of_a_request_has_its_cached_tokens() {
    let info = |name: &str, model: &str| LaneInfo {
        id: LaneId(0),
        name: name.into(),
        engine: EngineKind::Vllm,
        models: vec![model.into()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 0,
        endpoints: crate::EndpointSet::all(),
        slots: 1,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    };
    let lanes = vec![info("a", "m"), info("b", "m"), info("c", "other")];
    let view = Arc::new(FleetView::idle(Arc::new(Topology::new(1, lanes)), LaneState::Ready));
    let index = PrefixIndex::new(3);
    let asked = prompt(&index, b"ab");
    assert!(Arc::ptr_eq(&view, &index.annotate(&view, "m", &asked, 100)), "nothing is cached");
    index.served(B, &asked);
    index.served(LaneId(2), &asked);
    let seen = index.annotate(&view, "m", &asked, 1000);
    let cached = |view: &FleetView| view.stats().map(|stat| stat.cached_tokens).collect::<Vec<_>>();
    assert_eq!(cached(&seen), [0, tokens(2), 0], "`c` does not serve the model");
    assert_eq!(seen.stat(B).map(|stat| stat.cached_tokens), Some(tokens(2)));
    assert_eq!(cached(&index.annotate(&view, "m", &asked, 7)), [0, 7, 0], "at most the prompt");
    assert_eq!(cached(&view), [0, 0, 0], "the view of other requests is unchanged");
}

#[test]
fn length_of_tokens_is_learned_from_reports() {
    let index = PrefixIndex::new(1);
    let asked = prompt(&index, b"abcd");
    for _ in 0..100 {
        let served = index.served(A, &asked);
        // Two bytes per token.
        index.report(A, &served, 2 * tokens(4), None);
    }
    assert_eq!(index.cached_tokens(A, &asked).div_ceil(10), 2 * tokens(4) / 10 + 1);
}

#[test]
fn engine_without_prefix_cache_gets_no_estimates() {
    let index = PrefixIndex::new(1);
    let asked = prompt(&index, b"abcd");
    let turn = |cached| {
        let served = index.served(A, &asked);
        index.report(A, &served, tokens(4), Some(cached));
        index.cached_tokens(A, &asked)
    };
    assert_eq!(turn(0), tokens(4), "nothing was expected of the first request");
    let after_one = turn(0);
    assert!((1..tokens(4)).contains(&after_one), "{after_one}");
    assert!((0..40).fold(0, |_, _| turn(0)) < tokens(2));
    let recovered = (0..40).fold(0, |_, _| turn(tokens(4)));
    assert!(recovered > tokens(4) * 9 / 10, "{recovered}");
}

#[test]
fn eviction_by_the_engine_forgets_what_is_older() {
    let mut lane = LanePrefixes::new(16);
    let chain = |first: u64| -> Vec<u64> { (first..first + 4).collect() };
    let bytes = 4 * BLOCK_BYTES as u64;
    for first in [100, 200, 300, 400] {
        lane.insert(&chain(first), bytes);
    }
    assert!([100, 200, 300, 400].iter().all(|first| lane.cached_tokens(&chain(*first)) > 0));
    // The engine had one block of the second prompt, so the first has been evicted entirely.
    let served = lane.insert(&chain(200), bytes);
    lane.learn(&served, tokens(4), Some(tokens(1)));
    let known = |first| lane.cached_tokens(&chain(first)) > 0;
    assert_eq!([100, 200, 300, 400].map(known), [false, true, true, true]);
}

#[test]
fn capacity_of_the_engine_limits_a_lane() {
    let index = PrefixIndex::new(1);
    index.reset(A, Some(u64::from(tokens(2))));
    let asked = prompt(&index, b"abcd");
    index.served(A, &asked);
    assert_eq!(index.cached_tokens(A, &asked), tokens(2));
    index.reset(A, Some(0));
    index.served(A, &asked);
    assert_eq!(index.cached_tokens(A, &asked), 0);
}

/// Prompts over a small alphabet, so that they share prefixes. A block is identified by the path to
/// it, as a hash does.
fn chains() -> impl Strategy<Value = Vec<Vec<u64>>> {
    let path = |symbols: Vec<u64>| {
        let mut hash = 7u64;
        symbols
            .iter()
            .map(|symbol| {
                hash = hash.wrapping_mul(31).wrapping_add(symbol + 1);
                hash
            })
            .collect()
    };
    prop::collection::vec(prop::collection::vec(0u64..3, 0..12).prop_map(path), 1..60)
}

proptest! {
    #[test]
    fn hashes_do_not_depend_on_the_boundaries_of_parts(
        bytes in prop::collection::vec(any::<u8>(), 0..4 * BLOCK_BYTES),
        split in 0..4 * BLOCK_BYTES,
    ) {
        let hasher = PromptHasher::default();
        let (head, tail) = bytes.split_at(split.min(bytes.len()));
        let whole = hasher.hash("m", [bytes.as_slice()]);
        prop_assert_eq!(whole.blocks.len(), bytes.len() / BLOCK_BYTES);
        prop_assert_eq!(whole, hasher.hash("m", [head, tail]));
    }

    /// Without eviction, the estimate is the longest common prefix with any prompt served so far.
    #[test]
    fn longest_prefix_agrees_with_a_model(chains in chains()) {
        let mut lane = LanePrefixes::new(1 << 20);
        let mut model: HashSet<Vec<u64>> = HashSet::new();
        for chain in &chains {
            let longest = (0..=chain.len()).rev().find(|n| *n == 0 || model.contains(&chain[..*n]));
            prop_assert_eq!(lane.cached_tokens(chain), tokens(longest.unwrap_or(0)));
            lane.insert(chain, 1);
            model.extend((1..=chain.len()).map(|length| chain[..length].to_vec()));
        }
    }

    /// Memory is bounded, the prompt that was served last is known, nothing is known that was not
    /// served, and each generation is closed under prefixes, whatever is inserted and reported.
    #[test]
    fn memory_is_bounded_and_generations_are_closed(
        chains in chains(),
        max_blocks in 0usize..40,
        reports in prop::collection::vec(prop::option::of(0u32..500), 60),
    ) {
        let mut lane = LanePrefixes::new(max_blocks);
        let mut known: HashSet<u64> = HashSet::new();
        for (chain, report) in chains.iter().zip(reports) {
            let bytes = (chain.len() * BLOCK_BYTES) as u64;
            let served = lane.insert(chain, bytes);
            known.extend(chain);
            prop_assert!(lane.len() <= max_blocks);
            prop_assert!(lane.is_closed(&chains));
            prop_assert_eq!(lane.matched(chain), chain.len().min(max_blocks));
            lane.learn(&served, tokens(chain.len()), report);
            prop_assert!(lane.is_closed(&chains));
            prop_assert_eq!(lane.matched(chain), chain.len().min(max_blocks), "after the report");
            for other in &chains {
                prop_assert!(other[..lane.matched(other)].iter().all(|hash| known.contains(hash)));
            }
        }
        prop_assert!(lane.generations() <= GENERATIONS);
        lane.reset(None, max_blocks);
        prop_assert!(lane.len() == 0 && chains.iter().all(|chain| lane.cached_tokens(chain) == 0));
    }
}
