//! The host functions of track 0.1: conversion between its types and those of [`HostApi`].

use pointsman_domain as domain;

use crate::contract::host_api::HostApi;
use crate::contract::state::entry::StateError;
use crate::contract::v0_1::bindings::pointsman::policy::{
    fleet, log, metrics, request, state, types,
};
use crate::contract::v0_1::convert::{lane_info, lane_stat, level};

impl types::Host for dyn HostApi + '_ {}

impl request::Host for dyn HostApi + '_ {
    fn id(&mut self) -> String {
        HostApi::id(self)
    }

    fn model(&mut self) -> String {
        HostApi::model(self)
    }

    fn tenant(&mut self) -> Option<String> {
        HostApi::tenant(self)
    }

    fn header(&mut self, name: String) -> Option<String> {
        HostApi::header(self, &name)
    }

    fn field(&mut self, pointer: String, max_bytes: u32) -> types::FieldValue {
        match HostApi::field(self, &pointer, max_bytes) {
            domain::FieldValue::Absent => types::FieldValue::Absent,
            domain::FieldValue::Json(json) => types::FieldValue::Json(json),
            domain::FieldValue::TooLarge(size) => types::FieldValue::TooLarge(size),
        }
    }

    fn messages(&mut self) -> Vec<types::MessageInfo> {
        let info = |info: domain::MessageInfo| types::MessageInfo {
            role: match info.role {
                domain::Role::System => types::Role::System,
                domain::Role::User => types::Role::User,
                domain::Role::Assistant => types::Role::Assistant,
                domain::Role::Tool => types::Role::Tool,
                domain::Role::Other => types::Role::Other,
            },
            text_bytes: info.text_bytes,
            parts: info.parts,
            media_parts: info.media_parts,
        };
        HostApi::messages(self).into_iter().map(info).collect()
    }

    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        HostApi::text(self, index, offset, max_bytes)
    }

    fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        HostApi::body(self, offset, max_bytes)
    }

    fn contains(&mut self, needle: String, ignore_case: bool) -> bool {
        HostApi::contains(self, &needle, ignore_case)
    }

    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        HostApi::prefix_hashes(self, block_bytes, max_blocks)
    }
}

impl fleet::Host for dyn HostApi + '_ {
    fn stats(&mut self) -> Vec<types::LaneStat> {
        HostApi::stats(self).into_iter().map(lane_stat).collect()
    }

    fn stat(&mut self, lane: u32) -> Option<types::LaneStat> {
        HostApi::stat(self, lane).map(lane_stat)
    }

    fn candidates(&mut self) -> Vec<u32> {
        HostApi::candidates(self)
    }

    fn info(&mut self, lane: u32) -> Option<types::LaneInfo> {
        HostApi::info(self, lane).map(lane_info)
    }

    fn find(&mut self, name: String) -> Option<u32> {
        HostApi::find(self, &name)
    }

    fn with_label(&mut self, key: String, value: String) -> Vec<u32> {
        HostApi::with_label(self, &key, &value)
    }
}

impl log::Host for dyn HostApi + '_ {
    fn write(&mut self, severity: types::Level, message: String) {
        HostApi::log(self, level(severity), &message);
    }

    fn enabled(&mut self, severity: types::Level) -> bool {
        HostApi::log_enabled(self, level(severity))
    }
}

impl metrics::Host for dyn HostApi + '_ {
    fn add(&mut self, name: String, value: u64) {
        HostApi::add_metric(self, &name, value);
    }

    fn record_value(&mut self, name: String, value: u64) {
        HostApi::record_metric(self, &name, value);
    }
}

impl state::Host for dyn HostApi + '_ {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        HostApi::get(self, &key)
    }

    fn put(&mut self, key: String, value: Vec<u8>, ttl_ms: u32) -> Result<(), state::StateError> {
        HostApi::put(self, key, &value, ttl_ms).map_err(state_error)
    }

    fn delete(&mut self, key: String) {
        HostApi::delete(self, &key);
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: u32) -> Result<i64, state::StateError> {
        HostApi::increment(self, key, by, ttl_ms).map_err(state_error)
    }
}

fn state_error(error: StateError) -> state::StateError {
    match error {
        StateError::TooLong => state::StateError::TooLong,
        StateError::NotACounter => state::StateError::NotACounter,
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;

    use domain::{
        DroppedEdit, Edit, FieldValue, FleetView, LaneState, MessageInfo, RequestInfo, RequestView,
        Role, Topology, char_slice,
    };
    use prometheus_client::registry::Registry;
    use serde_json::json;

    use super::*;
    use crate::contract::host_call_log::HostCallLog;
    use crate::contract::host_call_mode::HostCallMode;
    use crate::contract::host_state::HostState;
    use crate::contract::live_api::Current;
    use crate::contract::replay_log::ReplayLog;
    use crate::contract::shared::Shared;
    use crate::contract::state::State;
    use crate::metrics::{PolicyMetrics, VersionMetrics};

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
            RequestInfo { prompt_tokens: 3, ..RequestInfo::default() }
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
        state.begin(Current { request, fleet: Arc::new(fleet) }, mode);
        state
    }

    fn recording() -> HostState {
        host(HostCallMode::Record(HostCallLog::default()), Some(Arc::new(TestRequest)))
    }

    /// Calls every host function, and returns the results.
    fn call_everything(state: &mut HostState) -> Vec<String> {
        macro_rules! results {
            ($($interface:ident: $($function:ident($($with:expr),*))*;)*) => {
                vec![$($({
                    let result = $interface::Host::$function(&mut *state.api(), $($with),*);
                    format!("{result:?}")
                },)*)*]
            };
        }
        results! {
            request: id() model() tenant() header("x-class".to_owned())
                field("/n".to_owned(), 9) field("/m".to_owned(), 9)
                messages() text(0, 0, 4) body(0, 4) contains("secret".to_owned(), true)
                prefix_hashes(64, 1);
            fleet: stats() stat(3) candidates() info(3) find("a".to_owned())
                with_label("tier".to_owned(), "gpu".to_owned());
            state: put("k".to_owned(), b"v".to_vec(), 5) get("k".to_owned())
                increment("k".to_owned(), 1, 0) delete("k".to_owned())
                increment("n".to_owned(), 2, 0);
        }
    }

    #[test]
    fn recorded_call_logs_every_host_call_with_its_result() {
        let mut state = recording();
        call_everything(&mut state);
        let format =
            |read: domain::Read| format!("{}{} = {}", read.call, json!(read.with), read.gave);
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
            "fleet.stats[] = null",
            "fleet.stat[3] = null",
            "fleet.candidates[] = []",
            "fleet.info[3] = null",
            r#"fleet.find["a"] = null"#,
            r#"fleet.with-label["tier","gpu"] = []"#,
            r#"state.put["k",{"text":"v"},5] = {"ok":null}"#,
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
        state::Host::increment(&mut *then.api(), "n".to_owned(), 40, 0).unwrap();
        let fleet = FleetView::idle(Arc::new(Topology::new(1, Vec::new())), LaneState::Ready);
        let current = Current { request: Some(Arc::new(TestRequest)), fleet: Arc::new(fleet) };
        then.begin(current, HostCallMode::Record(HostCallLog::default()));
        let results = call_everything(&mut then);
        let record = end_and_log(&mut then);

        // The live request and the live state are empty.
        let mut again = host(HostCallMode::Replay(Box::new(ReplayLog::new(&record))), None);
        assert_eq!(call_everything(&mut again), results);
        let (HostCallMode::Replay(log), _) = again.end() else { panic!("expected a replay") };
        let (reads, missing, differing) = log.into_parts();
        assert_eq!((reads, missing), (record, Vec::new()));
        assert!(differing.iter().all(|differing| differing.call.starts_with("request.")));
        assert_eq!(differing.len(), 10, "all except the field that is absent in both");
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
        assert!(
            end_and_log(&mut state).is_empty(),
            "the log of one call must not leak into the next"
        );
    }
}
