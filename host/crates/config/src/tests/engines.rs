//! Tests of `[lanes.engine]`, and of keys of lanes that depend on the engine.

use pointsman_fleet::drivers::command::Program;
use pointsman_fleet::drivers::llama_cpp::LlamaCpp;
use pointsman_fleet::vllm::{GpuSelector, Permille, Vllm, VllmSettings};
use pointsman_fleet::{CommandLine, Liveness, ProcessSpec, Residency, UnloadMode};

use super::*;

fn engine(keys: &str) -> String {
    format!("[[lanes]]\nname = \"a\"\n[lanes.engine]\n{keys}\n")
}

fn lane(source: &str) -> pointsman_fleet::LaneSpec {
    let mut lanes = parse(source).unwrap_or_else(|errors| panic!("{errors:#?}")).fleet.lanes;
    lanes.remove(0)
}

fn vllm(source: &str) -> (VllmSettings, ProcessSpec, UnloadMode) {
    let engine = lane(source).engine;
    let vllm = engine.downcast_ref::<Vllm>().unwrap();
    (vllm.settings.clone(), vllm.run.clone(), vllm.strategy)
}

#[test]
fn vllm_takes_defaults_from_its_lane() {
    let text = "[[lanes]]\nname = \"a\"\nmodels = [\"auto\", \"a\"]\nmax-context = 4096\nslots = \
        3\n[lanes.engine]\n\
                driver = \"vllm\"\nmodel = \"org/model\"\n";
    let (settings, run, strategy) = vllm(text);
    let expected = VllmSettings {
        model: "org/model".to_owned(),
        served_names: vec!["a".to_owned(), "auto".to_owned()],
        max_model_len: Some(4096),
        max_num_seqs: Some(3),
        shutdown_timeout_s: 10,
        ..VllmSettings::default()
    };
    assert_eq!((settings, strategy), (expected, UnloadMode::Restart));
    let seconds = Duration::from_secs;
    assert_eq!((run.start_timeout, run.stop_grace, run.port), (seconds(1800), seconds(35), None));
    assert_eq!((run.backoff.max_failures, run.backoff.retry_failed_after), (5, seconds(600)));
    let lane = lane(text);
    assert_eq!(lane.engine_model.as_deref(), Some("a"));
    assert_eq!(
        (lane.residency, lane.expected_load, lane.need),
        (Residency::Always, seconds(60), 0)
    );
    let liveness =
        Liveness { stall: seconds(120), probe_interval: seconds(60), probe_timeout: seconds(30) };
    assert_eq!(lane.liveness, liveness);
}

#[test]
fn all_vllm_keys_are_read() {
    let (settings, run, strategy) = vllm(&engine(
        r#"driver = "vllm"
        program = ["/opt/vllm"]
        model = "/m"
        served-names = ["x", "y"]
        dtype = "bfloat16"
        quantization = "awq"
        max-model-len = 8192
        max-num-seqs = 7
        gpu-memory-utilization = 0.45
        kv-cache-memory = "8GiB"
        tensor-parallel = 1
        pipeline-parallel = 1
        enforce-eager = true
        block-size = 16
        trust-remote-code = true
        tool-call-parser = "hermes"
        reasoning-parser = "qwen3"
        adapters = { z = "/z" }
        download-dir = "/d"
        load-format = "dummy"
        priority-scheduling = false
        shutdown-timeout = "1500ms"
        device = "GPU-0e54792172da5eeb"
        hsa-override = "11.5.1"
        cache-root = "/c"
        offline = true
        arguments = ["-O1"]
        env = { A = "b" }
        unload-mode = "sleep-2"
        start-timeout = "2h""#,
    ));
    let text = |text: &str| Some(text.to_owned());
    let expected = VllmSettings {
        program: vec!["/opt/vllm".to_owned()],
        model: "/m".to_owned(),
        served_names: vec!["x".to_owned(), "y".to_owned()],
        dtype: text("bfloat16"),
        quantization: text("awq"),
        max_model_len: Some(8192),
        max_num_seqs: Some(7),
        gpu_memory_utilization: Some(Permille(450)),
        kv_cache_bytes: Some(8 << 30),
        tensor_parallel: Some(1),
        pipeline_parallel: Some(1),
        enforce_eager: true,
        block_size: Some(16),
        trust_remote_code: true,
        tool_call_parser: text("hermes"),
        reasoning_parser: text("qwen3"),
        adapters: vec![("z".to_owned(), "/z".to_owned())],
        download_dir: text("/d"),
        load_format: text("dummy"),
        priority_scheduling: false,
        shutdown_timeout_s: 2,
        sleep_mode: true,
        offline: true,
        device: Some(GpuSelector::Uuid("GPU-0e54792172da5eeb".to_owned())),
        hsa_override: text("11.5.1"),
        cache_root: text("/c"),
        arguments: vec!["-O1".to_owned()],
        env: vec![("A".to_owned(), "b".to_owned())],
    };
    assert_eq!((settings, strategy), (expected, UnloadMode::SleepLevel2));
    assert_eq!(run.start_timeout, Duration::from_secs(7200));
    assert_eq!(run.stop_grace, Duration::from_millis(26_500));
}

#[test]
fn vllm_errors_have_lines() {
    let source = engine(
        "driver = \"vllm\"\nmodel = \"/m/model.safetensors\"\ngpu-memory-utilization = 1.5\n\
         arguments = [\"--port\", \"1\"]\ndevice = \"0,1\"\nkv-cache-memory = \
         \"0B\"\nmax-num-seqs = 0\n\
         enforce-eager = 1\nenv = { \"A=\" = \"s3cret\" }\nstop-grace = \"5s\"",
    );
    let expected = [
        "5: lanes[0].engine.model [invalid_value]",
        "6: lanes[0].engine.gpu-memory-utilization [out_of_range]",
        "7: lanes[0].engine.arguments [invalid_value]",
        "8: lanes[0].engine.device [invalid_value]",
        "9: lanes[0].engine.kv-cache-memory [out_of_range]",
        "10: lanes[0].engine.max-num-seqs [out_of_range]",
        "11: lanes[0].engine.enforce-eager [wrong_type]",
        "12: lanes[0].engine.env [invalid_value]",
        "13: lanes[0].engine.stop-grace [conflict]",
    ];
    assert_eq!(errors(&source), expected);
    let text = format!("{:?}", parse(&source).unwrap_err());
    assert!(!text.contains("s3cret"), "values of the environment are not printed: {text}");
}

#[test]
fn vllm_settings_that_contradict_the_lane_are_rejected() {
    let vllm = "[lanes.engine]\ndriver = \"vllm\"\nmodel = \"m\"\n";
    for (lane, engine, key, code) in [
        ("", "device = \"0\"\ntensor-parallel = 2", "engine.device", Code::InvalidValue),
        ("max-context = 9", "max-model-len = 8", "engine.max-model-len", Code::InvalidValue),
        ("engine-model = \"b\"", "", "engine-model", Code::UnknownName),
        ("engine-model = \"a\"", "served-names = [\"x\"]", "engine-model", Code::UnknownName),
        ("", "unload-mode = \"sleep\"", "engine.unload-mode", Code::InvalidValue),
        ("", "program = []", "engine.program", Code::InvalidValue),
        ("", "command = [\"x\"]", "engine.command", Code::UnknownKey),
    ] {
        let source = format!("[[lanes]]\nname = \"a\"\n{lane}\n{vllm}{engine}\n");
        assert_rejects(&source, &format!("lanes[0].{key}"), code);
    }
    assert_rejects(&engine("driver = \"vllm\""), "lanes[0].engine.model", Code::MissingKey);
    let with =
        |lane: &str, engine: &str| format!("[[lanes]]\nname = \"a\"\n{lane}\n{vllm}{engine}\n");
    let adapter = lane(&with("engine-model = \"b\"", "arguments = [\"--lora-modules\", \"b=/b\"]"));
    assert_eq!(adapter.engine_model.as_deref(), Some("b"));
    let nameless = lane(&with("", "served-names = []"));
    assert_eq!(nameless.engine_model.as_deref(), Some("m"));
    assert_eq!(lane(&with("", "max-model-len = 8")).max_context, 8);
}

#[test]
fn llama_server_command_is_built_from_keys() {
    let text = "state = { dir = \"\" }\n[[lanes]]\nname = \"a\"\nmax-context = 4096\nslots = 2\n\
                [lanes.engine]\ndriver = \"llama-cpp\"\nmodel = \"m.gguf\"\n";
    let words = |more: &str| {
        let engine = lane(&format!("{text}{more}\n")).engine;
        engine.downcast_ref::<LlamaCpp>().unwrap().command_line.command.join(" ")
    };
    let begin = "llama-server --model m.gguf --host {host} --port {port} --parallel 2";
    assert_eq!(words(""), format!("{begin} --ctx-size 8192 --alias {{lane}} --metrics"));
    assert_eq!(
        words(
            "context = 16384\ngpu-layers = \"auto\"\nload-mode = \"none\"\narguments = \
             [\"--cache-ram\", \"1\"]"
        ),
        format!(
            "{begin} --ctx-size 16384 --alias {{lane}} --gpu-layers auto --load-mode none \
             --metrics --cache-ram 1"
        )
    );
    assert!(words("gpu-layers = 0").contains("--gpu-layers 0"));
    assert!(words("context = 4096\narguments = [\"-kvu\"]").contains("--ctx-size 4096"));
    let unknown = lane(&engine("driver = \"llama-cpp\"\nmodel = \"m.gguf\"\ncontext = 4096"));
    assert_eq!((unknown.max_context, unknown.engine_model), (1024, None));
    assert_eq!(unknown.liveness.probe_interval, Duration::ZERO);
    for (keys, key, code) in [
        ("context = 4096", "context", Code::InvalidValue),
        ("gpu-layers = \"some\"", "gpu-layers", Code::InvalidValue),
        ("gpu-layers = -1", "gpu-layers", Code::OutOfRange),
        ("arguments = [\"-np\", \"3\"]", "arguments", Code::Conflict),
        ("command = [\"x\", \"{port}\"]", "model", Code::Conflict),
        ("program = []", "program", Code::InvalidValue),
    ] {
        assert_rejects(&format!("{text}{keys}\n"), &format!("lanes[0].engine.{key}"), code);
    }
    assert_rejects_with(
        &format!("{text}context = 4096\n"),
        "lanes[0].engine.context",
        Code::InvalidValue,
        &["4096 tokens", "2048 per slot"],
    );
}

#[test]
fn conversations_are_kept_where_the_engine_can_save_them() {
    let text = |head: &str, keys: &str| {
        format!("{head}\n[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"llama-cpp\"\n{keys}\n")
    };
    let command = |head: &str, keys: &str| {
        let engine = lane(&text(head, keys)).engine;
        engine.downcast_ref::<LlamaCpp>().unwrap().command_line.command.join(" ")
    };
    let (with, without) = ("state = { dir = \"s\" }", "state = { dir = \"\" }");
    let option = "--slot-save-path {conversations}";
    let model = "model = \"m.gguf\"";
    assert!(command(with, model).ends_with(option));
    for (head, more) in [
        (without, ""),
        ("state = { dir = \"s\" }\nconversations = { enabled = false }", ""),
        (with, "arguments = [\"--slot-save-path\", \"/own\"]"),
        (with, "arguments = [\"--mmproj=p.gguf\"]"),
        (with, "arguments = [\"--embeddings\"]"),
        (with, "arguments = [\"--rerank\"]"),
        (with, "program = [\"podman\", \"run\", \"llama-server\"]"),
        (with, "check-listener = false"),
    ] {
        assert!(!command(head, &format!("{model}\n{more}")).contains("{conversations}"), "{more}");
    }
    // The host removes the option when it starts the engine, if nothing is kept.
    let own = "command = [\"x\", \"{port}\", \"--slot-save-path\", \"{conversations}\"]";
    for head in [with, without] {
        assert!(command(head, own).ends_with(option));
    }
    let container = own.replace("\"x\"", "\"docker\"");
    assert_rejects(&text(with, &container), "lanes[0].engine.command", Code::Conflict);
    let enabled = format!("{without}\nconversations = {{ enabled = true }}");
    assert_rejects(&text(&enabled, model), "conversations.enabled", Code::Conflict);
    let settings = parse(&text(
        &format!("{with}\nconversations = {{ max-bytes = \"1GiB\", share-tenants = true }}"),
        model,
    ));
    let settings = settings.unwrap().fleet.conversations.unwrap();
    assert_eq!((settings.max_bytes, settings.min_tokens), (1 << 30, 256));
    assert!(settings.share_tenants);
    for value in ["min-tokens = 0", "max-age = \"0s\"", "save-timeout = \"1h\""] {
        let head = format!("{with}\nconversations = {{ {value} }}");
        let key = value.split(' ').next().unwrap();
        assert_rejects(&text(&head, model), &format!("conversations.{key}"), Code::OutOfRange);
    }
}

#[test]
fn command_driver_runs_any_program() {
    let text = "driver = \"command\"\ncommand = [\"ollama\", \"serve\"]\nenv = { OLLAMA_HOST = \
        \"127.0.0.1:{port}\" }\n";
    let lane = self::lane(&engine(text));
    // Nothing is known of the engine's work.
    assert_eq!(lane.liveness.stall, Duration::ZERO);
    let Program { command_line, ready_path, reuse_connections, run } =
        lane.engine.downcast_ref().unwrap();
    assert!(!reuse_connections && run.check_listener);
    let CommandLine { command, env } = command_line;
    assert_eq!((command.len(), env.len(), ready_path.as_str()), (2, 1, "/health"));
    assert_eq!(
        (run.start_timeout, run.stop_grace),
        (Duration::from_secs(120), Duration::from_secs(10))
    );
    let set = format!("{text}reuse-connections = true\ncheck-listener = false\n");
    let set = self::lane(&engine(&set)).engine;
    let Program { reuse_connections, run, .. } = set.downcast_ref().unwrap();
    assert!(*reuse_connections && !run.check_listener);
    for (keys, key, code) in [
        (format!("{text}ready = \"health\""), "ready", Code::InvalidValue),
        ("driver = \"command\"".to_owned(), "command", Code::MissingKey),
        (
            "driver = \"command\"\ncommand = [\"\"]\nport = 1".to_owned(),
            "command",
            Code::InvalidValue,
        ),
        ("driver = \"command\"\ncommand = [\"x\"]".to_owned(), "command", Code::InvalidValue),
        (format!("{text}retry-failed-after = \"1s\""), "retry-failed-after", Code::UnknownKey),
        (format!("{text}start-timeout = \"0s\""), "start-timeout", Code::OutOfRange),
    ] {
        assert_rejects(&engine(&keys), &format!("lanes[0].engine.{key}"), code);
    }
}

#[test]
fn external_engines_are_not_managed() {
    let lane = lane(LANE);
    assert_eq!((lane.residency, lane.engine_model), (Residency::External, None));
    let off = Liveness {
        stall: Duration::ZERO,
        probe_interval: Duration::ZERO,
        probe_timeout: Duration::ZERO,
    };
    assert_eq!(lane.liveness, off);
    for (key, value) in [
        ("load", "\"always\""),
        ("unload-after", "\"1s\""),
        ("expected-load-time", "\"1s\""),
        ("liveness", "{}"),
    ] {
        let source = LANE.replace("name = \"a\"", &format!("name = \"a\"\n{key} = {value}"));
        assert_rejects(&source, &format!("lanes[0].{key}"), Code::Conflict);
    }
}

#[test]
fn lane_of_another_host_has_the_name_and_the_slots_there() {
    let peer = |more: &str| {
        format!(
            "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"pointsman\"\n\
             url = \"http://10.0.0.2:8080\"\n{more}"
        )
    };
    let same = lane(&peer(""));
    assert_eq!((same.residency, same.engine_model.as_deref()), (Residency::External, Some("a")));
    assert!(same.info().is_peer && !lane(LANE).info().is_peer);
    let other = lane(&peer("lane = \"big\"\nqueue-there = 3"));
    assert_eq!(other.engine_model.as_deref(), Some("big"));
    let engine = |key: &str| format!("lanes[0].engine.{key}");
    assert_rejects(&peer("lane = \"\""), &engine("lane"), Code::InvalidValue);
    assert_rejects(&peer("queue-there = -1"), &engine("queue-there"), Code::OutOfRange);
    assert_rejects(&peer("probe-interval = \"1s\""), &engine("probe-interval"), Code::UnknownKey);
    let slots = peer("").replace("[lanes.engine]", "slots = 4\n[lanes.engine]");
    assert_rejects(&slots, "lanes[0].slots", Code::Conflict);
}

#[test]
fn probe_path_is_below_the_url() {
    let source = |path: &str| {
        LANE.replace("127.0.0.1:1\"", &format!("127.0.0.1:1\"\nprobe-path = \"{path}\""))
    };
    for path in ["/models", "/status?a=b", ""] {
        assert!(parse(&source(path)).is_ok(), "{path}");
    }
    for path in ["models", "/a b", "/a#b"] {
        assert_rejects(&source(path), "lanes[0].engine.probe-path", Code::InvalidValue);
    }
}

#[test]
fn port_conflicts_are_rejected() {
    let lane = |name: &str, port: u16| {
        format!(
            "[[lanes]]\nname = \"{name}\"\n[lanes.engine]\ndriver = \"command\"\ncommand = \
             [\"x\"]\nport = {port}\n"
        )
    };
    assert!(parse(&[lane("a", 9001), lane("b", 9002)].concat()).is_ok());
    let source = [lane("a", 9001), lane("b", 9001)].concat();
    assert_eq!(errors(&source), ["12: lanes[1].engine.port [conflict]"]);
    let port = "lanes[1].engine.port";
    assert_rejects_with(&source, port, Code::Conflict, &["9001", "lane \"a\""]);
    let port = "lanes[0].engine.port";
    assert_rejects_with(&lane("a", 8000), port, Code::Conflict, &["8000", "listeners"]);
}

#[test]
fn statuses_of_external_engines_have_defaults() {
    use pointsman_domain::Trigger::{Overloaded, ServerError};
    let with = |statuses: &str| lane(&format!("{LANE}[lanes.fallback-statuses]\n{statuses}"));
    let statuses = |statuses: &str| with(statuses).fallback_statuses;
    let defaults = [(402, ServerError), (404, ServerError), (409, Overloaded)];
    assert_eq!(statuses(""), defaults.into());
    let changed = statuses("404 = \"none\"\n410 = \"server-error\"\n529 = \"overloaded\"");
    let expected = [(402, ServerError), (409, Overloaded), (410, ServerError), (529, Overloaded)];
    assert_eq!(changed, expected.into());
    let vllm = lane(&engine("driver = \"vllm\"\nmodel = \"org/m\""));
    assert!(vllm.fallback_statuses.is_empty());
    for (status, code) in [
        ("399 = \"server-error\"", Code::InvalidValue),
        ("600 = \"server-error\"", Code::InvalidValue),
        ("404 = \"timeout\"", Code::InvalidValue),
        ("429 = \"none\"", Code::Conflict),
    ] {
        let (key, _) = status.split_once(' ').unwrap();
        let source = format!("{LANE}[lanes.fallback-statuses]\n{status}\n");
        assert_rejects(&source, &format!("lanes[0].fallback-statuses.{key}"), code);
    }
}

#[test]
fn invalid_lane_times_are_rejected() {
    let with =
        |more: &str| LANE.replace("driver = \"external\"\nurl = \"http://127.0.0.1:1\"", more);
    let command = "driver = \"command\"\ncommand = [\"x\"]\nport = 1\n";
    let lane = |keys: &str| with(command).replace("name = \"a\"", &format!("name = \"a\"\n{keys}"));
    for (keys, key, code) in [
        ("unload-after = \"1s\"", "unload-after", Code::Conflict),
        ("load = \"on-demand\"\nunload-after = \"0s\"", "unload-after", Code::OutOfRange),
        ("load = \"never\"", "load", Code::InvalidValue),
        ("expected-load-time = \"0s\"", "expected-load-time", Code::OutOfRange),
        (
            "liveness = { probe-interval = \"1s\", probe-timeout = \"0s\" }",
            "liveness.probe-timeout",
            Code::OutOfRange,
        ),
        ("liveness = { stall = \"1s\" }", "liveness.stall", Code::UnknownKey),
    ] {
        assert_rejects(&lane(keys), &format!("lanes[0].{key}"), code);
    }
    let misspelled = lane("liveness = { stall-timout = \"1s\" }");
    let key = "lanes[0].liveness.stall-timout";
    assert_rejects_with(&misspelled, key, Code::UnknownKey, &["`stall-timeout`"]);
    let config = parse(&lane("load = \"on-demand\"")).unwrap();
    let residency = Residency::OnDemand { preload: false, unload_after: None };
    assert_eq!(config.fleet.lanes[0].residency, residency);
}

#[test]
fn endpoints_of_a_lane_override_those_of_its_engine() {
    use pointsman_domain::{Endpoint, EndpointSet};
    let source = |endpoints: &str, engine: &str| {
        format!("[[lanes]]\nname = \"a\"\n{endpoints}\n[lanes.engine]\n{engine}\n")
    };
    let llama = "driver = \"llama-cpp\"\nmodel = \"m.gguf\"";
    let of = |endpoints: &str, engine: &str| lane(&source(endpoints, engine)).info().endpoints;
    let configured = of("endpoints = [\"embeddings\", \"rerank\"]", llama);
    assert_eq!(configured, EndpointSet::new([Endpoint::Embeddings, Endpoint::Rerank]));
    let flags = |flags: &str| of("", &format!("{llama}\n{flags}"));
    for (keys, embeds, ranks) in [
        ("", false, false),
        ("arguments = [\"--embeddings\"]", true, false),
        ("arguments = [\"--embd-gemma-default\"]", true, false),
        ("arguments = [\"--embd-normalize\", \"2\"]", false, false),
        ("arguments = [\"--reranking\"]", false, true),
        ("env = { LLAMA_ARG_EMBEDDINGS = \"1\" }", true, false),
        ("env = { LLAMA_ARG_EMBEDDINGS = \"0\" }", false, false),
    ] {
        let set = flags(keys);
        let has = (set.contains(Endpoint::Embeddings), set.contains(Endpoint::Rerank));
        assert_eq!(has, (embeds, ranks), "{keys}");
        assert!(set.contains(Endpoint::ChatCompletions) && set.contains(Endpoint::Messages));
    }
    let external = of("", "driver = \"external\"\nurl = \"http://127.0.0.1:1\"");
    assert!(external.contains(Endpoint::Rerank) && !external.contains(Endpoint::Messages));
    for (endpoints, hint) in [
        ("endpoints = [\"embedding\"]", "did you mean \"embeddings\"?"),
        ("endpoints = [\"x\"]", "expected one of chat-completions"),
        ("endpoints = []", "must not be empty"),
    ] {
        let errors = parse(&source(endpoints, llama)).unwrap_err();
        assert!(errors.iter().any(|error| error.to_string().contains(hint)), "{errors:#?}");
    }
}
