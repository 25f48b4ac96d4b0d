//! What the metrics say of the requests.

use super::*;

const PICKED: &str = "pointsman_pick_decisions_total{result=\"picked\"}";
const ANSWERED: &str = "pointsman_pick_decisions_total{result=\"answered\"}";
const GONE: &str = "pointsman_pick_decisions_total{result=\"client-gone\"}";
const FAILED: &str = "pointsman_pick_decisions_total{result=\"failed\"}";
const REFUSED: &str = "pointsman_pick_decisions_total{result=\"refused\"}";
const OWN: &str = "pointsman_pick_immediate_responses_total{code=\"refused_by_test\"}";

/// Waits until a series has a value: the end of a stream is noticed by a task of the service.
async fn wait_for(picker: &Picker, series: &str, value: f64) {
    let reached = async {
        while picker.metric(series) != value {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), reached).await;
    waited.unwrap_or_else(|_| panic!("{series} is {}, not {value}", picker.metric(series)));
}

#[tokio::test]
async fn requests_are_counted_by_what_became_of_them() {
    let mut picker = Picker::with_limits(Limits { max_streams: 1, max_body: 100_000 }).await;
    assert_eq!(picker.metric(PICKED), 0.0);
    // One that waits, and another one that finds no place.
    let mut held = picker.open().await;
    held.head("/hold", true).await;
    while picker.note().await != "held" {}
    let gauges = ["pointsman_pick_held", "pointsman_pick_streams"];
    assert_eq!(gauges.map(|gauge| picker.metric(gauge)), [1.0, 1.0]);
    let mut other = ExternalProcessorClient::connect(picker.url()).await.unwrap();
    let refused = other.process(futures_util::stream::pending()).await.unwrap_err();
    assert_eq!((refused.code(), picker.metric(REFUSED)), (Code::ResourceExhausted, 1.0));
    // Its client hangs up.
    held.messages = None;
    assert!(held.end().await.is_ok());
    drop(held);
    wait_for(&picker, GONE, 1.0).await;
    wait_for(&picker, "pointsman_pick_streams", 0.0).await;
    assert_eq!(picker.metric("pointsman_pick_held"), 0.0);
    // A response of the host, and a request that an engine serves.
    let mut answered = picker.open().await;
    answered.head("/refuse", true).await;
    assert!(answered.end().await.is_ok());
    drop(answered);
    wait_for(&picker, "pointsman_pick_streams", 0.0).await;
    assert_eq!((picker.metric(ANSWERED), picker.metric(OWN)), (1.0, 1.0));
    let mut picked = picker.open().await;
    picked.head("/x", true).await;
    picked.answer().await;
    wait_for(&picker, PICKED, 1.0).await;
    assert_eq!(picker.metric("pointsman_pick_decision_seconds_count"), 2.0);
    drop(picked);
    wait_for(&picker, "pointsman_pick_streams", 0.0).await;
    // A proxy that begins with something else has not made a request yet.
    let mut wrong = picker.open().await;
    wrong.head("/x", false).await;
    wrong.response_body("x", true).await;
    assert_eq!(wrong.code().await, Code::InvalidArgument);
    assert_eq!(picker.metric(FAILED), 1.0);
}
