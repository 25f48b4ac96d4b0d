//! Fuzzing of what is read from engines and from the files of models.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use pointsman_fuzz::Fuzz;

use crate::drivers::llama_cpp::metrics::{llama_cpp, slots};
use crate::drivers::vllm::metrics::vllm;
use crate::drivers::vllm::{Measurement, measure};
use crate::scrape::{EngineMetrics, rates};
use crate::{Serving, estimate_footprint};

/// Metrics are within their ranges, and neither the order of the lines nor other lines matter.
#[test]
fn engine_metrics() {
    let fuzz = Fuzz::new("engine_metrics").files("tests/captures", "metrics.http");
    fuzz.files("tests/captures", "slots.http").run(|input| {
        let text = String::from_utf8_lossy(input);
        let (of_vllm, of_llama) = (vllm(&text), llama_cpp(&text));
        for (metrics, parse) in [(of_vllm, vllm as fn(&str) -> _), (of_llama, llama_cpp)] {
            assert!(metrics.kv_used.unwrap_or(0) <= 1000, "{metrics:?}");
            let reversed: Vec<&str> = text.lines().rev().collect();
            assert_eq!(parse(&reversed.join("\n")), metrics);
            assert_eq!(parse(&format!("{text}\n# a comment\nother:metric 1\n")), metrics);
        }
        let rates = rates(&of_vllm, &of_llama, Duration::from_millis(7));
        assert!(rates.prefix_hit.unwrap_or(0) <= 1000, "{rates:?}");
        let json = input.iter().position(|byte| *byte == b'[').unwrap_or_default();
        let found = slots(&input[json..]);
        assert!(found.is_none_or(|(all, busy)| busy <= all), "{found:?}");
        of_vllm != EngineMetrics::default() || found.is_some()
    });
}

/// Replaces a file. A file that is truncated instead is written to the disk when it is closed, by
/// ext4, which takes milliseconds.
fn replace(file: &Path, content: &[u8]) {
    fs::remove_file(file).ok();
    fs::write(file, content).unwrap();
}

fn serving() -> Serving {
    Serving { context: 4096, sequences: 2, eager: true, ..Serving::default() }
}

/// The estimate of a model's memory is the sum of its parts, and at least the file's size.
#[test]
fn model_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 5120,
        "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8,
        "head_dim": 128, "torch_dtype": "bfloat16", "max_position_embeddings": 32768,
        "sliding_window": 4096, "vocab_size": 152064, "intermediate_size": 27648}"#;
    let weights = 1 << 20;
    File::create(folder.path().join("model.safetensors")).unwrap().set_len(weights).unwrap();
    Fuzz::new("model_configurations").input(config).run(|input| {
        replace(&folder.path().join("config.json"), input);
        let Ok(need) = estimate_footprint(folder.path(), &serving()) else { return false };
        assert!(need.total() >= need.kv.max(weights), "{need:?}");
        assert!(need.explain().contains(" = "), "{need:?}");
        true
    });
}

/// A GGUF file with these keys, whose values are numbers of 32 bits, and no tensors.
fn gguf(keys: &[(&str, u32)]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &0_u64.to_le_bytes()].concat();
    file.extend((keys.len() as u64 + 1).to_le_bytes());
    file.extend([text("general.architecture"), 8_u32.to_le_bytes().into(), text("llama")].concat());
    for (key, value) in keys {
        file.extend([text(key), 4_u32.to_le_bytes().into(), value.to_le_bytes().into()].concat());
    }
    file
}

/// The same for a GGUF file, whose header may say anything.
#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let model = gguf(&[
        ("llama.block_count", 32),
        ("llama.context_length", 8192),
        ("llama.embedding_length", 4096),
        ("llama.attention.head_count", 32),
        ("llama.attention.head_count_kv", 8),
    ]);
    Fuzz::new("gguf_files").input(model).run(|input| {
        replace(&file, input);
        let Ok(need) = estimate_footprint(&file, &serving()) else { return false };
        assert!(need.total() >= need.kv.max(input.len() as u64), "{need:?}");
        true
    });
}

/// Sizes in the log of an engine are plausible, and lines without a size do not matter.
#[test]
fn engine_logs() {
    const LLAMA_CPP: &str = "llama_context: constructing llama_context
load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
llama_kv_cache: size =   90.00 MiB (  2048 cells,  30 layers,  2/2 seqs), K (f16):   45.00 MiB
llama_memory_recurrent: size =   16.00 MiB (     1 cells,  48 layers,  1 seqs), R (f32): 1.00 MiB
sched_reserve:        CPU compute buffer size =    16.64 MiB
x_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context |
x_memory_breakdown_print: |   - ROCm0 (a) | 9 = 8 + ( 7 = 3 + 5 + 4) + 3 |
KV self size  = 1024.00 MiB, K (f16):  512.00 MiB
Free memory on device cuda:0 (10.5/64.0 GiB) on startup is less than desired
Initial free memory 11.28 GiB, reserved 6.0 GiB memory for KV Cache as specified by the config
model weights take 15.00GiB; PyTorch activation peak memory takes 1.50GiB; memory reserved for KV \
Cache is 4.50GiB.
# GPU blocks: 2,304, # CPU blocks: 2048
Graph capturing finished in 5 secs, took 0.50 GiB";
    let read = |text: &str| {
        let mut measured = Measurement::default();
        text.lines().for_each(|line| measure(line, &mut measured));
        measured.completed()
    };
    let fuzz = Fuzz::new("engine_logs").input(LLAMA_CPP);
    fuzz.run(|input| {
        let text = String::from_utf8_lossy(input);
        let found = read(&text);
        assert_eq!(read(&format!("a line\n{text}\nand another one\n")), found);
        let sizes = [found.weights_bytes, found.kv_bytes, found.device.total, found.device.free];
        found.compute_bytes.is_some() || sizes.iter().any(Option::is_some)
    });
}
