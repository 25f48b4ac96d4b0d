//! Policies see the cached tokens of their request, learned from earlier requests.

use std::sync::{Arc, Mutex};

use pointsman_domain::{
    Advice, Advised, Advisor, Edit, Facts, FleetView, LaneAdvice, LaneId, Merge, Metric,
    MetricWeight, OnConflict, PolicyRef, Trace,
};

use super::{TestGateway, json, stream};

/// Follows the cached tokens, and keeps those of each request, by lane.
#[derive(Debug, Default)]
struct FollowCache {
    seen: Mutex<Vec<Vec<u32>>>,
    edits: Mutex<Vec<Edit>>,
}

impl Advisor for FollowCache {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Advised {
        let cached = fleet.stats().map(|stat| stat.cached_tokens).collect();
        self.seen.lock().unwrap().push(cached);
        let weights = vec![MetricWeight { metric: Metric::CachedTokens, weight: 1000 }];
        let edits = self.edits.lock().unwrap().clone();
        let advice = Advice { lanes: LaneAdvice::Blend(weights), edits, ..Advice::default() };
        let endpoint = facts.request.info().endpoint;
        let mut merge = Merge::new(fleet, facts.request.model(), endpoint);
        merge.add(&PolicyRef::new("follow", "1"), 1000, advice);
        merge.finish(OnConflict::Refuse).into()
    }
}

impl FollowCache {
    /// Returns what the policy saw for the last request.
    fn last(&self) -> Vec<u32> {
        self.seen.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

async fn gateway() -> (TestGateway, Arc<FollowCache>) {
    let advisor = Arc::<FollowCache>::default();
    (TestGateway::new(Arc::clone(&advisor)).await, advisor)
}

/// Returns the request of a turn of a conversation about a text of this length.
fn turn(text: usize, turn: usize) -> &'static str {
    let message = r#"{"role":"user","content":"and then?"}"#;
    let history = format!(",{message}").repeat(turn);
    let text = "word ".repeat(text / 5);
    let messages = format!(r#"[{{"role":"user","content":"{text}"}}{history}]"#);
    format!(r#"{{"model":"m","messages":{messages}}}"#).leak()
}

#[tokio::test]
async fn second_turn_is_seen_as_cached_on_the_lane_of_the_first() {
    let (gateway, advisor) = gateway().await;
    // The first attempt on `a` fails, so `b` serves the first turn.
    gateway.script("a", &[json(500, "{}")]);
    assert_eq!(gateway.send(turn(4000, 0)).await.0, 200);
    assert_eq!(advisor.last(), [0, 0, 0]);
    assert_eq!(gateway.send(turn(4000, 1)).await.0, 200);
    let seen = advisor.last();
    assert!(seen[1] > 800 && seen[0] == 0 && seen[2] == 0, "{seen:?}");
    assert_eq!(gateway.attempted_lanes(), "abb");
    assert_eq!(gateway.send(turn(60, 0)).await.0, 200);
    assert_eq!(advisor.last(), [0, 0, 0], "shorter than a block");
    // The view that all requests share is not changed.
    assert!(gateway.gateway.pipeline().fleet.view().stats().all(|stat| stat.cached_tokens == 0));
}

#[tokio::test]
async fn estimates_follow_the_reports_of_the_engine() {
    const NOTHING: &str = concat!(
        r#"{"usage":{"prompt_tokens":1000,"completion_tokens":1,"#,
        r#""prompt_tokens_details":{"cached_tokens":0}}}"#
    );
    const TIMINGS: &str = concat!(
        r#"data: {"choices":[{"finish_reason":"stop"}],"#,
        r#""timings":{"cache_n":0,"prompt_n":1000,"predicted_n":1}}"#,
        "\n\ndata: [DONE]\n\n"
    );
    for reply in [json(200, NOTHING), stream(TIMINGS, false)] {
        let (gateway, advisor) = gateway().await;
        gateway.script("a", &[reply; 20]);
        let mut seen = Vec::new();
        for number in 0..20 {
            assert_eq!(gateway.send(turn(4000, number)).await.0, 200);
            seen.push(advisor.last()[0]);
        }
        assert!(seen[1] > 800, "nothing was expected of the first turn: {seen:?}");
        assert!(seen[19] < 200, "the engine caches nothing: {seen:?}");
    }
}

#[tokio::test]
async fn prompt_is_remembered_as_it_was_sent() {
    let (gateway, advisor) = gateway().await;
    *advisor.edits.lock().unwrap() = vec![Edit::PrependSystem("s".repeat(500))];
    assert_eq!(gateway.send(turn(4000, 0)).await.0, 200);
    assert_eq!(gateway.send(turn(4000, 1)).await.0, 200);
    assert_eq!(advisor.last(), [0, 0, 0], "the policy's message comes first");
}

#[tokio::test]
async fn failed_requests_are_not_remembered() {
    let (gateway, advisor) = gateway().await;
    gateway.script("a", &[json(400, "{}")]);
    assert_eq!(gateway.send(turn(4000, 0)).await.0, 400);
    assert_eq!(gateway.send(turn(4000, 1)).await.0, 200);
    assert_eq!(advisor.last(), [0, 0, 0]);
    let pipeline = gateway.gateway.pipeline();
    let index = pipeline.fleet.prefix_index();
    let before = gateway.send(turn(4000, 2)).await.0;
    index.reset(LaneId(0), None);
    assert_eq!((before, gateway.send(turn(4000, 3)).await.0), (200, 200));
    assert_eq!(advisor.last(), [0, 0, 0], "the engine has restarted");
}
