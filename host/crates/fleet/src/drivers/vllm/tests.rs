//! Table-driven tests; the log lines were recorded from vLLM 0.32.0.

use std::hint::black_box;

use proptest::prelude::*;

use super::*;
use crate::engine_spec::NO_BACK_OFF;
use crate::failures::{quote, recognise};

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn settings() -> VllmSettings {
    VllmSettings { model: "/models/a".to_owned(), ..VllmSettings::default() }
}

fn env<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    command.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn removes(command: &Command, name: &str) -> bool {
    command.remove_env.iter().any(|known| known == name)
}

fn warns(command: &Command, part: &str) -> bool {
    command.warnings.iter().any(|text| text.contains(part))
}

#[test]
fn command_of_minimal_settings() {
    let found = command(&settings(), Listen::Port(18300), &[]);
    assert_eq!(
        found.words.join(" "),
        "vllm serve /models/a --host 127.0.0.1 --port 18300 --enable-request-id-headers \
         --disable-uvicorn-access-log --scheduling-policy priority"
    );
    assert_eq!(found.env, pairs(&[("VLLM_NO_USAGE_STATS", "1"), ("VLLM_DO_NOT_TRACK", "1")]));
    assert!(removes(&found, "VLLM_PORT"), "{found:?}");
    assert_eq!(found.warnings, Vec::<String>::new());
    assert_eq!(settings().check(), []);
}

#[test]
fn command_of_all_settings() {
    let text = |text: &str| Some(text.to_owned());
    let all = VllmSettings {
        program: vec!["/opt/venv/bin/vllm".to_owned()],
        model: "org/a model".to_owned(),
        served_names: vec!["a".to_owned(), "b".to_owned()],
        dtype: text("bfloat16"),
        quantization: text("awq"),
        max_model_len: Some(32768),
        max_num_seqs: Some(4),
        gpu_memory_utilization: Some(Permille(450)),
        kv_cache_bytes: Some(1 << 30),
        tensor_parallel: Some(2),
        pipeline_parallel: Some(1),
        enforce_eager: true,
        block_size: Some(16),
        trust_remote_code: true,
        tool_call_parser: text("hermes"),
        reasoning_parser: text("qwen3"),
        adapters: pairs(&[("sql", "/l/sql"), ("css", "org/css")]),
        download_dir: text("/d"),
        load_format: text("dummy"),
        priority_scheduling: false,
        shutdown_timeout_s: 30,
        sleep_mode: true,
        offline: true,
        device: GpuSelector::parse("GPU-0e54792172da5eeb"),
        hsa_override: None,
        cache_root: text("/c"),
        arguments: vec!["-O1".to_owned()],
        env: pairs(&[("VLLM_DO_NOT_TRACK", "0")]),
    };
    assert_eq!(all.check(), []);
    let found =
        command(&all, Listen::Socket("/run/a.sock"), &pairs(&[("HIP_VISIBLE_DEVICES", "0")]));
    let arguments = "--uds /run/a.sock --served-model-name a b --enable-request-id-headers \
                 --disable-uvicorn-access-log \
                 --dtype bfloat16 --quantization awq --max-model-len 32768 --max-num-seqs 4 \
                 --gpu-memory-utilization 0.45 --kv-cache-memory-bytes 1073741824 \
                 --tensor-parallel-size 2 \
                 --pipeline-parallel-size 1 --block-size 16 --tool-call-parser hermes \
                 --reasoning-parser qwen3 \
                 --download-dir /d --load-format dummy --shutdown-timeout 30 \
                 --enable-auto-tool-choice \
                 --enforce-eager --trust-remote-code --enable-sleep-mode --enable-lora \
                 --lora-modules sql=/l/sql css=org/css -O1";
    assert_eq!(found.words[..3], ["/opt/venv/bin/vllm", "serve", "org/a model"]);
    assert_eq!(found.words[3..].join(" "), arguments);
    for (name, value) in [
        ("ROCR_VISIBLE_DEVICES", "GPU-0e54792172da5eeb"),
        ("VLLM_CACHE_ROOT", "/c"),
        ("VLLM_SERVER_DEV_MODE", "1"),
        ("HF_HUB_OFFLINE", "1"),
        ("VLLM_DO_NOT_TRACK", "0"),
    ] {
        assert_eq!(env(&found, name), Some(value), "{name}");
    }
    assert!(removes(&found, "HIP_VISIBLE_DEVICES") && removes(&found, "CUDA_VISIBLE_DEVICES"));
}

#[test]
fn inherited_environment_is_cleaned() {
    let inherited = pairs(&[
        ("PATH", "/bin"),
        ("VLLM_PORT", "8000"),
        ("VLLM_HOST_IP", "10.0.0.1"),
        ("VLLM_HOST", "0.0.0.0"),
        ("VLLM_API_KEY", "None"),
        ("VLLM_SWAP_SPACE", "4"),
        ("VLLM_ROCM_USE_AITER", "1"),
        ("VLLM_NO_USAGE_STATS", "0"),
        ("HIP_VISIBLE_DEVICES", "GPU-0e54792172da5eeb"),
        ("HSA_OVERRIDE_GFX_VERSION", "11.0.0"),
    ]);
    let found = command(&settings(), Listen::Port(1), &inherited);
    for name in [
        "VLLM_PORT",
        "VLLM_HOST",
        "VLLM_API_KEY",
        "VLLM_SWAP_SPACE",
        "HIP_VISIBLE_DEVICES",
        "HSA_OVERRIDE_GFX_VERSION",
    ] {
        assert!(removes(&found, name) && warns(&found, name), "{name}: {found:?}");
    }
    for name in ["PATH", "VLLM_HOST_IP", "VLLM_NO_USAGE_STATS", "VLLM_ROCM_USE_AITER"] {
        assert!(!removes(&found, name) && env(&found, name).is_none(), "{name}: {found:?}");
    }
    assert!(warns(&found, "breaks gfx1151"));
    assert_eq!(env(&found, "ROCR_VISIBLE_DEVICES"), Some("GPU-0e54792172da5eeb"));
    let one = found.warnings.iter().filter(|text| text.contains("VLLM_HOST (")).count();
    assert_eq!(one, 1, "one warning names all of them");
}

#[test]
fn configured_environment_is_cleaned() {
    let mut lane = settings();
    lane.env = pairs(&[
        ("VLLM_PORT", "1"),
        ("VLLM_API_KEY", ""),
        ("HIP_VISIBLE_DEVICES", "GPU-1"),
        ("A", "b"),
    ]);
    let found = command(
        &lane,
        Listen::Port(1),
        &pairs(&[("ROCR_VISIBLE_DEVICES", "0"), ("VLLM_PORT", "2")]),
    );
    assert_eq!(env(&found, "A"), Some("b"));
    for name in ["VLLM_PORT", "VLLM_API_KEY", "HIP_VISIBLE_DEVICES"] {
        assert!(removes(&found, name) && env(&found, name).is_none(), "{name}: {found:?}");
    }
    assert_eq!(env(&found, "ROCR_VISIBLE_DEVICES"), None, "the inherited selection is kept");

    lane.env = pairs(&[("VLLM_API_KEY", "s3cret")]);
    lane.hsa_override = Some("11.5.1".to_owned());
    let both = pairs(&[("HIP_VISIBLE_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "1")]);
    let found = command(&lane, Listen::Port(1), &both);
    assert_eq!(env(&found, "HSA_OVERRIDE_GFX_VERSION"), Some("11.5.1"));
    assert!(
        !removes(&found, "HSA_OVERRIDE_GFX_VERSION") && warns(&found, "natively since ROCm 7.0.2")
    );
    assert!(removes(&found, "CUDA_VISIBLE_DEVICES") && !removes(&found, "HIP_VISIBLE_DEVICES"));
    assert!(!warns(&found, "s3cret"));
    lane.program =
        vec!["docker".to_owned(), "run".to_owned(), "image".to_owned(), "vllm".to_owned()];
    assert!(warns(&command(&lane, Listen::Port(1), &[]), "container"));
}

#[test]
fn check_reports_invalid_settings() {
    type Change = fn(&mut VllmSettings);
    let table: &[(Change, &str, &str)] = &[
        (|s| s.arguments = vec!["--port=8000".to_owned()], "arguments", "--port"),
        (|s| s.arguments = vec!["--host".to_owned(), "0.0.0.0".to_owned()], "arguments", "--host"),
        (|s| s.arguments = vec!["--uds".to_owned()], "arguments", "--uds"),
        (
            |s| s.arguments = vec!["--served_model_name".to_owned()],
            "arguments",
            "--served-model-name",
        ),
        (|s| s.arguments = vec!["--swap-space".to_owned()], "arguments", "code 2"),
        (|s| s.arguments = vec!["--disable-log-requests".to_owned()], "arguments", "code 2"),
        (|s| s.arguments = vec!["a\nb".to_owned()], "arguments", "line break"),
        (|s| s.gpu_memory_utilization = Some(Permille(0)), "gpu-memory-utilization", "0.0"),
        (|s| s.gpu_memory_utilization = Some(Permille(1001)), "gpu-memory-utilization", "1.001"),
        (|s| s.max_model_len = Some(0), "max-model-len", "0"),
        (|s| s.kv_cache_bytes = Some(0), "kv-cache-memory", "0"),
        (|s| s.model = "/m/model.safetensors".to_owned(), "model", "folder"),
        (|s| s.model = "/m/a.GGUF".to_owned(), "model", "llama.cpp"),
        (|s| s.model = String::new(), "model", "missing"),
        (|s| s.model = "a\0".to_owned(), "model", "NUL"),
        (|s| s.dtype = Some("--x".to_owned()), "dtype", "dash"),
        (|s| s.program = Vec::new(), "program", "empty"),
        (|s| s.env = vec![("A=B".to_owned(), String::new())], "env", "A=B"),
        (|s| s.device = Some(GpuSelector::Uuid("0,1".to_owned())), "device", "0,1"),
    ];
    for (change, key, part) in table {
        let mut changed = settings();
        change(&mut changed);
        let problems = changed.check();
        let [problem] = &problems[..] else { panic!("{key}: {problems:?}") };
        assert_eq!(problem.key, *key);
        assert!(problem.message.contains(part), "{part}: {problem}");
    }
}

#[test]
fn fractions_and_gpu_selectors_are_parsed() {
    for (text, part, display) in
        [("0.45", 450, "0.45"), ("1", 1000, "1.0"), ("0.9234", 923, "0.923")]
    {
        assert_eq!(Permille::parse(text), Some(Permille(part)));
        assert_eq!(Permille(part).to_string(), display);
    }
    for text in ["0", "1.1", "-1", "NaN", "inf", "", "90%"] {
        assert_eq!(Permille::parse(text), None, "{text}");
    }
    assert_eq!(GpuSelector::parse(" 0 "), Some(GpuSelector::Index(0)));
    for text in ["", "+1", "0,1", "GPU-", "GPU-a b", "99999999999"] {
        assert_eq!(GpuSelector::parse(text), None, "{text}");
    }
}

/// An env file as written by an early user.
const ENV_FILE: &str = r#"
# Model Selection
VLLM_MODEL="TinyLlama/TinyLlama-1.1B"   # first
VLLM_MODEL="/models/vllm/orchestrator/bf16/model.safetensors"
HIP_VISIBLE_DEVICES=GPU-0e54792172da5eeb
HSA_OVERRIDE_GFX_VERSION=11.0.0            # Force gfx1151 support
VLLM_GPU_MEMORY_UTILIZATION=0.45           # 48GB
VLLM_HOST=0.0.0.0
VLLM_PORT=8000
VLLM_LOG_REQUESTS=true
VLLM_MAX_MODEL_LEN=32K
VLLM_TENSOR_PARALLEL_SIZE=1
VLLM_ENFORCE_EAGER=0
VLLM_SWAP_SPACE=4
VLLM_NUM_GPU_BLOCKS_OVERRIDE=None
VLLM_API_KEY=None
VLLM_LOG_LEVEL=info
LOG_DIRECTORY=/var/log/vllm
HF_DATASETS_OFFLINE=1
TRANSFORMERS_OFFLINE=1
HF_TOKEN=hf_s3cret
HF_HOME=${HOME}/x
export TRANSFORMERS_TRUST_REMOTE_CODE=1
"#;

#[test]
fn env_file_is_imported() {
    let variables = parse_env_file(ENV_FILE).unwrap();
    let found = import(&variables);
    assert_eq!(found.notes.len(), variables.len());
    let settings = &found.settings;
    assert_eq!(settings.model, "/models/vllm/orchestrator/bf16");
    assert_eq!(settings.gpu_memory_utilization, Some(Permille(450)));
    assert_eq!((settings.max_model_len, settings.tensor_parallel), (Some(32768), Some(1)));
    assert!(settings.offline && settings.trust_remote_code && !settings.enforce_eager);
    assert_eq!(settings.device, Some(GpuSelector::Uuid("GPU-0e54792172da5eeb".to_owned())));
    assert_eq!(settings.hsa_override, None);
    assert_eq!(settings.arguments, ["--enable-log-requests"]);
    assert_eq!(settings.env, pairs(&[("VLLM_LOGGING_LEVEL", "INFO")]));
    assert_eq!(settings.check(), []);
    let toml = found.to_toml();
    assert!(toml.contains(
        "# VLLM_GPU_MEMORY_UTILIZATION becomes gpu-memory-utilization = 0.45\n\
         gpu-memory-utilization = 0.45\n"
    ));
    assert!(toml.contains("\n# hsa-override = \"11.0.0\"\n"));
    assert_eq!(toml.matches("\noffline = true\n").count(), 1);
    assert!(!toml.contains("s3cret"));
    assert!(toml.ends_with(
        "arguments = [\"--enable-log-requests\"]\nenv = { \"VLLM_LOGGING_LEVEL\" = \"INFO\" }\n"
    ));
}

#[test]
fn hf_hub_offline_takes_precedence() {
    let both = import(&pairs(&[("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "0")]));
    assert!(!both.settings.offline && !both.to_toml().contains("\noffline"), "{both:?}");
}

#[test]
fn token_counts_are_parsed_as_by_vllm() {
    for (text, tokens) in [
        ("32k", Some(32000)),
        ("32K", Some(32768)),
        ("25.6k", Some(25600)),
        ("1m", Some(1_000_000)),
        ("4096", Some(4096)),
        ("1.5K", None),
        ("0", None),
        (".5k", None),
        ("99999999m", None),
        ("auto", None),
    ] {
        let found = import(&pairs(&[("VLLM_MAX_MODEL_LEN", text)]));
        assert_eq!(found.settings.max_model_len, tokens, "{text}");
    }
    let auto = import(&pairs(&[("VLLM_MAX_MODEL_LEN", "auto")]));
    assert_eq!(auto.settings.arguments, ["--max-model-len=auto"]);
}

#[test]
fn env_files_are_parsed() {
    let table: &[(&str, &[(&str, &str)])] = &[
        ("A=b # c\n#A=x\nexport B='c # d'", &[("A", "b"), ("B", "c # d")]),
        ("A=\nB= # none\nC=a#b", &[("A", ""), ("B", ""), ("C", "a#b")]),
        (r#"A="q\"q""#, &[("A", "q\"q")]),
        ("A=http://x:1\nb=two words", &[("A", "http://x:1"), ("b", "two words")]),
    ];
    for (text, expected) in table {
        assert_eq!(parse_env_file(text), Ok(pairs(expected)), "{text}");
    }
    for (text, line) in [
        ("A=1\nhello", 2),
        ("A=\"open", 1),
        ("1A=b", 1),
        ("A=\"b\"c", 1),
        ("\n\nENV A=1", 3),
        ("A: b", 1),
    ] {
        assert_eq!(parse_env_file(text).unwrap_err().0, line, "{text}");
    }
}

/// A start with dummy weights on the CPU, shortened at `…`.
const RECORDED: [&str; 12] = [
    "(APIServer pid=3752) INFO 11-21 03:31:49 [api_utils.py:286] non-default args: {'model_tag': \
     './model'}",
    "(APIServer pid=3752) INFO 11-21 03:32:04 [model.py:733] Resolved architecture: \
     LlamaForCausalLM",
    "(EngineCore pid=3852) INFO 11-21 03:32:14 [core.py:133] Initializing a V1 LLM engine \
     (v0.32.0) with config: …",
    "(Worker pid=3890) INFO 11-21 03:32:26 [cpu_model_runner.py:68] Starting to load model \
     ./model...",
    "(EngineCore pid=3852) INFO 11-21 03:32:26 [utils.py:347] Using LBHNC KV cache layout.",
    "(Worker pid=3890) INFO 11-21 03:32:26 [cpu_worker.py:260] Explicitly set (1.0/20.59) GiB for \
     KV cache on node 0.",
    "(EngineCore pid=3852) INFO 11-21 03:32:26 [kv_cache_utils.py:2327] CPU KV cache size: \
     1,048,576 tokens, Maximum concurrency for 512 tokens per request: 2048.00x",
    "(EngineCore pid=3852) INFO 11-21 03:32:28 [core.py:402] init engine (profile, create kv \
     cache, warmup model) took 1.99 s",
    "(APIServer pid=3752) INFO 11-21 03:32:29 [entry.py:136] Supported tasks: ['generate']",
    "(APIServer pid=3752) INFO 11-21 03:32:29 [entry.py:140] Starting vLLM server on \
     http://127.0.0.1:18300",
    "INFO:     Waiting for application startup.",
    "INFO:     Application startup complete.",
];

#[test]
fn progress_of_a_recorded_start_never_goes_back() {
    let found: Vec<Loading> = RECORDED.iter().filter_map(|line| read(line)).collect();
    assert_eq!(found.len(), RECORDED.len() - 2);
    assert!(found.is_sorted_by_key(|loading| loading.phase), "{found:?}");
    assert_eq!(found.last().unwrap().phase, Phase::Listening);
    assert_eq!(found[1].detail.as_deref(), Some("Resolved architecture: LlamaForCausalLM"));
    assert!(RECORDED.iter().all(|line| recognise(message(line)).is_none()));
    let mut measured = Measurement::default();
    RECORDED.iter().for_each(|line| measure(line, &mut measured));
    assert_eq!(
        (measured.weights_bytes, measured.kv_bytes, measured.kv_tokens),
        (None, Some(1 << 30), Some(1_048_576))
    );
}

fn vllm(settings: VllmSettings) -> Vllm {
    let run = ProcessSpec {
        directory: None,
        port: None,
        check_listener: true,
        start_timeout: Duration::ZERO,
        stop_grace: Duration::ZERO,
        backoff: NO_BACK_OFF,
    };
    let (strategy, endpoints) = (UnloadMode::Restart, EndpointSet::default());
    Vllm { settings, run, strategy, vision: false, endpoints, estimate: None }
}

#[test]
fn fraction_is_added_to_a_launch() {
    let memory = LaunchMemory { need: 24 << 30, total: Some(96 << 30), unused: None, device: None };
    let mut launch = Launch::default();
    let reason = vllm(settings()).fit(&mut launch, &memory).unwrap();
    assert_eq!(launch.command, ["--gpu-memory-utilization", "0.25"]);
    assert!(["0.25", "24.0 GiB", "96.0 GiB"].iter().all(|word| reason.contains(word)), "{reason}");
    let set = VllmSettings { gpu_memory_utilization: Some(Permille(300)), ..settings() };
    let mut launch = Launch::default();
    assert_eq!((vllm(set).fit(&mut launch, &memory), launch), (None, Launch::default()));
}

#[test]
fn cache_and_estimate_are_those_of_one_gpu() {
    let mut vllm = vllm(VllmSettings { tensor_parallel: Some(2), ..settings() });
    vllm.limit_kv_cache(16 << 30);
    assert_eq!(vllm.settings.kv_cache_bytes, Some(8 << 30));
    vllm.set_estimate(MemoryEstimate { weights: 40, kv: Some(1), compute: None, total: 50 });
    let estimate = vllm.estimate().unwrap();
    assert_eq!((estimate.weights, estimate.kv, estimate.total), (20, Some(8 << 30), 50));
}

fn lines() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[A-Z_=:#\"'\\\\ \r\n$%|/0-9.-]{0,12}",
        Just("export ".to_owned()),
        Just("Loading safetensors checkpoint shards: ".to_owned()),
        Just("Model loading took ".to_owned()),
        Just("Explicitly set (".to_owned()),
        Just("KV cache size: ".to_owned()),
        Just("(a pid=1) ".to_owned()),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_accepted(
        text in lines(),
        name in "[A-Z_]{0,6}|VLLM_MAX_MODEL_LEN|VLLM_MODEL|HIP_VISIBLE_DEVICES",
    ) {
        if let Ok(variables) = parse_env_file(&text) {
            for (name, _) in &variables {
                prop_assert!(!name.is_empty() && !name.contains('='));
            }
            black_box(import(&variables).to_toml());
        }
        let toml = import(&[(name.clone(), text.clone())]).to_toml();
        let has_no_control = |line: &str| !line.chars().any(char::is_control);
        prop_assert!(toml.lines().all(has_no_control));
        if let Some(loading) = read(&text) {
            prop_assert!(loading.percent.unwrap_or(0) <= 100);
            prop_assert!(loading.detail.unwrap_or_default().len() <= 200);
        }
        measure(&text, &mut Measurement::default());
        prop_assert!(quote(&text).len() <= 203);
        black_box(recognise(&text));
        black_box(Permille::parse(&text));
        black_box(GpuSelector::parse(&text));
        let env = vec![(name, text.clone())];
        let lane = VllmSettings { model: text.clone(), env, ..settings() };
        black_box(lane.check());
        let found = command(&lane, Listen::Port(1), &[]);
        prop_assert!(found.env.iter().all(|(name, _)| !removes(&found, name)));
    }
}
