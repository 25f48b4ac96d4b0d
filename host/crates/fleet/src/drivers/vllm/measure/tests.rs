use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn measured(lines: &[&str]) -> Measurement {
    let mut measured = Measurement::default();
    lines.iter().for_each(|line| measure(line, &mut measured));
    measured.completed()
}

/// Weights, KV cache and its tokens, buffers.
fn parts(lines: &[&str]) -> (Option<u64>, Option<u64>, Option<u64>, Option<u64>) {
    let found = measured(lines);
    (found.weights_bytes, found.kv_bytes, found.kv_tokens, found.compute_bytes)
}

#[test]
fn memory_of_vllm_is_read() {
    let gpu = parts(&[
        "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] Model loading took 18.5 GiB memory \
         and 12.345678 seconds",
        "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] Available KV cache memory: 5.25 GiB",
        "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] GPU KV cache size: 123,456 tokens, \
         Maximum concurrency for 32,768 tokens per request: 3.77x",
        "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] Graph capturing finished in 5 secs, \
         took 0.50 GiB",
    ]);
    assert_eq!(gpu, (Some(37 * GIB / 2), Some(21 * GIB / 4), Some(123_456), Some(GIB / 2)));
    // With `--kv-cache-memory-bytes`.
    let set = parts(&[
        "(EngineCore pid=175) INFO 09-07 03:06:51 [gpu_worker.py:551] Initial free memory 114.28 \
         GiB, reserved 6.0 GiB memory for KV Cache as specified by kv_cache_memory_bytes config \
         and skipped memory profiling. This does not respect the gpu_memory_utilization config.",
    ]);
    assert_eq!(set, (None, Some(6 * GIB), None, None));
    for line in [
        "(Worker pid=3) INFO 11-21 03:32:26 [cpu_worker.py:260] Explicitly set (1.0/20.59) GiB \
         for KV cache on node 0.",
        "INFO 11-21 03:32:26 [cpu_worker.py:260] Auto set (1.0/20.59) GiB for KV cache on node 0, \
         with 2.0 GiB requested memory for the worker.",
    ] {
        assert_eq!(parts(&[line]), (None, Some(GIB), None, None));
    }
    // Before V1.
    let old = measured(&[
        "INFO 02-01 10:00:00 worker.py:267] the current vLLM instance can use total_gpu_memory \
         (23.5GiB) x gpu_memory_utilization (0.90) = 21.15GiB",
        "INFO 02-01 10:00:00 worker.py:267] model weights take 15.00GiB; non_torch_memory takes \
         0.09GiB; PyTorch activation peak memory takes 1.50GiB; the rest of the memory reserved \
         for KV Cache is 4.50GiB.",
        "INFO 02-01 10:00:01 executor_base.py:111] # GPU blocks: 2,304, # CPU blocks: 2048",
    ]);
    assert_eq!((old.weights_bytes, old.kv_bytes), (Some(15 * GIB), Some(9 * GIB / 2)));
    assert_eq!((old.kv_tokens, old.compute_bytes), (Some(36_864), Some(3 * GIB / 2)));
    assert_eq!(old.device, DeviceMemory { total: Some(47 * GIB / 2), free: None });
}

#[test]
fn device_is_read_from_a_refusal() {
    for line in [
        "(EngineCore pid=52) ERROR 11-21 03:31:50 [core.py:866] ValueError: Free memory on device \
         cuda:0 (10.5/64.0 GiB) on startup is less than desired GPU memory utilization (0.9, \
         57.6 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "ValueError: Available memory on node 0 (10.5/64.0 GiB) on startup is less than desired \
         CPU memory utilization (0.92, 58.88 GiB).",
    ] {
        let device = DeviceMemory { total: Some(64 * GIB), free: Some(21 * GIB / 2) };
        assert_eq!(measured(&[line]).device, device);
    }
    let other = "ValueError: Free memory on device (x/y GiB) and more";
    assert_eq!(measured(&[other]).device, DeviceMemory::default());
}

#[test]
fn memory_of_llama_cpp_is_read() {
    let new = parts(&[
        "0.00.793.852 I load_tensors:   CPU_Mapped model buffer size =    92.00 MiB",
        "0.00.798.255 I llama_context: constructing llama_context",
        "0.00.798.540 I llama_context:        CPU  output buffer size =     0.50 MiB",
        "0.00.798.681 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB",
        "0.00.885.727 I llama_kv_cache: size =   90.00 MiB (  2048 cells,  30 layers,  2/2 seqs), \
         K (f16):   45.00 MiB, V (f16):   45.00 MiB",
        "0.00.903.363 I sched_reserve:        CPU compute buffer size =    16.50 MiB",
        // Reserved once more, for an adapter.
        "0.00.903.363 I sched_reserve:        CPU compute buffer size =    17.50 MiB",
    ]);
    assert_eq!(new, (Some(92 * MIB), Some(90 * MIB), Some(2048), Some(18 * MIB)));
    let several = parts(&[
        "load_tensors:        ROCm0 model buffer size =  1024.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =   512.00 MiB",
        "llama_kv_cache:      ROCm0 KV buffer size =   256.00 MiB",
        "llama_kv_cache: size =  256.00 MiB (  8192 cells,  28 layers,  1/1 seqs), K (f16):  \
         128.00 MiB",
        "llama_kv_cache: size =   64.00 MiB (  1024 cells,  28 layers,  1/1 seqs), K (f16):  \
         32.00 MiB",
        "llama_memory_recurrent: size =   16.00 MiB (     1 cells,  48 layers,  1 seqs), R (f32): \
         1.00 MiB, S (f32):   15.00 MiB",
        "llama_context:      ROCm0 compute buffer size =   300.00 MiB",
        "llama_context:  ROCm_Host compute buffer size =    20.00 MiB",
        // A draft model.
        "llama_context: constructing llama_context",
        "llama_context:      ROCm0 compute buffer size =    80.00 MiB",
    ]);
    assert_eq!(several, (Some(1536 * MIB), Some(336 * MIB), Some(8192), Some(400 * MIB)));
    // 2024.
    let old = parts(&[
        "llm_load_tensors:      ROCm0 buffer size =  3577.00 MiB",
        "llama_kv_cache_init:      ROCm0 KV buffer size =  1024.00 MiB",
        "llama_new_context_with_model: KV self size  = 1024.00 MiB, K (f16):  512.00 MiB, V (f16): \
         512.00 MiB",
        "llama_new_context_with_model:      ROCm0 compute buffer size =   164.00 MiB",
    ]);
    assert_eq!(old, (Some(3577 * MIB), Some(1024 * MIB), None, Some(164 * MIB)));
}

#[test]
fn summary_of_llama_cpp_stands_in_for_missing_lines() {
    let head = "0.00.417.213 I common_memory_breakdown_print: | memory breakdown [MiB] | total   \
                free    self   model   context   compute    unaccounted |";
    let host = "0.00.417.233 I common_memory_breakdown_print: |   - Host               |           \
                       198 =    92 +      90 +      16                |";
    let gpu = "llama_memory_breakdown_print: |   - ROCm0 (Radeon 8060S) | 98304 = 90000 + ( 4000 = \
               3000 + 500 + 500) + 304 |";
    assert_eq!(parts(&[head, host]), (Some(92 * MIB), Some(90 * MIB), None, Some(16 * MIB)));
    // Printed again when parameters were changed; only the last one counts.
    let twice = parts(&[head, host, head, gpu, host]);
    assert_eq!(twice, (Some(3092 * MIB), Some(590 * MIB), None, Some(516 * MIB)));
    let own = "load_tensors: CPU model buffer size = 1.00 MiB";
    assert_eq!(parts(&[head, host, own]), (Some(MIB), None, None, None));
}

#[test]
fn sizes_that_cannot_be_are_left_out() {
    let odd = parts(&[
        "Model loading took NaN GiB",
        "Model loading took -1 GiB",
        "Available KV cache memory: 1e99 GiB",
        "Available KV cache memory: 99999999999999999999 GiB",
        "# GPU blocks: many",
        "load_tensors: buffer size = MiB",
        "sched_reserve: compute buffer size = 1 MiB",
        "memory_breakdown_print: | a | 1 = 2 + 3 |",
    ]);
    // A device without a name is taken for one.
    assert_eq!(odd, (None, None, None, Some(MIB)));
}

proptest! {
    #[test]
    fn any_lines_are_accepted(lines in prop::collection::vec(
        prop_oneof![
            any::<String>(),
            "(load_tensors|llama_kv_cache|sched_reserve|KV self|# GPU blocks)[:|(] {0,2}\
             [A-Za-z0-9]{0,3} (compute |output |KV )?(buffer )?size {0,2}= [0-9.]{0,9} ?(MiB|GiB)?",
            "(Free memory on device x|Explicitly set|Auto set) \\([0-9./]{0,9} ?GiB\\)",
            "x_memory_breakdown_print: \\| - [a-z(]{0,3} \\|[0-9 =+()]{0,20}\\|",
        ], 0..100,
    )) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let found = measured(&lines);
        prop_assert!(found.buffers.len() <= MAX_BUFFERS);
        // Twice the same lines never make less of the sums.
        let twice = measured(&[lines.as_slice(), lines.as_slice()].concat());
        prop_assert!(found.compute_bytes.is_none_or(|bytes| twice.compute_bytes >= Some(bytes)));
    }
}
