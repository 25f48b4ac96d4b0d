//! The fraction of a device's memory that a vLLM is started with (`--gpu-memory-utilization`).
//!
//! vLLM refuses to start unless `free >= fraction * total`, both as its runtime reports them, and
//! its default of 0.92 leaves no room for another engine. Without `--kv-cache-memory-bytes`, the
//! fraction is also what it takes: the KV cache gets what weights and activations leave of it. With
//! that flag, which the host passes whenever it knows the model's files, only the check is left.

use super::settings::{Permille, VllmSettings};
use crate::footprint::format_size;
use crate::launch_memory::LaunchMemory;

/// Memory that the process takes before vLLM measures the free memory: its runtime and context.
const CONTEXT: u64 = 512 << 20;

/// A fraction, and the sizes that it was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fraction {
    pub(super) part: Permille,
    /// What the lane needs of the device.
    need: u64,
    total: u64,
    /// The free memory that the fraction had to be reduced to.
    limit: Option<u64>,
}

impl Fraction {
    /// Returns the computation, for the log.
    pub(super) fn explain(&self) -> String {
        let sizes = format!("{} of {}", format_size(self.need), format_size(self.total));
        match self.limit {
            None => format!("the lane needs {sizes}"),
            Some(limit) => format!(
                "the lane needs {sizes}, but vLLM may find only {} free at its start",
                format_size(limit)
            ),
        }
    }
}

/// Computes the fraction for a launch. Returns `None` if the operator has set it, or if the size of
/// the device is not known.
pub(super) fn fraction(settings: &VllmSettings, memory: &LaunchMemory) -> Option<Fraction> {
    let is_set = settings.gpu_memory_utilization.is_some() || has_flag(settings, &FRACTION);
    if is_set || has_file(settings) {
        return None;
    }
    let seen = memory.device.unwrap_or_default();
    let total = seen.total.or(memory.total).filter(|total| *total > CONTEXT)?;
    let need = (memory.need / settings.devices()).min(total - CONTEXT);
    let cache_is_set = settings.kv_cache_bytes.is_some() || has_flag(settings, &CACHE);
    // What vLLM reported when it refused to start is better than any guess. Otherwise it is not
    // known whether its runtime counts the page cache as free, and a smaller fraction would make
    // the KV cache smaller, unless its size is set.
    let free = match (seen.free, memory.unused.filter(|_| cache_is_set)) {
        (Some(seen), Some(unused)) => Some(seen.min(unused)),
        (seen, unused) => seen.or(unused),
    };
    let limit = free.map(|free| free.saturating_sub(CONTEXT)).filter(|limit| *limit < need);
    // Rounded up, so that what the lane needs fits, unless that is more than there is.
    let up = if limit.is_none() && need < total - CONTEXT { total - 1 } else { 0 };
    let scaled = u128::from(limit.unwrap_or(need)) * 1000 + u128::from(up);
    let thousandths = u16::try_from(scaled / u128::from(total)).unwrap_or(1000);
    Some(Fraction { part: Permille(thousandths.clamp(1, 1000)), need, total, limit })
}

/// Flags with which the operator sets the fraction.
const FRACTION: [&str; 2] = ["--gpu-memory-utilization", "--device-memory-utilization"];
/// Flags with which the operator sets the size of the KV cache.
const CACHE: [&str; 1] = ["--kv-cache-memory"];

/// Returns true if the additional arguments have one of the flags, also abbreviated: vLLM accepts
/// every unambiguous beginning of a flag, and underscores for dashes.
fn has_flag(settings: &VllmSettings, flags: &[&str]) -> bool {
    /// The shortest beginning that counts, longer than those of flags that begin alike.
    const SHORTEST: usize = "--gpu-mem".len();
    settings.arguments.iter().filter(|word| word.starts_with("--")).any(|word| {
        let word = word.split('=').next().unwrap_or(word).replace('_', "-");
        flags.iter().any(|flag| {
            word.starts_with(flag) || (word.len() >= SHORTEST && flag.starts_with(&word))
        })
    })
}

/// Returns true if the additional arguments name a file with settings, which may be this one.
fn has_file(settings: &VllmSettings) -> bool {
    settings.arguments.iter().any(|word| word.split('=').next() == Some("--config"))
}

#[cfg(test)]
mod tests;
