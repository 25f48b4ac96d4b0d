use super::*;

/// Two vLLM lanes and a llama.cpp lane.
const LANES: &str = r#"
[[lanes]]
name = "orchestrator"
models = ["DeepSeek-R1", "auto"]
[lanes.engine]
driver = "vllm"
model = "/models/vllm/orchestrator/bf16"
adapters = { sql = "/models/lora/sql" }

[[lanes]]
name = "coder"
models = ["auto"]
[lanes.engine]
driver = "vllm"
model = "Qwen/Qwen2.5-Coder-32B"

[[lanes]]
name = "reader"
[lanes.engine]
driver = "llama-cpp"
model = "models/reader.Q4.gguf"
"#;

/// Returns the names of the lanes that answer to a name.
fn lanes(source: &str, name: &str) -> Vec<String> {
    let config = parse(source).unwrap();
    let lanes = config.fleet.lanes.iter().map(pointsman_fleet::LaneSpec::info).collect();
    let topology = pointsman_domain::Topology::new(1, lanes);
    topology.candidates(name).iter().map(|lane| topology.name(*lane).to_owned()).collect()
}

#[test]
fn lanes_answer_to_the_names_of_their_models() {
    for (name, expected) in [
        ("auto", &["orchestrator", "coder"][..]),
        ("DeepSeek-R1", &["orchestrator"]),
        ("deepseek-ai/DeepSeek-R1", &["orchestrator"]),
        ("orchestrator", &["orchestrator"]),
        ("/models/vllm/orchestrator/bf16", &["orchestrator"]),
        ("/models/vllm/orchestrator/bf16/model.safetensors", &["orchestrator"]),
        ("bf16", &["orchestrator"]),
        ("sql", &["orchestrator"]),
        ("orchestrator:sql", &["orchestrator"]),
        ("coder:sql", &[]),
        ("coder", &["coder"]),
        ("Qwen/Qwen2.5-Coder-32B", &["coder"]),
        ("Qwen2.5-Coder-32B", &["coder"]),
        ("models/reader.Q4.gguf", &["reader"]),
        ("/conf/models/reader.Q4.gguf", &["reader"]),
        ("reader.Q4.gguf", &["reader"]),
        ("reader.Q4", &["reader"]),
        ("nope", &[]),
    ] {
        assert_eq!(lanes(LANES, name), expected, "{name}");
    }
}

#[test]
fn names_of_several_lanes_are_written_in_one_place() {
    let source = format!(
        "{LANES}[[models]]\nname = \"gpt-4o\"\nlanes = [\"coder\", \"reader\"]\n\
         [[models]]\nname = \"bf16\"\nlanes = [\"coder\"]\nhidden = true\n"
    );
    assert_eq!(lanes(&source, "gpt-4o"), ["coder", "reader"]);
    assert_eq!(lanes(&source, "bf16"), ["coder"], "the name of a folder gives way");
    let config = parse(&source).unwrap();
    let coder = &config.fleet.lanes[1];
    assert_eq!(
        (coder.models.as_slice(), &coder.names.own[..]),
        (&["auto".to_owned(), "gpt-4o".to_owned()][..], &["bf16".to_owned()][..],)
    );
}

#[test]
fn invalid_names_are_rejected() {
    for (models, key, code) in [
        ("name = \"m\"", "models[0].lanes", Code::MissingKey),
        ("name = \"m\"\nlanes = []", "models[0].lanes", Code::MissingKey),
        ("lanes = [\"coder\"]", "models[0].name", Code::MissingKey),
        ("name = \"m\"\nlanes = [\"codr\"]", "models[0].lanes", Code::UnknownName),
        ("name = \"auto\"\nlanes = [\"coder\"]", "models[0].lanes", Code::Conflict),
        (
            "name = \"reader\"\nhidden = true\nlanes = [\"coder\"]",
            "models[0].lanes",
            Code::Conflict,
        ),
        ("name = \"m\"\nlanes = [\"coder\"]\nzzz = 1", "models[0].zzz", Code::UnknownKey),
    ] {
        assert_rejects(&format!("{LANES}[[models]]\n{models}\n"), key, code);
    }
    let twice = "[[models]]\nname = \"m\"\nlanes = [\"coder\"]\n".repeat(2);
    assert_rejects(&format!("{LANES}{twice}"), "models[1].name", Code::Duplicate);
}

#[test]
fn invalid_adapters_are_rejected() {
    let vllm = |lane: &str, engine: &str| {
        format!(
            "[[lanes]]\nname = \"a\"\n{lane}\n[lanes.engine]\ndriver = \"vllm\"\nmodel = \"m\"\n\
             {engine}\n"
        )
    };
    for adapters in ["\"\" = \"x\"", "a = \"x\"", "\"b=c\" = \"x\"", "b = \"\"", "\"-b\" = \"x\""] {
        let source = vllm("", &format!("adapters = {{ {adapters} }}"));
        assert_rejects(&source, "lanes[0].engine.adapters", Code::InvalidValue);
    }
    let both = "adapters = { b = \"x\" }\narguments = [\"--lora-modules\", \"c=y\"]";
    assert_rejects(&vllm("", both), "lanes[0].engine.adapters", Code::InvalidValue);
    // A model of the lane may be an adapter.
    let config = parse(&vllm("models = [\"b\"]\nengine-model = \"b\"", "adapters = { b = \"x\" }"));
    let lane = &config.unwrap().fleet.lanes[0];
    assert_eq!(
        (lane.engine_model.as_deref(), &lane.names.adapters[..]),
        (Some("b"), &["b".to_owned()][..])
    );
}
