//! Fuzzing of what other hosts send.

use std::time::{Duration, Instant};

use pointsman_domain::{LaneId, MAX_DIGEST};
use pointsman_fuzz::Fuzz;

use crate::tests::{lane, topology};
use crate::{EventDecoder, MAX_LANES, MAX_TEXT, PeerView};

const WORDS: [&str; 10] = [
    "event: ",
    "data: ",
    "topology",
    "lanes",
    "heartbeat",
    "generation",
    "digest",
    "hashes",
    "whole",
    "virtual-names",
];

/// Whatever a host sends, the view of it stays within the limits, and is the same for all pieces in
/// which it arrives.
#[test]
fn streams() {
    let golden = include_str!("../tests/golden.sse");
    let fuzz = Fuzz::new("peer_streams").input(golden).words(&WORDS);
    fuzz.input(topology(1, vec![lane(0, "a")]).to_sse()).run(|input| {
        let now = Instant::now();
        let (mut whole, mut pieces) = (PeerView::default(), PeerView::default());
        let read = |view: &mut PeerView, decoder: &mut EventDecoder, bytes: &[u8]| {
            decoder.push(bytes, |event| {
                view.apply(event, now);
            })
        };
        let result = read(&mut whole, &mut EventDecoder::default(), input);
        let mut decoder = EventDecoder::default();
        let in_pieces =
            input.chunks(7).try_for_each(|piece| read(&mut pieces, &mut decoder, piece));
        assert_eq!(in_pieces, result);
        assert_eq!(whole.lanes(), pieces.lanes());
        assert!(whole.lanes().len() <= MAX_LANES);
        for lane in whole.lanes() {
            assert!(lane.digest.len() <= MAX_DIGEST && lane.description.name.len() <= MAX_TEXT);
            let stat = lane.stat(LaneId(0), Duration::MAX, None);
            assert_eq!(stat.stale_ms, u32::MAX);
        }
        result.is_ok() && whole.host().is_some()
    });
}
