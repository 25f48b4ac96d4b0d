//! How much memory a model needs, worked out from its files before an engine is started. Nothing here reads
//! weights.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::config::Config;

mod config;
mod gguf;
#[cfg(test)]
mod tests;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Tokens in a block of vLLM's cache (`--block-size`); a sequence takes whole blocks.
const BLOCK: u64 = 16;
/// vLLM's activations, buffers and contexts take at least this, or this share (one in 20) of the weights: a
/// rule of thumb.
const VLLM_LEAST: u64 = 2 * GIB;
const SHARE: u64 = 20;
/// Captured graphs, which `--enforce-eager` does without; 0.5 to 2.5 GiB have been seen.
const VLLM_GRAPHS: u64 = GIB;
/// Longest JSON file that is read; the index of a model of 700 GB has 9 MB.
const LONGEST_JSON: u64 = 64 * MIB;
/// Where multimodal models say what their language model is like.
const NESTED: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// What is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Tokens of the longest sequence.
    pub context: u64,
    /// Sequences of that length at once.
    pub sequences: u64,
    /// Without captured graphs (vLLM's `--enforce-eager`).
    pub eager: bool,
}

/// Bytes that a model needs, by cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// The files.
    pub weights: u64,
    /// The cache of keys and values of all sequences.
    pub kv: u64,
    /// Everything else: a rule of thumb.
    pub overhead: u64,
    /// The cache's share for one token, as long as no sliding window forgets it.
    pub kv_per_token: u64,
    /// Short name for people.
    pub model: String,
    /// What the weights are made of, as the files say it: `bfloat16`, `float16, awq`, `Q4_K_M`.
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

/// Bytes of the cache for each token of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cache {
    /// In layers that see the whole sequence.
    full: u64,
    /// In layers that see the last `window` tokens only.
    sliding: u64,
    window: u64,
}

/// Why the need of a model is not known.
#[derive(Debug, thiserror::Error)]
pub enum FootprintError {
    /// The file system refuses.
    #[error("{0} cannot be read: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// One file of a model for vLLM, and its folder.
    #[error("{0} is one file of a model; vLLM wants the folder: write {1}")]
    WantsFolder(PathBuf, PathBuf),
    /// No model, and what is there instead.
    #[error(
        "{0} is no model: {1}; name a folder with *.safetensors and config.json, or a .gguf file"
    )]
    NoModel(PathBuf, String),
    /// A file that is missing, and what counts on it.
    #[error("{0} is not there, but {1} counts on it; download the model again")]
    Missing(PathBuf, PathBuf),
    /// A later part of a split model, and the first one.
    #[error("{0} is not the first part of its model, and llama.cpp wants the first: write {1}")]
    LaterPart(PathBuf, PathBuf),
    /// The text that Git keeps in place of a large file.
    #[error("{0} is a Git LFS pointer, not the model; run \"git lfs pull\" in its folder")]
    Pointer(PathBuf),
    /// A file that is not of its format, and what is wrong, as the rest of a sentence about it.
    #[error("{0} {1}; download the model again")]
    Malformed(PathBuf, String),
    /// A value that is needed, by file and name, and what is wrong, as the rest of a sentence about it.
    #[error("\"{1}\" in {0} {2}; correct it, or say yourself how much memory the model needs")]
    Key(PathBuf, String, &'static str),
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.overhead)
    }

    /// The arithmetic for people.
    pub fn explain(&self) -> String {
        let kind = match self.kind {
            Kind::Safetensors => "safetensors",
            Kind::Gguf => "GGUF",
        };
        let dtype = self.dtype.as_ref().map_or_else(String::new, |dtype| format!(", {dtype}"));
        let graphs = match self.kind {
            Kind::Safetensors if !self.serving.eager => {
                format!(" ({} of it for graphs)", gib(VLLM_GRAPHS))
            }
            Kind::Safetensors | Kind::Gguf => String::new(),
        };
        format!(
            "weights {} ({} {kind} {}{dtype}) + KV {} ({} x {} {}) + overhead {}{graphs} = {}",
            gib(self.weights),
            self.files,
            plural(self.files == 1, "file"),
            gib(self.kv),
            self.cache.explain(self.serving.context),
            self.serving.sequences,
            plural(self.serving.sequences == 1, "sequence"),
            gib(self.overhead),
            gib(self.total()),
        )
    }
}

impl Cache {
    /// Tokens held in layers that see everything, and in layers with a window.
    fn tokens(&self, context: u64) -> (u64, u64) {
        let blocks = |tokens: u64| tokens.div_ceil(BLOCK).saturating_mul(BLOCK);
        (blocks(context), blocks(context.min(self.window)))
    }

    fn bytes(&self, serving: &Serving) -> u64 {
        let (full, sliding) = self.tokens(serving.context);
        let sequence =
            self.full.saturating_mul(full).saturating_add(self.sliding.saturating_mul(sliding));
        sequence.saturating_mul(serving.sequences)
    }

    fn per_token(&self) -> u64 {
        self.full.saturating_add(self.sliding)
    }

    fn explain(&self, context: u64) -> String {
        let (full, sliding) = self.tokens(context);
        let product = |bytes, tokens| format!("{} a token x {tokens} tokens", gib(bytes));
        if self.sliding == 0 || sliding == full {
            return product(self.per_token(), full);
        }
        let window = format!("{} of the sliding window", product(self.sliding, sliding));
        if self.full == 0 { window } else { format!("({} + {window})", product(self.full, full)) }
    }
}

fn plural(one: bool, word: &str) -> String {
    format!("{word}{}", if one { "" } else { "s" })
}

/// "1.5 GiB", with one digit behind the point; "1.5 MiB", "256 KiB" and "12 B" below.
pub fn gib(bytes: u64) -> String {
    let tenths = |unit: u64| (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
    for (unit, name) in [(KIB, "KiB"), (MIB, "MiB")] {
        if bytes < KIB {
            return format!("{bytes} B");
        }
        let tenths = tenths(unit);
        // What would be rounded to 1024 belongs to the next unit.
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

/// What the model at `path` needs: a folder with safetensors and config.json (vLLM), or a .gguf file
/// (llama.cpp), of which the first of several parts stands for all.
///
/// The caches of sliding windows are counted as the window. vLLM wants room for the tokens of one step
/// (`max_num_batched_tokens`) beyond it.
///
/// # Errors
/// When there is no whole model, or its description lacks something.
pub fn of_model(path: &Path, serving: &Serving) -> Result<Footprint, FootprintError> {
    let about = fs::metadata(path).map_err(|source| cannot_read(path, source))?;
    if about.is_dir() {
        return of_folder(path, serving);
    }
    let no_model = |found: &str| FootprintError::NoModel(path.to_owned(), found.to_owned());
    if !about.is_file() {
        return Err(no_model("neither a file nor a folder"));
    }
    let ends_with =
        |wanted: &str| path.extension().is_some_and(|end| end.eq_ignore_ascii_case(wanted));
    if ends_with("safetensors") {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        return Err(FootprintError::WantsFolder(path.to_owned(), folder));
    }
    // Ollama's blobs are GGUF files without the ending.
    let mut magic = Vec::new();
    let file = File::open(path).map_err(|source| cannot_read(path, source))?;
    file.take(4).read_to_end(&mut magic).map_err(|source| cannot_read(path, source))?;
    if magic == gguf::MAGIC || ends_with("gguf") {
        return gguf::of_file(path, serving);
    }
    Err(no_model("a file of another kind"))
}

fn cannot_read(path: &Path, source: io::Error) -> FootprintError {
    FootprintError::Io(path.to_owned(), source)
}

/// Size of a file with weights in bytes. `named_by` is what made us look for it.
fn size_of(path: &Path, named_by: &Path) -> Result<u64, FootprintError> {
    let about = match fs::metadata(path) {
        Ok(about) if about.is_file() => about,
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(cannot_read(path, source));
        }
        Ok(_) | Err(_) => {
            return Err(FootprintError::Missing(path.to_owned(), named_by.to_owned()));
        }
    };
    if about.len() < KIB {
        let bytes = fs::read(path).map_err(|source| cannot_read(path, source))?;
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(FootprintError::Pointer(path.to_owned()));
        }
    }
    Ok(about.len())
}

/// Last name of a path, or the model's where the path lies in the cache of Hugging Face
/// (`models--Qwen--Qwen2.5-7B/snapshots/<hash>`).
fn short_name(path: &Path) -> String {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let given = path.file_name().or(whole.file_name()).unwrap_or(path.as_os_str());
    let cached =
        whole.iter().find_map(|part| part.to_str()?.strip_prefix("models--")?.rsplit("--").next());
    cached.map_or_else(|| given.to_string_lossy().into_owned(), str::to_owned)
}

fn of_folder(folder: &Path, serving: &Serving) -> Result<Footprint, FootprintError> {
    let (weights, files) = safetensors(folder)?;
    let file = folder.join("config.json");
    let Some(top) = read_json(&file)? else {
        return Err(FootprintError::Missing(file, folder.to_owned()));
    };
    let nested = NESTED.iter().find_map(|key| top.get(*key)?.as_object());
    let config = Config { file: &file, text: nested.unwrap_or(&top), top: &top };
    let dtype = config.dtype()?;
    let cache = config.cache(if matches!(dtype, Some("float32" | "float")) { 4 } else { 2 })?;
    let graphs = if serving.eager { 0 } else { VLLM_GRAPHS };
    let quantized =
        top.get("quantization_config").and_then(|how| how.get("quant_method")?.as_str());
    let words: Vec<&str> = dtype.into_iter().chain(quantized).collect();
    Ok(Footprint {
        weights,
        kv: cache.bytes(serving),
        overhead: VLLM_LEAST.max(weights / SHARE).saturating_add(graphs),
        kv_per_token: cache.per_token(),
        model: short_name(folder),
        dtype: Some(words.join(", ")).filter(|words| !words.is_empty()),
        files,
        kind: Kind::Safetensors,
        cache,
        serving: *serving,
    })
}

/// Bytes and number of the files with weights: those of the index, or all of them.
fn safetensors(folder: &Path) -> Result<(u64, usize), FootprintError> {
    let index = folder.join("model.safetensors.index.json");
    let mut wanted = BTreeSet::new();
    let mut named_by = folder;
    if let Some(top) = read_json(&index)? {
        let map = top.get("weight_map").and_then(Value::as_object);
        let files = map.and_then(|map| map.values().map(Value::as_str).collect::<Option<Vec<_>>>());
        // A file elsewhere is none of this model.
        let here = |file: &&str| Path::new(file).file_name() == Some(file.as_ref());
        match files.filter(|files| !files.is_empty() && files.iter().all(here)) {
            Some(files) => wanted.extend(files.into_iter().map(str::to_owned)),
            None => {
                return Err(key_error(
                    &index,
                    "weight_map",
                    "does not name the files of the weights",
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
            return Err(FootprintError::NoModel(folder.to_owned(), in_words(&found)));
        }
    }
    let mut bytes = 0_u64;
    for name in &wanted {
        bytes = bytes.saturating_add(size_of(&folder.join(name), named_by)?);
    }
    Ok((bytes, wanted.len()))
}

fn in_words(found: &BTreeSet<String>) -> String {
    if let Some(file) = found.iter().find(|name| name.ends_with(".gguf")) {
        return format!("a folder with {file}, and llama.cpp wants the file itself");
    }
    let first: Vec<&str> = found.iter().take(5).map(String::as_str).collect();
    match found.len() {
        0 => "an empty folder".to_owned(),
        1..=5 => format!("a folder with {}", first.join(", ")),
        more => format!("a folder with {} and {} more", first.join(", "), more - first.len()),
    }
}

/// The object in a file; `None` if there is no file.
fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, FootprintError> {
    let file = match File::open(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| cannot_read(path, source))?,
    };
    let mut bytes = Vec::new();
    file.take(LONGEST_JSON).read_to_end(&mut bytes).map_err(|source| cannot_read(path, source))?;
    let object = serde_json::from_slice(&bytes);
    let no_object =
        |error| FootprintError::Malformed(path.to_owned(), format!("is no JSON object ({error})"));
    object.map(Some).map_err(no_object)
}

fn key_error(file: &Path, key: &str, problem: &'static str) -> FootprintError {
    FootprintError::Key(file.to_owned(), key.to_owned(), problem)
}
