//! Tests of memory budgets and needs.

use std::fs::{self, File};

use pointsman_fleet::vllm::Vllm;
use pointsman_fleet::{Pool, Residency};
use tempfile::TempDir;

use super::*;

const GROUP: &str = "[[groups]]\nname = \"gpu0\"\nmemory = \"48GiB\"\n";

/// Returns a lane of the group whose engine is a command.
fn lane(name: &str, keys: &str) -> String {
    format!(
        "[[lanes]]\nname = \"{name}\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\ndriver = \
         \"command\"\n\
         command = [\"x\", \"{{port}}\"]\n"
    )
}

fn vllm(model: &TempDir, keys: &str, more: &str) -> String {
    format!(
        "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\ndriver = \
         \"vllm\"\nmodel = {:?}\n{more}\n",
        model.path()
    )
}

/// Creates the files of DeepSeek-R1-Distill-Qwen-32B as sparse files, which take no disk space.
fn qwen_32b(gib: u64, quantized: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "{{\"model_type\": \"qwen2\", \"num_hidden_layers\": 64, \"num_attention_heads\": 40, \
         \"num_key_value_heads\": 8, \
         \"hidden_size\": 5120, \"torch_dtype\": \"bfloat16\"{quantized}}}"
    );
    fs::write(folder.path().join("config.json"), config).unwrap();
    File::create(folder.path().join("model.safetensors")).unwrap().set_len(gib << 30).unwrap();
    folder
}

#[test]
fn groups_must_be_declared() {
    let config = parse(&format!("{GROUP}{}", lane("a", "memory = \"1GiB\""))).unwrap();
    let group = &config.fleet.groups[0];
    assert_eq!(
        (group.budget, group.pool, group.free_timeout),
        (48 << 30, None, Duration::from_secs(60))
    );
    let residency = Residency::OnDemand { preload: false, unload_after: None };
    assert_eq!(config.fleet.lanes[0].residency, residency);
    assert_eq!(config.needs, ["1.0 GiB (`memory`)"]);

    let source = [lane("a", "memory = \"1GiB\""), lane("b", "memory = \"1GiB\"")].concat();
    let expected = ["3: lanes[0].group [unknown_name]", "10: lanes[1].group [unknown_name]"];
    assert_eq!(errors(&source), expected);
    // The first error shows what to write.
    let declaration = "[[groups]]\n    name = \"gpu0\"";
    assert_rejects_with(&source, "lanes[0].group", Code::UnknownName, &[declaration]);

    let group = |keys: &str| format!("[[groups]]\n{keys}\n{LANE}");
    for (source, key, code) in [
        (group("memory = \"1GiB\""), "groups[0].name", Code::MissingKey),
        (group("name = \"g\""), "groups[0].memory", Code::MissingKey),
        (group("name = \"g\"\nmemory = \"48GB\""), "groups[0].memory", Code::InvalidValue),
        (group("name = \"g\"\nmemory = \"0B\""), "groups[0].memory", Code::OutOfRange),
        (
            group("name = \"g\"\nmemory = \"1B\"\npool = \"vram\""),
            "groups[0].pool",
            Code::InvalidValue,
        ),
        (
            group("name = \"g\"\nmemory = \"1B\"\npool = \"gpu:0\""),
            "groups[0].pool",
            Code::InvalidValue,
        ),
        (group("name = \"g\"\nmemory = \"1B\"\nbudget = 1"), "groups[0].budget", Code::UnknownKey),
        (format!("{GROUP}{GROUP}{LANE}"), "groups[1].name", Code::Duplicate),
    ] {
        assert_rejects(&source, key, code);
    }
    for (text, pool) in [
        ("none", None),
        ("system", Some(Pool::System)),
        ("gpu", Some(Pool::Gpu { minor: None })),
        ("gpu:128", Some(Pool::Gpu { minor: Some(128) })),
    ] {
        let config =
            parse(&group(&format!("name = \"g\"\nmemory = \"1B\"\npool = \"{text}\""))).unwrap();
        assert_eq!(config.fleet.groups[0].pool, pool);
        assert_eq!(format_pool(pool), text);
    }
}

#[test]
fn need_above_the_budget_is_rejected() {
    let model = qwen_32b(61, "");
    let source = vllm(&model, "max-context = 32768\nslots = 1", "");
    assert_eq!(errors(&source), ["6: lanes[0].group [out_of_memory]"]);
    let arithmetic = [
        "weights 61.0 GiB (1 safetensors file, bfloat16)",
        "KV 8.0 GiB (256 KiB",
        "32768 tokens x 1 sequence",
        "overhead 4.0 GiB (1.0 GiB",
        "= 73.0 GiB > 48.0 GiB of group \"gpu0\"",
        // The weights with 4 bits each.
        "18.3 GiB",
        "`tensor-parallel`",
    ];
    assert_rejects_with(&source, "lanes[0].group", Code::OutOfMemory, &arithmetic);
    // A fraction of the GPU does not change the need.
    assert_rejects_with(
        &vllm(&model, "max-context = 32768", "gpu-memory-utilization = 0.45"),
        "lanes[0].group",
        Code::OutOfMemory,
        &["> 48.0 GiB of group"],
    );
    // `memory` overrides what is computed from the files.
    let config =
        parse(&vllm(&model, "max-context = 32768\nslots = 1\nmemory = \"48GiB\"", "")).unwrap();
    assert_eq!(config.fleet.lanes[0].need, 48 << 30);
    let need = &config.needs[0];
    assert!(need.starts_with("48.0 GiB (`memory`") && need.contains("weights 61.0 GiB"), "{need}");
    let source = vllm(&model, "max-context = 32768\nslots = 1\nmemory = \"49GiB\"", "");
    assert_eq!(errors(&source), ["9: lanes[0].memory [out_of_memory]"]);
    assert_rejects_with(&source, "lanes[0].memory", Code::OutOfMemory, &["49.0 GiB (`memory`"]);
}

#[test]
fn need_is_computed_and_limits_the_cache() {
    let model = qwen_32b(18, ", \"quantization_config\": {\"quant_method\": \"awq\"}");
    let settings = |source: &str| {
        let config = parse(source).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let lane = &config.fleet.lanes[0];
        (lane.need >> 30, lane.engine.downcast_ref::<Vllm>().unwrap().settings.kv_cache_bytes)
    };
    let lane = "max-context = 32768\nslots = 2";
    assert_eq!(settings(&vllm(&model, lane, "")), (18 + 16 + 3, Some(16 << 30)));
    assert_eq!(
        settings(&vllm(&model, lane, "enforce-eager = true")),
        (18 + 16 + 2, Some(16 << 30))
    );
    assert_eq!(settings(&vllm(&model, lane, "gpu-memory-utilization = 0.5")), (18 + 16 + 3, None));
    assert_eq!(settings(&vllm(&model, lane, "max-num-seqs = 1")), (18 + 8 + 3, Some(8 << 30)));
    let fixed = vllm(&model, "max-context = 32768\nslots = 8", "kv-cache-memory = \"12GiB\"");
    assert_eq!(settings(&fixed), (18 + 12 + 3, Some(12 << 30)));
    let text = "weights 18.0 GiB + KV 12.0 GiB (`kv-cache-memory`) + overhead 3.0 GiB = 33.0 GiB";
    assert_eq!(parse(&fixed).unwrap().needs, [text]);
    // With `memory`, the cache gets the rest, if the rest holds one sequence.
    assert_eq!(
        settings(&vllm(&model, &format!("{lane}\nmemory = \"40GiB\""), "")),
        (40, Some(19 << 30))
    );
    assert_eq!(
        settings(&vllm(&model, &format!("{lane}\nmemory = \"29GiB\""), "")),
        (29, Some(8 << 30))
    );
    assert_eq!(settings(&vllm(&model, &format!("{lane}\nmemory = \"28GiB\""), "")), (28, None));
    let kv = "lanes[0].engine.kv-cache-memory";
    let cases: [(&str, &str, &str, Code, &[&str]); 4] = [
        (
            "max-context = 32768\nslots = 8",
            "",
            "lanes[0].group",
            Code::OutOfMemory,
            &["`max-context` to 13312 with 8", "`slots`", "`kv-cache-memory`, up to 27.0 GiB"],
        ),
        (
            "max-context = 32768",
            "kv-cache-memory = \"4GiB\"",
            kv,
            Code::OutOfRange,
            &["4.0 GiB", "32768 tokens", "8.0 GiB"],
        ),
        (
            "max-context = 32768\nmemory = \"40GiB\"",
            "kv-cache-memory = \"4GiB\"",
            kv,
            Code::OutOfRange,
            &["4.0 GiB"],
        ),
        ("slots = 1", "", "lanes[0].max-context", Code::MissingKey, &[]),
    ];
    for (keys, more, key, code, values) in cases {
        assert_rejects_with(&vllm(&model, keys, more), key, code, values);
    }
    fs::remove_file(model.path().join("config.json")).unwrap();
    assert_rejects(&vllm(&model, lane, ""), "lanes[0].engine.model", Code::Unavailable);
    assert_eq!(settings(&vllm(&model, &format!("{lane}\nmemory = \"40GiB\""), "")).0, 40);
}

#[test]
fn memory_is_required_if_it_cannot_be_computed() {
    let of = |keys: &str, engine: &str| {
        format!(
            "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\n{engine}\n"
        )
    };
    let memory = "lanes[0].memory";
    let cases: [(&str, &str, Code, &[&str]); 6] = [
        ("", "driver = \"vllm\"\nmodel = \"/none/m\"", Code::MissingKey, &["/none/m"]),
        (
            "",
            "driver = \"llama-cpp\"\nmodel = \"none.gguf\"",
            Code::MissingKey,
            &["/conf/./none.gguf"],
        ),
        ("", "driver = \"command\"\ncommand = [\"{port}\"]", Code::MissingKey, &[]),
        ("", "driver = \"external\"\nurl = \"http://x\"", Code::MissingKey, &["`group`"]),
        ("memory = \"0B\"", "driver = \"external\"\nurl = \"http://x\"", Code::OutOfRange, &[]),
        (
            "memory = \"1GB\"",
            "driver = \"external\"\nurl = \"http://x\"",
            Code::InvalidValue,
            &["\"1GB\""],
        ),
    ];
    for (keys, engine, code, values) in cases {
        assert_rejects_with(&of(keys, engine), memory, code, values);
    }
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    let engine = format!("driver = \"llama-cpp\"\nmodel = {:?}", file.path());
    let source = of("max-context = 1024", &engine);
    assert_rejects(&source, "lanes[0].engine.model", Code::Unavailable);
    for key in ["memory", "sleep-memory"] {
        let source = LANE.replace("name = \"a\"", &format!("name = \"a\"\n{key} = \"1GiB\""));
        assert_rejects(&source, &format!("lanes[0].{key}"), Code::Conflict);
    }
}

#[test]
fn sleeping_engines_have_a_need_of_their_own() {
    let of = |keys: &str, unload_mode: &str| {
        format!(
            "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\nmemory = \
             \"20GiB\"\n{keys}\n[lanes.engine]\ndriver = \"vllm\"\n\
             model = \"m\"\nunload-mode = \"{unload_mode}\"\n"
        )
    };
    let config = parse(&of("sleep-memory = \"1GiB\"", "sleep-1")).unwrap();
    assert_eq!(config.fleet.lanes[0].asleep, 1 << 30);
    let key = "lanes[0].sleep-memory";
    assert_rejects(&of("", "sleep-1"), key, Code::MissingKey);
    assert_rejects(&of("sleep-memory = \"1GiB\"", "restart"), key, Code::Conflict);
    let source = of("sleep-memory = \"21GiB\"", "sleep-2");
    assert_rejects_with(&source, key, Code::OutOfRange, &["21.0 GiB", "20.0 GiB"]);
}

#[test]
fn always_loaded_lanes_reduce_the_budget_of_the_others() {
    let of = |lanes: &[(&str, &str)]| {
        let lanes: Vec<String> = lanes.iter().map(|(name, keys)| lane(name, keys)).collect();
        format!("{GROUP}{}", lanes.concat())
    };
    let always = |gib: u64| format!("memory = \"{gib}GiB\"\nload = \"always\"");
    assert!(
        parse(&of(&[("a", &always(24)), ("b", &always(14)), ("c", "memory = \"10GiB\"")])).is_ok()
    );
    let source = of(&[("a", &always(24)), ("b", &always(25)), ("c", "memory = \"1GiB\"")]);
    assert_eq!(errors(&source), ["15: lanes[1].memory [out_of_memory]"]);
    let sum = "a 24.0 GiB + b 25.0 GiB = 49.0 GiB > 48.0 GiB of group \"gpu0\"";
    assert_rejects_with(&source, "lanes[1].memory", Code::OutOfMemory, &[sum]);
    let source = of(&[("a", &always(30)), ("b", "memory = \"19GiB\"")]);
    let sum = ["b 19.0 GiB", "a 30.0 GiB = 49.0 GiB > 48.0 GiB of group \"gpu0\""];
    assert_rejects_with(&source, "lanes[1].memory", Code::OutOfMemory, &sum);
    // Any number of on-demand lanes can share a budget.
    let turns = ["a", "b", "c"].map(|name| (name, "memory = \"48GiB\"\nload = \"at-start\""));
    assert!(parse(&of(&turns)).is_ok());
    let source = of(&[("a", "memory = \"49GiB\"")]);
    assert_rejects(&source, "lanes[0].memory", Code::OutOfMemory);
}

/// Returns a GGUF file of 1 GiB with 10 layers of 1 KiB per token with 16 bits.
fn gguf() -> tempfile::NamedTempFile {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let keys = [
        ("block_count", 10_u32),
        ("context_length", 8192),
        ("embedding_length", 512),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 4),
    ];
    let mut header = [b"GGUF", &3_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat();
    header.extend((keys.len() as u64 + 1).to_le_bytes());
    header.extend([text("general.architecture"), vec![8, 0, 0, 0], text("llama")].concat());
    for (key, value) in keys {
        header.extend(text(&format!("llama.{key}")));
        header.extend([4_u32.to_le_bytes(), value.to_le_bytes()].concat());
    }
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    fs::write(file.path(), header).unwrap();
    file.as_file().set_len(1 << 30).unwrap();
    file
}

#[test]
fn flags_of_llama_server_count() {
    const MIB: u64 = 1 << 20;
    let (model, extra) = (gguf(), gguf());
    let need = |keys: &str, engine: &str| {
        let config = parse(&format!(
            "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\n\
             driver = \"llama-cpp\"\n{engine}\n"
        ));
        let config = config.unwrap_or_else(|errors| panic!("{errors:#?}"));
        let need = config.fleet.lanes[0].need;
        // Without the weights, and without the rule of thumb for the rest.
        (need - (1 << 30) - (512 * MIB + (1 << 30) / 20), config.needs[0].clone())
    };
    let path = model.path().display();
    let lane = "slots = 2\nmax-context = 2048";
    let own = |more: &str| format!("model = {path:?}\n{more}", path = model.path());
    assert_eq!(need(lane, &own("")).0, 40 * MIB);
    let quantised = "arguments = [\"-ctk\", \"q8_0\", \"-ctv\", \"q8_0\"]";
    assert_eq!(need(lane, &own(quantised)).0, 40 * MIB * 17 / 32);
    // The context of the model.
    assert_eq!(need("slots = 2", &own("context = 0")).0, 80 * MIB);
    let extra = extra.path().display();
    let draft = format!("arguments = [\"-md\", \"{extra}\", \"--mmproj\", \"{extra}\"]");
    let (bytes, text) = need(lane, &own(&draft));
    assert_eq!(bytes, 40 * MIB + (1 << 30) + (1 << 30) + 40 * MIB);
    assert!(text.contains("draft model") && text.contains("projector 1.0 GiB"), "{text}");
    // A command of the operator, whose flags are those of llama-server.
    let command = |program: &str, more: &str| {
        format!("command = [\"{program}\", \"--port\", \"{{port}}\", \"-m\", \"{path}\"{more}]")
    };
    assert_eq!(need("", &command("llama-server", "")).0, 80 * MIB);
    assert_eq!(need("", &command("serve", ", \"-c\", \"512\", \"-np\", \"1\"")).0, 5 * MIB);
    let source = |engine: &str| {
        format!(
            "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\n[lanes.engine]\n\
             driver = \"llama-cpp\"\n{engine}\n"
        )
    };
    assert_rejects(&source(&command("serve", "")), "lanes[0].memory", Code::MissingKey);
    let slow = own("context = 512\narguments = [\"-fa\", \"off\", \"-ctv\", \"q8_0\"]");
    assert_rejects(&source(&slow), "lanes[0].engine.model", Code::Unavailable);
}

#[test]
fn flags_of_vllm_count() {
    let model = qwen_32b(18, ", \"quantization_config\": {\"quant_method\": \"awq\"}");
    let adapter = tempfile::tempdir().unwrap();
    let file = File::create(adapter.path().join("adapter_model.safetensors")).unwrap();
    file.set_len(1 << 30).unwrap();
    fs::write(adapter.path().join("adapter_config.json"), "{\"r\": 8}").unwrap();
    let need = |more: &str| {
        let config = parse(&vllm(&model, "max-context = 32768\nslots = 1", more));
        let config = config.unwrap_or_else(|errors| panic!("{errors:#?}"));
        (config.fleet.lanes[0].need >> 30, config.needs[0].clone())
    };
    assert_eq!(need("").0, 18 + 8 + 3);
    assert_eq!(need("arguments = [\"--kv-cache-dtype\", \"fp8\"]").0, 18 + 4 + 3);
    // For rank 16, twice the size of the adapter.
    let (gib, text) = need(&format!("adapters = {{ x = {:?} }}", adapter.path()));
    assert!(gib == 18 + 8 + 3 + 2 && text.contains("LoRA adapters 2.0 GiB"), "{text}");
    let draft = qwen_32b(1, "");
    let config = format!("{{\\\"model\\\": \\\"{}\\\"}}", draft.path().display());
    let (gib, text) = need(&format!("arguments = [\"--speculative-config\", \"{config}\"]"));
    assert!(gib == 18 + 8 + 3 + 1 + 8 && text.contains("draft model 9.0 GiB"), "{text}");
}
