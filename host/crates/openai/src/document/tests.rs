use super::*;
use crate::index::find;
use crate::json::{MAX_DEPTH, tokens};
use proptest::prelude::*;

fn set(json: &str, tokens: &[String], value: &str) -> Result<String, PointerError> {
    let mut document = Node::new(json);
    document.set(tokens, value.into())?;
    Ok(document.write())
}

fn remove(json: &str, tokens: &[String]) -> Result<String, PointerError> {
    let mut document = Node::new(json);
    document.remove(tokens)?;
    Ok(document.write())
}

#[test]
fn edits_change_nothing_else() {
    let body = r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#;
    for (pointer, value, expected) in [
        ("/a", "7", r#"{ "a" : 7 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#),
        ("/b/c/1", "9", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 9],"d":null}, "é\u0041":"x" }"#),
        ("/b/c/-", "3", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2,3],"d":null}, "é\u0041":"x" }"#),
        ("/éA", "0", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":0 }"#),
        ("/n", "[]", r#"{"n":[], "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#),
    ] {
        assert_eq!(set(body, &tokens(pointer).unwrap(), value).unwrap(), expected, "set {pointer}");
    }
    for (pointer, expected) in [
        ("/a", r#"{"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#),
        ("/b/c/0", r#"{ "a" : 1.0e2 ,"b":{"c":[ 2],"d":null}, "é\u0041":"x" }"#),
        ("/b/d", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2]}, "é\u0041":"x" }"#),
        ("/éA", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null} }"#),
        ("/none", body),
        ("/a/deep", body),
    ] {
        assert_eq!(remove(body, &tokens(pointer).unwrap()).unwrap(), expected, "remove {pointer}");
    }
    assert_eq!(remove(r#"{ "a":1 }"#, &tokens("/a").unwrap()).unwrap(), "{}");
    let too_deep = "/a".repeat(MAX_DEPTH + 1);
    for (pointer, error) in [
        ("", PointerError::Empty),
        ("a", PointerError::NoLeadingSlash("a".to_owned())),
        (too_deep.as_str(), PointerError::TooDeep),
        ("/x/y", PointerError::NoMember("x".to_owned())),
        ("/b/c/9", PointerError::NoElement("9".to_owned())),
        ("/a/b", PointerError::NotAContainer("b".to_owned())),
    ] {
        let result = tokens(pointer).and_then(|tokens| set(body, &tokens, "1"));
        assert_eq!(result, Err(error), "{pointer:?}");
    }
}

#[test]
fn duplicate_members_are_edited_together() {
    let body = r#"{"user":"a" , "x":1,"\u0075ser":"b","o":{"k":1},"o":{"k":2, "l":3},"user":"c" }"#;
    for (pointer, expected) in [
        ("/user", r#"{ "x":1,"o":{"k":1},"o":{"k":2, "l":3} }"#),
        ("/o/k", r#"{"user":"a" , "x":1,"\u0075ser":"b","o":{ "l":3},"user":"c" }"#),
    ] {
        let removed = remove(body, &tokens(pointer).unwrap()).unwrap();
        assert_eq!(removed, expected, "remove {pointer}");
    }
    let set = set(body, &tokens("/user").unwrap(), "0").unwrap();
    assert_eq!(set, r#"{ "x":1,"o":{"k":1},"o":{"k":2, "l":3},"user":0 }"#);
}

#[test]
fn many_members_are_removed_at_once() {
    for (json, expected) in [
        (r#"{ "a":1 , "b":2, "a":3 ,"c":4 }"#, r#"{ "b":2 ,"c":4 }"#),
        (r#"{ "a":1,"a":2 }"#, "{}"),
        (r#"{"b":1 , "a":2 }"#, r#"{"b":1 }"#),
        ("{ }", "{ }"),
        (r#"["a"]"#, r#"["a"]"#),
    ] {
        let mut document = Node::new(json);
        document.remove_members(|key| key == "a").unwrap();
        assert_eq!(document.write(), expected, "{json}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[ab/~\"é]{0,2}", inner), 0..4)
                .prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Setting, finding and removing agree with the same operations on parsed values.
    #[test]
    fn text_edits_agree_with_value_edits(
        body in prop::collection::vec(("[ab/~\"é]{0,2}", any_json()), 0..4),
        key in "[ab/~\"é]{0,2}",
        value in any_json(),
        pretty: bool,
    ) {
        let mut model = Value::Object(body.into_iter().collect());
        let text = match pretty {
            true => serde_json::to_string_pretty(&model).unwrap(),
            false => model.to_string(),
        };
        let path = [key.clone()];
        let found = find(&text, &path).map(|text| serde_json::from_str::<Value>(text).unwrap());
        prop_assert_eq!(found, model.get(&key).cloned());
        let removed = remove(&text, &path).unwrap();
        let removed: Value = serde_json::from_str(&removed).unwrap();
        let set = set(&text, &path, &value.to_string()).unwrap();
        let set: Value = serde_json::from_str(&set).unwrap();
        model.as_object_mut().unwrap().shift_remove(&key);
        prop_assert_eq!(&removed, &model);
        model[&key] = value;
        prop_assert_eq!(&set, &model);
    }
}
