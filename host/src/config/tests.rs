use super::*;

fn parse(source: &str) -> Result<Config, Vec<String>> {
    Config::parse(source, Path::new("/conf")).map_err(|mistakes| {
        mistakes.into_iter().map(|mistake| format!("{}: {mistake}", mistake.line)).collect()
    })
}

const LANE: &str =
    "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \"http://127.0.0.1:1\"\n";

#[test]
fn a_lane_is_all_it_takes() {
    let config = parse(LANE).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:8000".parse().unwrap());
    assert_eq!(config.server.max_body, 32 << 20);
    assert_eq!(config.lanes[0].models, ["a"]);
    assert!(config.policies.chain.is_empty() && config.keys.is_empty());
}

#[test]
fn everything_that_is_said_is_taken_over() {
    let config = parse(
        r#"
        server = { listen = "0.0.0.0:1", max-body = "1KiB", drain = "5s" }
        queue = { per-lane = 1, total = 2, max-wait = "3s" }
        [policies]
        dir = "p"
        cache = "c"
        on-conflict = "ignore-filters"
        [[policies.chain]]
        name = "cortex"
        weight = 500
        on-error = "refuse"
        deadline = "7ms"
        memory = "1MiB"
        config = { aliases = { gpt = "coder" }, n = 0x10, list = [1, 2.5, true] }
        [[lanes]]
        name = "coder"
        models = ["coder", "auto"]
        labels = { tier = "gpu" }
        slots = 2
        group = "gpu0"
        engine-model = "served"
        [lanes.engine]
        driver = "llama-cpp"
        command = ["llama-server", "--port", "{port}"]
        env = { A = "b" }
        directory = "d"
        back-off = { first = "1s", most = "2s" }
        [lanes.timeouts]
        idle = "9s"
        "#,
    )
    .unwrap();
    let policy = &config.policies.chain[0];
    assert_eq!(policy.dir, Path::new("/conf/p/cortex"));
    assert_eq!((policy.weight, policy.on_error, policy.memory), (500, OnError::Refuse, Some(1 << 20)));
    let expected = serde_json::json!({ "aliases": { "gpt": "coder" }, "n": 16, "list": [1, 2.5, true] });
    assert_eq!(policy.config, expected);
    let lane = &config.lanes[0];
    assert_eq!((lane.slots, lane.group, lane.timeouts.idle), (2, 1, Duration::from_secs(9)));
    assert_eq!(lane.engine_model.as_deref(), Some("served"));
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let mistakes = parse(
        r#"[server]
listen = "localhost"
drain = "30"
colour = 1
[queue]
per-lane = -1
totl = 5
[policies]
on-conflict = "panic"
[[policies.chain]]
name = "../x"
[[lanes]]
models = []
slots = "two"
[lanes.engine]
driver = "vlm"
[[lanes]]
name = "b"
"#,
    )
    .unwrap_err();
    let expected = [
        "2: server.listen: \"localhost\" is no address; write an IP address and a port, such as \"127.0.0.1:8000\"",
        "3: server.drain: \"30\" is no duration; write a whole number with a unit, such as \"250ms\", \"30s\", \"5m\" or \"2h\"",
        "4: server.colour: is not a key here; known here: `listen`, `max-body`, `drain`",
        "6: queue.per-lane: `-1` is not from 0 to 1000000",
        "7: queue.totl: is not a key here; did you mean `total`?",
        "9: policies.on-conflict: there is no \"panic\"; write \"refuse\" or \"ignore-filters\"",
        "11: policies.chain[0].name: \"../x\" is no name of a folder; letters, digits, `-`, `_` and `.` will do",
        "12: lanes[0].name: is missing; write for example `name = \"orchestrator\"`",
        "13: lanes[0].models: is empty; name the models that this lane answers to, or leave it out for the lane's own name",
        "14: lanes[0].slots: must be a whole number, and is of type string",
        "16: lanes[0].engine.driver: there is no \"vlm\"; write \"llama-cpp\" or \"external\"",
        "17: lanes[1].engine: is missing; write `[lanes.engine]` with a `driver`",
    ];
    assert_eq!(mistakes, expected);
}

#[test]
fn single_mistakes_are_told_with_what_to_write() {
    let engine = |engine: &str| format!("[[lanes]]\nname = \"a\"\n[lanes.engine]\n{engine}\n");
    for (source, part) in [
        (String::new(), "there is no lane"),
        ("lanes = 5".into(), "a list of tables, each written `[[lanes]]`"),
        ("a = [1".into(), "is not TOML"),
        (format!("{LANE}{LANE}"), "there is a lane \"a\" already"),
        (engine("driver = \"llama-cpp\""), "command = [\"llama-server\""),
        (engine("driver = \"llama-cpp\"\ncommand = [\"x\"]"), "put `{port}` where its port belongs"),
        (engine("driver = \"llama-cpp\"\ncommand = [\"x\"]\nport = 70000"), "is not from 1 to 65535"),
        (engine("driver = \"external\"\nurl = \"https://x\""), "does not begin with http://"),
        (engine("driver = \"external\"\nurl = \"http://x\"\nkey-env = \"POINTSMAN_NO_SUCH\""), "is not set"),
        (engine("driver = \"external\"\nurl = \"http://x\"\ncommand = [\"x\"]"), "is not a key here"),
        (format!("{LANE}[lanes.timeouts]\nidle = \"0s\""), "must be more than nothing"),
        (format!("{LANE}[[keys]]\ntenant = \"t\""), "name the environment variable"),
        (format!("{LANE}[[keys]]\ntenant = \"t\"\nfile = \"none\""), "/conf/none cannot be read"),
        (format!("[log]\nlevel = \"a=b=c\"\n{LANE}"), "is no level or filter"),
    ] {
        let mistakes = parse(&source).unwrap_err();
        assert!(mistakes.iter().any(|mistake| mistake.contains(part)), "{source}\n{mistakes:#?}");
    }
}

#[test]
fn a_key_in_the_file_itself_is_no_option() {
    let mistakes = parse(&format!("{LANE}[[keys]]\ntenant = \"t\"\nkey = \"secret\"")).unwrap_err();
    assert!(
        mistakes.iter().any(|mistake| mistake.contains("keys[0].key: is not a key here")),
        "{mistakes:#?}"
    );
    assert!(!mistakes.concat().contains("secret"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _result = parse(&text);
    }
}
