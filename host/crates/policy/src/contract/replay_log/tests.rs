use pointsman_domain::Read;
use serde_json::{Value, json};

use super::{Gap, Missing, ReplayLog};
use crate::contract::encoded_bytes::Bytes;
use crate::contract::host_call_log::TRUNCATED;
use crate::contract::journal::{HostCall, Journal};
use crate::marks::{fits, redacted};

fn read(call: &str, with: Value, gave: Value) -> Read {
    let Value::Array(with) = with else { panic!("arguments are a list") };
    Read { call: call.to_owned(), with, gave }
}

fn host_call(function: &'static str, args: Value) -> HostCall {
    let Value::Array(args) = args else { panic!("arguments are a list") };
    HostCall { function, args }
}

/// Returns the host calls that were missing, with the reasons, and the functions of those that
/// differed.
fn gaps(log: ReplayLog) -> (Vec<(String, Value, Gap)>, Vec<String>) {
    let (_, missing, differing) = log.into_parts();
    let gap = |Missing { call, with, why }: Missing| (call, Value::Array(with), why);
    (
        missing.into_iter().map(gap).collect(),
        differing.into_iter().map(|differing| differing.call).collect(),
    )
}

fn gap(function: &str, args: Value, why: Gap) -> (String, Value, Gap) {
    (function.to_owned(), args, why)
}

#[test]
fn request_calls_are_answered_from_anywhere_in_the_record() {
    let text = |from: u32, gave: &str| read("request.text", json!([0, from, 9]), json!(gave));
    let mut log = ReplayLog::new(&[text(0, "first"), text(9, "later"), text(0, "shorter")]);
    let mut ask =
        |from: u32| log.resolve(host_call("request.text", json!([0, from, 9])), String::new());
    assert_eq!([ask(9), ask(0), ask(0), ask(0)], ["later", "first", "shorter", "shorter"]);
    let live = log.resolve(host_call("request.text", json!([1, 0, 9])), "live".to_owned());
    assert_eq!(live, "live");
    let (reads, missing, differing) = log.into_parts();
    assert_eq!(reads.last().map(|read| &read.gave), Some(&json!("live")));
    assert_eq!(missing.len(), 1);
    assert_eq!((missing[0].call.as_str(), missing[0].why), ("request.text", Gap::NotAsked));
    assert_eq!(missing[0].with, [json!(1), json!(0), json!(9)]);
    assert_eq!(differing.len(), 4, "the live request is empty");
    assert_eq!(differing[0].call, "request.text");
    assert_eq!(differing[0].with, [json!(0), json!(9), json!(9)]);
    assert_eq!((&differing[0].recorded, &differing[0].live), (&json!("later"), &json!("")));
}

#[test]
fn state_calls_are_answered_in_order() {
    let record = [
        read("state.get", json!(["a"]), Value::Null),
        read("state.increment", json!(["n", 1, 0]), json!({ "ok": 7 })),
        read("request.id", json!([]), json!("id")),
        read("state.get", json!(["a"]), json!({ "text": "one" })),
        read("state.get", json!(["b"]), json!({ "text": "two" })),
    ];
    let get = |log: &mut ReplayLog, key: &str| {
        log.resolve(host_call("state.get", json!([key])), None::<Bytes>).map(|Bytes(bytes)| bytes)
    };
    let count = |log: &mut ReplayLog| {
        log.resolve(host_call("state.increment", json!(["n", 1, 0])), json!({ "ok": 1 }))
    };
    let mut same = ReplayLog::new(&record);
    assert_eq!(get(&mut same, "a"), None);
    assert_eq!(count(&mut same), json!({ "ok": 7 }));
    // Skipped reads do not affect the following calls.
    assert_eq!(get(&mut same, "b").as_deref(), Some(b"two".as_slice()));
    assert_eq!(get(&mut same, "a"), None, "an earlier result must not be reused");
    let (missing, differing) = gaps(same);
    assert_eq!(missing, [gap("state.get", json!(["a"]), Gap::NotAsked)]);
    assert!(differing.is_empty(), "an empty live state is not a difference");

    let mut other = ReplayLog::new(&record);
    assert_eq!(get(&mut other, "b"), None, "the increment comes first");
    assert_eq!(count(&mut other), json!({ "ok": 7 }));
}

#[test]
fn missing_results_are_reported_with_the_reason() {
    let record = [
        read("request.text", json!([0, 0, 9]), json!("redacted:4:0123456789abcdef")),
        read("request.field", json!(["/a", 9]), json!({ "json": "{\"b\":\"redacted:17\"}" })),
        read("request.contains", json!(["x", false]), json!("perhaps")),
        read("request.prefix-hashes", json!([16, 4]), json!("redacted:42")),
        read(TRUNCATED, json!([]), Value::Null),
    ];
    let mut log = ReplayLog::new(&record);
    assert_eq!(log.resolve(host_call("request.text", json!([0, 0, 9])), "live".to_owned()), "live");
    assert_eq!(
        log.resolve(host_call("request.field", json!(["/a", 9])), json!("absent")),
        "absent"
    );
    assert!(log.resolve(host_call("request.contains", json!(["x", false])), true));
    assert_eq!(log.resolve(host_call("request.prefix-hashes", json!([16, 4])), vec![5u64]), [5]);
    assert_eq!(log.resolve(host_call("request.model", json!([])), "auto".to_owned()), "auto");
    // The caller passes the fleet, whether the recorded call asked for it or not.
    log.resolve(host_call("fleet.stats", json!([])), ());
    assert_eq!(log.resolve(host_call("fleet.candidates", json!([])), vec![1u32]), [1]);
    let (missing, differing) = gaps(log);
    let expected = [
        gap("request.text", json!([0, 0, 9]), Gap::Redacted),
        gap("request.field", json!(["/a", 9]), Gap::Redacted),
        gap("request.contains", json!(["x", false]), Gap::Unreadable),
        gap("request.prefix-hashes", json!([16, 4]), Gap::Redacted),
        gap("request.model", json!([]), Gap::Cut),
    ];
    assert_eq!(missing, expected);
    assert!(differing.is_empty());
}

#[test]
fn marks_match_any_text() {
    let hash = "0123456789abcdef";
    for (recorded, text) in [
        ("spent:acme".to_owned(), "spent:acme"),
        (format!("redacted:4:{hash}"), "acme"),
        ("redacted:4".to_owned(), ""),
        (format!("spent:redacted:4:{hash}/7"), "spent:acme/7"),
        (format!("spent:redacted:4:{hash}/7"), "spent:a/7/7"),
        // A mark of the record itself, which a replay without the original text passes.
        (format!("spent:redacted:4:{hash}"), &format!("spent:redacted:4:{hash}")),
        ("a redacted:1 b redacted:2 c".to_owned(), "a x b y b z c"),
        ("redacted:3:ä".to_owned(), "abc:ä"),
    ] {
        assert!(fits(&json!({ "text": recorded }), &json!({ "text": text })), "{recorded} {text}");
    }
    for (recorded, text) in [
        ("spent:acme", "spent:other"),
        ("spent:redacted:4/7", "spent:acme/8"),
        ("spent:redacted:4/7", "spend:acme/7"),
        ("a redacted:1 b redacted:2 c", "a x c"),
        // Not marks: there is no length.
        ("redacted:", "x"),
        ("redacted:soon", "x"),
    ] {
        assert!(!fits(&json!([recorded]), &json!([text])), "{recorded} {text}");
    }
    assert!(!fits(&json!({ "text": "redacted:4" }), &json!({ "hex": "00" })));
    assert!(
        redacted(&json!([{ "a": "and redacted:12." }]))
            && !redacted(&json!(["it is redacted: all"]))
    );
}

#[test]
fn counters_continue_from_the_recorded_value() {
    let record = [read("state.increment", json!(["n", 5, 0]), json!({ "ok": 40 }))];
    let mut log = ReplayLog::new(&record);
    let mut count = |key: &str, by: i64| {
        log.resolve(host_call("state.increment", json!([key, by, 0])), json!({ "ok": by }))["ok"]
            .clone()
    };
    assert_eq!([count("n", 5), count("n", -5), count("n", 2), count("m", 1)], [40, 35, 37, 1]);
    let (missing, _) = gaps(log);
    assert_eq!(missing, [gap("state.increment", json!(["m", 1, 0]), Gap::NotAsked)]);
}

#[test]
fn messages_name_the_call_and_the_reason() {
    let mut log = ReplayLog::new(&[read("request.id", json!([]), json!("a"))]);
    log.resolve(host_call("request.id", json!([])), "b".to_owned());
    log.resolve(host_call("request.model", json!([])), String::new());
    let (_, missing, differing) = log.into_parts();
    assert!(missing[0].to_string().starts_with("calls request.model [], "), "{}", missing[0]);
    assert_eq!(differing[0].to_string(), r#"calls request.id []: recorded "a", now "b""#);
}
