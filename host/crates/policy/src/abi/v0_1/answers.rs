//! The host's functions as track 0.1 has them: what a guest asks, answered by [`HostState`] and noted for records.

use pointsman_domain as domain;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bindings::pointsman::policy::{fleet, log, metrics, request, state, types};
use super::convert::{lane_info, lane_stat, level};
use crate::host_calls::HostState;
use crate::interview::Bytes;
use crate::state::StateError;

impl types::Host for HostState {}

impl request::Host for HostState {
    fn id(&mut self) -> String {
        let question = self.question("request.id", Vec::new);
        self.answer(question, |host| {
            HostState::request(host).map_or_else(String::new, |request| request.id().to_owned())
        })
    }

    fn model(&mut self) -> String {
        let question = self.question("request.model", Vec::new);
        self.answer(question, |host| {
            HostState::request(host).map_or_else(String::new, |request| request.model().to_owned())
        })
    }

    fn tenant(&mut self) -> Option<String> {
        let question = self.question("request.tenant", Vec::new);
        self.answer(question, |host| HostState::request(host)?.tenant().map(str::to_owned))
    }

    fn header(&mut self, name: String) -> Option<String> {
        let question = self.question("request.header", || vec![json!(name)]);
        self.answer(question, |host| HostState::request(host)?.header(&name).map(str::to_owned))
    }

    fn field(&mut self, pointer: String, max_bytes: u32) -> types::FieldValue {
        let question = self.question("request.field", || vec![json!(pointer), json!(max_bytes)]);
        match self.answer(question, |host| HostState::field(host, &pointer, max_bytes)) {
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
        let question = self.question("request.messages", Vec::new);
        let messages = self.answer(question, |host| HostState::messages(host));
        messages.into_iter().map(info).collect()
    }

    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        let with = || vec![json!(index), json!(offset), json!(max_bytes)];
        let question = self.question("request.text", with);
        self.answer(question, |host| HostState::text(host, index, offset, max_bytes))
    }

    fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let question = self.question("request.body", || vec![json!(offset), json!(max_bytes)]);
        self.answer(question, |host| Bytes(HostState::body(host, offset, max_bytes))).0
    }

    fn contains(&mut self, needle: String, ignore_case: bool) -> bool {
        let question =
            self.question("request.contains", || vec![json!(needle), json!(ignore_case)]);
        self.answer(question, |host| {
            HostState::request(host).is_some_and(|request| request.contains(&needle, ignore_case))
        })
    }

    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        let with = || vec![json!(block_bytes), json!(max_blocks)];
        let question = self.question("request.prefix-hashes", with);
        self.answer(question, |host| HostState::prefix_hashes(host, block_bytes, max_blocks))
    }
}

/// Figures and descriptions of lanes stand in every record, so only the questions for them are noted.
impl fleet::Host for HostState {
    fn stats(&mut self) -> Vec<types::LaneStat> {
        let question = self.question("fleet.stats", Vec::new);
        self.answer(question, |_| ());
        HostState::stats(self).iter().map(lane_stat).collect()
    }

    fn stat(&mut self, lane: u32) -> Option<types::LaneStat> {
        let question = self.question("fleet.stat", || vec![json!(lane)]);
        self.answer(question, |_| ());
        HostState::stat(self, lane).map(lane_stat)
    }

    fn candidates(&mut self) -> Vec<u32> {
        let question = self.question("fleet.candidates", Vec::new);
        self.answer(question, |host| HostState::candidates(host))
    }

    fn info(&mut self, lane: u32) -> Option<types::LaneInfo> {
        let question = self.question("fleet.info", || vec![json!(lane)]);
        self.answer(question, |_| ());
        HostState::info(self, lane).map(lane_info)
    }

    fn find(&mut self, name: String) -> Option<u32> {
        let question = self.question("fleet.find", || vec![json!(name)]);
        self.answer(question, |host| Some(HostState::fleet(host)?.topology.find(&name)?.0))
    }

    fn with_label(&mut self, key: String, value: String) -> Vec<u32> {
        let question = self.question("fleet.with-label", || vec![json!(key), json!(value)]);
        self.answer(question, |host| HostState::with_label(host, &key, &value))
    }
}

impl log::Host for HostState {
    fn write(&mut self, severity: types::Level, message: String) {
        HostState::log(self, level(severity), &message);
    }

    fn enabled(&mut self, severity: types::Level) -> bool {
        HostState::log_enabled(self, level(severity))
    }
}

impl metrics::Host for HostState {
    fn add(&mut self, name: String, value: u64) {
        self.shared.figures.add(&name, value);
    }

    fn record_value(&mut self, name: String, value: u64) {
        self.shared.figures.record_value(&name, value);
    }
}

/// What came of writing to the state, as records show it: `{"ok": …}` or `{"error": "too-long"}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stored<T> {
    Ok(T),
    Error(StateError),
}

impl<T> From<Result<T, StateError>> for Stored<T> {
    fn from(result: Result<T, StateError>) -> Self {
        result.map_or_else(Self::Error, Self::Ok)
    }
}

impl<T> Stored<T> {
    fn told(self) -> Result<T, state::StateError> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Error(StateError::TooLong) => Err(state::StateError::TooLong),
            Self::Error(StateError::NotACounter) => Err(state::StateError::NotACounter),
        }
    }
}

impl state::Host for HostState {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        let question = self.question("state.get", || vec![json!(key)]);
        self.answer(question, |host| host.shared.state.get(&key).map(Bytes))
            .map(|Bytes(bytes)| bytes)
    }

    fn put(&mut self, key: String, value: Vec<u8>, ttl_ms: u32) -> Result<(), state::StateError> {
        let with = || vec![json!(key), json!(Bytes(value.clone())), json!(ttl_ms)];
        let question = self.question("state.put", with);
        self.answer(question, |host| Stored::from(host.shared.state.put(key, &value, ttl_ms)))
            .told()
    }

    fn delete(&mut self, key: String) {
        let question = self.question("state.delete", || vec![json!(key)]);
        self.answer(question, |host| host.shared.state.delete(&key));
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: u32) -> Result<i64, state::StateError> {
        let question =
            self.question("state.increment", || vec![json!(key), json!(by), json!(ttl_ms)]);
        self.answer(question, |host| Stored::from(host.shared.state.increment(key, by, ttl_ms)))
            .told()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;

    use domain::{
        Edit, FieldValue, Figures, FleetView, LaneState, MessageInfo, RequestView, Role, Topology,
        char_slice,
    };
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::call::Current;
    use crate::host_calls::Shared;
    use crate::interview::Asking;
    use crate::metrics::{PolicyFigures, PolicyMetrics};
    use crate::reads::HostCallLog;
    use crate::replay::Script;
    use crate::state::State;

    /// What is noted of the call, which is over then.
    fn noted(state: &mut HostState) -> Vec<domain::Read> {
        match state.end() {
            (Asking::Noted(reads), _) => reads.into_list(),
            _ => Vec::new(),
        }
    }

    /// A request that says "ä secret" and knows one field and one header.
    #[derive(Debug)]
    struct Asked;

    impl RequestView for Asked {
        fn figures(&self) -> Figures {
            Figures { prompt_tokens: 3, ..Figures::default() }
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

        fn edited(&self, _: &[Edit]) -> (Arc<dyn RequestView>, Vec<(Edit, String)>) {
            (Arc::new(Self), Vec::new())
        }
    }

    fn hosted(asking: Asking, request: Option<Arc<dyn RequestView>>) -> HostState {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let figures = PolicyFigures::new(&metrics, &domain::PolicyRef::new("p", "1"), &[]);
        let shared = Shared::new("p".to_owned(), Arc::<State>::default(), figures);
        let mut state = HostState::new(Arc::new(shared), 1 << 20);
        let fleet = FleetView::idle(Arc::new(Topology::new(1, Vec::new())), LaneState::Ready);
        state.begin(Current { request, fleet: Arc::new(fleet) }, asking);
        state
    }

    fn noting() -> HostState {
        hosted(Asking::Noted(HostCallLog::default()), Some(Arc::new(Asked)))
    }

    /// Everything that a guest can ask, and what it is told.
    fn ask_everything(state: &mut HostState) -> Vec<String> {
        macro_rules! told {
            ($($interface:ident: $($function:ident($($with:expr),*))*;)*) => {
                vec![$($(format!("{:?}", $interface::Host::$function(state, $($with),*)),)*)*]
            };
        }
        told! {
            request: id() model() tenant() header("x-class".to_owned())
                field("/n".to_owned(), 9) field("/m".to_owned(), 9)
                messages() text(0, 0, 4) body(0, 4) contains("secret".to_owned(), true) prefix_hashes(64, 1);
            fleet: stats() stat(3) candidates() info(3) find("a".to_owned())
                with_label("tier".to_owned(), "gpu".to_owned());
            state: put("k".to_owned(), b"v".to_vec(), 5) get("k".to_owned())
                increment("k".to_owned(), 1, 0) delete("k".to_owned()) increment("n".to_owned(), 2, 0);
        }
    }

    #[test]
    fn a_recorded_call_keeps_every_question_with_its_answer() {
        let mut state = noting();
        ask_everything(&mut state);
        let shown =
            |read: domain::Read| format!("{}{} = {}", read.call, json!(read.with), read.gave);
        let reads: Vec<String> = noted(&mut state).into_iter().map(shown).collect();
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
    fn a_replayed_call_is_told_what_was_noted() {
        let mut then = noting();
        state::Host::increment(&mut then, "n".to_owned(), 40, 0).unwrap();
        let fleet = FleetView::idle(Arc::new(Topology::new(1, Vec::new())), LaneState::Ready);
        let current = Current { request: Some(Arc::new(Asked)), fleet: Arc::new(fleet) };
        then.begin(current, Asking::Noted(HostCallLog::default()));
        let told = ask_everything(&mut then);
        let record = noted(&mut then);

        // There is no request any more, and nothing in the state.
        let mut again = hosted(Asking::Replayed(Box::new(Script::new(&record))), None);
        assert_eq!(ask_everything(&mut again), told);
        let (Asking::Replayed(script), _) = again.end() else { panic!("it is a replay") };
        let (reads, missing, differing) = script.into_parts();
        assert_eq!((reads, missing), (record, Vec::new()));
        assert!(differing.iter().all(|question| question.call.starts_with("request.")));
        assert_eq!(differing.len(), 10, "all but the field that is absent then and now");
    }

    #[test]
    fn other_calls_keep_nothing() {
        let mut state = hosted(Asking::Plain, Some(Arc::new(Asked)));
        ask_everything(&mut state);
        assert!(noted(&mut state).is_empty());
        let mut state = noting();
        ask_everything(&mut state);
        drop(state.end());
        assert!(noted(&mut state).is_empty(), "questions of one call are not shown as another's");
    }
}
