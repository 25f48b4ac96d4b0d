//! The memory that a model needs, computed from its files before an engine is started. No weights
//! are read.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use pointsman_files::{open_regular, read_regular};
use serde_json::{Map, Value};

use self::cache::Cache;
pub use self::cache_type::CacheType;
use self::config::Config;
pub use self::extras::Extra;
use crate::memory_estimate::MemoryEstimate;

mod cache;
mod cache_type;
mod config;
mod extras;
mod gguf;
#[cfg(test)]
mod tests;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// vLLM's activations, buffers and contexts take at least this, or this fraction (one in 20) of the
/// weights: a rule of thumb.
const MIN_VLLM_OVERHEAD: u64 = 2 * GIB;
const OVERHEAD_DIVISOR: u64 = 20;
/// Memory of captured graphs, which `--enforce-eager` disables; 0.5 to 2.5 GiB have been measured.
const VLLM_GRAPHS: u64 = GIB;
/// Maximum size of a JSON file; the index of a model of 700 GB has 9 MB.
const MAX_JSON: u64 = 64 * MIB;
/// Maximum number of entries that are read of a model's folder.
const MAX_ENTRIES: usize = 4096;
/// The keys under which multimodal models describe their language model.
const NESTED: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// The workload that a model has to serve, and how its engine is told to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Serving {
    /// Maximum sequence length in tokens; 0 for what the model was trained for, which llama.cpp
    /// divides among the sequences.
    pub context: u64,
    /// Number of concurrent sequences of that length.
    pub sequences: u64,
    /// Graphs are not captured (vLLM's `--enforce-eager`).
    pub eager: bool,
    /// Type of the keys in the KV cache; `None` for the engine's default.
    pub keys: Option<CacheType>,
    /// Type of the values in the KV cache; `None` for the engine's default.
    pub values: Option<CacheType>,
    /// All sequences share the cells of one cache (llama.cpp's `--kv-unified`).
    pub unified: bool,
    /// Layers with a sliding window store all tokens (llama.cpp's `--swa-full`).
    pub full_windows: bool,
    /// Attention is computed without flash attention (llama.cpp's `--flash-attn off`).
    pub no_flash_attention: bool,
    /// Tokens that are computed at once; 0 for the engine's default.
    pub step: u64,
    /// Weights and activations have 32 bits (vLLM's `--dtype float32`).
    pub single_precision: bool,
}

/// The bytes that a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of the KV cache of all sequences, and of the states of recurrent layers.
    pub kv: u64,
    /// Bytes of the buffers for activations, if they follow from the model's files. Part of
    /// `overhead`.
    pub compute: Option<u64>,
    /// Bytes of everything else: a rule of thumb.
    pub overhead: u64,
    /// Bytes of the KV cache for one token, before a sliding window drops it.
    pub kv_per_token: u64,
    /// What is loaded with the model.
    pub extras: Vec<Extra>,
    /// Short name for people.
    pub model: String,
    /// Data type of the weights as written in the files: `bfloat16`, `float16, awq`, `Q4_K_M`.
    pub dtype: Option<String>,
    files: usize,
    kind: Kind,
    cache: Cache,
    serving: Serving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Safetensors,
    Gguf,
}

/// The reason why the memory of a model cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum FootprintError {
    /// A file cannot be read.
    #[error("failed to read {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// The path is one file of a model for vLLM; the second path is its directory.
    #[error("{0} is a single file, but vLLM needs the folder: use {1}")]
    WantsFolder(PathBuf, PathBuf),
    /// The path is not a model; the text says what it is instead.
    #[error(
        "{0}: not a model ({1}); expected a folder with *.safetensors and config.json, \
         or a .gguf file"
    )]
    NoModel(PathBuf, String),
    /// A file is missing that another one requires.
    #[error("missing {0}, which {1} requires; download the model again")]
    Missing(PathBuf, PathBuf),
    /// The path is a later part of a split model; the second path is the first part.
    #[error("{0} is not the first part of the model, which llama.cpp needs: use {1}")]
    LaterPart(PathBuf, PathBuf),
    /// llama.cpp does not start with these settings.
    #[error("quantised values in the KV cache need flash attention; remove `--flash-attn off`")]
    NeedsFlashAttention,
    /// The file is the placeholder that Git LFS keeps for a large file.
    #[error("{0} is a Git LFS pointer, not the model; run `git lfs pull` in its folder")]
    Pointer(PathBuf),
    /// A file is not valid in its format; the text says why.
    #[error("invalid model file {0}: {1}; download the model again")]
    Malformed(PathBuf, String),
    /// A value that is needed is missing or invalid: the file, the key, and what is wrong.
    #[error("\"{1}\" in {0} {2}; correct it, or set the memory of the lane yourself")]
    Key(PathBuf, String, &'static str),
}

impl Footprint {
    /// Returns the sum of all parts.
    pub fn total(&self) -> u64 {
        let extras = self.extras.iter().map(Extra::total);
        [self.weights, self.kv, self.overhead]
            .into_iter()
            .chain(extras)
            .fold(0, |sum: u64, part| sum.saturating_add(part))
    }

    /// Returns the bytes of all parts but the KV cache.
    pub fn fixed(&self) -> u64 {
        self.total().saturating_sub(self.kv)
    }

    /// Returns the length of a sequence in tokens.
    pub fn context(&self) -> u64 {
        self.serving.context
    }

    /// Returns the parts that engines report when they start.
    pub fn estimate(&self) -> MemoryEstimate {
        let sum = |part: fn(&Extra) -> u64| {
            self.extras.iter().fold(0, |sum: u64, extra| sum.saturating_add(part(extra)))
        };
        MemoryEstimate {
            weights: self.weights.saturating_add(sum(|extra| extra.reported)),
            kv: Some(self.kv.saturating_add(sum(|extra| extra.kv))),
            compute: self.compute,
            total: self.total(),
        }
    }

    /// Returns the computation as text.
    pub fn explain(&self) -> String {
        let kind = match self.kind {
            Kind::Safetensors => "safetensors",
            Kind::Gguf => "GGUF",
        };
        let dtype = self.dtype.as_ref().map_or_else(String::new, |dtype| format!(", {dtype}"));
        let graphs = match self.kind {
            Kind::Safetensors if !self.serving.eager => {
                format!(" ({} of which for graphs)", format_size(VLLM_GRAPHS))
            }
            Kind::Safetensors | Kind::Gguf => String::new(),
        };
        let extras: String = self.extras.iter().map(|extra| format!(" + {extra}")).collect();
        format!(
            "weights {} ({} {kind} {}{dtype}) + KV {} ({}){extras} + overhead {}{graphs} = {}",
            format_size(self.weights),
            self.files,
            plural(self.files == 1, "file"),
            format_size(self.kv),
            self.cache.explain(&self.serving),
            format_size(self.overhead),
            format_size(self.total()),
        )
    }
}

fn plural(one: bool, word: &str) -> String {
    format!("{word}{}", if one { "" } else { "s" })
}

/// Formats a size with one decimal: "1.5 GiB", or "1.5 MiB", "256 KiB" and "12 B" below.
pub fn format_size(bytes: u64) -> String {
    let tenths = |unit: u64| (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
    for (unit, name) in [(KIB, "KiB"), (MIB, "MiB")] {
        if bytes < KIB {
            return format!("{bytes} B");
        }
        let tenths = tenths(unit);
        // A value that would be rounded to 1024 is shown in the next unit.
        if tenths < 10 * 1024 {
            let whole = tenths / 10;
            return match tenths % 10 {
                0 => format!("{whole} {name}"),
                digit => format!("{whole}.{digit} {name}"),
            };
        }
    }
    let tenths = tenths(GIB);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// Computes the memory for the model at `path`: a folder with safetensors and config.json (vLLM),
/// or a .gguf file (llama.cpp), where the first of several parts stands for all.
///
/// # Errors
/// Returns an error if the model is incomplete, or its description lacks a value.
pub fn estimate_footprint(path: &Path, serving: &Serving) -> Result<Footprint, FootprintError> {
    let metadata = fs::metadata(path).map_err(|source| cannot_read(path, source))?;
    if metadata.is_dir() {
        return folder_footprint(path, serving);
    }
    let no_model = |found: &str| FootprintError::NoModel(path.to_owned(), found.to_owned());
    if !metadata.is_file() {
        return Err(no_model("neither a file nor a folder"));
    }
    let has_extension = |wanted: &str| {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
    };
    if has_extension("safetensors") {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        return Err(FootprintError::WantsFolder(path.to_owned(), folder));
    }
    // Ollama's blobs are GGUF files without the extension.
    let mut magic = Vec::new();
    let file = open_regular(path).map_err(|error| cannot_read(path, error.into()))?;
    file.take(4).read_to_end(&mut magic).map_err(|source| cannot_read(path, source))?;
    if magic == gguf::MAGIC || has_extension("gguf") {
        return gguf::footprint(path, serving);
    }
    Err(no_model("an unknown file format"))
}

fn cannot_read(path: &Path, source: io::Error) -> FootprintError {
    FootprintError::Io(path.to_owned(), source)
}

/// Returns the size of a file with weights in bytes. `named_by` is the file that refers to it.
fn size_of(path: &Path, named_by: &Path) -> Result<u64, FootprintError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(cannot_read(path, source));
        }
        Ok(_) | Err(_) => {
            return Err(FootprintError::Missing(path.to_owned(), named_by.to_owned()));
        }
    };
    if metadata.len() < KIB {
        let bytes = read_regular(path, KIB).map_err(|error| cannot_read(path, error.into()))?;
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(FootprintError::Pointer(path.to_owned()));
        }
    }
    Ok(metadata.len())
}

/// Returns the last component of a path, or the name of the model if the path is in the Hugging
/// Face cache (`models--Qwen--Qwen2.5-7B/snapshots/<hash>`).
fn short_name(path: &Path) -> String {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let given = path.file_name().or(absolute.file_name()).unwrap_or(path.as_os_str());
    let cached = absolute
        .iter()
        .find_map(|part| part.to_str()?.strip_prefix("models--")?.rsplit("--").next());
    cached.map_or_else(|| given.to_string_lossy().into_owned(), str::to_owned)
}

fn folder_footprint(folder: &Path, serving: &Serving) -> Result<Footprint, FootprintError> {
    let (weights, files) = safetensors(folder)?;
    let file = folder.join("config.json");
    let Some(top) = read_json(&file)? else {
        return Err(FootprintError::Missing(file, folder.to_owned()));
    };
    let nested = NESTED.iter().find_map(|key| top.get(*key)?.as_object());
    let config = Config { file: &file, text: nested.unwrap_or(&top), top: &top };
    let dtype = config.dtype()?;
    let quantization =
        top.get("quantization_config").and_then(|config| config.get("quant_method")?.as_str());
    // vLLM computes with 16 bits unless it is told otherwise, also if the files have 32.
    let is_wide = matches!(dtype, Some("float32" | "float"));
    let weights = match (is_wide, serving.single_precision) {
        _ if quantization.is_some() => weights,
        (true, false) => weights / 2,
        (false, true) => weights.saturating_mul(2),
        (true, true) | (false, false) => weights,
    };
    let cache = config.cache(serving)?;
    let graphs = if serving.eager { 0 } else { VLLM_GRAPHS };
    let parts: Vec<&str> = dtype.into_iter().chain(quantization).collect();
    Ok(Footprint {
        weights,
        kv: cache.bytes(serving),
        compute: None,
        extras: Vec::new(),
        overhead: MIN_VLLM_OVERHEAD.max(weights / OVERHEAD_DIVISOR).saturating_add(graphs),
        kv_per_token: cache.per_token(),
        model: short_name(folder),
        dtype: Some(parts.join(", ")).filter(|dtype| !dtype.is_empty()),
        files,
        kind: Kind::Safetensors,
        cache,
        serving: *serving,
    })
}

/// Returns the total size and the number of the files with weights: those in the index or, without
/// an index, all of them.
fn safetensors(folder: &Path) -> Result<(u64, usize), FootprintError> {
    let index = folder.join("model.safetensors.index.json");
    let mut wanted = BTreeSet::new();
    let mut named_by = folder;
    if let Some(top) = read_json(&index)? {
        let map = top.get("weight_map").and_then(Value::as_object);
        let files = map.and_then(|map| map.values().map(Value::as_str).collect::<Option<Vec<_>>>());
        // A path to another directory is not part of this model.
        let here = |file: &&str| Path::new(file).file_name() == Some(file.as_ref());
        match files.filter(|files| !files.is_empty() && files.iter().all(here)) {
            Some(files) => wanted.extend(files.into_iter().map(str::to_owned)),
            None => {
                return Err(key_error(
                    &index,
                    "weight_map",
                    "does not map tensors to files in the folder",
                ));
            }
        }
        named_by = &index;
    } else {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(folder).map_err(|source| cannot_read(folder, source))? {
            let entry = entry.map_err(|source| cannot_read(folder, source))?;
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
        wanted.extend(found.iter().filter(|name| name.ends_with(".safetensors")).cloned());
        if wanted.is_empty() {
            return Err(FootprintError::NoModel(folder.to_owned(), describe_contents(&found)));
        }
    }
    let mut bytes = 0_u64;
    // Sums and products of sizes saturate: all of them come from files.
    for name in &wanted {
        bytes = bytes.saturating_add(size_of(&folder.join(name), named_by)?);
    }
    Ok((bytes, wanted.len()))
}

fn describe_contents(found: &BTreeSet<String>) -> String {
    if let Some(file) = found.iter().find(|name| name.ends_with(".gguf")) {
        return format!("a folder with {file}; name the file itself for llama.cpp");
    }
    let first: Vec<&str> = found.iter().take(5).map(String::as_str).collect();
    match found.len() {
        0 => "an empty folder".to_owned(),
        1..=5 => format!("a folder with {}", first.join(", ")),
        more => format!("a folder with {} and {} more", first.join(", "), more - first.len()),
    }
}

/// Reads a JSON object from a file; `None` if the file does not exist.
fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, FootprintError> {
    let bytes = match read_regular(path, MAX_JSON) {
        Err(error) if error.is_not_found() => return Ok(None),
        read => read.map_err(|error| cannot_read(path, error.into()))?,
    };
    let object = serde_json::from_slice(&bytes);
    let malformed =
        |error| FootprintError::Malformed(path.to_owned(), format!("not a JSON object: {error}"));
    object.map(Some).map_err(malformed)
}

fn key_error(file: &Path, key: &str, problem: &'static str) -> FootprintError {
    FootprintError::Key(file.to_owned(), key.to_owned(), problem)
}

/// Returns the files with the weights of the model at `path`: a file with all of its parts, or the
/// files of a folder. Empty if there are none.
pub(crate) fn weight_files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        let extensions = ["safetensors", "bin", "pt", "pth", "gguf"];
        let has_weights = |path: &PathBuf| {
            path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted))
        };
        let entries = fs::read_dir(path).into_iter().flatten().take(MAX_ENTRIES);
        let mut files: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(has_weights).collect();
        files.sort();
        return files;
    }
    if path.is_file() { gguf::parts(path) } else { Vec::new() }
}
