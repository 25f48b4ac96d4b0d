use super::super::super::tests::{Writer, gguf_file};
use super::super::super::{
    CacheType, Footprint, FootprintError, GIB, MIB, Serving, estimate_footprint,
};

/// A model with 8 query heads and 4 heads for keys and values of 64 elements each.
fn model(architecture: &str, layers: u32) -> Writer {
    let key = |name: &str| format!("{architecture}.{name}");
    Writer::default()
        .string("general.architecture", architecture)
        .number(&key("block_count"), layers)
        .number(&key("context_length"), 8192)
        .number(&key("embedding_length"), 512)
        .number(&key("feed_forward_length"), 2048)
        .number(&key("attention.head_count"), 8)
        .number(&key("attention.head_count_kv"), 4)
}

/// Bytes of a token in one layer of that model with 16 bits.
const LAYER: u64 = 2 * 4 * 64 * 2;

fn need(writer: Writer, serving: &Serving) -> Footprint {
    let (_root, path) = gguf_file("a.gguf", &writer.done(), GIB);
    estimate_footprint(&path, serving).unwrap()
}

fn serving(context: u64, sequences: u64) -> Serving {
    Serving { context, sequences, ..Serving::default() }
}

#[test]
fn types_of_the_cache_count() {
    let with = |keys: &str, values: &str| {
        let [keys, values] = [keys, values].map(CacheType::ggml);
        let serving = Serving { keys, values, ..serving(1024, 1) };
        need(model("llama", 10), &serving).kv / 10 / 1024
    };
    // 256 elements each.
    assert_eq!(with("f16", "f16"), 512 + 512);
    assert_eq!(with("q8_0", "q8_0"), 272 + 272);
    assert_eq!(with("q8_0", "q4_0"), 272 + 144);
    assert_eq!(with("f32", "q5_1"), 1024 + 192);
    let slow =
        Serving { values: CacheType::ggml("q8_0"), no_flash_attention: true, ..serving(1024, 1) };
    let (_root, path) = gguf_file("a.gguf", &model("llama", 2).done(), GIB);
    let error = estimate_footprint(&path, &slow).unwrap_err();
    assert!(matches!(error, FootprintError::NeedsFlashAttention));
    let keys = Serving { keys: slow.values, values: None, ..slow };
    assert!(estimate_footprint(&path, &keys).is_ok());
}

#[test]
fn cells_are_rounded_for_each_sequence_or_for_all() {
    for (context, sequences, unified, cells) in [
        (2048, 2, false, 4096),
        (333, 3, false, 3 * 512),
        (333, 3, true, 1024),
        (1, 1, false, 256),
        // What the model was trained for.
        (0, 1, false, 8192),
        (0, 4, false, 8192),
        (0, 3, true, 8192),
    ] {
        let found = need(model("llama", 3), &Serving { unified, ..serving(context, sequences) });
        assert_eq!(found.kv, 3 * LAYER * cells, "{context} {sequences} {unified}");
    }
}

#[test]
fn windows_follow_the_architecture() {
    let with_window = |architecture: &str, layers| {
        model(architecture, layers)
            .number(&format!("{architecture}.attention.sliding_window"), 1024)
    };
    // A window of 1024 and a step of 512 tokens are 1536 cells.
    for (architecture, layers, full) in [
        ("gemma2", 10, 5),
        ("gemma3", 12, 2),
        ("gemma3n", 10, 2),
        ("cohere2", 8, 2),
        ("gpt-oss", 24, 12),
        ("olmo2", 8, 2),
        ("exaone4", 64, 16),
        ("exaone4", 30, 30),
        ("smallthinker", 8, 2),
        // Windows that llama.cpp does not use, and an architecture that is not known.
        ("phi3", 8, 8),
        ("unknown", 8, 8),
    ] {
        let found = need(with_window(architecture, layers), &serving(8192, 2));
        let sliding = u64::from(layers) - full;
        let expected = 2 * LAYER * (full * 8192 + sliding * 1536);
        assert_eq!(found.kv, expected, "{architecture}");
    }
    // Llama 4 has chunks, whose size its files do not have.
    let found = need(model("llama4", 8), &serving(32_768, 1));
    assert_eq!(found.kv, LAYER * (2 * 32_768 + 6 * (8192 + 512)));
    // The file says which layers have windows: as booleans, or with a period.
    let listed = with_window("gemma4", 4).array(
        "gemma4.attention.sliding_window_pattern",
        7,
        4,
        &[1, 1, 1, 0],
    );
    assert_eq!(need(listed, &serving(8192, 1)).kv, LAYER * (8192 + 3 * 1536));
    let period = with_window("gemma3", 12).number("gemma3.attention.sliding_window_pattern", 3);
    assert_eq!(need(period, &serving(8192, 1)).kv, LAYER * (4 * 8192 + 8 * 1536));
    // Heads of another size in these layers.
    let smaller = with_window("gemma3", 6)
        .number("gemma3.attention.key_length_swa", 32)
        .number("gemma3.attention.value_length_swa", 32);
    assert_eq!(need(smaller, &serving(8192, 1)).kv, LAYER * 8192 + 5 * LAYER / 2 * 1536);
    // All tokens with `--swa-full`; one buffer for all sequences with `--kv-unified`.
    let all = Serving { full_windows: true, ..serving(8192, 2) };
    assert_eq!(need(with_window("gemma2", 2), &all).kv, 2 * 2 * LAYER * 8192);
    let unified = Serving { unified: true, ..serving(8192, 2) };
    let found = need(with_window("gemma2", 2), &unified);
    assert_eq!(found.kv, LAYER * (2 * 8192 + 2 * 1024 + 512));
    assert!(found.explain().contains("in sliding windows"));
    // A window that is longer than the sequence.
    assert_eq!(need(with_window("gemma2", 2), &serving(512, 1)).kv, 2 * LAYER * 512);
}

#[test]
fn layers_without_keys_and_values_are_left_out() {
    // The last layers use those of earlier ones.
    let shared = model("gemma3n", 10).number("gemma3n.attention.shared_kv_layers", 4);
    assert_eq!(need(shared, &serving(1024, 1)).kv, 6 * LAYER * 1024);
    let predicting = model("glm4moe", 47).number("glm4moe.nextn_predict_layers", 1);
    assert_eq!(need(predicting, &serving(1024, 1)).kv, 46 * LAYER * 1024);
    let encoder = need(model("bert", 12), &serving(512, 4));
    assert_eq!((encoder.kv, encoder.kv_per_token), (0, 0));
    // DeepSeek with latent attention: one head with 576 elements, and only the key.
    let latent = Writer::default()
        .string("general.architecture", "deepseek2")
        .number("deepseek2.block_count", 61)
        .number("deepseek2.embedding_length", 7168)
        .number("deepseek2.attention.head_count", 128)
        .number("deepseek2.attention.head_count_kv", 1)
        .number("deepseek2.attention.key_length", 576)
        .number("deepseek2.attention.value_length", 512)
        .number("deepseek2.attention.key_length_mla", 192)
        .number("deepseek2.attention.value_length_mla", 128);
    assert_eq!(need(latent, &serving(1024, 1)).kv, 61 * 576 * 2 * 1024);
}

#[test]
fn recurrent_layers_have_states() {
    let ssm = |architecture: &str, layers| {
        let key = |name: &str| format!("{architecture}.{name}");
        model(architecture, layers)
            .number(&key("ssm.conv_kernel"), 4)
            .number(&key("ssm.inner_size"), 1024)
            .number(&key("ssm.state_size"), 128)
            .number(&key("ssm.group_count"), 2)
    };
    let state = 4 * (3 * (1024 + 2 * 2 * 128) + 128 * 1024);
    let two = serving(1024, 2);
    // Three of four layers.
    assert_eq!(need(ssm("qwen3next", 8), &two).kv, 2 * (2 * LAYER * 1024 + 6 * state));
    let other = ssm("qwen3next", 8).number("qwen3next.full_attention_interval", 2);
    assert_eq!(need(other, &two).kv, 2 * (4 * LAYER * 1024 + 4 * state));
    // All of them, and all of them both.
    assert_eq!(need(ssm("mamba2", 8), &two).kv, 2 * 8 * state);
    assert_eq!(need(ssm("falcon-h1", 8), &two).kv, 2 * 8 * (LAYER * 1024 + state));
    // Those without heads for keys and values; of these, some are feed-forward networks.
    let listed = |architecture: &str| {
        let key = |name: &str| format!("{architecture}.{name}");
        let bytes = |values: [u32; 4]| values.map(u32::to_le_bytes).concat();
        Writer::default()
            .string("general.architecture", architecture)
            .number(&key("block_count"), 4)
            .number(&key("embedding_length"), 512)
            .number(&key("attention.head_count"), 8)
            .array(&key("attention.head_count_kv"), 4, 4, &bytes([0, 4, 0, 0]))
            .array(&key("feed_forward_length"), 4, 4, &bytes([0, 0, 64, 0]))
            .number(&key("ssm.conv_kernel"), 4)
            .number(&key("ssm.inner_size"), 1024)
            .number(&key("ssm.state_size"), 128)
            .number(&key("ssm.group_count"), 2)
    };
    assert_eq!(need(listed("nemotron_h"), &two).kv, 2 * (LAYER * 1024 + 2 * state));
    let found = need(listed("granitehybrid"), &two);
    assert_eq!(found.kv, 2 * (LAYER * 1024 + 3 * state));
    assert!(found.explain().contains("of states"), "{}", found.explain());
    let short = Writer::default()
        .string("general.architecture", "lfm2")
        .number("lfm2.block_count", 2)
        .number("lfm2.embedding_length", 512)
        .number("lfm2.attention.head_count", 8)
        .array("lfm2.attention.head_count_kv", 4, 2, &[0, 0, 0, 0, 4, 0, 0, 0])
        .number("lfm2.shortconv.l_cache", 3);
    assert_eq!(need(short, &two).kv, 2 * (LAYER * 1024 + 4 * 512 * 2));
    let rwkv = model("rwkv7", 2).number("rwkv7.wkv.head_size", 64);
    assert_eq!(need(rwkv, &two).kv, 2 * 2 * 4 * 512 * (2 + 64));
}

#[test]
fn buffers_are_those_of_the_widest_layer() {
    // As measured with SmolLM2-135M: 15.2, 16.6 and 22.6 MiB.
    let small = || {
        Writer::default()
            .string("general.architecture", "llama")
            .number("llama.block_count", 30)
            .number("llama.embedding_length", 576)
            .number("llama.feed_forward_length", 1536)
            .number("llama.attention.head_count", 9)
            .number("llama.attention.head_count_kv", 3)
    };
    for (context, sequences, tenths) in [(512, 3, 152), (2048, 2, 166), (8192, 1, 226)] {
        let found = need(small(), &serving(context, sequences));
        let (compute, measured) = (found.compute.unwrap(), MIB * tenths / 10);
        assert!(compute.abs_diff(measured) * 10 < measured, "{compute} {measured}");
        assert_eq!(found.overhead, 512 * MIB + GIB / 20);
    }
    // With a long context, the buffers are more than the rule of thumb.
    let long = need(small(), &serving(1 << 20, 1));
    assert_eq!(long.overhead, long.compute.unwrap() + 256 * MIB);
    let slow = Serving { no_flash_attention: true, ..serving(8192, 1) };
    let scores =
        need(small(), &slow).compute.unwrap() - need(small(), &serving(8192, 1)).compute.unwrap();
    assert_eq!(scores, 512 * 8192 * 9 * 8);
}

#[test]
fn implausible_numbers_of_layers_are_rejected() {
    let (_root, path) = gguf_file("a.gguf", &model("llama", 513).done(), GIB);
    let error = estimate_footprint(&path, &serving(1, 1)).unwrap_err();
    assert!(matches!(error, FootprintError::Key(_, key, _) if key == "llama.block_count"));
}
