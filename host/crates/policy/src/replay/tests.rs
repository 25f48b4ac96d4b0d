use std::time::Duration;

use pointsman_domain::Read;
use serde_json::{Value, json};

use super::{CUT, Script, fits, is_passing, redacted};
use crate::call::Fault;
use crate::interview::{Bytes, Question};
use crate::version::NoAdvice;

fn read(call: &str, with: Value, gave: Value) -> Read {
    let Value::Array(with) = with else { panic!("arguments are a list") };
    Read { call: call.to_owned(), with, gave }
}

fn question(call: &'static str, with: Value) -> Question {
    let Value::Array(with) = with else { panic!("arguments are a list") };
    Question { call, with }
}

/// The sentences about what was missing, and about what differed.
fn remarks(script: Script) -> [Vec<String>; 2] {
    let (_, missing, differing) = script.into_parts();
    [
        missing.iter().map(ToString::to_string).collect(),
        differing.iter().map(ToString::to_string).collect(),
    ]
}

#[test]
fn questions_about_the_request_are_answered_wherever_they_stand() {
    let text = |from: u32, gave: &str| read("request.text", json!([0, from, 9]), json!(gave));
    let mut script = Script::new(&[text(0, "first"), text(9, "later"), text(0, "shorter")]);
    let mut ask =
        |from: u32| script.settle(question("request.text", json!([0, from, 9])), String::new());
    assert_eq!([ask(9), ask(0), ask(0), ask(0)], ["later", "first", "shorter", "shorter"]);
    let live = script.settle(question("request.text", json!([1, 0, 9])), "live".to_owned());
    assert_eq!(live, "live");
    let (reads, missing, differing) = script.into_parts();
    assert_eq!(reads.last().map(|read| &read.gave), Some(&json!("live")));
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].to_string(), "asks request.text [1,0,9], which the record does not have");
    assert_eq!(differing.len(), 4, "there is no such request now");
    assert_eq!(
        differing[0].to_string(),
        r#"asks request.text [0,9,9]: the record says "later", and now it is """#
    );
}

#[test]
fn answers_of_the_state_come_in_their_order() {
    let record = [
        read("state.get", json!(["a"]), Value::Null),
        read("state.increment", json!(["n", 1, 0]), json!({ "ok": 7 })),
        read("request.id", json!([]), json!("id")),
        read("state.get", json!(["a"]), json!({ "text": "one" })),
        read("state.get", json!(["b"]), json!({ "text": "two" })),
    ];
    let get = |script: &mut Script, key: &str| {
        script.settle(question("state.get", json!([key])), None::<Bytes>).map(|Bytes(bytes)| bytes)
    };
    let count = |script: &mut Script| {
        script.settle(question("state.increment", json!(["n", 1, 0])), json!({ "ok": 1 }))
    };
    let mut same = Script::new(&record);
    assert_eq!(get(&mut same, "a"), None);
    assert_eq!(count(&mut same), json!({ "ok": 7 }));
    // Who reads less is told the rest all the same.
    assert_eq!(get(&mut same, "b").as_deref(), Some(b"two".as_slice()));
    assert_eq!(get(&mut same, "a"), None, "and not what it was before");
    let [missing, differing] = remarks(same);
    assert_eq!(missing, [r#"asks state.get ["a"], which the record does not have"#]);
    assert!(differing.is_empty(), "an empty state is no other answer");

    let mut other = Script::new(&record);
    assert_eq!(get(&mut other, "b"), None, "the counter comes before");
    assert_eq!(count(&mut other), json!({ "ok": 7 }));
}

#[test]
fn whatever_has_no_answer_is_missing_with_the_reason() {
    let record = [
        read("request.text", json!([0, 0, 9]), json!("redacted:4:0123456789abcdef")),
        read("request.field", json!(["/a", 9]), json!({ "json": "{\"b\":\"redacted:17\"}" })),
        read("request.contains", json!(["x", false]), json!("perhaps")),
        read("request.prefix-hashes", json!([16, 4]), json!("redacted:42")),
        read(CUT, json!([]), Value::Null),
    ];
    let mut script = Script::new(&record);
    assert_eq!(
        script.settle(question("request.text", json!([0, 0, 9])), "live".to_owned()),
        "live"
    );
    assert_eq!(
        script.settle(question("request.field", json!(["/a", 9])), json!("absent")),
        "absent"
    );
    assert!(script.settle(question("request.contains", json!(["x", false])), true));
    assert_eq!(script.settle(question("request.prefix-hashes", json!([16, 4])), vec![5u64]), [5]);
    assert_eq!(script.settle(question("request.model", json!([])), "auto".to_owned()), "auto");
    // The fleet is at hand, whether it was asked for then or not.
    script.settle(question("fleet.stats", json!([])), ());
    assert_eq!(script.settle(question("fleet.candidates", json!([])), vec![1u32]), [1]);
    let [missing, differing] = remarks(script);
    let expected = [
        "asks request.text [0,0,9], whose answer is redacted in the record",
        r#"asks request.field ["/a",9], whose answer is redacted in the record"#,
        r#"asks request.contains ["x",false], and what the record says of it is no answer"#,
        "asks request.prefix-hashes [16,4], whose answer is redacted in the record",
        "asks request.model [], and the record ends before that",
    ];
    assert_eq!(missing, expected);
    assert!(differing.is_empty());
}

#[test]
fn marks_stand_for_any_text() {
    let hash = "0123456789abcdef";
    for (recorded, asked) in [
        ("spent:acme".to_owned(), "spent:acme"),
        (format!("redacted:4:{hash}"), "acme"),
        ("redacted:4".to_owned(), ""),
        (format!("spent:redacted:4:{hash}/7"), "spent:acme/7"),
        (format!("spent:redacted:4:{hash}/7"), "spent:a/7/7"),
        // A record's own mark, as whoever has only the record asks.
        (format!("spent:redacted:4:{hash}"), &format!("spent:redacted:4:{hash}")),
        ("a redacted:1 b redacted:2 c".to_owned(), "a x b y b z c"),
        ("redacted:3:ä".to_owned(), "abc:ä"),
    ] {
        assert!(
            fits(&json!({ "text": recorded }), &json!({ "text": asked })),
            "{recorded} {asked}"
        );
    }
    for (recorded, asked) in [
        ("spent:acme", "spent:other"),
        ("spent:redacted:4/7", "spent:acme/8"),
        ("spent:redacted:4/7", "spend:acme/7"),
        ("a redacted:1 b redacted:2 c", "a x c"),
        // These are words and no marks.
        ("redacted:", "x"),
        ("redacted:soon", "x"),
    ] {
        assert!(!fits(&json!([recorded]), &json!([asked])), "{recorded} {asked}");
    }
    assert!(!fits(&json!({ "text": "redacted:4" }), &json!({ "hex": "00" })));
    assert!(
        redacted(&json!([{ "a": "and redacted:12." }]))
            && !redacted(&json!(["it is redacted: all"]))
    );
}

#[test]
fn reasons_of_the_moment_are_told_from_those_that_come_again() {
    let passing = [
        NoAdvice::OutOfService,
        Fault::Timeout(Duration::from_millis(5)).into(),
        Fault::Instantiate("no room".to_owned()).into(),
    ];
    assert!(passing.iter().all(|reason| is_passing(&reason.to_string())), "{passing:?}");
    let lasting = [
        NoAdvice::from(Fault::Trap("unreachable".to_owned())),
        Fault::Memory(1).into(),
        Fault::Output(1).into(),
    ];
    assert!(!lasting.iter().any(|reason| is_passing(&reason.to_string())), "{lasting:?}");
}

#[test]
fn who_goes_on_counting_is_told_what_follows() {
    let record = [read("state.increment", json!(["n", 5, 0]), json!({ "ok": 40 }))];
    let mut script = Script::new(&record);
    let mut count = |key: &str, by: i64| {
        script.settle(question("state.increment", json!([key, by, 0])), json!({ "ok": by }))["ok"]
            .clone()
    };
    assert_eq!([count("n", 5), count("n", -5), count("n", 2), count("m", 1)], [40, 35, 37, 1]);
    let [missing, _] = remarks(script);
    assert_eq!(missing, [r#"asks state.increment ["m",1,0], which the record does not have"#]);
}
