mod admin;
mod all_keys;
mod cors;
mod effects;
mod engines;
mod guards;
mod memory;
mod models;
mod peers;
mod pick;
mod registries;
mod schema;
mod security_page;
mod shared_state;
mod tokens;
mod variables;

use pointsman_domain::dispatch::{QueueLimits, Rules};
use pointsman_domain::units;
use pointsman_fleet::KeeperSpec;
use pointsman_spec::OnError;
use proptest::prelude::*;
use proptest::sample::select;

use super::folders::default_state;
use pointsman_settings::Code;

use super::*;

fn parse(source: &str) -> Result<Config, Vec<Diagnostic>> {
    let parsed = Config::parse(source, Path::new("/conf/pointsman.toml"));
    schema::assert_agrees(source, &parsed);
    parsed
}

/// Returns the errors of an invalid configuration as `LINE: KEY [CODE]`.
fn errors(source: &str) -> Vec<String> {
    let errors = parse(source).expect_err(source);
    let format = |error: &Diagnostic| format!("{}: {} [{}]", error.line, error.key, error.code);
    errors.iter().map(format).collect()
}

/// Asserts that a configuration is rejected with an error at this key with this code. The message
/// must contain `values`, which are computed or taken from the input.
fn assert_rejects_with(source: &str, key: &str, code: Code, values: &[&str]) {
    let errors = parse(source).expect_err(source);
    let found = errors.iter().any(|error| {
        error.key == key
            && error.code == code
            && values.iter().all(|value| error.message.contains(value))
    });
    assert!(found, "{key} [{code}] {values:?}\n{source}\n{errors:#?}");
}

/// Asserts that a configuration is rejected with an error at this key with this code.
fn assert_rejects(source: &str, key: &str, code: Code) {
    assert_rejects_with(source, key, code, &[]);
}

const LANE: &str = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
    \"http://127.0.0.1:1\"\n";

#[test]
fn one_lane_is_enough() {
    let config = parse(LANE).unwrap();
    assert_eq!(config.server.listeners[0].address, Address::default());
    assert_eq!(config.server.max_body, 32 << 20);
    assert_eq!((config.server.max_upload, config.server.spool_size), (200 << 20, 2 << 30));
    assert_eq!(config.server.spool_dir, None);
    assert_eq!(
        (config.server.keep_alive, config.server.max_attempts),
        (Some(Duration::from_secs(10)), 5)
    );
    assert_eq!(config.server.deadline, Duration::from_secs(600));
    assert_eq!(config.queue.max_wait, Duration::from_secs(60));
    let fleet = &config.fleet;
    assert_eq!(
        fleet.rules,
        Rules { starvation_timeout: Duration::from_secs(30), ..Rules::default() }
    );
    assert!(
        fleet.groups.is_empty()
            && fleet.keeper == KeeperSpec::default()
            && fleet.machine == Path::new("/")
    );
    assert_eq!(fleet.lanes[0].models, ["a"]);
    assert!(config.policies.chain.policies.is_empty() && config.keys.is_empty());
}

#[test]
fn variables_with_secrets_are_known_wherever_they_are_named() {
    let engine = LANE.replace("127.0.0.1:1\"", "127.0.0.1:1\"\nkey-env = \"CARGO_PKG_NAME\"");
    let keys = "[[keys]]\ntenant = \"t\"\nenv = \"CARGO_PKG_VERSION\"\n";
    let config = parse(&format!("{engine}{keys}")).unwrap();
    assert_eq!(config.fleet.secret_variables, ["CARGO_PKG_NAME", "CARGO_PKG_VERSION"]);
    assert!(parse(LANE).unwrap().fleet.secret_variables.is_empty());
}

/// A configuration with keys of every table.
const EVERYTHING: &str = r#"
        [server]
        listen = "0.0.0.0:1"
        max-body = "1KiB"
        drain-timeout = "5s"
        keep-alive = "0s"
        response-model = "engine"
        max-attempts = 2
        deadline = "1m"
        [state]
        dir = "s"
        [queue]
        per-lane = 1
        total = 2
        max-wait = "3s"
        aging = "0s"
        [switching]
        min-residency = 0.25
        linger = "1s"
        starvation-timeout = "2s"
        drain-timeout = "0s"
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
        stream-usage = false
        [lanes.engine]
        driver = "llama-cpp"
        command = ["llama-server", "--port", "{port}"]
        env = { A = "b" }
        directory = "d"
        [lanes.engine.backoff]
        initial = "1s"
        max = "2s"
        reset-after = "3s"
        max-failures = 0
        retry-failed-after = "4s"
        [lanes.liveness]
        stall-timeout = "0s"
        probe-interval = "1s"
        probe-timeout = "2s"
        [lanes.timeouts]
        idle = "9s"
        [lanes.fallback-statuses]
        409 = "overloaded"
        "#;

#[test]
fn all_keys_are_read() {
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
    assert_eq!((server.keep_alive, server.max_attempts, server.deadline), (None, 2, seconds(60)));
    assert_eq!(server.response_model, ResponseModel::Engine);
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
fn all_keys_of_a_lane_are_read() {
    let fleet = parse(EVERYTHING).unwrap().fleet;
    let seconds = Duration::from_secs;
    let lane = &fleet.lanes[0];
    assert_eq!((lane.slots, lane.group, lane.timeouts.idle), (2, Some(1), seconds(9)));
    assert_eq!((lane.need, lane.expected_load), (1 << 30, seconds(6)));
    let residency =
        pointsman_fleet::Residency::OnDemand { preload: true, unload_after: Some(seconds(8)) };
    assert_eq!(lane.residency, residency);
    assert_eq!(lane.engine_model.as_deref(), Some("served"));
    let statuses = [(409, pointsman_domain::Trigger::Overloaded)];
    assert_eq!(lane.fallback_statuses, statuses.into());
    assert!(!lane.stream_usage);
    let run = lane.engine.run().unwrap();
    assert_eq!((run.backoff.max_failures, run.backoff.retry_failed_after), (0, seconds(4)));
    let liveness = lane.liveness;
    assert_eq!(
        (liveness.stall, liveness.probe_interval, liveness.probe_timeout),
        (Duration::ZERO, seconds(1), seconds(2))
    );
}

#[test]
fn all_errors_are_reported_with_their_lines() {
    let source = r#"[server]
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
"#;
    let expected = [
        "2: server.listen [invalid_value]",
        "3: server.drain-timeout [invalid_value]",
        "4: server.colour [unknown_key]",
        "6: queue.per-lane [out_of_range]",
        "7: queue.totl [unknown_key]",
        "9: policies.on-conflict [invalid_value]",
        "11: policies.chain[0].name [invalid_value]",
        "12: lanes[0].name [missing_key]",
        "13: lanes[0].models [invalid_value]",
        "14: lanes[0].slots [wrong_type]",
        "16: lanes[0].engine.driver [invalid_value]",
        "17: lanes[1].engine [missing_key]",
    ];
    assert_eq!(errors(source), expected);
    // The nearest known key is suggested.
    assert_rejects_with(source, "queue.totl", Code::UnknownKey, &["`total`"]);
}

#[test]
fn diagnostics_are_printed_with_file_line_key_and_code() {
    let diagnostics = parse(&format!("[queue]\ntotl = 5\n{LANE}")).unwrap_err();
    let text = ConfigError::new(Path::new("p.toml"), diagnostics).to_string();
    assert_eq!(text, "p.toml:2: queue.totl: unknown key; did you mean `total`? [unknown_key]");
}

#[test]
fn single_errors_have_key_and_code() {
    let engine = |engine: &str| format!("[[lanes]]\nname = \"a\"\n[lanes.engine]\n{engine}\n");
    for (source, key, code) in [
        (String::new(), "lanes", Code::MissingKey),
        ("lanes = 5".into(), "lanes", Code::WrongType),
        ("a = [1".into(), "", Code::Syntax),
        (format!("{LANE}{LANE}"), "lanes[1].name", Code::Duplicate),
        (engine("driver = \"llama-cpp\""), "lanes[0].engine.model", Code::MissingKey),
        (
            engine("driver = \"llama-cpp\"\ncommand = [\"x\"]"),
            "lanes[0].engine.command",
            Code::InvalidValue,
        ),
        (
            engine("driver = \"llama-cpp\"\ncommand = [\"x\"]\nport = 70000"),
            "lanes[0].engine.port",
            Code::OutOfRange,
        ),
        (
            engine("driver = \"external\"\nurl = \"ftp://x\""),
            "lanes[0].engine.url",
            Code::InvalidValue,
        ),
        (
            engine("driver = \"external\"\nurl = \"http://x\"\nkey-env = \"POINTSMAN_NO_SUCH\""),
            "lanes[0].engine.key-env",
            Code::Unavailable,
        ),
        (
            engine("driver = \"external\"\nurl = \"http://x\"\ncommand = [\"x\"]"),
            "lanes[0].engine.command",
            Code::UnknownKey,
        ),
        (
            format!("{LANE}[lanes.timeouts]\nidle = \"0s\""),
            "lanes[0].timeouts.idle",
            Code::OutOfRange,
        ),
        (format!("{LANE}[[keys]]\ntenant = \"t\""), "keys[0].env", Code::MissingKey),
        (
            format!("{LANE}[[keys]]\ntenant = \"t\"\nfile = \"none\""),
            "keys[0].file",
            Code::Unavailable,
        ),
    ] {
        assert_rejects(&source, key, code);
    }
    let missing_file = format!("{LANE}[[keys]]\ntenant = \"t\"\nfile = \"none\"");
    assert_rejects_with(&missing_file, "keys[0].file", Code::Unavailable, &["/conf/none"]);
}

#[test]
fn errors_in_settings_of_the_host_have_key_and_code() {
    for (source, key, code) in [
        (format!("[log]\nlevel = \"a=b=c\"\n{LANE}"), "log.level", Code::InvalidValue),
        (format!("[server]\nmax-attempts = 0\n{LANE}"), "server.max-attempts", Code::OutOfRange),
        (format!("[server]\ndeadline = \"0s\"\n{LANE}"), "server.deadline", Code::OutOfRange),
        (
            format!("[server]\nbody-memory = \"31MiB\"\n{LANE}"),
            "server.body-memory",
            Code::OutOfRange,
        ),
        (
            format!("[server]\nmax-upload = \"3GiB\"\nspool-size = \"2GiB\"\n{LANE}"),
            "server.spool-size",
            Code::OutOfRange,
        ),
        (
            format!("[server]\nupload-memory = \"1GiB\"\n{LANE}"),
            "server.upload-memory",
            Code::OutOfRange,
        ),
        (
            format!("[server]\nhosts = [\"http://a.example\"]\n{LANE}"),
            "server.hosts",
            Code::InvalidValue,
        ),
        (
            format!("[server]\nhosts = [\"a.*.example\"]\n{LANE}"),
            "server.hosts",
            Code::InvalidValue,
        ),
        (
            format!("[switching]\nstarvation-timeout = \"60s\"\n{LANE}"),
            "switching.starvation-timeout",
            Code::Conflict,
        ),
        (
            format!("[switching]\nmin-residency = 100.5\n{LANE}"),
            "switching.min-residency",
            Code::OutOfRange,
        ),
        (
            format!("[switching]\nmin-residency = -1\n{LANE}"),
            "switching.min-residency",
            Code::OutOfRange,
        ),
        (
            format!("[switching]\nmin-residency = \"1\"\n{LANE}"),
            "switching.min-residency",
            Code::WrongType,
        ),
        (
            format!("[switching]\ncut-after = \"5s\"\n{LANE}"),
            "switching.cut-after",
            Code::UnknownKey,
        ),
    ] {
        assert_rejects(&source, key, code);
    }
}

#[test]
fn secrets_in_the_file_are_rejected_and_not_printed() {
    let source = format!("{LANE}[[keys]]\ntenant = \"t\"\nkey = \"secret\"");
    assert_rejects(&source, "keys[0].key", Code::UnknownKey);
    let errors = parse(&source).unwrap_err();
    assert!(errors.iter().all(|error| !error.to_string().contains("secret")));
}

#[test]
fn starvation_timeout_defaults_to_half_of_max_wait() {
    for (max_wait, expected_ms) in [("10m", 300_000), ("3s", 1_500), ("1s", 1_000), ("0s", 1_000)] {
        let config = parse(&format!("[queue]\nmax-wait = \"{max_wait}\"\n{LANE}")).unwrap();
        assert_eq!(
            config.fleet.rules.starvation_timeout,
            Duration::from_millis(expected_ms),
            "{max_wait}"
        );
    }
    let whole = parse(&format!("[switching]\nmin-residency = 2\n{LANE}")).unwrap();
    assert_eq!(whole.fleet.rules.min_residency, 2000);
}

#[test]
fn state_directories_differ_by_file() {
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
fn durations_are_formatted_as_written() {
    for text in ["0ms", "250ms", "1500ms", "90s", "30m", "2h"] {
        assert_eq!(format_duration(units::duration(text).unwrap()), text);
    }
}

/// Returns the path of an example.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../examples").join(name)
}

#[test]
fn examples_are_valid() {
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
    // Three on-demand lanes whose group holds two of them.
    let is_always_loaded =
        |index: usize| cortex.fleet.lanes[index].residency == pointsman_fleet::Residency::Always;
    assert_eq!([0, 1, 2, 3, 4].map(is_always_loaded), [false, false, false, true, true]);
    let addresses: Vec<String> =
        cortex.server.listeners.iter().map(|listener| listener.address.to_string()).collect();
    let ports = [8000, 11434, 8080, 8081].map(|port| format!("127.0.0.1:{port}"));
    assert_eq!(addresses, ports, "the addresses of the engines that the host replaces");
}

/// Agents send tools to each model, with the names of the models that the engines had.
#[test]
fn lanes_of_cortex_parse_tools_and_have_the_names_of_their_models() {
    let cortex = Config::load(&example("cortex.toml")).unwrap();
    let aliases = &cortex.policies.chain.policies[0].settings.config["aliases"];
    for (lane, name) in cortex.fleet.lanes.iter().zip([
        Some("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
        Some("Qwen/Qwen2.5-Coder-32B-Instruct"),
        Some("meta-llama/Llama-3.2-11B-Vision-Instruct"),
        None,
        None,
    ]) {
        let vllm = lane.engine.downcast_ref::<pointsman_fleet::vllm::Vllm>();
        assert_eq!(vllm.is_some(), name.is_some(), "{}", lane.name);
        let (Some(vllm), Some(name)) = (vllm, name) else { continue };
        assert_eq!(vllm.settings.tool_call_parser.as_deref(), Some("hermes"), "{}", lane.name);
        let (_, bare) = name.split_once('/').unwrap();
        for name in [name, bare] {
            assert!(lane.models.iter().any(|model| model == name), "{name}");
            assert_eq!(aliases[name], lane.name.as_str());
        }
    }
}

/// Keys of lanes and engines, among them all that are used in arithmetic.
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
    fn arbitrary_text_never_panics(text: String) {
        parse(&text).ok(); // Only a panic fails the test.
    }

    #[test]
    fn arbitrary_values_never_panic(
        lane in prop::collection::vec((select(KEYS), select(VALUES)), 0..6),
        engine in prop::collection::vec((select(KEYS), select(VALUES)), 0..8),
        driver in select(&["vllm", "llama-cpp", "command", "external"][..]),
    ) {
        let lines = |pairs: Vec<(&str, &str)>| {
            let pairs: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
            pairs.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>()
        };
        let text = format!(
            "[[groups]]\nname = \"gpu0\"\nmemory = \"1B\"\n[[lanes]]\nname = \
             \"a\"\n{}\n[lanes.engine]\n\
             driver = \"{driver}\"\n{}",
            lines(lane),
            lines(engine),
        );
        if let Ok(config) = parse(&text) {
            prop_assert_eq!((config.fleet.lanes.len(), config.needs.len()), (1, 1));
        }
    }
}
