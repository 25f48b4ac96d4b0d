//! Host functions as a guest calls them: live, recorded and replayed.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use domain::{
    DroppedEdit, Edit, FieldValue, FleetView, LaneState, MessageInfo, RequestInfo, RequestView,
    Role, Topology, char_slice,
};
use prometheus_client::registry::Registry;
use serde_json::json;
use wasmtime::Trap;

use super::*;
use crate::contract::guarded_api::ScanLimitExceeded;
use crate::contract::host_call_log::HostCallLog;
use crate::contract::host_call_mode::HostCallMode;
use crate::contract::host_state::HostState;
use crate::contract::live_api::Current;
use crate::contract::replay_log::ReplayLog;
use crate::contract::shared::Shared;
use crate::contract::state::State;
use crate::limits::MAX_SCANNED_BYTES;
use crate::metrics::{PolicyMetrics, VersionMetrics};
use crate::wasm::deadline::Deadline;

/// Ends the call, and returns its logged host calls.
fn end_and_log(state: &mut HostState) -> Vec<domain::Read> {
    match state.end() {
        (HostCallMode::Record(log), _) => log.into_calls(),
        (HostCallMode::Live | HostCallMode::Replay(_), _) => Vec::new(),
    }
}

/// A request with the text "ä secret", one field and one header.
#[derive(Debug)]
struct TestRequest;

impl RequestView for TestRequest {
    fn info(&self) -> RequestInfo {
        let endpoint = domain::Endpoint::Rerank;
        let (prompt_tokens, body_bytes) = (3, 12 << 20);
        RequestInfo { endpoint, prompt_tokens, body_bytes, ..RequestInfo::default() }
    }

    fn id(&self) -> &str {
        "id-1"
    }

    fn model(&self) -> &str {
        "auto"
    }

    fn tenant(&self) -> Option<&str> {
        Some("team")
    }

    fn key_group(&self) -> Option<&str> {
        Some("staff")
    }

    fn key_name(&self) -> Option<&str> {
        Some("k_1")
    }

    fn allowance(&self) -> domain::Allowance {
        let budget = domain::Remaining { limit: 100, left: 7, reset_ms: u64::MAX };
        domain::Allowance { budget: Some(budget), ..domain::Allowance::default() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        (name == "x-class").then_some("batch")
    }

    fn headers(&self) -> Vec<(&str, &[u8])> {
        vec![("x-class", b"batch")]
    }

    fn field(&self, pointer: &str, _: usize) -> FieldValue {
        if pointer == "/n" { FieldValue::Json("1".to_owned()) } else { FieldValue::Absent }
    }

    fn messages(&self) -> Vec<MessageInfo> {
        vec![MessageInfo { role: Role::User, text_bytes: 9, parts: 1, media_parts: 0 }]
    }

    fn text(&self, _: u32, offset: u64, max_bytes: usize) -> Cow<'_, str> {
        char_slice("ä secret", offset, max_bytes).into()
    }

    fn bytes(&self, _: u64, _: usize) -> &[u8] {
        &[0xff]
    }

    fn contains(&self, needle: &str, _: bool) -> bool {
        needle == "secret"
    }

    fn visit_texts(&self, visit: &mut dyn FnMut(u32, u64, &str) -> ControlFlow<()>) {
        let (ControlFlow::Continue(()) | ControlFlow::Break(())) = visit(0, 0, "ä secret");
    }

    fn prefix_hashes(&self, _: usize, _: usize) -> Vec<u64> {
        vec![u64::MAX]
    }

    fn edited(&self, _: &[Edit]) -> (Arc<dyn RequestView>, Vec<DroppedEdit>) {
        (Arc::new(Self), Vec::new())
    }
}

fn host(mode: HostCallMode, request: Option<Arc<dyn RequestView>>) -> HostState {
    let metrics = PolicyMetrics::register(&mut Registry::default());
    let policy = domain::PolicyRef::new("p", "1");
    let metrics = VersionMetrics::new(&metrics, &policy, &[]);
    let shared = Shared::new(policy, Arc::<State>::default(), metrics);
    let mut state = HostState::new(Arc::new(shared), 1 << 20);
    let fleet = FleetView::idle(Arc::new(Topology::new(1, Vec::new())), LaneState::Ready);
    let (fleet, time_left) = (Arc::new(fleet), Some(Duration::from_secs(9)));
    let lanes_left = Some([domain::LaneId(2)].into());
    state.begin(Current { request, fleet, time_left, lanes_left }, mode);
    state
}

fn current() -> Current {
    let fleet = FleetView::idle(Arc::new(Topology::new(1, Vec::new())), LaneState::Ready);
    let request: Option<Arc<dyn RequestView>> = Some(Arc::new(TestRequest));
    let (time_left, lanes_left) = (Some(Duration::from_secs(9)), Some([domain::LaneId(2)].into()));
    Current { request, time_left, lanes_left, ..Current::background(&Arc::new(fleet)) }
}

fn recording() -> HostState {
    host(HostCallMode::Record(HostCallLog::default()), Some(Arc::new(TestRequest)))
}

/// Calls every host function, and returns the results.
fn call_everything(state: &mut HostState) -> Vec<String> {
    macro_rules! results {
        ($($interface:ident: $($function:ident($($with:expr),*))*;)*) => {
            vec![$($({
                let result = $interface::Host::$function(&mut state.api(), $($with),*);
                format!("{:?}", result.unwrap())
            },)*)*]
        };
    }
    results! {
        request: id() model() tenant() header("x-class".to_owned())
            field("/n".to_owned(), 9) field("/m".to_owned(), 9)
            messages() text(0, 0, 4) body(0, 4) contains("secret".to_owned(), true)
            prefix_hashes(64, 1) endpoint_kind() key_group() key_name() allowance()
            deadline_ms() find_any(vec!["none".to_owned(), "CRET".to_owned()], true);
        fleet: stats() stat(3) candidates() info(3) find("a".to_owned())
            with_label("tier".to_owned(), "gpu".to_owned()) lanes_left();
        state: put("k".to_owned(), b"v".to_vec(), 60_000) get("k".to_owned())
            increment("k".to_owned(), 1, 0) delete("k".to_owned())
            increment("n".to_owned(), 2, 0);
    }
}

const ALLOWANCE: &str = concat!(
    r#"request.allowance[] = {"requests":null,"tokens":null,"budget":"#,
    r#"{"limit":100,"left":7,"reset-ms":18446744073709551615}}"#
);

#[test]
fn recorded_call_logs_every_host_call_with_its_result() {
    let mut state = recording();
    call_everything(&mut state);
    let format = |read: domain::Read| format!("{}{} = {}", read.call, json!(read.with), read.gave);
    let reads: Vec<String> = end_and_log(&mut state).into_iter().map(format).collect();
    let expected = [
        r#"request.id[] = "id-1""#,
        r#"request.model[] = "auto""#,
        r#"request.tenant[] = "team""#,
        r#"request.header["x-class"] = "batch""#,
        r#"request.field["/n",9] = {"json":"1"}"#,
        r#"request.field["/m",9] = "absent""#,
        r#"request.messages[] = [{"role":"user","text-bytes":9,"parts":1,"media-parts":0}]"#,
        r#"request.text[0,0,4] = "ä s""#,
        r#"request.body[0,4] = {"hex":"ff"}"#,
        r#"request.contains["secret",true] = true"#,
        "request.prefix-hashes[64,1] = [18446744073709551615]",
        r#"request.endpoint-kind[] = "rerank""#,
        r#"request.key-group[] = "staff""#,
        r#"request.key-name[] = "k_1""#,
        ALLOWANCE,
        "request.deadline-ms[] = 9000",
        r#"request.find-any[["none","CRET"],true] = [{"pattern":1,"message":0,"offset":5}]"#,
        "fleet.stats[] = null",
        "fleet.stat[3] = null",
        "fleet.candidates[] = []",
        "fleet.info[3] = null",
        r#"fleet.find["a"] = null"#,
        r#"fleet.with-label["tier","gpu"] = []"#,
        "fleet.lanes-left[] = [2]",
        r#"state.put["k",{"text":"v"},60000] = {"ok":null}"#,
        r#"state.get["k"] = {"text":"v"}"#,
        r#"state.increment["k",1,0] = {"error":"not-a-counter"}"#,
        r#"state.delete["k"] = null"#,
        r#"state.increment["n",2,0] = {"ok":2}"#,
    ];
    assert_eq!(reads, expected);
}

#[test]
fn replayed_call_gets_the_recorded_results() {
    let mut then = recording();
    state::Host::increment(&mut then.api(), "n".to_owned(), 40, 0).unwrap().unwrap();
    then.begin(current(), HostCallMode::Record(HostCallLog::default()));
    let results = call_everything(&mut then);
    let record = end_and_log(&mut then);

    // The live request and the live state are empty.
    let mut again = host(HostCallMode::Replay(Box::new(ReplayLog::new(&record))), None);
    assert_eq!(call_everything(&mut again), results);
    let (HostCallMode::Replay(log), _) = again.end() else { panic!("expected a replay") };
    let (reads, missing, differing) = log.into_parts();
    assert_eq!((reads, missing), (record, Vec::new()));
    assert!(differing.iter().all(|differing| differing.call.starts_with("request.")));
    assert_eq!(differing.len(), 15, "all except the field that is absent in both");
}

#[test]
fn live_calls_log_nothing() {
    let mut state = host(HostCallMode::Live, Some(Arc::new(TestRequest)));
    call_everything(&mut state);
    assert!(end_and_log(&mut state).is_empty());
    let mut state = recording();
    call_everything(&mut state);
    // The log of the first call is discarded.
    drop(state.end());
    assert!(end_and_log(&mut state).is_empty(), "the log of one call must not leak into the next");
}

#[test]
fn host_calls_end_after_the_scan_limit() {
    let mut state = host(HostCallMode::Live, Some(Arc::new(TestRequest)));
    let search = |state: &mut HostState, needle: &str| {
        request::Host::contains(&mut state.api(), needle.to_owned(), false)
    };
    assert!((0..5).all(|_| search(&mut state, "secret").unwrap()));
    let error = search(&mut state, "secret").unwrap_err();
    assert!(error.is::<ScanLimitExceeded>(), "{error:?}");
    // The limit is that of one call.
    drop(state.end());
    state.begin(current(), HostCallMode::Live);
    assert!(search(&mut state, "secret").unwrap());
    assert!(search(&mut state, &"n".repeat(MAX_NEEDLE_BYTES)).is_ok());
    assert!(search(&mut state, &"n".repeat(MAX_NEEDLE_BYTES + 1)).is_err());
    // Calls that examine nothing count as well.
    let ids = (0..MAX_SCANNED_BYTES).map(|_| request::Host::id(&mut state.api()));
    assert!(ids.take_while(Result::is_ok).count() < 1 << 18);
}

#[test]
fn host_calls_end_after_the_deadline() {
    let mut state = recording();
    state.deadline = Some(Deadline::start(Duration::from_secs(60)));
    assert!(request::Host::id(&mut state.api()).is_ok());
    state.deadline = Some(Deadline::start(Duration::ZERO));
    let mut ids = (0..16).map(|_| request::Host::id(&mut state.api()));
    let error = ids.find_map(Result::err).unwrap();
    assert_eq!(error.downcast_ref(), Some(&Trap::Interrupt));
}
