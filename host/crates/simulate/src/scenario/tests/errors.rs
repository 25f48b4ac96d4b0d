//! What is said of scenarios that are wrong.

use super::*;

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let errors = parse(
        "seeds = \"x\"\nlast = \"1h\"\n[fleet]\n[engines.a]\nload = { median = 5 }\n[[traffic]]\nclass = \"c\"\n\
         [[variants]]\nset = { lasts = 5 }\n",
    );
    let expected = [
        "1: lasts: is missing; write how long requests come, such as `lasts = \"24h\"`",
        "1: seeds: must be a whole number, and is of type string",
        "2: last: is not a key here; did you mean `lasts`?",
        "3: fleet.lanes: there is no lane; write `config` with a host's configuration, or at least one `[[fleet.lanes]]`",
        "5: engines.a.load: `median` is no spread; write { median, p99 }, { mean }, { least, most }, { least, shape, most }, \
         one value or a list of values",
        "6: traffic[0]: does not say when its requests come; write one of `rate`, `daily`, `every`, `bursts`, `sessions` and \
         `file`",
        "6: traffic[0].model: is missing; write for example `model = \"auto\"`",
        "6: traffic[0].prompt: is missing; write for example `prompt = 500 or { median = 500, p99 = 4000 }`",
        "6: traffic[0].output: is missing; write for example `output = 500 or { median = 500, p99 = 4000 }`",
        "8: variants[0].name: is missing; write for example `name = \"first-come\"`",
        "9: lasts: must be a text in quotes, and is of type integer",
    ];
    assert_eq!(errors.unwrap_err(), expected);
}

/// Parse what is wrong, and see that one of the mistakes has `part`.
fn assert_rejects(source: &str, part: &str) {
    let errors = parse(source).unwrap_err();
    assert!(errors.iter().any(|error| error.contains(part)), "{part}\n{source}\n{errors:#?}");
}

#[test]
fn mistakes_in_traffic_are_told_with_what_to_write() {
    let traffic = |keys: &str| with(&format!("[[traffic]]\nclass = \"c\"\n{keys}"));
    let plain = |keys: &str| traffic(&format!("model = \"a\"\nprompt = 1\noutput = 1\n{keys}"));
    for (source, part) in [
        ("lasts = ".to_owned(), "is not TOML"),
        (format!("begins = \"today\"\n{}", with("")), "begins: is no date and time"),
        (format!("seeds = [-1]\n{}", with("")), "seeds: must be a number of runs"),
        (plain("rate = \"1\""), "\"1\" is no rate; write a number and a unit"),
        (plain("rate = \"0/s\""), "rate: must be more than nothing"),
        (plain("rate = \"1/s\"\nevery = 1"), "every: stands beside `rate`; write one of the two"),
        (plain("every = 0"), "every: must be more than nothing"),
        (plain("every = [0, \"0s\"]"), "every: must be more than nothing"),
        (plain("every = []"), "every: must be a spread, such as \"5s\""),
        (plain("every = { median = 5, p99 = 1 }"), "every.p99: must not be less than `median`"),
        (
            plain("every = { least = 0, shape = 1, most = 5 }"),
            "every.least: must be more than nothing",
        ),
        (plain("every = \"5\""), "\"5\" is no duration"),
        (plain("every = -5"), "every: must be from 0 to"),
        (
            plain("daily = { most = \"1/h\", least = \"2/h\" }"),
            "daily.least: must not be more than `most`",
        ),
        (plain("daily = { most = \"1/h\", at = \"25:00\" }"), "\"25:00\" is no time of day"),
        (plain("bursts = { every = 1 }"), "bursts.size: is missing"),
        (plain("sessions = { rate = \"1/h\", turns = 3 }"), "sessions.think: is missing"),
        (
            plain("sessions = { rate = \"1/h\", every = 1, turns = 3, think = 1 }"),
            "sessions.every: stands beside `rate`",
        ),
        (plain("file = \"x\"\nformat = \"azur\""), "there is no \"azur\"; write \"azure\""),
        (
            plain("file = \"x\"\nformat = \"azure\"\nrate = \"1/s\""),
            "rate: stands beside `file`, which says when",
        ),
        (
            plain("file = \"x\"\nformat = \"sharegpt\""),
            "rate: is missing: conversations have no times",
        ),
        (plain("file = \"x\"\nformat = \"azure\"\nthink = 1"), "think: is for conversations"),
        (
            plain("rate = \"1/s\"\nfrom = \"2h\"\nuntil = \"1h\""),
            "until: must be later than `from`",
        ),
        (plain("rate = \"1/s\"\ntenants = []"), "tenants: is empty"),
        (plain("rate = \"1/s\"\ntenants = \"a\""), "tenants: must be how many there are"),
        (
            plain("rate = \"1/s\"\nheaders = { \"a b\" = \"c\" }"),
            "`a b` with the value \"c\" is no header",
        ),
        (plain("rate = \"1/s\"\ncolour = 1"), "colour: is not a key here"),
        (
            traffic("rate = \"1/s\"\nmodels = { a = 0 }"),
            "models: needs weights that are more than nothing",
        ),
        (
            traffic("rate = \"1/s\"\nmodel = \"a\"\nmodels = { a = 1 }"),
            "models: stands beside `model`",
        ),
        (traffic("rate = \"1/s\"\nturns = [\"a\"]"), "turns: is for sessions"),
    ] {
        assert_rejects(&source, part);
    }
}

#[test]
fn mistakes_in_lanes_and_failures_are_told_with_what_to_write() {
    let failure = |keys: &str| with(&format!("[[failures]]\nlane = \"a\"\n{keys}"));
    let lane =
        |keys: &str| with(&format!("{keys}\n[[fleet.groups]]\nname = \"g\"\nmemory = \"4GiB\""));
    for (source, part) in [
        (failure("what = \"crash\""), "at: is missing; write when it happens"),
        (failure("what = \"crash\"\nat = 5"), "at: must be a text in quotes"),
        (failure("what = \"hang\"\nat = \"1s\""), "lasts: is missing"),
        (
            failure("what = \"slow-loads\"\nat = \"1s\"\nlasts = 1"),
            "times: is missing; write for example `times = 4.0`",
        ),
        (
            failure("what = \"slow-down\"\nat = \"1s\"\nlasts = 1\npart = 2"),
            "`2` is not from 0.001 to 1",
        ),
        (failure("what = \"fire\"\nat = \"1s\""), "there is no \"fire\"; write \"crash\" or"),
        (failure("lanes = [\"a\"]\nwhat = \"crash\"\nat = \"1s\""), "lanes: stands beside `lane`"),
        (lane("group = \"h\"\nmemory = \"1GiB\""), "there is no group \"h\"; declare it"),
        (lane("group = \"g\""), "memory: is missing; write what the lane needs"),
        (lane("group = \"g\"\nmemory = \"5GiB\""), "memory: is more than group \"g\" has"),
        (lane("memory = \"5GiB\""), "memory: counts among the lanes of a group"),
        (lane("[[fleet.lanes]]\nname = \"a\""), "there is a lane \"a\" already"),
        (
            lane("engine = \"external\"\nload = \"always\""),
            "load: is for engines that the host starts",
        ),
        (
            lane(
                "[[fleet.lanes]]\nname = \"b\"\ngroup = \"g\"\nmemory = \"3GiB\"\nload = \"always\"\n\
                  [[fleet.lanes]]\nname = \"c\"\ngroup = \"g\"\nmemory = \"2GiB\"",
            ),
            "fleet.lanes[2].memory: does not fit into group \"g\" beside the lanes that are always loaded",
        ),
        (
            with("[engines.a]\ndecode = [[8, 1], [1, 2]]"),
            "decode: must go from few answers to many",
        ),
        (with("[engines.a]\ndecode = [1, 2]"), "decode: must be a list of answers at once"),
        (
            with("[engines.a]\nservice = { first = 1 }\nprefill = 5"),
            "prefill: stands beside `service`",
        ),
        (with("[[policies]]\nname = \"x\""), "policies[0].dir: is missing"),
        (
            with("[[variants]]\nname = \"v\"\nset = { lasts = \"1\" }"),
            "lasts: \"1\" is no duration",
        ),
        (
            with("[[variants]]\nname = \"v\"\n[[variants]]\nname = \"v\""),
            "variants[1].name: is that of another variant",
        ),
        (
            with("[fleet.switching]\nmin-residency = -1"),
            "fleet.switching.min-residency: `-1` is not from 0 to 100",
        ),
    ] {
        assert_rejects(&source, part);
    }
    let good = with("[fleet.switching]\nmin-residency = 1");
    assert!(parse(&good).is_ok(), "{:?}", parse(&good));
}
