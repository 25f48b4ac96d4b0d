//! GGUF files: what their header says about the model. The header comes from outside, so that nothing in it
//! is believed: memory grows only with bytes that are really there, and every loop spends a budget of bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::{Cache, Footprint, FootprintError, Kind, MIB, SHARE, Serving, cannot_read, key_error};
use super::{short_name, size_of};

/// The first bytes of every GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Bytes of the header that are read; vocabularies take up to about 20 MiB.
const BUDGET: u64 = 64 * MIB;
/// Longest string that is skipped.
const LONGEST_STRING: u64 = 16 * MIB;
/// Longest string, and longest list, that is kept.
const LONGEST_KEPT: u64 = 1024;
/// Most keys; files have about 40.
const MOST_KEYS: u64 = 1 << 16;
/// Most tensors; files have about 1000.
const MOST_TENSORS: u64 = 1 << 20;
/// Bytes of an element of llama.cpp's cache, f16 unless `--cache-type-k` and `-v` say otherwise.
const ELEMENT: u64 = 2;
/// llama.cpp's buffers take this and a share of the weights: a rule of thumb.
const LLAMA_CPP_LEAST: u64 = 512 * MIB;
/// Ends of the keys that are kept.
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
/// Numbers of value types in the format.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// What the model in a file needs.
pub(super) fn of_file(path: &Path, serving: &Serving) -> Result<Footprint, FootprintError> {
    let malformed = |problem: &str| FootprintError::Malformed(path.to_owned(), problem.to_owned());
    let (weights, files) = sizes(path)?;
    let file = File::open(path).map_err(|source| cannot_read(path, source))?;
    let header = Header::read(BufReader::new(file)).map_err(|fault| match fault {
        Fault::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            malformed("ends in its header")
        }
        Fault::Io(source) => cannot_read(path, source),
        Fault::Bad(problem) => malformed(&problem),
    })?;
    let per_token = header.cache_per_token(path)?;
    let cache = Cache { full: per_token, ..Cache::default() };
    let name = short_name(path);
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    Ok(Footprint {
        weights,
        kv: cache.bytes(serving),
        overhead: LLAMA_CPP_LEAST.saturating_add(weights / SHARE),
        kv_per_token: per_token,
        model: part_of(stem).map_or(stem, |(model, _, _)| model).to_owned(),
        dtype: header.file_type().map(str::to_owned),
        files,
        kind: Kind::Gguf,
        cache,
        serving: *serving,
    })
}

/// Model, number of the part and of all parts in the stem `model-00001-of-00003` of a file's name.
fn part_of(stem: &str) -> Option<(&str, u32, u32)> {
    let number = |digits: &str| -> Option<u32> {
        let all = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| digits.parse().ok())?
    };
    let (head, all) = stem.rsplit_once("-of-")?;
    let (model, part) = head.rsplit_once('-')?;
    let (part, all) = (number(part)?, number(all)?);
    (1..=all).contains(&part).then_some((model, part, all))
}

/// Bytes and number of the files of a model.
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

/// Why a header cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file cannot, or ends too early.
    Io(io::Error),
    /// The rest of a sentence about the file.
    Bad(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn bad<T>(problem: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Bad(problem.into()))
}

/// What a key is set to.
#[derive(Debug)]
enum Value {
    Text(String),
    Number(u64),
    /// A number for each layer.
    List(Vec<u64>),
    /// Nothing that we know how to use.
    Other,
}

/// The keys of a file that say how large its cache is.
#[derive(Debug)]
pub(super) struct Header(BTreeMap<String, Value>);

impl Header {
    /// Read the keys, not the list of tensors behind them.
    pub(super) fn read(from: impl BufRead) -> Result<Self, Fault> {
        let mut reader = Reader { from, left: BUDGET };
        let mut magic = [0; 4];
        reader.exact(&mut magic)?;
        if magic != MAGIC {
            return bad("does not begin like a GGUF file");
        }
        match reader.u32()? {
            2 | 3 => {}
            version if version.trailing_zeros() >= 16 => return bad("is for big-endian machines"),
            version => {
                return bad(format!("has version {version} of the format; 2 and 3 are known"));
            }
        }
        let (tensors, keys) = (reader.u64()?, reader.u64()?);
        if tensors > MOST_TENSORS || keys > MOST_KEYS {
            return bad(format!("claims to have {tensors} tensors and {keys} keys"));
        }
        let mut values = BTreeMap::new();
        for _ in 0..keys {
            let key = reader.string()?.filter(|key| KEPT.iter().any(|end| key.ends_with(end)));
            let kind = reader.u32()?;
            let value = reader.value(kind, key.is_some())?;
            if let Some(key) = key {
                values.insert(key, value);
            }
        }
        Ok(Self(values))
    }

    /// Bytes of the cache for one token in all layers. llama.cpp keeps less for models with a sliding window,
    /// but the file does not say in which layers.
    fn cache_per_token(&self, file: &Path) -> Result<u64, FootprintError> {
        let architecture = match self.0.get("general.architecture") {
            Some(Value::Text(text)) => text,
            found => {
                return Err(key_error(
                    file,
                    "general.architecture",
                    problem(found, "is not a text"),
                ));
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| match self.0.get(&key(name)) {
            Some(Value::Number(number)) => Ok(*number),
            found => Err(key_error(file, &key(name), problem(found, "is not a whole number"))),
        };
        let layers = number("block_count")?;
        // Each layer's heads.
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
                Err(key_error(file, &key(name), "has fewer numbers than the model layers"))
            }
            found => Err(key_error(
                file,
                &key(name),
                problem(found, "is neither a number nor a list of such"),
            )),
        };
        let grouped = self.0.contains_key(&key("attention.head_count_kv"));
        let kv_heads =
            heads(if grouped { "attention.head_count_kv" } else { "attention.head_count" })?.0;
        let length = |name: &str| -> Result<u64, FootprintError> {
            if self.0.contains_key(&key(name)) {
                return number(name);
            }
            let most = heads("attention.head_count")?.1;
            let each = number("embedding_length")?.checked_div(most);
            each.ok_or_else(|| key_error(file, &key("attention.head_count"), "is 0"))
        };
        let elements =
            length("attention.key_length")?.saturating_add(length("attention.value_length")?);
        Ok(kv_heads.saturating_mul(elements).saturating_mul(ELEMENT))
    }

    /// Name of `general.file_type` (llama.cpp's `llama_ftype`).
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

fn problem(found: Option<&Value>, wrong: &'static str) -> &'static str {
    if found.is_some() { wrong } else { "is missing" }
}

/// Reads little-endian values for as long as the budget lasts.
struct Reader<R> {
    from: R,
    /// Bytes that may still be read.
    left: u64,
}

impl<R: BufRead> Reader<R> {
    fn spend(&mut self, bytes: u64) -> Result<(), Fault> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return bad(format!("has a header of more than {} MiB", BUDGET / MIB)),
        }
        Ok(())
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), Fault> {
        self.spend(bytes.len() as u64)?;
        Ok(self.from.read_exact(bytes)?)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        self.spend(bytes)?;
        let skipped = io::copy(&mut self.from.by_ref().take(bytes), &mut io::sink())?;
        if skipped == bytes {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    /// A string; `None`, and skipped, if it is too long to be kept or not UTF-8.
    fn string(&mut self) -> Result<Option<String>, Fault> {
        let length = self.u64()?;
        if length > LONGEST_STRING {
            return bad(format!("claims to have a string of {length} bytes"));
        }
        if length > LONGEST_KEPT {
            return self.skip(length).map(|()| None);
        }
        // Short, so that the length may be believed.
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.exact(&mut bytes)?;
        Ok(String::from_utf8(bytes).ok())
    }

    fn value(&mut self, kind: u32, keep: bool) -> Result<Value, Fault> {
        match kind {
            STRING => Ok(self.string()?.map_or(Value::Other, Value::Text)),
            ARRAY => self.array(keep),
            _ => Ok(self.number(kind)?.map_or(Value::Other, Value::Number)),
        }
    }

    fn array(&mut self, keep: bool) -> Result<Value, Fault> {
        let (kind, count) = (self.u32()?, self.u64()?);
        match kind {
            ARRAY => bad("has a list of lists"),
            STRING => {
                // Each costs at least its length, so that the budget ends this.
                for _ in 0..count {
                    let length = self.u64()?;
                    if length > LONGEST_STRING {
                        return bad(format!("claims to have a string of {length} bytes"));
                    }
                    self.skip(length)?;
                }
                Ok(Value::Other)
            }
            _ if keep && count <= LONGEST_KEPT => {
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

    /// A number; `None` if it is negative or not whole.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, Fault> {
        let width = width(kind)?;
        let mut bytes = [0; 8];
        self.exact(bytes.get_mut(..width).unwrap_or_default())?;
        let number = u64::from_le_bytes(bytes);
        Ok(match kind {
            // Unsigned.
            0 | 2 | 4 | 10 => Some(number),
            // Signed: the highest bit is the sign.
            1 | 3 | 5 | 11 => Some(number).filter(|number| number >> (8 * width - 1) == 0),
            // Floating point, true and false.
            _ => None,
        })
    }
}

/// Bytes of a number.
fn width(kind: u32) -> Result<usize, Fault> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => bad(format!("has a value of the unknown type {kind}")),
    }
}
