//! What is said about engines.

use pointsman_fleet::vllm::{GpuSelector, Permille, VllmSettings};
use pointsman_fleet::{EngineSpec, Liveness, ProcessSpec, Residency, SwitchStrategy};

use super::*;

fn engine(keys: &str) -> String {
    format!("[[lanes]]\nname = \"a\"\n[lanes.engine]\n{keys}\n")
}

fn lane(source: &str) -> pointsman_fleet::LaneSpec {
    let mut lanes = parse(source).unwrap_or_else(|errors| panic!("{errors:#?}")).fleet.lanes;
    lanes.remove(0)
}

fn vllm(source: &str) -> (VllmSettings, ProcessSpec, SwitchStrategy) {
    match lane(source).engine {
        EngineSpec::Vllm { settings, run, strategy } => (*settings, run, strategy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vllm_is_called_by_its_lane() {
    let text = "[[lanes]]\nname = \"a\"\nmodels = [\"auto\", \"a\"]\nmax-context = 4096\nslots = 3\n[lanes.engine]\n\
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
    assert_eq!((settings, strategy), (expected, SwitchStrategy::Restart));
    let seconds = Duration::from_secs;
    assert_eq!((run.start_timeout, run.stop_grace, run.port), (seconds(1800), seconds(35), None));
    assert_eq!((run.back_off.give_up, run.back_off.failed_retry), (5, seconds(600)));
    let lane = lane(text);
    assert_eq!(lane.engine_model.as_deref(), Some("a"));
    assert_eq!(
        (lane.residency, lane.expected_load, lane.need),
        (Residency::Always, seconds(60), 0)
    );
    let liveness =
        Liveness { stall: seconds(120), probe_every: seconds(60), probe_limit: seconds(30) };
    assert_eq!(lane.liveness, liveness);
}

#[test]
fn every_setting_of_a_vllm_is_taken_over() {
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
    assert_eq!((settings, strategy), (expected, SwitchStrategy::SleepTwo));
    assert_eq!(run.start_timeout, Duration::from_secs(7200));
    assert_eq!(run.stop_grace, Duration::from_millis(26_500));
}

#[test]
fn mistakes_about_a_vllm_have_their_lines() {
    let errors = parse(&engine(
        "driver = \"vllm\"\nmodel = \"/m/model.safetensors\"\ngpu-memory-utilization = 1.5\narguments = [\"--port\", \"1\"]\n\
         device = \"0,1\"\nkv-cache-memory = \"0B\"\nmax-num-seqs = 0\nenforce-eager = 1\nenv = { \"A=\" = \"s3cret\" }\n\
         stop-grace = \"5s\"",
    ))
    .unwrap_err();
    let expected = [
        "5: lanes[0].engine.model: \"/m/model.safetensors\" is a single file; vLLM wants the folder that holds it and config.json",
        "6: lanes[0].engine.gpu-memory-utilization: `1.5` is no part of a whole; write a number above 0 and up to 1, such as 0.45",
        "7: lanes[0].engine.arguments: --port may not be among the arguments: the host chooses the port; leave it out",
        "8: lanes[0].engine.device: \"0,1\" is no GPU; write its number, such as \"0\", or \"GPU-\" and its UUID (`rocminfo` shows it)",
        "9: lanes[0].engine.kv-cache-memory: must be more than nothing",
        "10: lanes[0].engine.max-num-seqs: `0` is not from 1 to 1000000",
        "11: lanes[0].engine.enforce-eager: must be true or false, and is of type integer",
        "12: lanes[0].engine.env: \"A=\" is no name of a variable",
        "13: lanes[0].engine.stop-grace: is less than `shutdown-timeout`, 10s, so that running requests would be killed before that; write 35s or leave it out",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn a_vllm_that_could_not_serve_its_lane_is_refused() {
    let vllm = "[lanes.engine]\ndriver = \"vllm\"\nmodel = \"m\"\n";
    for (lane, engine, part) in [
        ("", "device = \"0\"\ntensor-parallel = 2", "device: names one GPU"),
        ("max-context = 9", "max-model-len = 8", "8 is less than `max-context` of the lane, 9"),
        ("engine-model = \"b\"", "", "the engine would not know \"b\": it serves \"a\""),
        ("engine-model = \"a\"", "served-names = [\"x\"]", "it serves \"x\""),
        ("", "unload-mode = \"sleep\"", "write \"restart\" or \"sleep-1\" or \"sleep-2\""),
        ("", "program = []", "engine.program: is empty"),
        ("", "command = [\"x\"]", "engine.command: is not a key here"),
    ] {
        assert_rejects(&format!("[[lanes]]\nname = \"a\"\n{lane}\n{vllm}{engine}\n"), part);
    }
    assert_rejects(
        &engine("driver = \"vllm\""),
        "engine.model: is missing; write for example `model = ",
    );
    let with =
        |lane: &str, engine: &str| format!("[[lanes]]\nname = \"a\"\n{lane}\n{vllm}{engine}\n");
    let adapter = lane(&with("engine-model = \"b\"", "arguments = [\"--lora-modules\", \"b=/b\"]"));
    assert_eq!(adapter.engine_model.as_deref(), Some("b"));
    let nameless = lane(&with("", "served-names = []"));
    assert_eq!(nameless.engine_model.as_deref(), Some("m"));
    assert_eq!(lane(&with("", "max-model-len = 8")).max_context, 8);
}

#[test]
fn a_llama_server_is_put_together() {
    let text = "[[lanes]]\nname = \"a\"\nmax-context = 4096\nslots = 2\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
                model = \"m.gguf\"\n";
    let words = |more: &str| match lane(&format!("{text}{more}\n")).engine {
        EngineSpec::LlamaCpp { words, .. } => words.command.join(" "),
        other => panic!("{other:?}"),
    };
    let begin = "llama-server --model m.gguf --host {host} --port {port} --parallel 2";
    assert_eq!(words(""), format!("{begin} --ctx-size 8192 --alias {{lane}} --metrics"));
    assert_eq!(
        words(
            "context = 16384\ngpu-layers = \"auto\"\nload-mode = \"none\"\narguments = [\"--cache-ram\", \"1\"]"
        ),
        format!(
            "{begin} --ctx-size 16384 --alias {{lane}} --gpu-layers auto --load-mode none --metrics --cache-ram 1"
        )
    );
    assert!(words("gpu-layers = 0").contains("--gpu-layers 0"));
    assert!(words("context = 4096\narguments = [\"-kvu\"]").contains("--ctx-size 4096"));
    let unknown = lane(&engine("driver = \"llama-cpp\"\nmodel = \"m.gguf\"\ncontext = 4096"));
    assert_eq!((unknown.max_context, unknown.engine_model), (1024, None));
    assert_eq!(unknown.liveness.probe_every, Duration::ZERO);
    for (keys, part) in [
        ("context = 4096", "4096 tokens over 2 slots are 2048 for each"),
        ("gpu-layers = \"some\"", "there is no \"some\"; write \"auto\", \"all\" or a number"),
        ("gpu-layers = -1", "is not from 0 to 1000000"),
        ("arguments = [\"-np\", \"3\"]", "-np may not be among them: write it as `slots`"),
        ("command = [\"x\", \"{port}\"]", "engine.model: stands beside `command`"),
        ("program = []", "engine.program: is empty"),
    ] {
        assert_rejects(&format!("{text}{keys}\n"), part);
    }
}

#[test]
fn any_program_will_do() {
    let text = "driver = \"command\"\ncommand = [\"ollama\", \"serve\"]\nenv = { OLLAMA_HOST = \"127.0.0.1:{port}\" }\n";
    let EngineSpec::Command { words, ready, run } = lane(&engine(text)).engine else { panic!() };
    assert_eq!((words.command.len(), words.env.len(), ready.as_str()), (2, 1, "/health"));
    assert_eq!(
        (run.start_timeout, run.stop_grace),
        (Duration::from_secs(120), Duration::from_secs(10))
    );
    assert_rejects(&engine(&format!("{text}ready = \"health\"")), "\"health\" is no path");
    assert_rejects(&engine("driver = \"command\""), "engine.command: is missing");
    assert_rejects(&engine("driver = \"command\"\ncommand = [\"\"]\nport = 1"), "names no program");
    assert_rejects(
        &engine("driver = \"command\"\ncommand = [\"x\"]"),
        "put `{port}` where its port belongs",
    );
    assert_rejects(
        &engine(&format!("{text}retry-failed-after = \"1s\"")),
        "retry-failed-after: is not a key here",
    );
    assert_rejects(
        &engine(&format!("{text}start-timeout = \"0s\"")),
        "start-timeout: must be more than nothing",
    );
}

#[test]
fn nothing_is_asked_of_an_engine_that_is_not_ours() {
    let lane = lane(LANE);
    assert_eq!((lane.residency, lane.engine_model), (Residency::External, None));
    let off = Liveness {
        stall: Duration::ZERO,
        probe_every: Duration::ZERO,
        probe_limit: Duration::ZERO,
    };
    assert_eq!(lane.liveness, off);
    for key in [
        "load = \"always\"",
        "unload-after = \"1s\"",
        "expected-load-time = \"1s\"",
        "liveness = {}",
    ] {
        let source = LANE.replace("name = \"a\"", &format!("name = \"a\"\n{key}"));
        assert_rejects(&source, "is for engines that we start, and this one is there already");
    }
}

#[test]
fn no_two_listen_at_one_port() {
    let lane = |name: &str, port: u16| {
        format!(
            "[[lanes]]\nname = \"{name}\"\n[lanes.engine]\ndriver = \"command\"\ncommand = [\"x\"]\nport = {port}\n"
        )
    };
    assert!(parse(&[lane("a", 9001), lane("b", 9002)].concat()).is_ok());
    assert_rejects(
        &[lane("a", 9001), lane("b", 9001)].concat(),
        "12: lanes[1].engine.port: 9001 is that of lane \"a\" too",
    );
    assert_rejects(&lane("a", 8000), "8000 is that of `server.listen` too");
}

#[test]
fn times_of_a_lane_are_sensible() {
    let with =
        |more: &str| LANE.replace("driver = \"external\"\nurl = \"http://127.0.0.1:1\"", more);
    let command = "driver = \"command\"\ncommand = [\"x\"]\nport = 1\n";
    let lane = |keys: &str| with(command).replace("name = \"a\"", &format!("name = \"a\"\n{keys}"));
    for (keys, part) in [
        ("unload-after = \"1s\"", "is of no use to a lane that is always loaded"),
        ("load = \"on-demand\"\nunload-after = \"0s\"", "unload-after: must be more than nothing"),
        ("load = \"never\"", "write \"on-demand\" or \"at-start\" or \"always\""),
        ("expected-load-time = \"0s\"", "expected-load-time: must be more than nothing"),
        ("liveness = { probe-interval = \"1s\", probe-timeout = \"0s\" }", "turns probes off"),
        ("liveness = { stal = \"1s\" }", "did you mean `stall`?"),
    ] {
        assert_rejects(&lane(keys), part);
    }
    let config = parse(&lane("load = \"on-demand\"")).unwrap();
    let residency = Residency::OnDemand { preload: false, unload_after: None };
    assert_eq!(config.fleet.lanes[0].residency, residency);
}
