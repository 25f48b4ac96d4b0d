//! The failures that specifications and users name: engines end with the last words of the real
//! ones, and every client, the status and the operator's commands show the cause and what to do.

use std::fs;
use std::process::{Command, Stdio};

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;

/// A failure: name, last words of the engine, code, and words of the remedy.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);

const ACCESS: &[&str] = &["/dev/kfd", "/dev/dri", "`video`", "`render`"];
const LESS: &[&str] = &["gpu-memory-utilization", "max-model-len"];
const HUB: &[&str] = &["network", "DNS", "HF_TOKEN", "download the model first", "offline"];

/// Failures of vLLM that its last words show.
const VLLM: &[Row] = &[
    ("no-gpu", "RuntimeError: No HIP GPUs are available", "gpu_not_found", ACCESS),
    ("no-gpu-9-1", "Error: Could not find AMD GPU device", "gpu_not_found", ACCESS),
    (
        "access",
        "Unable to open /dev/kfd read-write: Permission denied\n\
         ann is not member of \"render\" group, the default DRM access group.\n\
         RuntimeError: Failed to infer device type, please set the environment variable \
         `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging",
        "gpu_access_denied",
        ACCESS,
    ),
    (
        "ids",
        "ValueError: Inconsistent GPU visibility env vars: HIP_VISIBLE_DEVICES='0' vs \
         CUDA_VISIBLE_DEVICES='1'. Please set only one, or ensure they match.",
        "device_ids_differ",
        &["unset both", "`device`"],
    ),
    (
        "uuid",
        "ValueError: Non-integer device ID 'GPU-0e54792172da5eeb' is not supported by rocm",
        "device_uuid",
        &["`device`"],
    ),
    (
        "hip-memory",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.50 GiB.",
        "gpu_memory_full",
        LESS,
    ),
    (
        "memory-9-2",
        "Error: CUDA out of memory. Tried to allocate 2.5GB",
        "gpu_memory_full",
        &["gpu-memory-utilization", "max-model-len", "quantised"],
    ),
    (
        "taken",
        "ValueError: Free memory on device cuda:0 (1.1/15.9 GiB) on startup is less than desired \
         GPU memory utilization (0.9, 14.3 GiB). Decrease GPU memory utilization or reduce GPU \
         memory used by other processes.",
        "gpu_memory_taken",
        &["gpu-memory-utilization"],
    ),
    (
        "kv-cache",
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.0 \
         GiB KV cache is needed, which is larger than the available KV cache memory (3.1 GiB).",
        "kv_cache_too_small",
        LESS,
    ),
    (
        "gated",
        "OSError: You are trying to access a gated repo.\n401 Client Error. Access to model \
         meta-llama/Llama-3.2-11B-Vision-Instruct is restricted.",
        "model_gated",
        &["licence", "HF_TOKEN"],
    ),
    (
        "hub",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't \
         find them in the cached files.",
        "hub_unreachable",
        HUB,
    ),
    (
        "dns",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "hub_unreachable",
        HUB,
    ),
    ("hub-9-3", "Error: Failed to download model from Hugging Face", "hub_unreachable", HUB),
    (
        "timeout-9-4",
        "Error: Timeout waiting for model to load",
        "start_timeout",
        &["start-timeout", "disk"],
    ),
    (
        "port",
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): \
         address already in use",
        "port_taken",
        &["`port`"],
    ),
    ("disk", "OSError: [Errno 28] No space left on device", "disk_full", &["free space"]),
    (
        "safetensors",
        "safetensors_rust.SafetensorError: Error while deserializing header: \
         MetadataIncompleteBuffer",
        "model_broken",
        &["download the model again"],
    ),
    (
        "other-gpu",
        "torch.AcceleratorError: HIP error: invalid device function",
        "gpu_unsupported",
        &["build for this GPU"],
    ),
    (
        "triton",
        "RuntimeError: PassManager::run failed",
        "triton_unsupported",
        &["build of vLLM and Triton", "llama.cpp"],
    ),
    (
        "mllama",
        "ValueError: Model architecture MllamaForConditionalGeneration was supported in vLLM until \
         v0.10.2, and is not supported anymore.",
        "architecture_unsupported",
        &["another version"],
    ),
    (
        "swap-space",
        "vllm: error: unrecognized arguments: --swap-space 4",
        "argument_unsupported",
        &["--help"],
    ),
    (
        "override",
        "Memory access fault by GPU node-1 (Agent handle: 0x55d0c8a0) on address 0x7f2c1000. \
         Reason: Page not present or supervisor privilege.",
        "gpu_fault",
        &["hsa-override"],
    ),
    (
        "hang",
        "HW Exception by GPU node-1 (Agent handle: 0x55d0c8a0) reason :GPU Hang",
        "gpu_hung",
        &["6.18.4", "linux-firmware"],
    ),
    (
        "kubernetes",
        "ValueError: VLLM_PORT 'tcp://10.0.0.7:8000' appears to be a URI. This may be caused by a \
         Kubernetes service discovery issue",
        "vllm_port_invalid",
        &["unset VLLM_PORT"],
    ),
    ("files", "OSError: [Errno 24] Too many open files", "open_files_full", &["LimitNOFILE"]),
    (
        "shm",
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space left on \
         device (28)",
        "shared_memory_full",
        &["--shm-size"],
    ),
    (
        "cuda-wheel",
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "software_missing",
        &["ROCm or CUDA"],
    ),
    (
        "glibc",
        "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required \
         by /v/vllm/_C.abi3.so)",
        "system_too_old",
        &["build for this system"],
    ),
];

/// Failures that the end of the process shows, or the host itself: name, further keys of the
/// engine, code, and words of the remedy.
const ENDS: &[Row] = &[
    (
        "sigill",
        "env = { FAKE_ENGINE = \"--exit-code 132\" }",
        "illegal_instruction",
        &["build for this CPU"],
    ),
    ("sigkill", "env = { FAKE_ENGINE = \"--exit-code 137\" }", "killed", &["dmesg", "swap"]),
    (
        "slow",
        "start-timeout = \"300ms\"\nenv = { FAKE_ENGINE = \"--load-ms 3600000\" }",
        "start_timeout",
        &["start-timeout"],
    ),
];

/// Returns a lane with a fake vLLM that is loaded for its first request, and not again.
fn vllm(name: &str, engine: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nload = \"on-demand\"\n\
         [lanes.engine]\ndriver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = \"/m/{name}\"\n\
         backoff = {{ initial = \"1h\", max = \"1h\" }}\n{engine}\n"
    )
}

fn pointsman(host: &Host, arguments: &[&str]) -> String {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(arguments).arg("--socket").arg(host.admin_socket().unwrap());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that a text names a failure and its remedy.
fn assert_explained((name, _, code, words): &Row, text: &str) {
    assert!(text.contains(code), "{name}: {code}: {text}");
    for word in *words {
        assert!(text.contains(word), "{name}: {word}: {text}");
    }
}

fn assert_rejected(host: &Host, row: &Row) {
    let response = post(host.port, "/v1/chat/completions", &chat(row.0, json!({})));
    assert_eq!(response.status, 503, "{}: {}", row.0, response.text());
    assert_eq!(response.error_code(), "no_lane_available", "{}", row.0);
    assert!(response.header("retry-after").is_some(), "{}", row.0);
    assert_explained(row, response.json()["error"]["message"].as_str().unwrap());
}

/// Checks that `pointsman doctor` names the failures of a running host's lanes.
fn assert_doctor_explains(host: &Host, rows: &[&Row]) {
    let config = host.dir.path().join("pointsman.toml");
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["doctor", "--json", "--config"]).arg(config).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for row in rows {
        let start = format!("lane `{}` is down: ", row.0);
        let mut findings = report["findings"].as_array().unwrap().iter();
        let is_row = |finding: &&Value| finding["fact"].as_str().unwrap().starts_with(&start);
        let finding = findings.find(is_row).unwrap_or_else(|| panic!("{}: {report:#}", row.0));
        assert_eq!(finding["verdict"], "problem");
        assert_explained(row, &finding.to_string());
        let fix = finding["fix"].as_str().unwrap();
        assert!(row.3.iter().all(|word| fix.contains(word)), "{}: {fix}", row.0);
    }
}

#[test]
fn known_failures_are_explained_to_clients_and_operators() {
    let words = tempfile::tempdir().unwrap();
    let mut config = "[admin]\nsocket = \"admin.sock\"\n".to_owned();
    for (name, log, ..) in VLLM {
        let file = words.path().join(name);
        fs::write(&file, format!("INFO 11-21 03:31:38 platform\n{log}\n")).unwrap();
        let flags = format!("--last-words {}", file.display());
        config += &vllm(name, &format!("env = {{ FAKE_ENGINE = {flags:?} }}"));
    }
    for (name, engine, ..) in ENDS {
        config += &vllm(name, engine);
    }
    let missing: Row = ("missing", "", "program_not_found", &["install it"]);
    config += &vllm(missing.0, "").replace(FAKE_ENGINE, "/no/such/vllm");
    let refused: Row = ("refused-9-5", "", "engine_unreachable", &["check that it runs"]);
    // The port is free, because a port below 1024 is not given to clients' sockets.
    config += "[[lanes]]\nname = \"refused-9-5\"\n[lanes.engine]\ndriver = \"external\"\n\
        url = \"http://127.0.0.1:9/v1\"\n";
    let host = Host::start(&program(FAKE_ENGINE), &config);
    let rows: Vec<&Row> = VLLM.iter().chain(ENDS).chain([&missing, &refused]).collect();

    // The client that waits for the load, and a later one.
    for row in &rows {
        assert_rejected(&host, row);
        wait_until("the lane has failed", || host.lane(row.0)["problem_code"] == row.2);
        assert_rejected(&host, row);
        assert_explained(row, &host.lane(row.0)["problem"].to_string());
    }
    let listed: Value =
        serde_json::from_str(&pointsman(&host, &["lane", "list", "--json"])).unwrap();
    let table = pointsman(&host, &["lane", "list"]);
    for row in &rows {
        let mut lanes = listed.as_array().unwrap().iter();
        let lane = lanes.find(|lane| lane["name"] == row.0).unwrap();
        assert_eq!(lane["problem_code"], row.2);
        assert_explained(row, &lane["problem"].to_string());
        let line = table.lines().find(|line| line.starts_with(&format!("{}: ", row.0)));
        assert_explained(row, line.unwrap_or_else(|| panic!("{}: {table}", row.0)));
    }
    assert_doctor_explains(&host, &rows);
    host.assert_no_request_lost();
    host.stop();
}
