//! The log of a loading engine: its progress.
//!
//! The lines are those of vLLM 0.32 and llama.cpp. Read them only while the engine starts: later
//! lines may quote requests.

/// A phase of an engine's start. Phases follow in this order; an engine may skip some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The program is running.
    Starting,
    /// The model's configuration is being read.
    Config,
    /// Weights are being loaded.
    Weights,
    /// Kernels are being compiled for the GPU.
    Compiling,
    /// The KV cache is being allocated.
    KvCache,
    /// GPU graphs are being captured.
    Graphs,
    /// Warm-up runs and the rest of the start.
    Warmup,
    /// The engine accepts requests.
    Listening,
}

impl Phase {
    /// Returns a description for operators.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Config => "reading the model's configuration",
            Self::Weights => "loading weights",
            Self::Compiling => "compiling",
            Self::KvCache => "allocating the KV cache",
            Self::Graphs => "capturing GPU graphs",
            Self::Warmup => "warming up",
            Self::Listening => "listening",
        }
    }
}

/// The progress of an engine's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loading {
    /// The current phase.
    pub phase: Phase,
    /// Progress of the phase, 0 to 100. A phase may count to 100 more than once.
    pub percent: Option<u8>,
    /// A quotation of the engine's log, at most 200 bytes.
    pub detail: Option<String>,
}

/// Texts in log lines that identify a phase, of vLLM and then of llama.cpp; the first match counts.
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

/// Maximum length of a quotation in bytes.
const MAX_QUOTE: usize = 200;

/// Reads the progress from a line; `None` if the line contains none. The last state of a redrawn
/// progress bar counts.
#[must_use]
pub fn read(line: &str) -> Option<Loading> {
    let line = line.rsplit('\r').find(|part| !part.trim().is_empty())?;
    // llama.cpp's dots, one per percent, are a line of their own and match no pattern.
    let text = message(line);
    let &(pattern, phase) = PHASES.iter().find(|(pattern, _)| text.contains(pattern))?;
    let bar = matches!(pattern, "checkpoint shards:" | "Capturing CUDA graph");
    let (percent, detail) = match bar.then(|| progress_bar(text)).flatten() {
        Some((percent, count)) => (Some(percent), count),
        None => (None, Some(truncate(text).to_owned())),
    };
    Some(Loading { phase, percent, detail })
}

/// Parses percent and `10/26` of `38% Completed | 10/26 [00:12<00:20, …]` or `38%|███▊      | 10/26
/// [00:12<…]`.
fn progress_bar(text: &str) -> Option<(u8, Option<String>)> {
    let (before, after) = text.split_once('%')?;
    let digits = before.rsplit(|letter: char| !letter.is_ascii_digit()).next()?;
    let percent: u8 = digits.parse().ok().filter(|percent| *percent <= 100)?;
    let count = after.rsplit('|').next().and_then(|rest| rest.split_whitespace().next());
    let count = count.filter(|word| {
        word.split_once('/').is_some_and(|(done, all)| is_number(done) && is_number(all))
            && word.len() <= 24
    });
    Some((percent, count.map(str::to_owned)))
}

pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Strips the prefix of the logger: `(EngineCore pid=3852) INFO 11-21 03:32:14 [core.py:133] `, or
/// llama.cpp's time and level.
pub(crate) fn message(line: &str) -> &str {
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

/// Truncates a text to the maximum length at a character boundary.
fn truncate(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_QUOTE)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_log_lines() {
        let bar = "\rLoading safetensors checkpoint shards:   0% Completed | 0/26 [00:00<?, ?it/s]\
                   \rLoading safetensors checkpoint shards:  38% Completed \
                   | 10/26 [00:12<00:20,  1.25s/it]\r";
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
                "(EngineCore pid=1) INFO 04-07 02:46:21 [b.py:2] Dynamo bytecode transform time: \
                 4.2 s",
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
        // The fourth line is written before llama.cpp loads anything.
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
}
