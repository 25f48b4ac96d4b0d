use std::fs::File;
use std::io::Write as _;

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::gguf::{Header, HeaderError};
use super::*;

/// One sequence, with the engine's defaults otherwise.
fn one_sequence() -> Serving {
    Serving { context: 32_768, sequences: 1, eager: true, ..Serving::default() }
}

/// Creates a sparse file, which takes no space on the disk.
fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

fn folder(config: &Value, files: &[(&str, u64)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for (name, bytes) in files {
        sparse(&folder.path().join(name), *bytes);
    }
    folder
}

/// Returns the configuration of DeepSeek-R1-Distill-Qwen-32B.
fn qwen_32b() -> Value {
    json!({
        "model_type": "qwen2", "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "hidden_size": 5120, "torch_dtype": "bfloat16",
        "sliding_window": 131_072, "max_window_layers": 64, "use_sliding_window": false,
    })
}

/// Returns the configuration with one more value.
fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn error(path: &Path) -> FootprintError {
    estimate_footprint(path, &one_sequence()).unwrap_err()
}

#[test]
fn sizes_are_formatted() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (256 * KIB, "256 KiB"),
        (MIB - 1, "1 MiB"),
        (1536 * KIB, "1.5 MiB"),
        (GIB - 1, "1.0 GiB"),
        (3 * GIB / 2, "1.5 GiB"),
        (65_500_000_000, "61.0 GiB"),
        (u64::MAX, "17179869184.0 GiB"),
    ] {
        assert_eq!(format_size(bytes), text);
    }
}

#[test]
fn parts_of_a_61_gib_model_are_summed() {
    // 26 files, 65.5 GB.
    let files: Vec<(String, u64)> =
        (0..26).map(|n| (format!("model-{n:05}.safetensors"), 65_500_000_000 / 26)).collect();
    let files: Vec<(&str, u64)> =
        files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    let folder = folder(&qwen_32b(), &files);
    let need = estimate_footprint(folder.path(), &one_sequence()).unwrap();
    assert_eq!((need.kv_per_token, need.kv), (256 * KIB, 8 * GIB));
    let text = need.explain();
    assert_eq!(
        text,
        "weights 61.0 GiB (26 safetensors files, bfloat16) + KV 8.0 GiB (256 KiB per token x \
         32768 tokens x 1 sequence) + overhead 3.1 GiB = 72.1 GiB"
    );
    let graphs =
        estimate_footprint(folder.path(), &Serving { eager: false, ..one_sequence() }).unwrap();
    assert_eq!(graphs.total(), need.total() + GIB);
    assert!(
        graphs.explain().contains("overhead 4.1 GiB (1.0 GiB of which for graphs)"),
        "{}",
        graphs.explain()
    );
    assert_eq!(need.model, folder.path().file_name().unwrap().to_str().unwrap());
}

#[test]
fn cache_size_follows_the_configuration() {
    let plain = json!({ "num_hidden_layers": 10, "num_attention_heads": 4, "hidden_size": 256 });
    let window = with(&plain, "sliding_window", json!(100));
    let half: Vec<_> = (0..10).map(|n| ["sliding_attention", "full_attention"][n % 2]).collect();
    let mixed: Vec<_> =
        (0..10).map(|n| ["linear_attention", "full_attention"][usize::from(n == 9)]).collect();
    // Bytes of a token in one layer: keys and values, 256 elements of 2 bytes each.
    let layer = 1024;
    // 1000 tokens are rounded up to 1008, and 100 to 112.
    for (config, per_token, kv) in [
        (plain.clone(), 10 * layer, 10 * layer * 1008),
        (with(&plain, "num_key_value_heads", json!(null)), 10 * layer, 10 * layer * 1008),
        (with(&plain, "num_key_value_heads", json!(1)), 10 * layer / 4, 10 * layer * 1008 / 4),
        (with(&plain, "head_dim", json!(128)), 20 * layer, 20 * layer * 1008),
        (with(&plain, "dtype", json!("float16")), 10 * layer, 10 * layer * 1008),
        (window.clone(), 10 * layer, 10 * layer * 112),
        (with(&window, "use_sliding_window", json!(false)), 10 * layer, 10 * layer * 1008),
        (with(&window, "max_window_layers", json!(4)), 10 * layer, layer * (4 * 1008 + 6 * 112)),
        (with(&window, "layer_types", json!(half)), 10 * layer, 5 * layer * (1008 + 112)),
        (with(&window, "sliding_window_pattern", json!(6)), 10 * layer, layer * (1008 + 9 * 112)),
        (with(&window, "model_type", json!("gemma2")), 10 * layer, 5 * layer * (1008 + 112)),
        (with(&plain, "layer_types", json!(mixed)), layer, layer * 1008),
        (with(&plain, "cross_attention_layers", json!([3, 8])), 8 * layer, 8 * layer * 1008),
        (
            with(&with(&plain, "kv_lora_rank", json!(512)), "qk_rope_head_dim", json!(64)),
            11_520,
            11_520 * 1008,
        ),
        (
            json!({ "text_config": plain, "num_hidden_layers": 3, "torch_dtype": "half" }),
            10_240,
            10_240 * 1008,
        ),
        (with(&plain, "num_key_value_heads", json!(u64::MAX)), u64::MAX, u64::MAX),
    ] {
        let folder = folder(&config, &[("model.safetensors", 5 * GIB)]);
        let serving = Serving { context: 1000, sequences: 1, ..Serving::default() };
        let need = estimate_footprint(folder.path(), &serving).unwrap();
        assert_eq!((need.kv_per_token, need.kv), (per_token, kv), "{config}");
        assert_eq!((need.weights, need.overhead), (5 * GIB, 3 * GIB));
        assert!(need.total() >= kv && need.explain().contains(" per token x "));
        let three =
            estimate_footprint(folder.path(), &Serving { sequences: 3, ..serving }).unwrap();
        assert_eq!(three.kv, kv.saturating_mul(3));
    }
}

#[test]
fn explain_covers_windows_and_quantization() {
    let config = with(&qwen_32b(), "use_sliding_window", json!(true));
    let config =
        with(&with(&config, "sliding_window", json!(1024)), "max_window_layers", json!(16));
    let config = with(&config, "quantization_config", json!({ "quant_method": "awq" }));
    let folder = folder(&config, &[("model.safetensors", GIB)]);
    let text = estimate_footprint(folder.path(), &Serving { sequences: 2, ..one_sequence() })
        .unwrap()
        .explain();
    assert_eq!(
        text,
        "weights 1.0 GiB (1 safetensors file, bfloat16, awq) + KV 4.4 GiB ((64 KiB per token x \
         32768 tokens + \
         192 KiB per token x 1024 tokens in sliding windows) x 2 sequences) + overhead 2.0 GiB = \
         7.4 GiB"
    );
}

#[test]
fn invalid_values_are_reported() {
    for (key, value, problem) in [
        ("num_hidden_layers", json!("64"), "is not an integer"),
        ("num_hidden_layers", json!(null), "is missing"),
        ("num_hidden_layers", json!(0), "is 0"),
        ("num_attention_heads", json!(0), "is 0"),
        ("num_key_value_heads", json!(-8), "is not an integer"),
        ("hidden_size", json!(1.5), "is not an integer"),
        ("head_dim", json!([128]), "is not an integer"),
        ("torch_dtype", json!(16), "is not a string"),
        ("sliding_window", json!("4k"), "is not an integer"),
        ("use_sliding_window", json!(0), "is not a boolean"),
        ("layer_types", json!("full_attention"), "is not an array"),
        ("cross_attention_layers", json!(3), "is not an array"),
        ("kv_lora_rank", json!({}), "is not an integer"),
    ] {
        let folder = folder(&with(&qwen_32b(), key, value), &[("model.safetensors", GIB)]);
        let error = error(folder.path());
        let FootprintError::Key(file, found_key, found_problem) = &error else {
            panic!("{error:?}")
        };
        assert_eq!((found_key.as_str(), *found_problem), (key, problem));
        assert_eq!(*file, folder.path().join("config.json"));
    }
}

#[test]
fn index_selects_the_files() {
    let folder = folder(
        &qwen_32b(),
        &[("a.safetensors", GIB), ("b.safetensors", GIB), ("rest.safetensors", GIB)],
    );
    let index = folder.path().join("model.safetensors.index.json");
    let write = |map: Value| fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    write(json!({ "x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors" }));
    assert_eq!(estimate_footprint(folder.path(), &one_sequence()).unwrap().weights, 2 * GIB);
    write(json!({ "x": "a.safetensors", "y": "c.safetensors" }));
    let missing = error(folder.path());
    let FootprintError::Missing(file, named_by) = &missing else { panic!("{missing:?}") };
    assert_eq!((file, named_by), (&folder.path().join("c.safetensors"), &index));
    for map in [json!(null), json!({}), json!({ "x": 1 }), json!({ "x": "../a.safetensors" })] {
        write(map);
        let error = error(folder.path());
        assert!(
            matches!(&error, FootprintError::Key(file, key, _)
                if *file == index && key == "weight_map"),
            "{error:?}"
        );
    }
    fs::write(&index, "[1").unwrap();
    let malformed = error(folder.path());
    assert!(
        matches!(&malformed, FootprintError::Malformed(file, _) if *file == index),
        "{malformed:?}"
    );
}

#[test]
fn paths_that_are_not_models_are_rejected() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let not_a_model = |path: &Path| match error(path) {
        FootprintError::NoModel(found, what) => {
            assert_eq!(found, path);
            what
        }
        error => panic!("{error:?}"),
    };
    let absent = error(&path("absent"));
    assert!(
        matches!(&absent, FootprintError::Io(file, source)
            if *file == path("absent") && source.kind() == io::ErrorKind::NotFound),
        "{absent:?}"
    );
    assert_eq!(not_a_model(root.path()), "an empty folder");
    sparse(&path("model.safetensors"), 5);
    let single = error(&path("model.safetensors"));
    let FootprintError::WantsFolder(file, folder) = &single else { panic!("{single:?}") };
    assert_eq!((file.as_path(), folder.as_path()), (&*path("model.safetensors"), root.path()));
    assert_eq!(not_a_model(Path::new("/dev/null")), "neither a file nor a folder");
    let missing = error(root.path());
    let FootprintError::Missing(file, named_by) = &missing else { panic!("{missing:?}") };
    assert_eq!((file.as_path(), named_by.as_path()), (&*path("config.json"), root.path()));
    fs::write(path("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let pointer = error(root.path());
    assert!(matches!(&pointer, FootprintError::Pointer(_)), "{pointer:?}");
    fs::remove_file(path("model.safetensors")).unwrap();
    for n in 0..7 {
        sparse(&path(&format!("{n}.bin")), 1);
    }
    let what = not_a_model(root.path());
    assert!(what.ends_with("0.bin, 1.bin, 2.bin, 3.bin, 4.bin and 2 more"), "{what}");
    assert_eq!(not_a_model(&path("0.bin")), "an unknown file format");
    sparse(&path("small.gguf"), 1);
    let what = not_a_model(root.path());
    assert!(what.contains("small.gguf") && what.contains("for llama.cpp"), "{what}");
}

#[test]
fn model_in_the_hugging_face_cache_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("models--Qwen--Qwen2.5-7B/snapshots/0123abcd");
    fs::create_dir_all(&path).unwrap();
    assert_eq!(short_name(&path), "Qwen2.5-7B");
}

/// A writer of GGUF headers.
#[derive(Default)]
pub(super) struct Writer {
    keys: u64,
    bytes: Vec<u8>,
}

impl Writer {
    fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys += 1;
        self.text(key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self
    }

    pub(super) fn string(self, key: &str, value: &str) -> Self {
        let mut writer = self.key(key, 8, &[]);
        writer.text(value);
        writer
    }

    pub(super) fn number(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    pub(super) fn array(self, key: &str, kind: u32, count: u64, items: &[u8]) -> Self {
        self.key(key, 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat())
    }

    pub(super) fn done(self) -> Vec<u8> {
        [
            b"GGUF",
            &3_u32.to_le_bytes()[..],
            &7_u64.to_le_bytes(),
            &self.keys.to_le_bytes(),
            &self.bytes,
        ]
        .concat()
    }
}

/// Returns the header of SmolLM2-135M without its last keys.
fn small() -> Writer {
    Writer::default()
        .number("llama.block_count", 30)
        .string("general.architecture", "llama")
        .string("general.name", &"long".repeat(1000))
        .array(
            "tokenizer.ggml.tokens",
            8,
            2,
            &[&1_u64.to_le_bytes()[..], b"a", &0_u64.to_le_bytes()].concat(),
        )
        .array("tokenizer.ggml.scores", 6, 2, &[0; 8])
        .key("some.flag", 7, &[1])
        .key("general.file_type", 4, &15_u32.to_le_bytes())
        .key("llama.embedding_length", 10, &576_u64.to_le_bytes())
        .number("llama.attention.head_count", 9)
}

pub(super) fn gguf_file(name: &str, header: &[u8], bytes: u64) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(header).unwrap();
    file.set_len(bytes.max(header.len() as u64)).unwrap();
    (root, path)
}

#[test]
fn cache_size_is_read_from_gguf_headers() {
    let layers: Vec<u8> = (0..30_i32).flat_map(|n| (n % 3).to_le_bytes()).collect();
    for (writer, per_token) in [
        (small(), 30 * 9 * 128 * 2),
        (small().number("llama.attention.head_count_kv", 3), 30 * 3 * 128 * 2),
        (small().array("llama.attention.head_count_kv", 5, 30, &layers), 30 * 128 * 2),
        (small().number("llama.attention.key_length", 100), 30 * 9 * 164 * 2),
        (small().number("llama.attention.value_length", 0), 30 * 9 * 64 * 2),
    ] {
        let (_root, path) = gguf_file("Small.Q4_K_M.gguf", &writer.done(), GIB);
        let need = estimate_footprint(&path, &one_sequence()).unwrap();
        assert_eq!((need.kv_per_token, need.kv), (per_token, per_token * 32_768));
        assert_eq!((need.weights, need.overhead), (GIB, 512 * MIB + GIB / 20));
        assert_eq!((need.model.as_str(), need.dtype.as_deref()), ("Small.Q4_K_M", Some("Q4_K_M")));
    }
    let header = small().number("llama.attention.head_count_kv", 3).done();
    let (_root, path) = gguf_file("sha256-0123", &header, GIB);
    let text = estimate_footprint(&path, &one_sequence()).unwrap().explain();
    assert_eq!(
        text,
        "weights 1.0 GiB (1 GGUF file, Q4_K_M) + KV 720 MiB (22.5 KiB per token x 32768 tokens x \
         1 sequence) + overhead 563.2 MiB = 2.3 GiB"
    );
}

#[test]
fn all_parts_of_a_split_gguf_are_summed() {
    let (root, first) = gguf_file("big-00001-of-00003.gguf", &small().done(), GIB);
    let part = |n: u32| root.path().join(format!("big-0000{n}-of-00003.gguf"));
    sparse(&part(3), 2 * GIB);
    let missing = error(&first);
    let FootprintError::Missing(file, named_by) = &missing else { panic!("{missing:?}") };
    assert_eq!((file, named_by), (&part(2), &first));
    sparse(&part(2), 2 * GIB);
    let need = estimate_footprint(&first, &one_sequence()).unwrap();
    assert_eq!((need.weights, need.files, need.model.as_str()), (5 * GIB, 3, "big"));
    let later = error(&part(2));
    let FootprintError::LaterPart(file, found) = &later else { panic!("{later:?}") };
    assert_eq!((file, found), (&part(2), &first));
}

#[test]
fn invalid_gguf_files_are_rejected() {
    let start = |version: u32| [b"GGUF", &version.to_le_bytes()[..], &[0; 16]].concat();
    let counts = |tensors: u64, keys: u64| {
        [b"GGUF", &3_u32.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    let empty = Writer::default;
    let named = || empty().string("general.architecture", "a");
    let huge = u64::MAX;
    for (header, problem) in [
        (b"GGML".to_vec(), "not a GGUF file"),
        (start(1), "unsupported version 1"),
        (start(3_u32.swap_bytes()), "big-endian"),
        (counts(0, huge), "and 18446744073709551615 keys"),
        (counts(huge, 0), "18446744073709551615 tensors"),
        (empty().key("x", 8, &huge.to_le_bytes()).done(), "string of 18446744073709551615 bytes"),
        (
            empty().array("x", 8, huge, &huge.to_le_bytes()).done(),
            "string of 18446744073709551615 bytes",
        ),
        (empty().array("x", 9, 1, &[]).done(), "nested arrays"),
        (empty().array("x", 10, huge, &[]).done(), "larger than 64 MiB"),
        (empty().key("x", 13, &[]).done(), "unknown value type 13"),
        (empty().done(), "\"general.architecture\" in"),
        (empty().number("general.architecture", 1).done(), "is not a string"),
        (named().done(), "\"a.block_count\" in"),
        (named().key("a.block_count", 6, &[0; 4]).done(), "is not an integer"),
        (named().key("a.block_count", 1, &[0xff]).done(), "is not an integer"),
        (named().number("a.block_count", 2).done(), "\"a.attention.head_count\" in"),
        (
            named().number("a.block_count", 2).number("a.attention.head_count", 0).done(),
            "a.embedding_length",
        ),
        (small().number("llama.attention.head_count", 0).done(), "is 0"),
        (
            small().array("llama.attention.head_count_kv", 4, 1, &[0; 4]).done(),
            "has fewer elements",
        ),
        (small().string("llama.attention.head_count_kv", "8").done(), "is neither an integer"),
    ] {
        let (_root, path) = gguf_file("x.gguf", &header, 0);
        let error = error(&path);
        let (FootprintError::Malformed(file, _) | FootprintError::Key(file, ..)) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*file, path);
        let text = error.to_string();
        assert!(text.contains(problem), "{problem}: {text}");
    }
    // Endless strings in a file that is long enough for all of them.
    let (_root, path) = gguf_file("x.gguf", &empty().array("x", 8, huge, &[]).done(), 100 * GIB);
    let error = error(&path);
    assert!(
        matches!(&error, FootprintError::Malformed(_, problem)
            if problem.contains("larger than 64 MiB")),
        "{error:?}"
    );
}

#[test]
fn truncated_gguf_is_rejected() {
    let whole = small().done();
    assert!(Header::read(whole.as_slice()).is_ok());
    for length in 0..whole.len() {
        let error = Header::read(&whole[..length]).unwrap_err();
        assert!(matches!(error, HeaderError::Io(_)), "{length}: {error:?}");
    }
    let (_root, path) = gguf_file("x.gguf", &whole[..50], 0);
    let error = error(&path);
    assert!(
        matches!(&error, FootprintError::Malformed(file, problem)
            if *file == path && problem.contains("ends in its header")),
        "{error:?}"
    );
}

proptest! {
    #[test]
    fn any_numbers_are_accepted_without_overflow(model: [u64; 4], context: u64, sequences: u64) {
        let config = json!({
            "num_hidden_layers": model[0], "num_attention_heads": model[1], "hidden_size": model[2],
            "sliding_window": model[3],
        });
        let folder = folder(&config, &[("model.safetensors", 1)]);
        let serving = Serving { context, sequences, ..Serving::default() };
        if let Ok(need) = estimate_footprint(folder.path(), &serving) {
            prop_assert!(need.explain().contains(" = ") && need.total() >= need.kv);
        }
    }
}
