//! The errors that invalid scenarios are rejected with.

use super::*;

#[test]
fn all_errors_are_reported_in_one_pass_with_their_lines() {
    let source = "seeds = \"x\"\nduratoin = \"1h\"\n[fleet]\n[engines.a]\n\
                  load = { median = 5 }\n[[traffic]]\nclass = \"c\"\n\
                  [[variants]]\nset = { duration = 5 }\n";
    let errors = parse(source).unwrap_err();
    let found: Vec<(usize, &str, Code)> =
        errors.iter().map(|error| (error.line, error.key.as_str(), error.code)).collect();
    let expected = [
        (1, "duration", Code::MissingKey),
        (1, "seeds", Code::WrongType),
        (2, "duratoin", Code::UnknownKey),
        (3, "fleet.lanes", Code::MissingKey),
        (5, "engines.a.load", Code::InvalidValue),
        (6, "traffic[0]", Code::MissingKey),
        (6, "traffic[0].model", Code::MissingKey),
        (6, "traffic[0].prompt", Code::MissingKey),
        (6, "traffic[0].output", Code::MissingKey),
        (8, "variants[0].name", Code::MissingKey),
        (9, "duration", Code::WrongType),
    ];
    assert_eq!(found, expected);
    // The messages name what was found, or what to write.
    for (index, part) in [
        (0, "`duration = \"24h\""),
        (1, "a string"),
        (2, "`duration`?"),
        (3, "`[[fleet.lanes]]`"),
        (4, "`median`"),
        (5, "`rate`"),
        (6, "`model = \"auto\"`"),
        (7, "`prompt = 500 or"),
        (8, "`output = 500 or"),
        (9, "`name = \"first-come\"`"),
        (10, "an integer"),
    ] {
        assert!(errors[index].message.contains(part), "{part}: {}", errors[index]);
    }
}

/// Asserts that a scenario is rejected with an error of this key and code, whose message contains
/// `value`.
fn assert_rejected(source: &str, key: &str, code: Code, value: &str) {
    let errors = parse(source).unwrap_err();
    let is_expected = |error: &Diagnostic| {
        error.key == key && error.code == code && error.message.contains(value)
    };
    assert!(errors.iter().any(is_expected), "{key} {code} {value}\n{source}\n{errors:#?}");
}

#[test]
fn invalid_keys_of_the_root_are_rejected() {
    for (source, key, code, value) in [
        ("duration = ".to_owned(), "", Code::Syntax, ""),
        (
            format!("start-time = \"today\"\n{}", with("")),
            "start-time",
            Code::InvalidValue,
            "2026-01-05T00:00:00Z",
        ),
        (format!("seeds = [-1]\n{}", with("")), "seeds", Code::InvalidValue, "`seeds = 3`"),
    ] {
        assert_rejected(&source, key, code, value);
    }
}

#[test]
fn invalid_traffic_is_rejected() {
    let complete = "model = \"a\"\nprompt = 1\noutput = 1\n";
    let sharegpt = "file = \"x\"\nformat = \"sharegpt\"";
    for (keys, key, code, value) in [
        ("rate = \"1\"", "rate", Code::InvalidValue, "\"1\""),
        ("rate = \"0/s\"", "rate", Code::OutOfRange, "greater than zero"),
        ("rate = \"1/s\"\nevery = 1", "every", Code::Conflict, "`rate`"),
        ("every = 0", "every", Code::OutOfRange, "greater than zero"),
        ("every = [0, \"0s\"]", "every", Code::OutOfRange, "greater than zero"),
        ("every = []", "every", Code::WrongType, "\"5s\""),
        ("every = { median = 5, p99 = 1 }", "every.p99", Code::Conflict, "`median`"),
        (
            "every = { min = 0, shape = 1, max = 5 }",
            "every.min",
            Code::OutOfRange,
            "greater than zero",
        ),
        ("every = \"5\"", "every", Code::InvalidValue, "\"5\""),
        ("every = -5", "every", Code::OutOfRange, "0 to 100000000000"),
        ("daily = { peak = \"1/h\", trough = \"2/h\" }", "daily.trough", Code::Conflict, "`peak`"),
        (
            "daily = { peak = \"1/h\", peak-at = \"25:00\" }",
            "daily.peak-at",
            Code::InvalidValue,
            "\"25:00\"",
        ),
        ("bursts = { every = 1 }", "bursts.size", Code::MissingKey, ""),
        ("sessions = { rate = \"1/h\", turns = 3 }", "sessions.think-time", Code::MissingKey, ""),
        (
            "sessions = { rate = \"1/h\", every = 1, turns = 3, think-time = 1 }",
            "sessions.every",
            Code::Conflict,
            "`rate`",
        ),
        ("file = \"x\"\nformat = \"azur\"", "format", Code::InvalidValue, "\"azur\""),
        ("file = \"x\"\nformat = \"azure\"\nrate = \"1/s\"", "rate", Code::Conflict, "`file`"),
        (sharegpt, "rate", Code::MissingKey, "conversations start"),
        (
            "file = \"x\"\nformat = \"azure\"\nthink-time = 1",
            "think-time",
            Code::Conflict,
            "\"sharegpt\"",
        ),
        ("rate = \"1/s\"\nfrom = \"2h\"\nuntil = \"1h\"", "until", Code::Conflict, "`from`"),
        ("rate = \"1/s\"\ntenants = []", "tenants", Code::InvalidValue, "empty"),
        ("rate = \"1/s\"\ntenants = \"a\"", "tenants", Code::WrongType, "a string"),
        ("rate = \"1/s\"\ncolour = 1", "colour", Code::UnknownKey, ""),
    ] {
        let source = with(&format!("[[traffic]]\nclass = \"c\"\n{complete}{keys}"));
        assert_rejected(&source, &format!("traffic[0].{key}"), code, value);
    }
    for (keys, key, code, value) in [
        ("models = { a = 0 }", "models", Code::OutOfRange, "greater than zero"),
        ("model = \"a\"\nmodels = { a = 1 }", "models", Code::Conflict, "`model`"),
        ("turn-models = [\"a\"]", "turn-models", Code::Conflict, "sessions"),
    ] {
        let source = with(&format!("[[traffic]]\nclass = \"c\"\nrate = \"1/s\"\n{keys}"));
        assert_rejected(&source, &format!("traffic[0].{key}"), code, value);
    }
}

#[test]
fn invalid_headers_and_media_of_traffic_are_rejected() {
    for (keys, key, code, value) in [
        (
            "rate = \"1/s\"\nheaders = { \"a b\" = \"c\" }",
            "headers",
            Code::InvalidValue,
            "\"a b: c\"",
        ),
        (
            "rate = \"1/s\"\nheaders = { a = { \"b\\u0000\" = 1 } }",
            "headers",
            Code::InvalidValue,
            "a: b",
        ),
        ("rate = \"1/s\"\nheaders = { a = { b = 0 } }", "headers.a", Code::OutOfRange, "zero"),
        ("rate = \"1/s\"\nheaders = { a = 5 }", "headers.a", Code::WrongType, "string"),
        ("rate = \"1/s\"\nheaders = \"a\"", "headers", Code::WrongType, "a table"),
        ("rate = \"1/s\"\nmedia = \"half\"", "media", Code::InvalidValue, "\"half\""),
        ("rate = \"1/s\"\nmedia = true", "media", Code::WrongType, "boolean"),
        ("rate = \"1/s\"\nmedia = [1, 101]", "media", Code::OutOfRange, "100"),
        ("rate = \"1/s\"\nmedia = -1", "media", Code::OutOfRange, "0 to"),
    ] {
        let traffic = "[[traffic]]\nclass = \"c\"\nmodel = \"a\"\nprompt = 1\noutput = 1\n";
        let source = with(&format!("{traffic}{keys}"));
        assert_rejected(&source, &format!("traffic[0].{key}"), code, value);
    }
}

#[test]
fn invalid_faults_are_rejected() {
    for (keys, key, code, value) in [
        ("kind = \"crash\"", "at", Code::MissingKey, ""),
        ("kind = \"crash\"\nat = 5", "at", Code::WrongType, "an integer"),
        ("kind = \"hang\"\nat = \"1s\"", "duration", Code::MissingKey, ""),
        (
            "kind = \"slow-load\"\nat = \"1s\"\nduration = 1",
            "load-time-factor",
            Code::MissingKey,
            "`load-time-factor = 4.0`",
        ),
        (
            "kind = \"slowdown\"\nat = \"1s\"\nduration = 1\nspeed-factor = 2",
            "speed-factor",
            Code::OutOfRange,
            "0.001 to 1",
        ),
        ("kind = \"fire\"\nat = \"1s\"", "kind", Code::InvalidValue, "\"fire\""),
        ("lanes = [\"a\"]\nkind = \"crash\"\nat = \"1s\"", "lanes", Code::Conflict, "`lane`"),
    ] {
        let source = with(&format!("[[failures]]\nlane = \"a\"\n{keys}"));
        assert_rejected(&source, &format!("failures[0].{key}"), code, value);
    }
}

#[test]
fn invalid_lanes_are_rejected() {
    let resident = "[[fleet.lanes]]\nname = \"b\"\ngroup = \"g\"\nmemory = \"3GiB\"\n\
                    load = \"always\"\n\
                    [[fleet.lanes]]\nname = \"c\"\ngroup = \"g\"\nmemory = \"2GiB\"";
    for (keys, key, code, value) in [
        ("group = \"h\"\nmemory = \"1GiB\"", "lanes[0].group", Code::UnknownName, "\"h\""),
        ("group = \"g\"", "lanes[0].memory", Code::MissingKey, ""),
        ("group = \"g\"\nmemory = \"5GiB\"", "lanes[0].memory", Code::OutOfMemory, "\"g\""),
        ("memory = \"5GiB\"", "lanes[0].memory", Code::Conflict, "`group`"),
        ("[[fleet.lanes]]\nname = \"a\"", "lanes[1].name", Code::Duplicate, "\"a\""),
        ("engine = \"external\"\nload = \"always\"", "lanes[0].load", Code::Conflict, "external"),
        (resident, "lanes[2].memory", Code::OutOfMemory, "\"g\""),
    ] {
        let group = "[[fleet.groups]]\nname = \"g\"\nmemory = \"4GiB\"";
        let source = with(&format!("{keys}\n{group}"));
        assert_rejected(&source, &format!("fleet.{key}"), code, value);
    }
}

#[test]
fn invalid_engines_policies_and_variants_are_rejected() {
    for (tables, key, code, value) in [
        (
            "[engines.a]\ndecode = [[8, 1], [1, 2]]",
            "engines.a.decode",
            Code::InvalidValue,
            "increase",
        ),
        ("[engines.a]\ndecode = [1, 2]", "engines.a.decode", Code::InvalidValue, "pairs"),
        (
            "[engines.a]\nservice-time = { first-token = 1 }\nprefill = 5",
            "engines.a.prefill",
            Code::Conflict,
            "`service-time`",
        ),
        ("[[policies]]\nname = \"x\"", "policies[0].dir", Code::MissingKey, ""),
        (
            "[[variants]]\nname = \"v\"\nset = { duration = \"1\" }",
            "duration",
            Code::InvalidValue,
            "\"1\"",
        ),
        (
            "[[variants]]\nname = \"v\"\n[[variants]]\nname = \"v\"",
            "variants[1].name",
            Code::Duplicate,
            "\"v\"",
        ),
        (
            "[fleet.switching]\nmin-residency = -1",
            "fleet.switching.min-residency",
            Code::OutOfRange,
            "-1",
        ),
    ] {
        assert_rejected(&with(tables), key, code, value);
    }
    let valid = with("[fleet.switching]\nmin-residency = 1");
    assert!(parse(&valid).is_ok(), "{:?}", parse(&valid));
}
