use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::Endpoint;

use super::*;

fn ended(id: &str, message: usize) -> EndedRequest {
    EndedRequest {
        id: id.to_owned(),
        unix_ms: 1,
        endpoint: Endpoint::ChatCompletions,
        model: None,
        identity: Arc::default(),
        lane: None,
        outcome: "error",
        status: Some(400),
        failed: Some(EndedFailure { code: None, message: "x".repeat(message) }),
        total: Duration::ZERO,
        ttft: None,
        attempts: 0,
        usage: None,
        attribution: None,
        constraint: None,
        detail: None,
    }
}

fn ids(decisions: &Decisions, limit: usize, before: Option<&str>) -> Vec<String> {
    decisions.list(limit, before).iter().map(|request| request.id.clone()).collect()
}

#[test]
fn list_is_bounded_by_number_and_bytes_and_read_in_pages() {
    let decisions = Decisions::new(3);
    ["a", "b", "c", "d"].iter().for_each(|id| decisions.push(ended(id, 0)));
    assert_eq!(ids(&decisions, 2, None), ["d", "c"]);
    assert_eq!(ids(&decisions, 2, Some("c")), ["b"]);
    assert_eq!(ids(&decisions, 9, Some("a")), [""; 0], "it is not kept any more");
    assert!(decisions.find("a").is_none() && decisions.find("b").is_some());
    decisions.set_max(1);
    assert_eq!(ids(&decisions, 9, None), ["d"]);
    decisions.set_max(0);
    assert!(
        !decisions.is_on() && !decisions.trace().is_on() && ids(&decisions, 9, None).is_empty()
    );
    decisions.set_max(1000);
    (0..40).for_each(|_| decisions.push(ended("large", 1 << 20)));
    let kept = decisions.list(1000, None);
    let bytes: usize = kept.iter().map(|request| request.weight()).sum();
    assert!(kept.len() >= 15 && bytes <= MAX_KEPT_BYTES, "{}", kept.len());
}

#[tokio::test]
async fn receivers_get_each_request_and_slow_ones_learn_what_they_missed() {
    let decisions = Decisions::new(1);
    decisions.push(ended("before", 0));
    let mut receiver = decisions.subscribe();
    decisions.push(ended("after", 0));
    assert_eq!(receiver.recv().await.unwrap().row()["id"], "after");
    (0..=MAX_BEHIND).for_each(|_| decisions.push(ended("more", 0)));
    let missed = receiver.recv().await.unwrap_err();
    assert_eq!(missed, tokio::sync::broadcast::error::RecvError::Lagged(1));
}
