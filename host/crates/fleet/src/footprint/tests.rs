use std::io::Write as _;

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::gguf::{Fault, Header};
use super::*;

const ONE_LONG: Serving = Serving { context: 32_768, sequences: 1, eager: true };

/// A file that takes no room on the disk.
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

/// DeepSeek-R1-Distill-Qwen-32B.
fn qwen_32b() -> Value {
    json!({
        "model_type": "qwen2", "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
        "hidden_size": 5120, "torch_dtype": "bfloat16", "sliding_window": 131_072, "max_window_layers": 64,
        "use_sliding_window": false,
    })
}

/// The configuration with one more value.
fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn error(path: &Path) -> String {
    of_model(path, &ONE_LONG).unwrap_err().to_string()
}

#[test]
fn sizes_are_written_for_people() {
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
        assert_eq!(gib(bytes), text);
    }
}

#[test]
fn a_model_of_61_gib_is_added_up() {
    // 26 files, 65.5 GB.
    let files: Vec<(String, u64)> =
        (0..26).map(|n| (format!("model-{n:05}.safetensors"), 65_500_000_000 / 26)).collect();
    let files: Vec<(&str, u64)> =
        files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    let folder = folder(&qwen_32b(), &files);
    let need = of_model(folder.path(), &ONE_LONG).unwrap();
    assert_eq!((need.kv_per_token, need.kv), (256 * KIB, 8 * GIB));
    let text = need.explain();
    assert_eq!(
        text,
        "weights 61.0 GiB (26 safetensors files, bfloat16) + KV 8.0 GiB (256 KiB a token x 32768 tokens \
         x 1 sequence) + overhead 3.1 GiB = 72.1 GiB"
    );
    let graphs = of_model(folder.path(), &Serving { eager: false, ..ONE_LONG }).unwrap();
    assert_eq!(graphs.total(), need.total() + GIB);
    assert!(
        graphs.explain().contains("overhead 4.1 GiB (1.0 GiB of it for graphs)"),
        "{}",
        graphs.explain()
    );
    assert_eq!(need.model, folder.path().file_name().unwrap().to_str().unwrap());
}

#[test]
fn caches_follow_the_configuration() {
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
        (with(&plain, "torch_dtype", json!("float32")), 20 * layer, 20 * layer * 1008),
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
            json!({ "text_config": plain, "num_hidden_layers": 3, "torch_dtype": "float" }),
            20_480,
            20_480 * 1008,
        ),
        (with(&plain, "num_key_value_heads", json!(u64::MAX)), u64::MAX, u64::MAX),
    ] {
        let folder = folder(&config, &[("model.safetensors", 5 * GIB)]);
        let serving = Serving { context: 1000, sequences: 1, eager: false };
        let need = of_model(folder.path(), &serving).unwrap();
        assert_eq!((need.kv_per_token, need.kv), (per_token, kv), "{config}");
        assert_eq!((need.weights, need.overhead), (5 * GIB, 3 * GIB));
        assert!(need.total() >= kv && need.explain().contains(" a token x "));
        let three = of_model(folder.path(), &Serving { sequences: 3, ..serving }).unwrap();
        assert_eq!(three.kv, kv.saturating_mul(3));
    }
}

#[test]
fn windows_and_quantization_are_explained() {
    let config = with(&qwen_32b(), "use_sliding_window", json!(true));
    let config =
        with(&with(&config, "sliding_window", json!(1024)), "max_window_layers", json!(16));
    let config = with(&config, "quantization_config", json!({ "quant_method": "awq" }));
    let folder = folder(&config, &[("model.safetensors", GIB)]);
    let text = of_model(folder.path(), &Serving { sequences: 2, ..ONE_LONG }).unwrap().explain();
    assert_eq!(
        text,
        "weights 1.0 GiB (1 safetensors file, bfloat16, awq) + KV 4.4 GiB ((64 KiB a token x 32768 tokens + \
         192 KiB a token x 1024 tokens of the sliding window) x 2 sequences) + overhead 2.0 GiB = 7.4 GiB"
    );
}

#[test]
fn wrong_values_are_named() {
    for (key, value, problem) in [
        ("num_hidden_layers", json!("64"), "is not a whole number"),
        ("num_hidden_layers", json!(null), "is missing"),
        ("num_hidden_layers", json!(0), "is 0"),
        ("num_attention_heads", json!(0), "is 0"),
        ("num_key_value_heads", json!(-8), "is not a whole number"),
        ("hidden_size", json!(1.5), "is not a whole number"),
        ("head_dim", json!([128]), "is not a whole number"),
        ("torch_dtype", json!(16), "is not a text"),
        ("sliding_window", json!("4k"), "is not a whole number"),
        ("use_sliding_window", json!(0), "is not true or false"),
        ("layer_types", json!("full_attention"), "is not a list"),
        ("cross_attention_layers", json!(3), "is not a list"),
        ("kv_lora_rank", json!({}), "is not a whole number"),
    ] {
        let folder = folder(&with(&qwen_32b(), key, value), &[("model.safetensors", GIB)]);
        let text = error(folder.path());
        assert!(text.contains(&format!("\"{key}\" in ")) && text.contains(problem), "{text}");
        assert!(text.contains("config.json"), "{text}");
    }
}

#[test]
fn an_index_says_which_files_count() {
    let folder = folder(
        &qwen_32b(),
        &[("a.safetensors", GIB), ("b.safetensors", GIB), ("rest.safetensors", GIB)],
    );
    let index = folder.path().join("model.safetensors.index.json");
    let write = |map: Value| fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    write(json!({ "x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors" }));
    assert_eq!(of_model(folder.path(), &ONE_LONG).unwrap().weights, 2 * GIB);
    write(json!({ "x": "a.safetensors", "y": "c.safetensors" }));
    let text = error(folder.path());
    assert!(
        text.contains("c.safetensors is not there, but") && text.contains("index.json counts"),
        "{text}"
    );
    for map in [json!(null), json!({}), json!({ "x": 1 }), json!({ "x": "../a.safetensors" })] {
        write(map);
        assert!(error(folder.path()).contains("\"weight_map\" in"));
    }
    fs::write(&index, "[1").unwrap();
    assert!(error(folder.path()).contains("index.json is no JSON object"));
}

#[test]
fn what_is_no_model_is_described() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    assert!(error(&path("absent")).contains("absent cannot be read"));
    assert!(error(root.path()).contains("is no model: an empty folder;"));
    sparse(&path("model.safetensors"), 5);
    let text = error(&path("model.safetensors"));
    assert!(text.contains("vLLM wants the folder: write /"), "{text}");
    assert!(text.ends_with(root.path().to_str().unwrap()), "{text}");
    assert!(error(Path::new("/dev/null")).contains("neither a file nor a folder"));
    let text = error(root.path());
    assert!(text.contains("config.json is not there"), "{text}");
    fs::write(path("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(error(root.path()).contains("git lfs pull"));
    fs::remove_file(path("model.safetensors")).unwrap();
    for n in 0..7 {
        sparse(&path(&format!("{n}.bin")), 1);
    }
    let text = error(root.path());
    assert!(text.contains("a folder with 0.bin, 1.bin, 2.bin, 3.bin, 4.bin and 2 more"), "{text}");
    assert!(error(&path("0.bin")).contains("a file of another kind"));
    sparse(&path("small.gguf"), 1);
    assert!(
        error(root.path())
            .contains("a folder with small.gguf, and llama.cpp wants the file itself")
    );
}

#[test]
fn models_in_the_cache_of_hugging_face_have_their_name() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("models--Qwen--Qwen2.5-7B/snapshots/0123abcd");
    fs::create_dir_all(&path).unwrap();
    assert_eq!(short_name(&path), "Qwen2.5-7B");
}

/// Writes GGUF headers.
#[derive(Default)]
struct Writer {
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

    fn string(self, key: &str, value: &str) -> Self {
        let mut writer = self.key(key, 8, &[]);
        writer.text(value);
        writer
    }

    fn number(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    fn array(self, key: &str, kind: u32, count: u64, items: &[u8]) -> Self {
        self.key(key, 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat())
    }

    fn done(self) -> Vec<u8> {
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

/// SmolLM2-135M without its last keys.
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

fn gguf_file(name: &str, header: &[u8], bytes: u64) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(header).unwrap();
    file.set_len(bytes.max(header.len() as u64)).unwrap();
    (root, path)
}

#[test]
fn gguf_headers_say_how_large_the_cache_is() {
    let layers: Vec<u8> = (0..30_i32).flat_map(|n| (n % 3).to_le_bytes()).collect();
    for (writer, per_token) in [
        (small(), 30 * 9 * 128 * 2),
        (small().number("llama.attention.head_count_kv", 3), 30 * 3 * 128 * 2),
        (small().array("llama.attention.head_count_kv", 5, 30, &layers), 30 * 128 * 2),
        (small().number("llama.attention.key_length", 100), 30 * 9 * 164 * 2),
        (small().number("llama.attention.value_length", 0), 30 * 9 * 64 * 2),
    ] {
        let (_root, path) = gguf_file("Small.Q4_K_M.gguf", &writer.done(), GIB);
        let need = of_model(&path, &ONE_LONG).unwrap();
        assert_eq!((need.kv_per_token, need.kv), (per_token, per_token * 32_768));
        assert_eq!((need.weights, need.overhead), (GIB, 512 * MIB + GIB / 20));
        assert_eq!((need.model.as_str(), need.dtype.as_deref()), ("Small.Q4_K_M", Some("Q4_K_M")));
    }
    let header = small().number("llama.attention.head_count_kv", 3).done();
    let (_root, path) = gguf_file("sha256-0123", &header, GIB);
    let text = of_model(&path, &ONE_LONG).unwrap().explain();
    assert_eq!(
        text,
        "weights 1.0 GiB (1 GGUF file, Q4_K_M) + KV 720 MiB (22.5 KiB a token x 32768 tokens x 1 sequence) \
         + overhead 563.2 MiB = 2.3 GiB"
    );
}

#[test]
fn all_parts_of_a_split_gguf_count() {
    let (root, first) = gguf_file("big-00001-of-00003.gguf", &small().done(), GIB);
    let part = |n: u32| root.path().join(format!("big-0000{n}-of-00003.gguf"));
    sparse(&part(3), 2 * GIB);
    assert!(error(&first).contains("big-00002-of-00003.gguf is not there"));
    sparse(&part(2), 2 * GIB);
    let need = of_model(&first, &ONE_LONG).unwrap();
    assert_eq!((need.weights, need.files, need.model.as_str()), (5 * GIB, 3, "big"));
    let text = error(&part(2));
    assert!(
        text.contains("is not the first part") && text.ends_with("big-00001-of-00003.gguf"),
        "{text}"
    );
}

#[test]
fn gguf_files_of_no_use_are_described() {
    let start = |version: u32| [b"GGUF", &version.to_le_bytes()[..], &[0; 16]].concat();
    let counts = |tensors: u64, keys: u64| {
        [b"GGUF", &3_u32.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    let empty = Writer::default;
    let named = || empty().string("general.architecture", "a");
    let endless = u64::MAX;
    for (header, problem) in [
        (b"GGML".to_vec(), "does not begin like a GGUF file"),
        (start(1), "has version 1 of the format"),
        (start(3_u32.swap_bytes()), "is for big-endian machines"),
        (counts(0, endless), "and 18446744073709551615 keys"),
        (counts(endless, 0), "claims to have 18446744073709551615 tensors"),
        (
            empty().key("x", 8, &endless.to_le_bytes()).done(),
            "a string of 18446744073709551615 bytes",
        ),
        (
            empty().array("x", 8, endless, &endless.to_le_bytes()).done(),
            "a string of 18446744073709551615 bytes",
        ),
        (empty().array("x", 9, 1, &[]).done(), "has a list of lists"),
        (empty().array("x", 10, endless, &[]).done(), "has a header of more than 64 MiB"),
        (empty().key("x", 13, &[]).done(), "unknown type 13"),
        (empty().done(), "\"general.architecture\" in"),
        (empty().number("general.architecture", 1).done(), "is not a text"),
        (named().done(), "\"a.block_count\" in"),
        (named().key("a.block_count", 6, &[0; 4]).done(), "is not a whole number"),
        (named().key("a.block_count", 1, &[0xff]).done(), "is not a whole number"),
        (named().number("a.block_count", 2).done(), "\"a.attention.head_count\" in"),
        (
            named().number("a.block_count", 2).number("a.attention.head_count", 0).done(),
            "a.embedding_length",
        ),
        (small().number("llama.attention.head_count", 0).done(), "is 0;"),
        (small().array("llama.attention.head_count_kv", 4, 1, &[0; 4]).done(), "has fewer numbers"),
        (small().string("llama.attention.head_count_kv", "8").done(), "is neither a number"),
    ] {
        let (_root, path) = gguf_file("x.gguf", &header, 0);
        let text = error(&path);
        assert!(text.contains(problem) && text.contains("x.gguf"), "{problem}: {text}");
    }
    // Strings without end, on a disk without end.
    let (_root, path) = gguf_file("x.gguf", &empty().array("x", 8, endless, &[]).done(), 100 * GIB);
    assert!(error(&path).contains("has a header of more than 64 MiB"));
}

#[test]
fn a_gguf_that_ends_early_is_an_error() {
    let whole = small().done();
    assert!(Header::read(whole.as_slice()).is_ok());
    for cut in 0..whole.len() {
        let fault = Header::read(&whole[..cut]).unwrap_err();
        assert!(matches!(fault, Fault::Io(_)), "{cut}: {fault:?}");
    }
    let (_root, path) = gguf_file("x.gguf", &whole[..50], 0);
    assert!(error(&path).contains("x.gguf ends in its header; download the model again"));
}

proptest! {
    #[test]
    fn no_bytes_after_the_magic_cause_a_panic(version in 2_u32..4, keys in 0_u64..5, rest: Vec<u8>) {
        let bytes =
            [b"GGUF", &version.to_le_bytes()[..], &[0; 8], &keys.to_le_bytes(), &rest].concat();
        let _any = Header::read(bytes.as_slice());
    }

    #[test]
    fn no_changed_bytes_cause_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9)
    ) {
        let mut bytes = small().done();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let (_root, path) = gguf_file("x.gguf", &bytes, 0);
        if let Ok(need) = of_model(&path, &ONE_LONG) {
            prop_assert!(need.explain().contains(" = ") && need.total() >= need.kv);
        }
    }

    #[test]
    fn no_numbers_cause_an_overflow(model: [u64; 4], context: u64, sequences: u64) {
        let config = json!({
            "num_hidden_layers": model[0], "num_attention_heads": model[1], "hidden_size": model[2],
            "sliding_window": model[3],
        });
        let folder = folder(&config, &[("model.safetensors", 1)]);
        if let Ok(need) = of_model(folder.path(), &Serving { context, sequences, eager: false }) {
            prop_assert!(need.explain().contains(" = ") && need.total() >= need.kv);
        }
    }

    #[test]
    fn no_configuration_causes_a_panic(text in ".{0,200}", bytes: Vec<u8>) {
        let folder = folder(&json!(null), &[("model.safetensors", 1)]);
        for content in [text.as_bytes(), &bytes] {
            fs::write(folder.path().join("config.json"), content).unwrap();
            let _any = of_model(folder.path(), &ONE_LONG);
        }
    }
}
