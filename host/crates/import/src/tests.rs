//! Tests of whole imports.

use std::path::Path;

use pointsman_config::Config;
use pointsman_settings::{Code, Diagnostic};
use proptest::prelude::*;

use super::{ErrorCode, Imported, Kind, MAX_BYTES, import};

fn read(kind: Kind, text: &str) -> Imported {
    import("source", text, Some(kind)).unwrap()
}

/// Reads the configuration of an import. Secrets, files and variables may be missing, because they
/// are those of the machine.
fn check(imported: &Imported) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pointsman.toml");
    std::fs::write(&file, &imported.toml).unwrap();
    let Err(error) = Config::load_without_secrets(&file, &[]) else { return Ok(()) };
    let is_missing = |error: &Diagnostic| error.code == Code::Unavailable;
    match error.diagnostics().iter().all(is_missing) {
        true => Ok(()),
        false => Err(format!("{error:?}\n{}", imported.toml)),
    }
}

fn lanes(imported: &Imported) -> Vec<toml_edit::Table> {
    check(imported).unwrap();
    let document: toml_edit::DocumentMut = imported.toml.parse().unwrap();
    let lanes = document["lanes"].as_array_of_tables().unwrap();
    lanes.iter().cloned().collect()
}

fn keys(imported: &Imported) -> Vec<(Option<usize>, &str)> {
    imported.report.items.iter().map(|item| (item.line, item.key.as_str())).collect()
}

const SWAP: &str = "\
healthCheckTimeout: 90
macros:
  server: llama-server --port ${PORT}
models:
  qwen:
    cmd: |
      ${server}
      # a comment
      -m '/models/q w.gguf' -c 8192 -ngl 99 --api-key s3cret
    aliases: [gpt-4o]
    ttl: 300
    env: ['GGML_X=1', 'HF_TOKEN=hf_s3cret']
    unlisted: true
  small:
    cmd: ${server} -m ${env.MODELS:-/m}/s.gguf -np 2
    zzz: 1
  embed:
    cmd: python3 embed.py --port ${PORT}
    checkEndpoint: /ready
groups:
  always: { swap: false, exclusive: false, persistent: true, members: [embed] }
hooks: { on_startup: { preload: [qwen] } }
";

#[test]
fn llama_swap_is_imported() {
    let imported = read(Kind::LlamaSwap, SWAP);
    let lanes = lanes(&imported);
    let [qwen, small, embed] = lanes.as_slice() else { panic!("{}", imported.toml) };
    let engine = &qwen["engine"];
    assert_eq!(engine["driver"].as_str(), Some("llama-cpp"));
    assert_eq!(engine["model"].as_str(), Some("/models/q w.gguf"));
    assert_eq!(engine["context"].as_integer(), Some(8192));
    assert_eq!(engine["gpu-layers"].as_integer(), Some(99));
    assert_eq!(engine["start-timeout"].as_str(), Some("90s"));
    assert_eq!(engine["env"]["GGML_X"].as_str(), Some("1"));
    assert_eq!(qwen["models"][1].as_str(), Some("gpt-4o"));
    assert_eq!(qwen["unload-after"].as_str(), Some("300s"));
    assert_eq!(
        (qwen["load"].as_str(), small["load"].as_str()),
        (Some("at-start"), Some("on-demand"))
    );
    assert_eq!((qwen["group"].as_str(), small["group"].as_str()), (Some("swap"), Some("swap")));
    assert_eq!(small["engine"]["model"].as_str(), Some("${MODELS:-/m}/s.gguf"));
    assert_eq!(small["slots"].as_integer(), Some(2));
    assert!(embed.get("group").is_none());
    assert_eq!(embed["engine"]["ready"].as_str(), Some("/ready"));
    assert!(!imported.toml.contains("s3cret"), "{}", imported.toml);
    let keys = keys(&imported);
    for expected in [
        (Some(6), "models.qwen.cmd --api-key"),
        (Some(12), "models.qwen.env.HF_TOKEN"),
        (Some(13), "models.qwen.unlisted"),
        (Some(16), "models.small.zzz"),
    ] {
        assert!(keys.contains(&expected), "{expected:?} is not in {keys:?}");
    }
}

#[test]
fn exclusive_models_do_not_fit_together() {
    let models = "models:\n  a: { cmd: llama-server -m /a }\n  b: { cmd: llama-server -m /b }\n  \
                  c: { cmd: llama-server -m /c }\n  d: { cmd: llama-server -m /d }\n  \
                  e: { cmd: llama-server -m /e }\n";
    let groups = "groups:\n  pair: { swap: false, members: [a, b] }\n  \
                  own: { exclusive: false, members: [c, d] }\n";
    let imported = read(Kind::LlamaSwap, &format!("{models}{groups}"));
    let found: Vec<_> = lanes(&imported)
        .iter()
        .map(|lane| {
            let text = |key: &str| lane[key].as_str().unwrap().to_owned();
            (text("group"), text("memory"))
        })
        .collect();
    let place = |group: &str, memory: &str| (group.to_owned(), memory.to_owned());
    let half = place("swap", "32768MiB");
    let own = place("group-own", "65536MiB");
    assert_eq!(found, [half.clone(), half, own.clone(), own, place("swap", "65536MiB")]);
}

#[test]
fn presets_of_llama_server_are_imported() {
    let text = "version = 1\n[*]\nctx-size = 4096\nhost = 0.0.0.0\nport = 9090\n\
                [ggml-org/gemma:Q4]\nload-on-startup = true\n\
                [qwen]\nmodel = /m/q.gguf\nngl = 99\nmmap = false\nc = 2048\nctx-size = 1024\n\
                stop-timeout = 20\n[gone]\njinja = true\n";
    let imported = read(Kind::LlamaServer, text);
    let lanes = lanes(&imported);
    let [gemma, qwen] = lanes.as_slice() else { panic!("{}", imported.toml) };
    let command = gemma["engine"]["command"].as_array().unwrap().to_string();
    assert!(command.contains("\"--hf-repo\", \"ggml-org/gemma:Q4\""), "{command}");
    assert_eq!(gemma["models"][0].as_str(), Some("ggml-org/gemma:Q4"));
    assert_eq!(gemma["load"].as_str(), Some("at-start"));
    assert_eq!(qwen["engine"]["stop-grace"].as_str(), Some("20s"));
    assert_eq!(qwen["engine"]["gpu-layers"].as_integer(), Some(99));
    let arguments = qwen["engine"]["arguments"].as_array().unwrap().to_string();
    assert!(arguments.contains("--no-mmap"), "{arguments}");
    assert!(imported.toml.contains("listen = \"127.0.0.1:9090\""), "{}", imported.toml);
    assert!(keys(&imported).contains(&(Some(15), "[gone]")), "{:?}", keys(&imported));
}

#[test]
fn litellm_is_imported() {
    let text = "\
model_list:
  - model_name: fast
    litellm_params:
      model: openai/qwen
      api_base: http://127.0.0.1:9000/v1
      api_key: sk-s3cret
      rpm: 5
  - model_name: fast
    litellm_params: { model: gpt-4o, api_key: os.environ/OPENAI }
  - model_name: claude
    litellm_params: { model: anthropic/claude }
router_settings: { num_retries: 2, model_group_alias: { quick: fast } }
general_settings: { master_key: sk-s3cret }
";
    let imported = read(Kind::Litellm, text);
    let lanes = lanes(&imported);
    let [own, hosted] = lanes.as_slice() else { panic!("{}", imported.toml) };
    assert_eq!(own["engine"]["url"].as_str(), Some("http://127.0.0.1:9000/v1"));
    assert_eq!(own["engine"]["key-env"].as_str(), Some("LANE_FAST_API_KEY"));
    assert_eq!(own["engine-model"].as_str(), Some("qwen"));
    assert_eq!(own["models"][1].as_str(), Some("quick"));
    assert_eq!(
        (hosted["name"].as_str(), hosted["models"][0].as_str()),
        (Some("fast-2"), Some("fast"))
    );
    assert_eq!(hosted["engine"]["url"].as_str(), Some("https://api.openai.com/v1"));
    assert_eq!(hosted["engine"]["key-env"].as_str(), Some("OPENAI"));
    assert!(imported.toml.contains("max-attempts = 3"), "{}", imported.toml);
    assert!(imported.toml.contains("env = \"LITELLM_MASTER_KEY\""), "{}", imported.toml);
    assert!(!imported.toml.contains("s3cret"), "{}", imported.toml);
    let keys = keys(&imported);
    assert!(keys.contains(&(Some(7), "model_list[0].litellm_params.rpm")), "{keys:?}");
    assert!(keys.contains(&(Some(10), "model_list[2]")), "{keys:?}");
}

#[test]
fn services_are_imported() {
    let text = "\
services:
  chat:
    image: vllm/vllm-openai
    command: --model org/m --served-model-name a b --max-num-seqs 8 --swap-space 4
    ports: ['9001:8000']
    shm_size: 16gb
  reader:
    image: ghcr.io/ggml-org/llama.cpp:server
    environment:
      LLAMA_ARG_MODEL: $$x/${DIR:-/m}/r.gguf
      LLAMA_ARG_THREADS: 4
    ports: [{ published: 9002, target: 8080 }]
  web:
    image: open-webui
";
    let imported = read(Kind::Compose, text);
    let lanes = lanes(&imported);
    let [chat, reader] = lanes.as_slice() else { panic!("{}", imported.toml) };
    assert_eq!(chat["engine"]["model"].as_str(), Some("org/m"));
    assert_eq!(chat["slots"].as_integer(), Some(8));
    let models: Vec<_> =
        chat["models"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    assert_eq!(models, ["chat", "org/m", "a", "b"]);
    assert_eq!(reader["engine"]["model"].as_str(), Some("$x/${DIR:-/m}/r.gguf"));
    assert_eq!(reader["engine"]["env"]["LLAMA_ARG_THREADS"].as_str(), Some("4"));
    assert!(imported.toml.contains("listen = \"127.0.0.1:9001\""), "{}", imported.toml);
    assert!(imported.toml.contains("address = \"127.0.0.1:9002\""), "{}", imported.toml);
    let keys = keys(&imported);
    for expected in [
        (Some(6), "services.chat.shm_size"),
        (Some(2), "services.chat.command --swap-space"),
        (Some(13), "services.web"),
    ] {
        assert!(keys.contains(&expected), "{expected:?} is not in {keys:?}");
    }
}

#[test]
fn env_files_are_imported() {
    let text = "# seeds\nVLLM_MODEL=/m/x/model.safetensors\nVLLM_PORT=8001\n\
                VLLM_MAX_MODEL_LEN=32K # long\nVLLM_API_KEY=s3cret\nHF_TOKEN=hf_s3cret\n\
                VLLM_SWAP_SPACE=4\n";
    let imported = read(Kind::Env, text);
    let lanes = lanes(&imported);
    assert_eq!(lanes[0]["engine"]["model"].as_str(), Some("/m/x"));
    assert_eq!(lanes[0]["engine"]["max-model-len"].as_integer(), Some(32768));
    assert!(imported.toml.contains("listen = \"127.0.0.1:8001\""), "{}", imported.toml);
    assert!(!imported.toml.contains("s3cret"), "{}", imported.toml);
    let keys = keys(&imported);
    for expected in [(Some(5), "VLLM_API_KEY"), (Some(6), "HF_TOKEN"), (Some(7), "VLLM_SWAP_SPACE")]
    {
        assert!(keys.contains(&expected), "{expected:?} is not in {keys:?}");
    }
}

#[test]
fn kinds_are_detected_by_content() {
    for (text, expected) in [
        (SWAP, Kind::LlamaSwap),
        ("[*]\nc = 1\n[a/b]\n", Kind::LlamaServer),
        ("model_list:\n - { model_name: a, litellm_params: { model: gpt } }\n", Kind::Litellm),
        ("services:\n a: { image: vllm, command: --model m }\n", Kind::Compose),
        ("export VLLM_MODEL=a/b\n", Kind::Env),
    ] {
        assert_eq!(import("f", text, None).unwrap().kind, expected, "{text}");
    }
    for (text, code, line) in [
        ("models: {a: {}}\nservices: {b: {}}\n", ErrorCode::Ambiguous, None),
        ("a: 1\n", ErrorCode::UnknownKind, None),
        ("# nothing\n", ErrorCode::NothingFound, None),
        ("models:\n  a: {}\n", ErrorCode::NothingFound, None),
        ("models:\n  a: [\n  b: 1\n", ErrorCode::InvalidSyntax, Some(3)),
        ("[*]\nmodel = x\n[a\n = 2\n", ErrorCode::InvalidSyntax, None),
    ] {
        let error = import("f", text, None).unwrap_err();
        assert_eq!(error.code, code, "{text}: {error}");
        if let Some(line) = line {
            assert!(matches!(error.position, Some((at, Some(_))) if at == line), "{error}");
        }
    }
    let error = import("f", "[a]\nmodel = x\n[b\n", Some(Kind::LlamaServer)).unwrap_err();
    assert_eq!((error.code, error.position), (ErrorCode::InvalidSyntax, Some((3, None))));
}

#[test]
fn hostile_yaml_is_rejected_early() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
    }
    let macros = (0..20).map(|level| format!("  m{}: ${{m{level}}}${{m{level}}}\n", level + 1));
    let macros: String = macros.collect();
    let growing = format!(
        "macros:\n  m0: xxxxxxxx\n{macros}models:\n  a: {{ cmd: 'llama-server ${{m20}}' }}\n"
    );
    for text in [
        bomb,
        format!("models: {}", "[".repeat(200)),
        format!("models:\n  {}", "- ".repeat(100_000)),
        "x".repeat(MAX_BYTES + 1),
    ] {
        let error = import("f", &text, Some(Kind::LlamaSwap)).unwrap_err();
        let codes = [ErrorCode::TooLarge, ErrorCode::InvalidSyntax];
        assert!(codes.contains(&error.code), "{error}");
    }
    // Macros of macros stop growing.
    let grown = import("f", &growing, Some(Kind::LlamaSwap));
    assert!(grown.is_err() || grown.is_ok_and(|imported| imported.toml.len() < 200_000));
}

/// Words that configurations have, with some that they should not have.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,12}",
        "\\PC{0,6}",
        prop::sample::select(vec![
            "llama-server",
            "vllm serve",
            "-m",
            "/m/a.gguf",
            "-c",
            "4096",
            "-np",
            "0",
            "-ngl",
            "all",
            "--model",
            "org/name",
            "--port",
            "${PORT}",
            "--dtype",
            "-tp",
            "2",
            "{port}",
            "--api-key",
            "--max-num-seqs",
            "\"",
            "'",
            "\\",
            "docker run -p {port}:1",
            "$$",
            "${A:-b}",
            "--alias",
            "a,b,a",
            "--gpu-memory-utilization",
            "0.0001",
            "1e3",
            "-",
            "--",
            "=",
            "--lora-modules",
            "--served-model-name",
            "--hf-repo",
            "x",
            "\t",
        ])
        .prop_map(str::to_owned),
    ]
}

fn line() -> impl Strategy<Value = String> {
    prop::collection::vec(word(), 0..8).prop_map(|words| words.join(" "))
}

/// Quotes a text for YAML.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_text_is_imported_or_rejected(text in "([ -~\n]|\\PC){0,200}") {
        for kind in Kind::ALL.into_iter().map(Some).chain([None]) {
            if let Ok(imported) = import("f", &text, kind) {
                prop_assert!(check(&imported).is_ok(), "{:?}", check(&imported).err());
            }
        }
    }

    #[test]
    fn any_import_passes_the_reader(
        names in prop::collection::vec(word(), 1..4),
        command in line(), other in word(), url in word(),
    ) {
        let models: String = names.iter().map(|name| format!(
            "  {}:\n    cmd: {}\n    aliases: [{}]\n    proxy: {}\n    useModelName: {}\n    \
             checkEndpoint: {}\n    env: [{}]\n",
            quoted(name), quoted(&command), quoted(&other), quoted(&url), quoted(&other),
            quoted(&url), quoted(&format!("{name}={other}")),
        )).collect();
        let list: String = names.iter().map(|name| format!(
            "- {{ model_name: {}, litellm_params: {{ model: {}, api_base: {}, api_key: {} }} }}\n",
            quoted(name), quoted(&other), quoted(&url), quoted(&other),
        )).collect();
        let services: String = names.iter().map(|name| format!(
            "  {}:\n    image: vllm\n    command: {}\n    environment: {{ VLLM_MODEL: {}, \
             VLLM_DTYPE: {}, HF_HOME: {} }}\n",
            quoted(name), quoted(&command), quoted(&other), quoted(&url), quoted(&other),
        )).collect();
        let presets: String = names.iter().map(|name| format!(
            "[{name}]\nmodel = {other}\n{url} = {command}\n"
        )).collect();
        let env = format!("VLLM_MODEL={other}\nVLLM_DTYPE={url}\n");
        for (kind, text) in [
            (Kind::LlamaSwap, format!("models:\n{models}")),
            (Kind::Litellm, format!("model_list:\n{list}")),
            (Kind::Compose, format!("services:\n{services}")),
            (Kind::LlamaServer, presets),
            (Kind::Env, env),
        ] {
            if let Ok(imported) = import("f", &text, Some(kind)) {
                prop_assert!(check(&imported).is_ok(), "{:?}\n{text}", check(&imported).err());
            }
        }
    }
}

#[test]
fn sources_are_named_in_messages() {
    let error = import(Path::new("dir/f.ini").to_str().unwrap(), "[a", Some(Kind::LlamaServer));
    assert_eq!(error.unwrap_err().file, "dir/f.ini");
}
