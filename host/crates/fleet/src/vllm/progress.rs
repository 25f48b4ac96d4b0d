//! What the log of a loading engine tells: how far it is, how much memory it took, and why it failed.
//!
//! The lines are vLLM 0.32's and llama.cpp's. Read them only while the engine starts: later lines may quote requests.

/// A part of an engine's start. They come in this order, though an engine may leave some out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The program runs.
    Starting,
    /// It reads what the model is.
    Config,
    /// Weights go into memory.
    Weights,
    /// Code for this GPU is made.
    Compiling,
    /// Memory for the KV cache is taken.
    KvCache,
    /// GPU graphs are recorded.
    Graphs,
    /// First runs, and what is left to do.
    Warmup,
    /// It answers.
    Listening,
}

impl Phase {
    /// For people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Config => "reading the model's configuration",
            Self::Weights => "loading weights",
            Self::Compiling => "compiling",
            Self::KvCache => "taking memory for the KV cache",
            Self::Graphs => "recording GPU graphs",
            Self::Warmup => "warming up",
            Self::Listening => "listening",
        }
    }
}

/// How far an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loading {
    /// The part of its start.
    pub phase: Phase,
    /// How much of that part is done, 0 to 100. A phase may count to 100 more than once.
    pub percent: Option<u8>,
    /// The engine's own words, at most 200 bytes.
    pub detail: Option<String>,
}

/// What shows a phase, the first one that is in the line counting: vLLM, then llama.cpp.
const PHASES: [(&str, Phase); 35] = [
    ("Application startup complete", Phase::Listening),
    ("Starting vLLM server on", Phase::Warmup),
    ("Supported tasks:", Phase::Warmup),
    ("init engine (profile", Phase::Warmup),
    ("Graph capturing finished", Phase::Graphs),
    ("Capturing CUDA graph", Phase::Graphs),
    ("KV cache size:", Phase::KvCache),
    ("Available KV cache memory:", Phase::KvCache),
    ("GiB for KV cache", Phase::KvCache),
    ("Dynamo bytecode transform time", Phase::Compiling),
    ("torch.compile takes", Phase::Compiling),
    ("torch.compile took", Phase::Compiling),
    ("Compiling a graph for", Phase::Compiling),
    ("for vLLM's torch.compile", Phase::Compiling),
    ("Model loading took", Phase::Weights),
    ("Loading weights took", Phase::Weights),
    ("checkpoint shards:", Phase::Weights),
    ("Starting to load model", Phase::Weights),
    ("Initializing a V1 LLM engine", Phase::Config),
    ("Resolved architecture:", Phase::Config),
    ("non-default args:", Phase::Starting),
    ("vLLM server version", Phase::Starting),
    ("Automatically detected platform", Phase::Starting),
    ("server is listening on", Phase::Listening),
    (": model loaded", Phase::Warmup),
    ("warming up the model", Phase::Warmup),
    ("llama_kv_cache", Phase::KvCache),
    ("llama_context:", Phase::KvCache),
    ("load_tensors:", Phase::Weights),
    ("print_info:", Phase::Config),
    ("llama_model_loader:", Phase::Config),
    ("load_model: loading model", Phase::Config),
    ("main: loading model", Phase::Config),
    ("binding port with default address family", Phase::Starting),
    ("build_info:", Phase::Starting),
];

/// Longest detail and longest quotation in a sentence, in bytes.
const LONGEST: usize = 200;

/// What a line says about progress; `None` if nothing. Of a progress bar that was written over itself the last state counts.
#[must_use]
pub fn read(line: &str) -> Option<Loading> {
    let line = line.rsplit('\r').find(|part| !part.trim().is_empty())?;
    // Dots, one for each percent of the tensors, have nothing else in their line.
    let said = message(line);
    let &(pattern, phase) = PHASES.iter().find(|(pattern, _)| said.contains(pattern))?;
    let bar = matches!(pattern, "checkpoint shards:" | "Capturing CUDA graph");
    let (percent, detail) = match bar.then(|| progress_bar(said)).flatten() {
        Some((percent, count)) => (Some(percent), count),
        None => (None, Some(cut(said).to_owned())),
    };
    Some(Loading { phase, percent, detail })
}

/// Percent and `10/26` of `38% Completed | 10/26 [00:12<00:20, …]` or `38%|███▊      | 10/26 [00:12<…]`.
fn progress_bar(said: &str) -> Option<(u8, Option<String>)> {
    let (before, after) = said.split_once('%')?;
    let digits = before.rsplit(|letter: char| !letter.is_ascii_digit()).next()?;
    let percent: u8 = digits.parse().ok().filter(|percent| *percent <= 100)?;
    let count = after.rsplit('|').next().and_then(|rest| rest.split_whitespace().next());
    let count = count.filter(|word| {
        word.split_once('/').is_some_and(|(done, all)| is_number(done) && is_number(all))
            && word.len() <= 24
    });
    Some((percent, count.map(str::to_owned)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A line without what logging puts before it: `(EngineCore pid=3852) INFO 11-21 03:32:14 [core.py:133] `, or llama.cpp's
/// time and level.
fn message(line: &str) -> &str {
    let mut rest = line.trim();
    if rest.starts_with('(')
        && let Some((before, after)) = rest.split_once(") ")
        && before.contains(" pid=")
    {
        rest = after.trim_start();
    }
    let (level, after) = rest.split_once(' ').unwrap_or((rest, ""));
    if matches!(level, "DEBUG" | "INFO" | "WARNING" | "ERROR" | "CRITICAL")
        && let Some((before, after)) = after.split_once("] ")
        && before.contains('[')
    {
        return after.trim();
    }
    // 0.01.057.525 I load_tensors: …
    let clock =
        level.contains('.') && level.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match after.split_once(' ') {
        Some(("D" | "I" | "W" | "E", after)) if clock => after.trim(),
        _ => rest,
    }
}

/// The beginning of a text, cut between two letters.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text)
}

/// Memory that an engine says it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Bytes of the weights. Of vLLM's workers the last one to say it; of llama.cpp's buffers the sum.
    pub weights_bytes: Option<u64>,
    /// Bytes for the KV cache. As above.
    pub kv_bytes: Option<u64>,
    /// Tokens that the KV cache holds, of all requests together.
    pub kv_tokens: Option<u64>,
}

/// Take in what a line says about memory. Use a new [`Measured`] for each start: llama.cpp's buffers are added up.
pub fn measure(line: &str, into: &mut Measured) {
    let said = message(line);
    let sum = |so_far: Option<u64>, more: u64| Some(so_far.unwrap_or(0).saturating_add(more));
    if let Some(bytes) = size_after(said, "Model loading took ") {
        into.weights_bytes = Some(bytes);
    } else if let Some(bytes) = size_after(said, "Available KV cache memory: ") {
        into.kv_bytes = Some(bytes);
    } else if let Some(bytes) = cpu_kv_bytes(said) {
        into.kv_bytes = Some(bytes);
    } else if let Some((_, after)) = said.split_once("KV cache size: ") {
        into.kv_tokens = tokens(after).or(into.kv_tokens);
    } else if let Some(bytes) =
        said.contains("load_tensors:").then(|| size_after(said, "buffer size = ")).flatten()
    {
        into.weights_bytes = sum(into.weights_bytes, bytes);
    } else if let Some(bytes) =
        said.contains("llama_kv_cache").then(|| size_after(said, ": size = ")).flatten()
    {
        into.kv_bytes = sum(into.kv_bytes, bytes);
        let cells = said.split_once('(').and_then(|(_, after)| tokens(after));
        // Layers with a window have a cache of their own, a smaller one.
        into.kv_tokens = cells.max(into.kv_tokens);
    }
}

/// `Explicitly set (1.0/20.59) GiB for KV cache on node 0.`, where there is no GPU.
fn cpu_kv_bytes(said: &str) -> Option<u64> {
    let (_, after) = said.split_once("Explicitly set (")?;
    let (number, after) = after.split_once('/')?;
    after.contains(") GiB for KV cache").then(|| bytes(number, "GiB"))?
}

/// The size that follows `words`, such as `18.1 GiB`.
fn size_after(said: &str, words: &str) -> Option<u64> {
    let (_, after) = said.split_once(words)?;
    let mut parts = after.split_whitespace();
    bytes(parts.next()?, parts.next()?)
}

fn bytes(number: &str, unit: &str) -> Option<u64> {
    let scale = match unit.trim_end_matches([',', '.', ';']) {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    // A cast of what is no size of memory would give 0 or the largest number.
    let size = (number * scale).round();
    (0.0..1e18).contains(&size).then_some(size as u64)
}

/// `123,456` at the beginning.
fn tokens(text: &str) -> Option<u64> {
    let word = text.split_whitespace().next()?;
    let digits: String = word.chars().filter(|letter| *letter != ',').collect();
    is_number(&digits).then(|| digits.parse().ok())?
}

/// What is in lines that say why an engine fails, in small letters, and how to say it.
const FATAL: [(&str, &str); 32] = [
    ("less than desired gpu memory utilization", "not enough free memory on the GPU"),
    (
        "no available memory for the cache blocks",
        "no memory is left for the KV cache; give it a larger part",
    ),
    ("larger than the available kv cache memory", "the KV cache is too small for max-model-len"),
    (
        "larger than the maximum number of tokens that can be stored",
        "the KV cache is too small for max-model-len",
    ),
    ("out of memory", "the GPU's memory is full"),
    ("outofmemory", "the GPU's memory is full"),
    ("outofdevicememory", "the GPU's memory is full"),
    ("failed to allocate", "memory could not be had"),
    ("unable to allocate", "memory could not be had"),
    ("invalid device function", "it was built for another GPU"),
    ("no kernel image is available", "it was built for another GPU"),
    ("one of gpu archs of", "VLLM_ROCM_USE_AITER does not work on this GPU"),
    (
        "memory access fault by gpu",
        "the GPU was used wrongly, as with an HSA_OVERRIDE_GFX_VERSION that is not its own",
    ),
    ("failed to infer device type", "vLLM finds no device that it was built for"),
    ("non-integer device id", "vLLM takes no UUID in HIP_VISIBLE_DEVICES; write it as `device`"),
    ("was supported in vllm until", "this vLLM no longer has the model's architecture"),
    ("are not supported for now", "this vLLM does not have the model's architecture"),
    ("unknown model architecture", "this llama.cpp does not have the model's architecture"),
    ("unrecognized arguments", "it does not know an argument"),
    ("error: invalid argument", "it does not know an argument"),
    ("address already in use", "its port is taken"),
    ("couldn't bind http server socket", "its port is taken"),
    ("gated repo", "the hub wants a token for this model"),
    ("repository not found", "the hub has no such model, or wants a token for it"),
    ("offline mode is enabled", "the model is not on this machine, and the hub may not be asked"),
    ("localentrynotfounderror", "the model is not on this machine, and the hub may not be asked"),
    ("no such file", "a file is missing"),
    ("failed to open gguf file", "the model cannot be read"),
    ("error loading model", "the model cannot be loaded"),
    ("failed to load model", "the model cannot be loaded"),
    (
        "engine core initialization failed",
        "vLLM's core did not start; the cause is further up in its log",
    ),
    ("enginecore failed to start", "vLLM's core did not start; the cause is further up in its log"),
];

/// A sentence for a line that is known to say why an engine ended; `None` for others. Ask it about an engine that ended
/// without being told to, from its first line to its last, and keep the first sentence: what follows is consequences.
#[must_use]
pub fn fatal(line: &str) -> Option<String> {
    let said = message(line);
    let small = said.to_lowercase();
    let (_, sentence) = FATAL.iter().find(|(pattern, _)| small.contains(pattern))?;
    Some(format!("{sentence}: {}", cut(said)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_phases() {
        let bar = "\rLoading safetensors checkpoint shards:   0% Completed | 0/26 [00:00<?, ?it/s]\
                   \rLoading safetensors checkpoint shards:  38% Completed | 10/26 [00:12<00:20,  1.25s/it]\r";
        let graphs =
            "Capturing CUDA graphs (decode, FULL): 100%|██████████| 35/35 [00:02<00:00, 21.18it/s]";
        let table: &[(&str, Phase, Option<u8>, &str)] = &[
            (bar, Phase::Weights, Some(38), "10/26"),
            (graphs, Phase::Graphs, Some(100), "35/35"),
            (
                "INFO 11-21 03:31:49 [a.py:1] Graph capturing finished in 5 secs, took 0.51 GiB",
                Phase::Graphs,
                None,
                "Graph",
            ),
            (
                "(EngineCore pid=1) INFO 04-07 02:46:21 [b.py:2] Dynamo bytecode transform time: 4.2 s",
                Phase::Compiling,
                None,
                "Dynamo",
            ),
            (
                "load_tensors: offloaded 29/29 layers to GPU",
                Phase::Weights,
                None,
                "load_tensors: offloaded",
            ),
            (
                "0.01.057.525 I load_tensors: loading model tensors",
                Phase::Weights,
                None,
                "load_tensors: loading",
            ),
            (
                "llama_kv_cache: size = 1024.00 MiB (8192 cells, 28 layers)",
                Phase::KvCache,
                None,
                "llama_kv_cache",
            ),
            ("llama_context: n_ctx = 8192", Phase::KvCache, None, "llama_context"),
            ("main: model loaded", Phase::Warmup, None, "main: model loaded"),
            (
                "main: server is listening on http://127.0.0.1:8080",
                Phase::Listening,
                None,
                "main: server",
            ),
        ];
        for (line, phase, percent, detail) in table {
            let found = read(line).unwrap();
            assert_eq!((found.phase, found.percent), (*phase, *percent), "{line}");
            assert!(found.detail.as_ref().unwrap().starts_with(detail), "{found:?}");
        }
        // The second one comes before llama.cpp loads anything.
        for line in [
            "",
            "\r\r",
            "........",
            "main: HTTP server is listening, hostname: 127.0.0.1",
            "INFO:     Shutting down",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn lines_tell_memory() {
        let sum = |lines: &[&str]| {
            let mut measured = Measured::default();
            lines.iter().for_each(|line| measure(line, &mut measured));
            (measured.weights_bytes, measured.kv_bytes, measured.kv_tokens)
        };
        let vllm = sum(&[
            "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] Model loading took 18.5 GiB memory and 12.345678 seconds",
            "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] Available KV cache memory: 5.25 GiB",
            "(EngineCore pid=1) INFO 11-21 03:31:49 [a.py:1] GPU KV cache size: 123,456 tokens, Maximum concurrency for \
             32,768 tokens per request: 3.77x",
        ]);
        assert_eq!(vllm, (Some(37 << 29), Some(21 << 28), Some(123_456)));
        let llama = sum(&[
            "load_tensors:        ROCm0 model buffer size =  1024.00 MiB",
            "load_tensors:   CPU_Mapped model buffer size =   512.00 MiB",
            "llama_kv_cache:      ROCm0 KV buffer size =   256.00 MiB",
            "llama_kv_cache: size =  256.00 MiB (  8192 cells,  28 layers,  1/1 seqs), K (f16):  128.00 MiB",
            "llama_kv_cache: size =   64.00 MiB (  1024 cells,  28 layers,  1/1 seqs), K (f16):  32.00 MiB",
        ]);
        assert_eq!(llama, (Some(1536 << 20), Some(320 << 20), Some(8192)));
        let odd = sum(&[
            "Model loading took NaN GiB",
            "Model loading took -1 GiB",
            "Available KV cache memory: 1e99 GiB",
        ]);
        assert_eq!(odd, (None, None, None));
    }

    #[test]
    fn lines_tell_causes() {
        let table = [
            (
                "ValueError: Free memory on device cuda:0 (1/2 GiB) on startup is less than desired GPU memory utilization",
                "not enough",
            ),
            ("RuntimeError: HIP error: invalid device function", "built for another GPU"),
            ("Model architecture X was supported in vLLM until v0.9", "no longer"),
            ("vllm: error: unrecognized arguments: --swap-space 4", "argument"),
            ("OSError: [Errno 98] Address already in use", "port is taken"),
            ("FileNotFoundError: [Errno 2] No such file or directory: '/m'", "file is missing"),
            (
                "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB",
                "memory is full",
            ),
            (
                "(APIServer pid=1) ERROR 11-21 03:31:49 [a.py:1] Engine core initialization failed.",
                "further up",
            ),
        ];
        for (line, words) in table {
            let sentence = fatal(line).unwrap();
            assert!(sentence.contains(words) && !sentence.contains("pid="), "{sentence}");
        }
        assert_eq!(fatal("INFO 11-21 03:31:49 [a.py:1] Supported tasks: ['generate']"), None);
    }
}
