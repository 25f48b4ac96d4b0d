mod admin;
mod engines;
mod memory;

use pointsman_domain::dispatch::{QueueLimits, Rules};
use pointsman_domain::units;
use pointsman_policy::OnError;
use proptest::prelude::*;

use super::*;

fn parse(source: &str) -> Result<Config, Vec<String>> {
    Config::parse(source, &[], Path::new("/conf/pointsman.toml")).map_err(|errors| {
        errors.into_iter().map(|error| format!("{}: {error}", error.line)).collect()
    })
}

/// Parse what is wrong, and see that one of the mistakes has `part`.
fn assert_rejects(source: &str, part: &str) {
    let errors = parse(source).unwrap_err();
    assert!(errors.iter().any(|error| error.contains(part)), "{part}\n{source}\n{errors:#?}");
}

const LANE: &str = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \"http://127.0.0.1:1\"\n";

#[test]
fn a_lane_is_all_it_takes() {
    let config = parse(LANE).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:8000".parse().unwrap());
    assert_eq!(config.server.max_body, 32 << 20);
    assert_eq!(
        (config.server.keep_alive, config.server.attempts),
        (Some(Duration::from_secs(10)), 5)
    );
    assert_eq!(config.server.deadline, Duration::from_secs(600));
    assert_eq!(config.queue.max_wait, Duration::from_secs(60));
    let fleet = &config.fleet;
    assert_eq!(
        fleet.rules,
        Rules { starvation_timeout: Duration::from_secs(30), ..Rules::default() }
    );
    assert!(fleet.groups.is_empty() && fleet.keeper.is_none() && fleet.machine == Path::new("/"));
    assert_eq!(fleet.lanes[0].models, ["a"]);
    assert!(config.policies.chain.policies.is_empty() && config.keys.is_empty());
}

/// Something for every table.
const EVERYTHING: &str = r#"
        server = { listen = "0.0.0.0:1", max-body = "1KiB", drain-timeout = "5s", keep-alive = "0s", max-attempts = 2, deadline = "1m" }
        state = { dir = "s" }
        queue = { per-lane = 1, total = 2, max-wait = "3s", aging = "0s" }
        switching = { min-residency = 0.25, linger = "1s", starvation-timeout = "2s", drain-timeout = "0s" }
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
        [[groups]]
        name = "ram"
        memory = "1GiB"
        [[groups]]
        name = "gpu0"
        memory = "2GiB"
        pool = "gpu:129"
        free-timeout = "7s"
        [[lanes]]
        name = "coder"
        models = ["coder", "auto"]
        labels = { tier = "gpu" }
        slots = 2
        group = "gpu0"
        memory = "1GiB"
        load = "at-start"
        unload-after = "8s"
        expected-load-time = "6s"
        engine-model = "served"
        [lanes.engine]
        driver = "llama-cpp"
        command = ["llama-server", "--port", "{port}"]
        env = { A = "b" }
        directory = "d"
        backoff = { initial = "1s", max = "2s", reset-after = "3s", max-failures = 0, retry-failed-after = "4s" }
        [lanes.liveness]
        stall-timeout = "0s"
        probe-interval = "1s"
        probe-timeout = "2s"
        [lanes.timeouts]
        idle = "9s"
        "#;

#[test]
fn everything_that_is_said_is_taken_over() {
    let config = parse(EVERYTHING).unwrap();
    let policy = &config.policies.chain.policies[0];
    assert_eq!(policy.dir, Path::new("/conf/p/cortex"));
    assert_eq!(
        (policy.weight, policy.on_error, policy.settings.memory),
        (500, OnError::Refuse, Some(1 << 20))
    );
    let expected =
        serde_json::json!({ "aliases": { "gpt": "coder" }, "n": 16, "list": [1, 2.5, true] });
    assert_eq!(policy.settings.config, expected);
    let seconds = Duration::from_secs;
    let (server, fleet) = (&config.server, &config.fleet);
    assert_eq!((server.keep_alive, server.attempts, server.deadline), (None, 2, seconds(60)));
    assert_eq!(fleet.state_dir.as_deref(), Some(Path::new("/conf/s")));
    let rules = Rules {
        queue: QueueLimits { per_lane: 1, total: 2 },
        aging: Duration::ZERO,
        min_residency: 250,
        max_linger: seconds(1),
        starvation_timeout: seconds(2),
        drain_timeout: Some(Duration::ZERO),
        ..Rules::default()
    };
    assert_eq!(fleet.rules, rules);
    let group = &fleet.groups[1];
    assert_eq!(
        (group.name.as_str(), group.budget, group.free_timeout),
        ("gpu0", 2 << 30, seconds(7))
    );
    assert_eq!(group.pool, Some(pointsman_fleet::Pool::Gpu { minor: Some(129) }));
}

#[test]
fn everything_about_a_lane_is_taken_over() {
    let fleet = parse(EVERYTHING).unwrap().fleet;
    let seconds = Duration::from_secs;
    let lane = &fleet.lanes[0];
    assert_eq!((lane.slots, lane.group, lane.timeouts.idle), (2, Some(1), seconds(9)));
    assert_eq!((lane.need, lane.expected_load), (1 << 30, seconds(6)));
    let residency =
        pointsman_fleet::Residency::OnDemand { preload: true, unload_after: Some(seconds(8)) };
    assert_eq!(lane.residency, residency);
    assert_eq!(lane.engine_model.as_deref(), Some("served"));
    let run = lane.engine.run().unwrap();
    assert_eq!((run.back_off.give_up, run.back_off.failed_retry), (0, seconds(4)));
    let liveness = lane.liveness;
    assert_eq!(
        (liveness.stall, liveness.probe_every, liveness.probe_limit),
        (Duration::ZERO, seconds(1), seconds(2))
    );
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let errors = parse(
        r#"[server]
listen = "localhost"
drain-timeout = "30"
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
        "4: server.colour: is not a key here; known here: `listen`, `max-body`, `drain`, `keep-alive`, `attempts`, `deadline`",
        "6: queue.per-lane: `-1` is not from 0 to 1000000",
        "7: queue.totl: is not a key here; did you mean `total`?",
        "9: policies.on-conflict: there is no \"panic\"; write \"refuse\" or \"ignore-filters\"",
        "11: policies.chain[0].name: \"../x\" is no name of a folder; letters, digits, `-`, `_` and `.` will do",
        "12: lanes[0].name: is missing; write for example `name = \"orchestrator\"`",
        "13: lanes[0].models: is empty; name the models that this lane answers to, or leave it out for the lane's own name",
        "14: lanes[0].slots: must be a whole number, and is of type string",
        "16: lanes[0].engine.driver: there is no \"vlm\"; write \"vllm\" or \"llama-cpp\" or \"command\" or \"external\"",
        "17: lanes[1].engine: is missing; write `[lanes.engine]` with a `driver`",
    ];
    assert_eq!(errors, expected);
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
        (
            engine("driver = \"llama-cpp\"\ncommand = [\"x\"]"),
            "put `{port}` where its port belongs",
        ),
        (
            engine("driver = \"llama-cpp\"\ncommand = [\"x\"]\nport = 70000"),
            "is not from 1 to 65535",
        ),
        (
            engine("driver = \"external\"\nurl = \"ftp://x\""),
            "begins with neither http:// nor https://",
        ),
        (
            engine("driver = \"external\"\nurl = \"http://x\"\nkey-env = \"POINTSMAN_NO_SUCH\""),
            "is not set",
        ),
        (
            engine("driver = \"external\"\nurl = \"http://x\"\ncommand = [\"x\"]"),
            "is not a key here",
        ),
        (format!("{LANE}[lanes.timeouts]\nidle = \"0s\""), "must be more than nothing"),
        (format!("{LANE}[[keys]]\ntenant = \"t\""), "name the environment variable"),
        (format!("{LANE}[[keys]]\ntenant = \"t\"\nfile = \"none\""), "/conf/none cannot be read"),
        (format!("[log]\nlevel = \"a=b=c\"\n{LANE}"), "is no level or filter"),
        (format!("[server]\nmax-attempts = 0\n{LANE}"), "is not from 1 to 20"),
        (format!("[server]\ndeadline = \"0s\"\n{LANE}"), "must be more than nothing"),
        (
            format!("[switching]\nstarvation-timeout = \"60s\"\n{LANE}"),
            "switching.starvation-timeout: 1m is not less than `max-wait` of [queue], 1m",
        ),
        (format!("[switching]\nmin-residency = 100.5\n{LANE}"), "`100.5` is not from 0 to 100"),
        (format!("[switching]\nmin-residency = -1\n{LANE}"), "`-1` is not from 0 to 100"),
        (format!("[switching]\nmin-residency = \"1\"\n{LANE}"), "must be a number, such as 0.5"),
        (format!("[switching]\ndrain-timeout = \"wait\"\n{LANE}"), "known here: `starvation-timeout`"),
    ] {
        assert_rejects(&source, part);
    }
}

#[test]
fn a_key_in_the_file_itself_is_no_option() {
    let errors = parse(&format!("{LANE}[[keys]]\ntenant = \"t\"\nkey = \"secret\"")).unwrap_err();
    assert!(
        errors.iter().any(|error| error.contains("keys[0].key: is not a key here")),
        "{errors:#?}"
    );
    assert!(!errors.concat().contains("secret"));
}

#[test]
fn times_of_the_switching_follow_the_queue() {
    for (max_wait, longest) in [("10m", 300_000), ("3s", 1_500), ("1s", 1_000), ("0s", 1_000)] {
        let config = parse(&format!("[queue]\nmax-wait = \"{max_wait}\"\n{LANE}")).unwrap();
        assert_eq!(
            config.fleet.rules.starvation_timeout,
            Duration::from_millis(longest),
            "{max_wait}"
        );
    }
    let whole = parse(&format!("[switching]\nmin-residency = 2\n{LANE}")).unwrap();
    assert_eq!(whole.fleet.rules.min_residency, 2000);
}

#[test]
fn each_file_has_a_folder_for_its_state() {
    let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/of/a"));
    let state = |file: &str| default_state(Path::new(file), home).unwrap();
    let first = state("/no/such/b.toml");
    assert!(first.starts_with("/of/a/.local/state/pointsman"), "{}", first.display());
    assert!(first.file_name().unwrap().to_str().unwrap().starts_with("b-"));
    assert_eq!(first, state("/no/such/b.toml"));
    assert_ne!(first, state("/no/such/other/b.toml"));
    let states = |name: &str| (name == "XDG_STATE_HOME").then(|| PathBuf::from("/s"));
    assert!(default_state(Path::new("/b"), states).unwrap().starts_with("/s/pointsman"));
    assert_eq!(default_state(Path::new("/b"), |_| None), None);
    let none = parse(&format!("[state]\ndir = \"\"\n{LANE}")).unwrap();
    assert_eq!(none.fleet.state_dir, None);
}

#[test]
fn durations_are_shown_as_they_are_written() {
    for text in ["0ms", "250ms", "1500ms", "90s", "30m", "2h"] {
        assert_eq!(format_duration(units::duration(text).unwrap()), text);
    }
}

/// The project's examples, by name.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

#[test]
fn examples_are_good() {
    for name in ["quickstart.toml", "pointsman.toml", "cortex.toml"] {
        let config = Config::load(&example(name)).unwrap_or_else(|error| panic!("{error}"));
        assert!(
            !config.policies.chain.policies.is_empty() && !config.fleet.lanes.is_empty(),
            "{name}"
        );
    }
    let cortex = Config::load(&example("cortex.toml")).unwrap();
    let names: Vec<&str> = cortex.fleet.lanes.iter().map(|lane| lane.name.as_str()).collect();
    assert_eq!(names, ["orchestrator", "coder", "fast_rag", "super_reader", "governance"]);
    let needs: Vec<u64> = cortex.fleet.lanes.iter().map(|lane| lane.need >> 30).collect();
    assert_eq!(needs, [33, 33, 15, 42, 6]);
    // Three lanes of a group that has room for two.
    let always =
        |place: usize| cortex.fleet.lanes[place].residency == pointsman_fleet::Residency::Always;
    assert_eq!([0, 1, 2, 3, 4].map(always), [false, false, false, true, true]);
}

#[test]
fn the_example_of_every_key_has_every_key() {
    let text = std::fs::read_to_string(example("pointsman.toml")).unwrap();
    let engine =
        |keys: &str| format!("[[lanes]]\nname = \"n\"\nzzz = 1\n[lanes.engine]\nzzz = 1\n{keys}\n");
    let tables = [
        "zzz = 1\n[server]\nzzz = 1\n[log]\nzzz = 1\n[queue]\nzzz = 1\n[switching]\nzzz = 1\n[state]\nzzz = 1\n[admin]\nzzz = 1\n",
        "[policies]\nzzz = 1\nsigners = [{ zzz = 1 }]\n[[policies.chain]]\nzzz = 1\ncanary = { zzz = 1 }\n\
         probation = { zzz = 1 }\n[[keys]]\nzzz = 1\n[[groups]]\nzzz = 1\n",
        &engine("driver = \"vllm\"\n[lanes.engine.backoff]\nzzz = 1\n[lanes.liveness]\nzzz = 1"),
        &engine("driver = \"llama-cpp\"\n[lanes.timeouts]\nzzz = 1"),
        &engine("driver = \"llama-cpp\"\ncommand = []"),
        &engine("driver = \"command\""),
        &engine("driver = \"external\""),
    ];
    let errors = parse(&tables.concat()).unwrap_err();
    let known: Vec<&str> =
        errors.iter().filter_map(|error| Some(error.split_once("known here: ")?.1)).collect();
    assert_eq!(known.len(), 27, "{errors:#?}");
    let keys = known.iter().flat_map(|keys| keys.split(", ")).map(|key| key.trim_matches('`'));
    for key in keys {
        let is_there = [format!("{key} = "), format!("[{key}]"), format!(".{key}]")];
        let is_there =
            is_there.iter().any(|form| text.contains(form)) || text.contains(&format!("[[{key}]]"));
        assert!(is_there || key == "key-file", "{key}");
    }
}

/// Keys that go into sums, and others.
const KEYS: &[&str] = &[
    "max-context",
    "slots",
    "group",
    "memory",
    "sleep-memory",
    "load",
    "unload-after",
    "expected-load-time",
    "engine-model",
    "command",
    "url",
    "port",
    "model",
    "context",
    "arguments",
    "gpu-layers",
    "gpu-memory-utilization",
    "kv-cache-memory",
    "max-num-seqs",
    "tensor-parallel",
    "pipeline-parallel",
    "shutdown-timeout",
    "stop-grace",
    "start-timeout",
    "device",
    "unload-mode",
];
const VALUES: &[&str] = &[
    "0",
    "1",
    "-1",
    "0xffff_ffff_ffff_ffff_ffff",
    "100_000_000",
    "9223372036854775807",
    "nan",
    "0.5",
    "1e999",
    "true",
    "[]",
    "[\"{port}\", \"\"]",
    "{}",
    "\"\"",
    "\"gpu0\"",
    "\"18446744073709551615B\"",
    "\"18446744073709551615ms\"",
    "\"1ms\"",
    "\"/\"",
    "\"always\"",
    "\"sleep-1\"",
    "\"http://x\"",
    "2020-01-01",
];

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _result = parse(&text);
    }

    #[test]
    fn no_value_makes_it_panic(
        lane in prop::collection::vec((prop::sample::select(KEYS), prop::sample::select(VALUES)), 0..6),
        engine in prop::collection::vec((prop::sample::select(KEYS), prop::sample::select(VALUES)), 0..8),
        driver in prop::sample::select(&["vllm", "llama-cpp", "command", "external"][..]),
    ) {
        let lines = |pairs: Vec<(&str, &str)>| {
            let pairs: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
            pairs.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>()
        };
        let text = format!(
            "[[groups]]\nname = \"gpu0\"\nmemory = \"1B\"\n[[lanes]]\nname = \"a\"\n{}\n[lanes.engine]\n\
             driver = \"{driver}\"\n{}",
            lines(lane),
            lines(engine),
        );
        if let Ok(config) = parse(&text) {
            prop_assert_eq!((config.fleet.lanes.len(), config.needs.len()), (1, 1));
        }
    }
}
