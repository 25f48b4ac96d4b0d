//! What is said about memory.

use std::fs::{self, File};

use pointsman_fleet::{EngineSpec, Pool, Residency};
use tempfile::TempDir;

use super::*;

const GROUP: &str = "[[groups]]\nname = \"gpu0\"\nmemory = \"48GiB\"\n";

/// A lane of the group; `engine` without its driver is a command.
fn lane(name: &str, keys: &str) -> String {
    format!(
        "[[lanes]]\nname = \"{name}\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\ndriver = \"command\"\n\
         command = [\"x\", \"{{port}}\"]\n"
    )
}

fn vllm(model: &TempDir, keys: &str, more: &str) -> String {
    format!(
        "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\ndriver = \"vllm\"\nmodel = {:?}\n{more}\n",
        model.path()
    )
}

/// DeepSeek-R1-Distill-Qwen-32B, whose files take no room on the disk.
fn qwen_32b(gib: u64, quantized: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "{{\"model_type\": \"qwen2\", \"num_hidden_layers\": 64, \"num_attention_heads\": 40, \"num_key_value_heads\": 8, \
         \"hidden_size\": 5120, \"torch_dtype\": \"bfloat16\"{quantized}}}"
    );
    fs::write(folder.path().join("config.json"), config).unwrap();
    File::create(folder.path().join("model.safetensors")).unwrap().set_len(gib << 30).unwrap();
    folder
}

#[test]
fn groups_are_declared() {
    let config = parse(&format!("{GROUP}{}", lane("a", "memory = \"1GiB\""))).unwrap();
    let group = &config.fleet.groups[0];
    assert_eq!(
        (group.budget, group.pool, group.free_timeout),
        (48 << 30, None, Duration::from_secs(60))
    );
    let residency = Residency::OnDemand { preload: false, unload_after: None };
    assert_eq!(config.fleet.lanes[0].residency, residency);
    assert_eq!(config.needs, ["1.0 GiB (`memory`)"]);

    let errors = parse(&[lane("a", "memory = \"1GiB\""), lane("b", "memory = \"1GiB\"")].concat())
        .unwrap_err();
    let expected = [
        "3: lanes[0].group: there is no group \"gpu0\"; declare it, with the memory that its lanes may hold together:\n    \
         [[groups]]\n    name = \"gpu0\"\n    memory = \"48GiB\"\n    pool = \"gpu\"",
        "10: lanes[1].group: there is no group \"gpu0\" either for this lane",
    ];
    assert_eq!(errors, expected);

    let group = |keys: &str| format!("[[groups]]\n{keys}\n{LANE}");
    for (source, part) in [
        (group("memory = \"1GiB\""), "groups[0].name: is missing"),
        (group("name = \"g\""), "groups[0].memory: is missing; write how much"),
        (group("name = \"g\"\nmemory = \"48GB\""), "is no size"),
        (group("name = \"g\"\nmemory = \"0B\""), "groups[0].memory: must be more than nothing"),
        (group("name = \"g\"\nmemory = \"1B\"\npool = \"vram\""), "write \"gpu\" (the first GPU)"),
        (group("name = \"g\"\nmemory = \"1B\"\npool = \"gpu:0\""), "\"0\" is no render node"),
        (group("name = \"g\"\nmemory = \"1B\"\nbudget = 1"), "groups[0].budget: is not a key here"),
        (format!("{GROUP}{GROUP}{LANE}"), "there is a group \"gpu0\" already"),
    ] {
        assert_rejects(&source, part);
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
        assert_eq!(shown_pool(pool), text);
    }
}

#[test]
fn sixty_one_gib_do_not_fit_into_48() {
    let model = qwen_32b(61, "");
    let source = vllm(&model, "max-context = 32768\nslots = 1", "");
    let errors = parse(&source).unwrap_err();
    let expected = "6: lanes[0].group: weights 61.0 GiB (1 safetensors file, bfloat16) + KV 8.0 GiB (256 KiB a token x 32768 \
                    tokens x 1 sequence) + overhead 4.0 GiB (1.0 GiB of it for graphs) = 73.0 GiB > 48.0 GiB of group \
                    \"gpu0\": it could never be loaded; what helps: a model with 4 bits a weight (AWQ or GPTQ), whose weights \
                    take about 18.3 GiB; less cache as well, with fewer `slots` or `kv-cache-memory`; more GPUs with \
                    `tensor-parallel`, whose memory the group has together";
    assert_eq!(errors, [expected]);
    // As the first users had it: the part of the GPU is of no help.
    assert_rejects(
        &vllm(&model, "max-context = 32768", "gpu-memory-utilization = 0.45"),
        "> 48.0 GiB of group",
    );
    // What the operator says counts for more than what the files say.
    let config =
        parse(&vllm(&model, "max-context = 32768\nslots = 1\nmemory = \"48GiB\"", "")).unwrap();
    assert_eq!(config.fleet.lanes[0].need, 48 << 30);
    assert!(
        config.needs[0]
            .starts_with("48.0 GiB (`memory`; worked out from its files: weights 61.0 GiB (")
    );
    assert_rejects(
        &vllm(&model, "max-context = 32768\nslots = 1\nmemory = \"49GiB\"", ""),
        "9: lanes[0].memory: 49.0 GiB (`memory`; worked out",
    );
}

#[test]
fn the_need_is_worked_out_and_kept_to() {
    let model = qwen_32b(18, ", \"quantization_config\": {\"quant_method\": \"awq\"}");
    let settings = |source: &str| {
        let config = parse(source).unwrap_or_else(|errors| panic!("{errors:#?}"));
        match &config.fleet.lanes[0].engine {
            EngineSpec::Vllm { settings, .. } => {
                (config.fleet.lanes[0].need >> 30, settings.kv_cache_bytes)
            }
            other => panic!("{other:?}"),
        }
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
    // With `memory`, the cache gets what that leaves, if it is enough for one request.
    assert_eq!(
        settings(&vllm(&model, &format!("{lane}\nmemory = \"40GiB\""), "")),
        (40, Some(19 << 30))
    );
    assert_eq!(
        settings(&vllm(&model, &format!("{lane}\nmemory = \"29GiB\""), "")),
        (29, Some(8 << 30))
    );
    assert_eq!(settings(&vllm(&model, &format!("{lane}\nmemory = \"28GiB\""), "")), (28, None));
    for (keys, more, part) in [
        (
            "max-context = 32768\nslots = 8",
            "",
            "what helps: at most `max-context = 13312` with 8 at once; fewer `slots`; a cache of its own size that they \
             share, `kv-cache-memory` up to 27.0 GiB",
        ),
        (
            "max-context = 32768",
            "kv-cache-memory = \"4GiB\"",
            "engine.kv-cache-memory: 4.0 GiB cannot hold one sequence of 32768 tokens, which takes 8.0 GiB",
        ),
        (
            "max-context = 32768\nmemory = \"40GiB\"",
            "kv-cache-memory = \"4GiB\"",
            "4.0 GiB cannot hold one",
        ),
        ("slots = 1", "", "lanes[0].max-context: is missing, and without it nobody knows"),
    ] {
        assert_rejects(&vllm(&model, keys, more), part);
    }
    fs::remove_file(model.path().join("config.json")).unwrap();
    assert_rejects(&vllm(&model, lane, ""), "lanes[0].engine.model: ");
    assert_eq!(settings(&vllm(&model, &format!("{lane}\nmemory = \"40GiB\""), "")).0, 40);
}

#[test]
fn a_need_that_nobody_knows_is_asked_for() {
    let of = |keys: &str, engine: &str| {
        format!(
            "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\n{keys}\n[lanes.engine]\n{engine}\n"
        )
    };
    for (keys, engine, part) in [
        (
            "",
            "driver = \"vllm\"\nmodel = \"/none/m\"",
            "lanes[0].memory: is missing, and there is no /none/m on this machine",
        ),
        (
            "",
            "driver = \"llama-cpp\"\nmodel = \"none.gguf\"",
            "there is no /conf/./none.gguf on this machine",
        ),
        (
            "",
            "driver = \"command\"\ncommand = [\"{port}\"]",
            "lanes[0].memory: is missing; write for example",
        ),
        (
            "",
            "driver = \"external\"\nurl = \"http://x\"",
            "not ours to load or unload, so that it counts for good",
        ),
        (
            "memory = \"0B\"",
            "driver = \"external\"\nurl = \"http://x\"",
            "must be more than nothing",
        ),
        ("memory = \"1GB\"", "driver = \"external\"\nurl = \"http://x\"", "is no size"),
    ] {
        assert_rejects(&of(keys, engine), part);
    }
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    let engine = format!("driver = \"llama-cpp\"\nmodel = {:?}", file.path());
    assert_rejects(&of("max-context = 1024", &engine), "lanes[0].engine.model: ");
    for key in ["memory = \"1GiB\"", "sleep-memory = \"1GiB\""] {
        let source = LANE.replace("name = \"a\"", &format!("name = \"a\"\n{key}"));
        assert_rejects(&source, "counts among the lanes of a group");
    }
}

#[test]
fn what_sleeps_holds_less() {
    let of = |keys: &str, switch: &str| {
        format!(
            "{GROUP}[[lanes]]\nname = \"a\"\ngroup = \"gpu0\"\nmemory = \"20GiB\"\n{keys}\n[lanes.engine]\ndriver = \"vllm\"\n\
             model = \"m\"\nswitch = \"{switch}\"\n"
        )
    };
    let config = parse(&of("sleep-memory = \"1GiB\"", "sleep-1")).unwrap();
    assert_eq!(config.fleet.lanes[0].asleep, 1 << 30);
    assert_rejects(&of("", "sleep-1"), "lanes[0].sleep-memory: is missing");
    assert_rejects(&of("sleep-memory = \"1GiB\"", "restart"), "is for a vLLM that sleeps");
    assert_rejects(
        &of("sleep-memory = \"21GiB\"", "sleep-2"),
        "21.0 GiB is more than it needs when it is awake, 20.0 GiB",
    );
}

#[test]
fn lanes_that_are_always_loaded_leave_room_for_the_others() {
    let of = |lanes: &[(&str, &str)]| {
        let lanes: Vec<String> = lanes.iter().map(|(name, keys)| lane(name, keys)).collect();
        format!("{GROUP}{}", lanes.concat())
    };
    let always = |gib: u64| format!("memory = \"{gib}GiB\"\nload = \"always\"");
    assert!(
        parse(&of(&[("a", &always(24)), ("b", &always(14)), ("c", "memory = \"10GiB\"")])).is_ok()
    );
    let errors = parse(&of(&[("a", &always(24)), ("b", &always(25)), ("c", "memory = \"1GiB\"")]))
        .unwrap_err();
    let expected = "15: lanes[1].memory: the lanes that are always loaded are too many: a 24.0 GiB + b 25.0 GiB = 49.0 GiB > \
                    48.0 GiB of group \"gpu0\"; let one be loaded when it is wanted (`load = \"on-demand\"`), or give the \
                    group more memory";
    assert_eq!(errors, [expected]);
    assert_rejects(
        &of(&[("a", &always(30)), ("b", "memory = \"19GiB\"")]),
        "lanes[1].memory: b 19.0 GiB beside the lanes that are always loaded, a 30.0 GiB, = 49.0 GiB > 48.0 GiB of group \
         \"gpu0\": it could never be loaded",
    );
    // Those that take turns may be as many as they like.
    let turns = ["a", "b", "c"].map(|name| (name, "memory = \"48GiB\"\nload = \"at-start\""));
    assert!(parse(&of(&turns)).is_ok());
    assert_rejects(
        &of(&[("a", "memory = \"49GiB\"")]),
        "a model with fewer bits a weight, less context, fewer slots",
    );
}
