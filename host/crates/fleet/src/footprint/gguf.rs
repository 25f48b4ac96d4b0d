//! The header of GGUF files. The header is untrusted: allocations grow only with bytes that are
//! actually present, and every loop consumes a byte budget.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use pointsman_files::open_regular;

use super::{
    Cache, Footprint, FootprintError, Kind, MIB, OVERHEAD_DIVISOR, Serving, cannot_read, key_error,
};
use super::{short_name, size_of};

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
/// Bytes of an element of llama.cpp's KV cache: f16, unless `--cache-type-k` and `-v` are set.
const ELEMENT_BYTES: u64 = 2;
/// Fixed part of llama.cpp's buffers, in addition to a fraction of the weights: a rule of thumb.
const MIN_LLAMA_CPP_OVERHEAD: u64 = 512 * MIB;
/// Suffixes of the keys that are kept.
const KEPT: [&str; 8] = [
    "general.architecture",
    "general.file_type",
    ".block_count",
    ".embedding_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
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
    let per_token = header.cache_per_token(path)?;
    let cache = Cache { full: per_token, ..Cache::default() };
    let name = short_name(path);
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    Ok(Footprint {
        weights,
        kv: cache.bytes(serving),
        overhead: MIN_LLAMA_CPP_OVERHEAD.saturating_add(weights / OVERHEAD_DIVISOR),
        kv_per_token: per_token,
        model: part_of(stem).map_or(stem, |(model, _, _)| model).to_owned(),
        dtype: header.file_type().map(str::to_owned),
        files,
        kind: Kind::Gguf,
        cache,
        serving: *serving,
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

/// Returns the total size and the number of the files of a model.
fn sizes(path: &Path) -> Result<(u64, usize), FootprintError> {
    let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".gguf"));
    let Some((model, part, all)) = stem.and_then(part_of) else {
        return Ok((size_of(path, path)?, 1));
    };
    let file = |part: u32| -> PathBuf {
        path.with_file_name(format!("{model}-{part:05}-of-{all:05}.gguf"))
    };
    if part != 1 {
        return Err(FootprintError::LaterPart(path.to_owned(), file(1)));
    }
    let mut bytes = 0_u64;
    let mut files = 0;
    for part in 1..=all {
        bytes = bytes.saturating_add(size_of(&file(part), path)?);
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
                values.insert(key, value);
            }
        }
        Ok(Self(values))
    }

    /// Returns the bytes of the KV cache for one token in all layers. llama.cpp stores less for
    /// models with a sliding window, but the file does not say in which layers.
    fn cache_per_token(&self, file: &Path) -> Result<u64, FootprintError> {
        let architecture = match self.0.get("general.architecture") {
            Some(Value::Text(text)) => text,
            found => {
                return Err(key_error(
                    file,
                    "general.architecture",
                    problem(found, "is not a string"),
                ));
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| match self.0.get(&key(name)) {
            Some(Value::Number(number)) => Ok(*number),
            found => Err(key_error(file, &key(name), problem(found, "is not an integer"))),
        };
        let layers = number("block_count")?;
        // Returns the sum over all layers, and the maximum of one layer.
        let heads = |name: &str| match self.0.get(&key(name)) {
            Some(Value::Number(number)) => Ok((number.saturating_mul(layers), *number)),
            Some(Value::List(list)) if list.len() as u64 >= layers => {
                let sum = list
                    .iter()
                    .zip(0..layers)
                    .fold(0_u64, |sum, (heads, _)| sum.saturating_add(*heads));
                Ok((sum, list.iter().copied().max().unwrap_or(0)))
            }
            Some(Value::List(_)) => {
                Err(key_error(file, &key(name), "has fewer elements than the model has layers"))
            }
            found => Err(key_error(
                file,
                &key(name),
                problem(found, "is neither an integer nor an array of integers"),
            )),
        };
        let grouped = self.0.contains_key(&key("attention.head_count_kv"));
        let kv_heads =
            heads(if grouped { "attention.head_count_kv" } else { "attention.head_count" })?.0;
        let length = |name: &str| -> Result<u64, FootprintError> {
            if self.0.contains_key(&key(name)) {
                return number(name);
            }
            let max_heads = heads("attention.head_count")?.1;
            let per_head = number("embedding_length")?.checked_div(max_heads);
            per_head.ok_or_else(|| key_error(file, &key("attention.head_count"), "is 0"))
        };
        let elements =
            length("attention.key_length")?.saturating_add(length("attention.value_length")?);
        Ok(kv_heads.saturating_mul(elements).saturating_mul(ELEMENT_BYTES))
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
            // Floating point numbers and booleans.
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
