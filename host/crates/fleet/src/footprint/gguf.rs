//! The header of GGUF files. It is untrusted: allocations grow only with bytes that are
//! actually present, and every loop consumes a byte budget.

mod layers;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use pointsman_files::open_regular;

use super::{
    Footprint, FootprintError, Kind, MIB, OVERHEAD_DIVISOR, Serving, cannot_read, key_error,
    short_name, size_of,
};

/// The first bytes of every GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Maximum number of header bytes; vocabularies take up to about 20 MiB.
const MAX_HEADER: u64 = 64 * MIB;
/// Maximum length of a string that is skipped.
const MAX_STRING: u64 = 16 * MIB;
/// Maximum length of a string or an array that is kept.
const MAX_KEPT: u64 = 1024;
/// Maximum number of keys; files have about 40.
const MAX_KEYS: u64 = 1 << 16;
/// Maximum number of tensors; files have about 1000.
const MAX_TENSORS: u64 = 1 << 20;
/// Fixed part of llama.cpp's buffers, in addition to a fraction of the weights: a rule of thumb.
const MIN_LLAMA_CPP_OVERHEAD: u64 = 512 * MIB;
/// What llama.cpp takes besides its buffers, if these are larger than that: a rule of thumb.
const PROCESS: u64 = 256 * MIB;
/// Maximum number of keys that are kept; a file has about 20 of them.
const MAX_KEPT_KEYS: usize = 256;
/// Suffixes of the keys that are kept.
const KEPT: [&str; 29] = [
    "general.architecture",
    "general.file_type",
    ".block_count",
    ".context_length",
    ".embedding_length",
    ".feed_forward_length",
    ".expert_feed_forward_length",
    ".expert_used_count",
    ".nextn_predict_layers",
    ".full_attention_interval",
    ".token_shift_count",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
    ".attention.key_length_swa",
    ".attention.value_length_swa",
    ".attention.key_length_mla",
    ".attention.value_length_mla",
    ".attention.shared_kv_layers",
    ".attention.sliding_window",
    ".attention.sliding_window_pattern",
    ".ssm.conv_kernel",
    ".ssm.inner_size",
    ".ssm.state_size",
    ".ssm.group_count",
    ".wkv.head_size",
    ".shortconv.l_cache",
    ".kda.head_dim",
];
/// Value types of the format.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Computes the memory for the model in a file.
pub(super) fn footprint(path: &Path, serving: &Serving) -> Result<Footprint, FootprintError> {
    let malformed = |problem: &str| FootprintError::Malformed(path.to_owned(), problem.to_owned());
    let (weights, files) = sizes(path)?;
    let file = open_regular(path).map_err(|error| cannot_read(path, error.into()))?;
    let header = Header::read(BufReader::new(file)).map_err(|error| match error {
        HeaderError::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            malformed("the file ends in its header")
        }
        HeaderError::Io(source) => cannot_read(path, source),
        HeaderError::Malformed(problem) => malformed(&problem),
    })?;
    let mut serving = *serving;
    if serving.context == 0 {
        let all = header.trained_context(path)?;
        serving.context = all / serving.sequences.max(1);
    }
    if serving.no_flash_attention && serving.values.is_some_and(|kind| kind.is_quantised()) {
        return Err(FootprintError::NeedsFlashAttention);
    }
    let cache = layers::cache(&header, path, &serving)?;
    let compute = layers::compute(&header, path, &serving);
    let name = short_name(path);
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let rule = MIN_LLAMA_CPP_OVERHEAD.saturating_add(weights / OVERHEAD_DIVISOR);
    Ok(Footprint {
        weights,
        kv: cache.bytes(&serving),
        compute,
        overhead: rule.max(compute.unwrap_or(0).saturating_add(PROCESS)),
        kv_per_token: cache.per_token(),
        extras: Vec::new(),
        model: part_of(stem).map_or(stem, |(model, _, _)| model).to_owned(),
        dtype: header.file_type().map(str::to_owned),
        files,
        kind: Kind::Gguf,
        cache,
        serving,
    })
}

/// Splits the stem `model-00001-of-00003` of a file name into the model, the number of the part and
/// the number of parts.
fn part_of(stem: &str) -> Option<(&str, u32, u32)> {
    let number = |digits: &str| -> Option<u32> {
        let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok())?
    };
    let (head, all) = stem.rsplit_once("-of-")?;
    let (model, part) = head.rsplit_once('-')?;
    let (part, all) = (number(part)?, number(all)?);
    (1..=all).contains(&part).then_some((model, part, all))
}

/// Returns the number of the part at `path`, and the paths of all parts; `None` for a model that is
/// a single file.
fn split(path: &Path) -> Option<(u32, impl Iterator<Item = PathBuf>)> {
    let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".gguf"))?;
    let (model, part, all) = part_of(stem)?;
    let file = move |part: u32| path.with_file_name(format!("{model}-{part:05}-of-{all:05}.gguf"));
    Some((part, (1..=all).map(file)))
}

/// Returns the files of the model at `path` that are there.
pub(super) fn parts(path: &Path) -> Vec<PathBuf> {
    match split(path) {
        Some((_, files)) => files.take_while(|file| file.is_file()).collect(),
        None => vec![path.to_owned()],
    }
}

/// Returns the total size and the number of the files of a model.
fn sizes(path: &Path) -> Result<(u64, usize), FootprintError> {
    let Some((part, mut parts)) = split(path) else { return Ok((size_of(path, path)?, 1)) };
    if part != 1 {
        let first = parts.next().unwrap_or_default();
        return Err(FootprintError::LaterPart(path.to_owned(), first));
    }
    let (mut bytes, mut files) = (0_u64, 0);
    for file in parts {
        bytes = bytes.saturating_add(size_of(&file, path)?);
        files += 1;
    }
    Ok((bytes, files))
}

/// The reason why a header cannot be parsed.
#[derive(Debug)]
pub(super) enum HeaderError {
    /// The file cannot be read, or ends in its header.
    Io(io::Error),
    /// The contents are invalid; the text says why.
    Malformed(String),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn malformed<T>(problem: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Malformed(problem.into()))
}

/// The value of a key.
#[derive(Debug)]
enum Value {
    Text(String),
    Number(u64),
    /// A number for each layer.
    List(Vec<u64>),
    /// A value that is not used.
    Other,
}

/// The keys of a file that determine the size of the KV cache.
#[derive(Debug)]
pub(super) struct Header(BTreeMap<String, Value>);

impl Header {
    /// Reads the keys, but not the list of tensors that follows them.
    pub(super) fn read(from: impl BufRead) -> Result<Self, HeaderError> {
        let mut reader = Reader { from, left: MAX_HEADER };
        let mut magic = [0; 4];
        reader.exact(&mut magic)?;
        if magic != MAGIC {
            return malformed("not a GGUF file");
        }
        match reader.u32()? {
            2 | 3 => {}
            version if version.trailing_zeros() >= 16 => {
                return malformed("big-endian files are not supported");
            }
            version => {
                return malformed(format!("unsupported version {version}: expected 2 or 3"));
            }
        }
        let (tensors, keys) = (reader.u64()?, reader.u64()?);
        if tensors > MAX_TENSORS || keys > MAX_KEYS {
            return malformed(format!("implausible header: {tensors} tensors and {keys} keys"));
        }
        let mut values = BTreeMap::new();
        for _ in 0..keys {
            let key =
                reader.string()?.filter(|key| KEPT.iter().any(|suffix| key.ends_with(suffix)));
            let kind = reader.u32()?;
            let value = reader.value(kind, key.is_some())?;
            if let Some(key) = key {
                if values.len() >= MAX_KEPT_KEYS {
                    return malformed("implausible header: too many keys of layers");
                }
                values.insert(key, value);
            }
        }
        Ok(Self(values))
    }

    /// Returns the name of the architecture, which the other keys begin with.
    fn architecture(&self, file: &Path) -> Result<&str, FootprintError> {
        const KEY: &str = "general.architecture";
        match self.0.get(KEY) {
            Some(Value::Text(text)) => Ok(text),
            found => Err(key_error(file, KEY, problem(found, "is not a string"))),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Returns the sequence length that the model was trained for.
    fn trained_context(&self, file: &Path) -> Result<u64, FootprintError> {
        let key = format!("{}.context_length", self.architecture(file)?);
        match self.0.get(&key) {
            Some(Value::Number(number)) => Ok(*number),
            found => Err(key_error(file, &key, problem(found, "is not an integer"))),
        }
    }

    /// Returns the name of `general.file_type` (llama.cpp's `llama_ftype`).
    fn file_type(&self) -> Option<&'static str> {
        let Some(Value::Number(number)) = self.0.get("general.file_type") else { return None };
        Some(match number {
            0 => "F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            7 => "Q8_0",
            8 => "Q5_0",
            9 => "Q5_1",
            10 => "Q2_K",
            11 => "Q3_K_S",
            12 => "Q3_K_M",
            13 => "Q3_K_L",
            14 => "Q4_K_S",
            15 => "Q4_K_M",
            16 => "Q5_K_S",
            17 => "Q5_K_M",
            18 => "Q6_K",
            25 => "IQ4_NL",
            30 => "IQ4_XS",
            32 => "BF16",
            _ => return None,
        })
    }
}

fn problem(found: Option<&Value>, wrong_type: &'static str) -> &'static str {
    if found.is_some() { wrong_type } else { "is missing" }
}

/// A reader of little-endian values with a byte budget.
struct Reader<R> {
    from: R,
    /// Bytes that may still be read.
    left: u64,
}

impl<R: BufRead> Reader<R> {
    fn spend(&mut self, bytes: u64) -> Result<(), HeaderError> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return malformed(format!("header larger than {} MiB", MAX_HEADER / MIB)),
        }
        Ok(())
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), HeaderError> {
        self.spend(bytes.len() as u64)?;
        Ok(self.from.read_exact(bytes)?)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), HeaderError> {
        self.spend(bytes)?;
        let skipped = io::copy(&mut self.from.by_ref().take(bytes), &mut io::sink())?;
        if skipped == bytes {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    /// Reads a string; `None` for a string that is too long to be kept or not UTF-8, which is
    /// skipped.
    fn string(&mut self) -> Result<Option<String>, HeaderError> {
        let length = self.u64()?;
        if length > MAX_STRING {
            return malformed(format!("implausible string of {length} bytes"));
        }
        if length > MAX_KEPT {
            return self.skip(length).map(|()| None);
        }
        // At most `MAX_KEPT`, so the length can be trusted with an allocation.
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.exact(&mut bytes)?;
        Ok(String::from_utf8(bytes).ok())
    }

    fn value(&mut self, kind: u32, keep: bool) -> Result<Value, HeaderError> {
        match kind {
            STRING => Ok(self.string()?.map_or(Value::Other, Value::Text)),
            ARRAY => self.array(keep),
            _ => Ok(self.number(kind)?.map_or(Value::Other, Value::Number)),
        }
    }

    fn array(&mut self, keep: bool) -> Result<Value, HeaderError> {
        let (kind, count) = (self.u32()?, self.u64()?);
        match kind {
            ARRAY => malformed("nested arrays are not supported"),
            STRING => {
                // Each element consumes at least the bytes of its length, so the budget bounds this
                // loop.
                for _ in 0..count {
                    let length = self.u64()?;
                    if length > MAX_STRING {
                        return malformed(format!("implausible string of {length} bytes"));
                    }
                    self.skip(length)?;
                }
                Ok(Value::Other)
            }
            _ if keep && count <= MAX_KEPT => {
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.number(kind)?);
                }
                let list: Option<Vec<u64>> = list.into_iter().collect();
                Ok(list.map_or(Value::Other, Value::List))
            }
            _ => {
                self.skip(count.saturating_mul(width(kind)? as u64))?;
                Ok(Value::Other)
            }
        }
    }

    /// Reads a number; `None` for a number that is negative or not an integer.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, HeaderError> {
        let width = width(kind)?;
        let mut bytes = [0; 8];
        self.exact(bytes.get_mut(..width).unwrap_or_default())?;
        let number = u64::from_le_bytes(bytes);
        Ok(match kind {
            // Unsigned.
            0 | 2 | 4 | 10 => Some(number),
            // Signed: the highest bit is the sign.
            1 | 3 | 5 | 11 => Some(number).filter(|number| number >> (8 * width - 1) == 0),
            // Booleans, which say of each layer whether it has a window.
            7 => Some(number).filter(|number| *number <= 1),
            // Floating point numbers.
            _ => None,
        })
    }
}

/// Returns the number of bytes of a number.
fn width(kind: u32) -> Result<usize, HeaderError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => malformed(format!("unknown value type {kind}")),
    }
}
