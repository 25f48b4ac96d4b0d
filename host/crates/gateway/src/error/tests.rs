use pointsman_domain::LaneState;
use pointsman_domain::dispatch::{AcquireError, LaneMode, Problem};
use pointsman_fleet::EngineError;

use http::StatusCode;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn status(status: u16) -> AttemptError {
    let status = StatusCode::from_u16(status).unwrap();
    let message = Some("out of memory".into());
    let said = Box::new(EngineErrorBody { message, ..EngineErrorBody::default() });
    AttemptError::Status { status, said, retry_after: None }
}

fn unsupported(status: u16) -> AttemptError {
    let status = StatusCode::from_u16(status).unwrap();
    AttemptError::Unsupported { status, said: Box::default() }
}

#[test]
fn attempt_errors_have_codes_and_retry_after() {
    let not_serving =
        AcquireError::NotServing { state: LaneState::Down, reason: None, retry_in: SECOND };
    for (error, code) in [
        (
            AttemptError::Acquire(AcquireError::QueueFull { queued: 5, retry_in: SECOND }),
            ErrorCode::QueueFull,
        ),
        (
            AttemptError::Acquire(AcquireError::TimedOut {
                state: LaneState::Ready,
                waited: SECOND,
                retry_in: SECOND,
            }),
            ErrorCode::QueueTimeout,
        ),
        (
            AttemptError::Acquire(AcquireError::DeadlineTooEarly { estimate: SECOND }),
            ErrorCode::QueueTimeout,
        ),
        (AttemptError::Acquire(AcquireError::UnknownLane), ErrorCode::NoLaneAvailable),
        (AttemptError::Acquire(not_serving), ErrorCode::NoLaneAvailable),
        (
            AttemptError::Acquire(AcquireError::CircuitOpen { retry_in: SECOND }),
            ErrorCode::NoLaneAvailable,
        ),
        (AttemptError::Acquire(AcquireError::Closing), ErrorCode::Stopping),
        (AttemptError::Engine(EngineError::Aborted), ErrorCode::Stopping),
        (AttemptError::Engine(EngineError::Cancelled), ErrorCode::RequestCancelled),
        (AttemptError::Acquire(AcquireError::Paused(LaneMode::Held)), ErrorCode::NoLaneAvailable),
        (AttemptError::ErrorEvent { said: Box::default() }, ErrorCode::EngineError),
        (AttemptError::Engine(EngineError::Evicted), ErrorCode::NoLaneAvailable),
        (AttemptError::Engine(EngineError::Unfinished), ErrorCode::EngineError),
        (AttemptError::Engine(EngineError::IdleTimeout(SECOND)), ErrorCode::EngineTimeout),
        (AttemptError::FirstByteTimeout(SECOND), ErrorCode::EngineTimeout),
        // An engine's, which knows of no hosts.
        (status(508), ErrorCode::EngineError),
        (AttemptError::LoopDetected { said: Box::default() }, ErrorCode::LoopDetected),
        (status(429), ErrorCode::EngineOverloaded),
        (status(503), ErrorCode::EngineOverloaded),
        (status(500), ErrorCode::EngineError),
        (status(307), ErrorCode::EngineError),
        (AttemptError::Engine(EngineError::Hung), ErrorCode::EngineHung),
        (unsupported(500), ErrorCode::InvalidRequest),
        (unsupported(501), ErrorCode::NotSupported),
        (AttemptError::KeyRefused { status: StatusCode::FORBIDDEN }, ErrorCode::EngineKeyRefused),
        (
            AttemptError::RateLimited {
                said: Box::default(),
                retry_after: None,
                headers: Box::default(),
            },
            ErrorCode::EngineRateLimited,
        ),
    ] {
        let error = RouteError::Attempt { lane: "a".into(), error };
        let response = error.error_response();
        assert_eq!(error.code(), Some(code), "{error}");
        assert_eq!(response.status, code.status(), "{error}");
        assert_eq!(response.body.code.as_deref(), Some(code.as_str()), "{error}");
        let has_header = |header| response.headers.iter().any(|(name, _)| *name == header);
        assert_eq!(has_header(header::RETRY_AFTER), code.has_retry_after(), "{error}");
        assert!(has_header(headers::LANE), "{error}");
    }
}

#[test]
fn engine_messages_reach_the_client_but_not_the_log() {
    let error = RouteError::Attempt { lane: "a".into(), error: status(500) };
    assert!(!error.to_string().contains("out of memory"));
    assert!(error.error_response().body.message.contains("out of memory"));
}

#[test]
fn texts_of_clients_are_cut_and_escaped() {
    let model = format!("m\n\u{202e}\0{}", "é".repeat(1 << 20));
    let path = model.clone();
    for error in [
        RouteError::UnknownModel { model: model.clone(), hint: String::new() },
        RouteError::ContentType { expected: "a", given: Some(model.clone()) },
        RouteError::UnknownPath { method: Method::GET, path },
        RouteError::UnknownCommand(model.clone()),
        RouteError::UnknownLane(model.clone()),
        RouteError::VersionNotAllowed(model),
    ] {
        let message = error.error_response().body.message;
        assert!(message.len() < 400, "{message}");
        assert!(message.contains("m\\n\\u{202e}\\0é"), "{message}");
    }
}

#[test]
fn retry_after_is_rounded_up_and_bounded() {
    for (after, seconds) in [
        (Duration::ZERO, "1"),
        (Duration::from_millis(1001), "2"),
        (Duration::from_secs(7), "7"),
        (Duration::from_secs(658), "60"),
        (Duration::MAX, "60"),
    ] {
        let (reason, lanes) = (NoLaneReason::AllDown, Vec::new());
        let filtering = String::new();
        let error = RouteError::NoLane { reason, filtering, lanes, retry_in: after };
        let response = error.error_response();
        assert_eq!(response.headers, [(header::RETRY_AFTER, seconds.parse().unwrap())]);
    }
}

#[test]
fn every_client_learns_why_lanes_are_down() {
    let lane = |name: &str, seconds| DownLane {
        name: name.to_owned(),
        problem: Some(
            Problem::new("gpu_not_found", "the engine finds no GPU; check /dev/kfd")
                .with_log("log: No HIP GPUs are available".to_owned())
                .with_details("the engine at 10.0.0.7:8000".to_owned()),
        ),
        retry_in: Duration::from_secs(seconds),
    };
    let message = |lanes: Vec<DownLane>| {
        let (reason, retry_in) = (NoLaneReason::AllDown, Duration::from_secs(658));
        let filtering = String::new();
        let error = RouteError::NoLane { reason, filtering, lanes, retry_in };
        error.error_response().body.message
    };
    let one = message(vec![lane("a", 658)]);
    for part in ["`a`", "[gpu_not_found]", "/dev/kfd", "No HIP GPUs", "about 658 s"] {
        assert!(one.contains(part), "{part}: {one}");
    }
    let two = message(vec![lane("a", 658), lane("b", 7)]);
    for part in ["`a`", "`b`", "[gpu_not_found]", "/dev/kfd", "about 658 s", "about 7 s"] {
        assert!(two.contains(part), "{part}: {two}");
    }
    assert!(!two.contains("HIP") && !one.contains("10.0.0.7"), "{one} {two}");
    let many = message((0..100).map(|_| lane("a", 1)).collect());
    assert!(many.contains("96 more") && many.len() < 1000, "{many}");
}

#[test]
fn wait_for_a_load_is_told_with_the_time_left() {
    let timed_out = |state| {
        let retry_in = Duration::from_secs(39);
        let error = AcquireError::TimedOut { state, waited: 3 * SECOND, retry_in };
        let error = AttemptError::Acquire(error);
        RouteError::Attempt { lane: "a".into(), error }.error_response().body.message
    };
    let loading = timed_out(LaneState::Starting);
    assert!(loading.contains("loading") && loading.contains("39 s"), "{loading}");
    let busy = timed_out(LaneState::Ready);
    assert!(!busy.contains("loading") && !busy.contains("39 s"), "{busy}");
}
