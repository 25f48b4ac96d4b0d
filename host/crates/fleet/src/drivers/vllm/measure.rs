//! The memory that an engine reports in its log while it starts: vLLM of all versions with the V1
//! engine and the last ones without it, and llama.cpp since 2023. Newer builds of llama-server only
//! log these lines with `--log-verbosity 4`.
//!
//! Lines are untrusted: a size that is malformed or absurd is left out.

use std::collections::BTreeMap;

use super::progress::{is_number, message};
use crate::launch_memory::DeviceMemory;

/// Maximum number of buffers that are told apart.
const MAX_BUFFERS: usize = 64;
/// Tokens in a block of the KV cache of a vLLM that only reports blocks.
const BLOCK: u64 = 16;

/// The memory that an engine reports in its log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measurement {
    /// Bytes of the weights: the last value of vLLM's workers, or the sum of llama.cpp's buffers.
    pub weights_bytes: Option<u64>,
    /// Bytes of the KV cache, and of the states of recurrent layers: the last value of vLLM's
    /// workers, or the sum of llama.cpp's caches.
    pub kv_bytes: Option<u64>,
    /// Capacity of the KV cache in tokens, for all requests together.
    pub kv_tokens: Option<u64>,
    /// Bytes of buffers for activations and outputs; of vLLM, of its activations and graphs.
    pub compute_bytes: Option<u64>,
    /// The device as vLLM's runtime reports it.
    pub device: DeviceMemory,
    /// llama.cpp's contexts so far: the model has one, and so has a draft model.
    contexts: usize,
    /// The buffers of each context by device, which may be reserved more than once.
    buffers: BTreeMap<(usize, String), u64>,
    /// llama.cpp's summary, whose last table counts: weights, context and compute buffers.
    summary: Option<[u64; 3]>,
}

/// Reads the memory from a line into `into`. Use a new [`Measurement`] for each start, because the
/// sizes of llama.cpp's buffers are added up.
pub fn measure(line: &str, into: &mut Measurement) {
    let text = message(line);
    if !(into.read_vllm(text) || into.read_device(text)) {
        into.read_llama_cpp(text);
    }
}

impl Measurement {
    /// Returns the measurement at the end of a start: what only the summary has is taken from it.
    pub(crate) fn completed(mut self) -> Self {
        if let Some([weights, context, compute]) = self.summary
            && (self.weights_bytes, self.kv_bytes) == (None, None)
        {
            self.weights_bytes = Some(weights);
            self.kv_bytes = Some(context);
            self.compute_bytes = Some(compute);
        }
        self
    }

    fn read_vllm(&mut self, text: &str) -> bool {
        let add = |sum: Option<u64>, more: u64| Some(sum.unwrap_or(0).saturating_add(more));
        // Before V1, one line had all parts.
        if let Some(weights) = size_after(text, "model weights take ") {
            self.weights_bytes = Some(weights);
            self.compute_bytes =
                size_after(text, "activation peak memory takes ").or(self.compute_bytes);
            self.kv_bytes = size_after(text, "reserved for KV Cache is ").or(self.kv_bytes);
        } else if let Some(bytes) = size_after(text, "Model loading took ") {
            self.weights_bytes = Some(bytes);
        } else if let Some(bytes) = size_after(text, "Available KV cache memory: ") {
            self.kv_bytes = Some(bytes);
        } else if text.contains(" memory for KV Cache as specified")
            && let Some(bytes) = size_after(text, "reserved ")
        {
            self.kv_bytes = Some(bytes);
        } else if let Some(bytes) = cpu_kv_bytes(text) {
            self.kv_bytes = Some(bytes);
        } else if text.starts_with("Graph capturing finished")
            && let Some(bytes) = size_after(text, " took ")
        {
            self.compute_bytes = add(self.compute_bytes, bytes);
        } else if let Some((_, after)) = text.split_once("KV cache size: ") {
            self.kv_tokens = tokens(after).or(self.kv_tokens);
        } else if let Some((_, after)) = text.split_once("# GPU blocks: ") {
            let blocks = tokens(after);
            self.kv_tokens = blocks.map(|blocks| blocks.saturating_mul(BLOCK)).or(self.kv_tokens);
        } else {
            return false;
        }
        true
    }

    /// Reads what a vLLM reports that refuses to start, and what one before V1 always reported.
    fn read_device(&mut self, text: &str) -> bool {
        let refusal = ["Free memory on device ", "Available memory on node "];
        if let Some(after) = refusal.iter().find_map(|label| Some(text.split_once(label)?.1))
            && let Some((_, after)) = after.split_once('(')
            && let Some((free, after)) = after.split_once('/')
            && let Some((total, after)) = after.split_once(' ')
            && after.starts_with("GiB)")
        {
            self.device = DeviceMemory { total: bytes(total, "GiB"), free: bytes(free, "GiB") };
            return true;
        }
        let total = text
            .split_once("total_gpu_memory (")
            .and_then(|(_, after)| size_at_start(after.split(')').next()?));
        self.device.total = total.or(self.device.total);
        total.is_some()
    }

    fn read_llama_cpp(&mut self, text: &str) {
        let add = |sum: Option<u64>, more: u64| Some(sum.unwrap_or(0).saturating_add(more));
        let is_cache = text.contains("llama_kv_cache") || text.contains("llama_memory_recurrent");
        if text.contains("load_tensors:") {
            if let Some(bytes) = size_after(text, "buffer size = ") {
                self.weights_bytes = add(self.weights_bytes, bytes);
            }
        } else if let Some(bytes) = size_after(text, "KV self size = ") {
            self.kv_bytes = add(self.kv_bytes, bytes);
        } else if is_cache && let Some(bytes) = size_after(text, ": size = ") {
            self.kv_bytes = add(self.kv_bytes, bytes);
            let cells = text.split_once('(').and_then(|(_, after)| tokens(after));
            // Layers with a sliding window have a second, smaller cache.
            self.kv_tokens = cells.max(self.kv_tokens);
        } else if text.contains("constructing llama_context") {
            self.contexts = self.contexts.saturating_add(1);
        } else if let Some((device, kind)) = buffer(text)
            && let Some(bytes) = size_after(text, "buffer size = ")
        {
            let key = (self.contexts, format!("{device} {kind}"));
            if self.buffers.len() < MAX_BUFFERS || self.buffers.contains_key(&key) {
                self.buffers.insert(key, bytes);
                let sum = self.buffers.values().fold(0_u64, |sum, more| sum.saturating_add(*more));
                self.compute_bytes = Some(sum);
            }
        } else if text.contains("memory breakdown [MiB]") {
            self.summary = None;
        } else if text.contains("memory_breakdown_print: |")
            && let Some(row) = summary_row(text)
        {
            let sum = self.summary.get_or_insert_default();
            sum.iter_mut().zip(row).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        }
    }
}

/// Returns the device and the kind of a buffer: `sched_reserve: ROCm0 compute buffer size = …` or
/// `llama_context: CPU output buffer size = …`.
fn buffer(text: &str) -> Option<(&str, &str)> {
    /// Maximum length of the name of a device in bytes.
    const MAX_NAME: usize = 64;
    let (before, _) = text.split_once(" buffer size")?;
    let mut words = before.split_whitespace().rev();
    let kind = words.next().filter(|kind| matches!(*kind, "compute" | "output"))?;
    words.next().filter(|device| device.len() <= MAX_NAME).map(|device| (device, kind))
}

/// Parses the parts of a row of llama.cpp's summary: `| - Host | 198 = 92 + 90 + 16 |`, or
/// `| - ROCm0 (…) | 24560 = 20000 + (4000 = 3000 + 500 + 500) + 560 |`, in MiB.
fn summary_row(text: &str) -> Option<[u64; 3]> {
    let cell = text.split('|').nth(2)?;
    let own = cell.split_once('(').and_then(|(_, after)| Some(after.split_once(')')?.0));
    let (_, parts) = own.unwrap_or(cell).split_once('=')?;
    let mut parts = parts.split('+').map(|part| bytes(part.trim(), "MiB"));
    Some([parts.next()??, parts.next()??, parts.next()??])
}

/// Parses `Explicitly set (1.0/20.59) GiB for KV cache on node 0.` or `Auto set (…`, which vLLM
/// writes without a GPU.
fn cpu_kv_bytes(text: &str) -> Option<u64> {
    let (_, after) =
        text.split_once("Explicitly set (").or_else(|| text.split_once("Auto set ("))?;
    let (number, after) = after.split_once('/')?;
    after.contains(") GiB for KV cache").then(|| bytes(number, "GiB"))?
}

/// Parses the size that follows `label`, whose spaces stand for one or more: `18.1 GiB`, or
/// `18.1GiB`.
fn size_after(text: &str, label: &str) -> Option<u64> {
    let mut rest = text;
    let mut words = label.split(' ').filter(|word| !word.is_empty());
    let first = words.next()?;
    // Only the first word is looked for; the others follow it.
    loop {
        let (_, after) = rest.split_once(first)?;
        let mut here = after;
        let follows = words.clone().all(|word| match here.trim_start().strip_prefix(word) {
            Some(after) => {
                here = after;
                true
            }
            None => false,
        });
        if follows {
            return size_at_start(here);
        }
        rest = after;
    }
}

fn size_at_start(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, after) = text.split_at(end);
    bytes(number, after.split_whitespace().next()?)
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
    // The cast would saturate for NaN, negative or huge values, none of which is a memory size.
    let size = (number * scale).round();
    (0.0..1e18).contains(&size).then_some(size as u64)
}

/// Parses a number such as `123,456` at the start of a text.
fn tokens(text: &str) -> Option<u64> {
    let word = text.split_whitespace().next()?;
    let digits: String = word.chars().filter(|letter| *letter != ',').collect();
    is_number(&digits).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests;
