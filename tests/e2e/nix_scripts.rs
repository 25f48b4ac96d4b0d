//! The scripts and files of the flake, as far as no Nix is needed: `tests/packages/nix.rs`
//! evaluates them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use pointsman_tests::host::root;

/// A `vllm` that prints its arguments, one a line, and then its variables.
const FAKE_VLLM: &str = "#!/bin/sh\nprintf '%s\\n' \"$@\"\necho --\nenv\n";
/// The exit status of wrong usage (EX_USAGE).
const USAGE: Option<i32> = Some(64);

/// Runs vllm-server with these variables only, as `writeShellApplication` does.
fn vllm_server(env: &[(&str, &str)], arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let vllm = dir.path().join("vllm");
    fs::write(&vllm, FAKE_VLLM).unwrap();
    fs::set_permissions(&vllm, fs::Permissions::from_mode(0o755)).unwrap();
    Command::new("bash")
        .args(["-o", "errexit", "-o", "nounset", "-o", "pipefail"])
        .arg(root().join("host/packaging/nix/vllm-server.sh"))
        .args(arguments)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

/// The command line and the variables of vLLM.
struct Started {
    arguments: Vec<String>,
    env: Vec<String>,
    warnings: String,
}

fn started(env: &[(&str, &str)], arguments: &[&str]) -> Started {
    let output = vllm_server(env, arguments);
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{env:?}: {warnings}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (arguments, env) = text.split_once("\n--\n").unwrap();
    Started {
        arguments: arguments.lines().map(str::to_owned).collect(),
        env: env.lines().map(str::to_owned).collect(),
        warnings,
    }
}

impl Started {
    fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

#[test]
fn vllm_server_passes_the_model_and_listens_on_loopback() {
    let started = started(&[("VLLM_MODEL", "/models/a b")], &[]);
    let expected = ["serve", "/models/a b", "--host", "127.0.0.1", "--port", "8000"];
    assert_eq!(started.arguments, expected);
    assert_eq!(started.warnings, "");
}

#[test]
fn vllm_server_translates_variables_that_vllm_does_not_have() {
    let env = [
        ("MODEL_PATH", "/models/coder"),
        ("VLLM_HOST", "0.0.0.0"),
        ("VLLM_PORT", "9000"),
        ("VLLM_SERVED_MODEL_NAME", "coder, auto"),
        ("VLLM_GPU_MEMORY_UTILIZATION", "0.45"),
        ("VLLM_MAX_MODEL_LEN", "32768"),
        ("VLLM_DTYPE", "bfloat16"),
        ("VLLM_TENSOR_PARALLEL_SIZE", "2"),
        ("VLLM_ENFORCE_EAGER", "true"),
        ("VLLM_LOG_REQUESTS", "false"),
        ("VLLM_LOG_LEVEL", "debug"),
        ("VLLM_BLOCK_SIZE", "None"),
        ("TRANSFORMERS_TRUST_REMOTE_CODE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("VLLM_USE_V1", "1"),
    ];
    let started = started(&env, &["--max-num-seqs", "4"]);
    let expected = "serve /models/coder --host 0.0.0.0 --port 9000 --served-model-name coder auto \
                    --gpu-memory-utilization 0.45 --max-model-len 32768 --dtype bfloat16 \
                    --tensor-parallel-size 2 --enforce-eager --trust-remote-code --max-num-seqs 4";
    assert_eq!(started.arguments.join(" "), expected);
    for (name, _) in &env[..13] {
        assert_eq!(started.env(name), None, "{name}");
    }
    assert_eq!(started.env("HF_HUB_OFFLINE"), Some("1"));
    assert_eq!(started.env("VLLM_LOGGING_LEVEL"), Some("DEBUG"));
    // A variable of vLLM itself.
    assert_eq!(started.env("VLLM_USE_V1"), Some("1"));
}

#[test]
fn vllm_server_removes_what_breaks_vllm() {
    let env = [
        ("VLLM_MODEL", "m"),
        ("VLLM_API_KEY", "None"),
        ("VLLM_SWAP_SPACE", "8"),
        ("HIP_VISIBLE_DEVICES", "GPU-0e54792172da5eeb"),
        ("CUDA_VISIBLE_DEVICES", "0"),
    ];
    let started = started(&env, &[]);
    assert_eq!(started.arguments.len(), 6, "{:?}", started.arguments);
    for name in ["VLLM_API_KEY", "VLLM_SWAP_SPACE", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"] {
        assert_eq!(started.env(name), None, "{name}");
    }
    assert_eq!(started.env("ROCR_VISIBLE_DEVICES"), Some("GPU-0e54792172da5eeb"));
    assert!(started.warnings.contains("VLLM_SWAP_SPACE"), "{}", started.warnings);
}

#[test]
fn vllm_server_keeps_keys_and_numbers_of_gpus_and_warns_of_an_override() {
    let env = [
        ("VLLM_MODEL", "m"),
        ("VLLM_API_KEY", "sk-1"),
        ("HIP_VISIBLE_DEVICES", "0"),
        ("HSA_OVERRIDE_GFX_VERSION", "11.0.0"),
    ];
    let started = started(&env, &[]);
    assert_eq!(started.env("VLLM_API_KEY"), Some("sk-1"));
    assert_eq!(started.env("HIP_VISIBLE_DEVICES"), Some("0"));
    assert!(started.warnings.contains("HSA_OVERRIDE_GFX_VERSION"), "{}", started.warnings);
    assert!(!started.warnings.contains("sk-1"));
}

#[test]
fn vllm_server_refuses_wrong_variables() {
    let model = ("VLLM_MODEL", "m");
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "VLLM_MODEL"),
        (&[model, ("MODEL_PATH", "n")], "MODEL_PATH"),
        (&[("VLLM_MODEL", "/models/a/model.safetensors")], "model.safetensors"),
        (&[model, ("VLLM_PORT", "tcp://10.0.0.1:8000")], "VLLM_PORT"),
        (&[model, ("VLLM_ENFORCE_EAGER", "maybe")], "VLLM_ENFORCE_EAGER"),
    ];
    for (env, named) in cases {
        let output = vllm_server(env, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), USAGE, "{env:?}: {stderr}");
        assert!(stderr.contains(named), "{env:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{env:?}: vLLM was started");
    }
}

/// Collects the files of the flake, without the stub of nixpkgs.
fn flake_files() -> Vec<(String, String)> {
    fn collect(dir: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            } else if !path.ends_with("stub") {
                collect(&path, found);
            }
        }
    }
    let flake = root().join("flake.nix");
    let mut found = vec![(flake.display().to_string(), fs::read_to_string(&flake).unwrap())];
    collect(&root().join("host/packaging/nix"), &mut found);
    found
}

/// What earlier flakes for vLLM had, and does not work: see `host/docs/install/nix.md`.
#[test]
fn flake_lacks_the_faults_of_earlier_flakes() {
    let faults = [
        "/home",
        ".whl",
        "HSA_OVERRIDE_GFX_VERSION =",
        "HSA_OVERRIDE_GFX_VERSION=",
        "VLLM_ROCM_USE_AITER =",
        "VLLM_ROCM_USE_AITER=",
        "rocmPackages.hip",
        "pkgs.ca-certificates",
        "linuxPackages.perf",
        "dockerTools.buildImage",
        "\"now\"",
        ":latest",
        "MemoryLimit",
        "CPUQuota",
        "dev-dri.device",
        "/dev/dri rw",
        "MemoryDenyWriteExecute",
        "vllm.entrypoints",
        "(--swap-space",
        "--disable-log-requests",
        "services.vllm",
    ];
    let files = flake_files();
    assert!(files.len() > 10, "{}", files.len());
    for (name, text) in files {
        for fault in faults {
            assert!(!text.contains(fault), "{name} contains {fault:?}");
        }
        let long = text.lines().position(|line| line.chars().count() > 100);
        assert_eq!(long.map(|index| index + 1), None, "{name}: more than 100 columns");
    }
}
