//! Limits that several modules enforce. Limits of one module are defined there.

pub(crate) use pointsman_spec::MAX_MEMORY_BYTES;

/// Maximum instances of all policies together. A call is synchronous, so each policy needs at most
/// one instance per calling thread; this suffices for sixty policies on sixteen threads. It
/// reserves address space, not memory: about 6 TiB of 128.
pub(crate) const MAX_INSTANCES: u32 = 1024;
/// Maximum core instances of all policies together. Most policies have two or three; CPython has
/// 38, but is rare.
pub(crate) const MAX_TOTAL_CORE_INSTANCES: u32 = 16 * MAX_INSTANCES;
/// Maximum core instances in one component; CPython has 38.
pub(crate) const MAX_CORE_INSTANCES: u32 = 64;
/// Maximum linear memories in one component.
pub(crate) const MAX_MEMORIES: u32 = 4;
/// Maximum tables in one component.
pub(crate) const MAX_TABLES: u32 = 16;
/// Maximum elements of one table; CPython has 5,696.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;
/// Bytes of a page of linear memory.
pub(crate) const PAGE_BYTES: u64 = 64 << 10;
/// Maximum size of a component, in bytes. CPython's has 18.4 MB.
pub const MAX_COMPONENT_BYTES: u64 = 32 << 20;
/// Maximum size of a manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Maximum bytes that the host copies out of a policy in one call: results, and arguments of host
/// calls.
pub(crate) const MAX_OUTPUT_BYTES: usize = 256 << 10;
/// Maximum bytes that all host calls of one policy call examine together: searches, hashes, and
/// what they return. A search through this much takes several milliseconds.
pub(crate) const MAX_SCANNED_BYTES: u64 = 64 << 20;
/// Maximum length of a text that a policy searches for, in bytes.
pub(crate) const MAX_NEEDLE_BYTES: usize = 1 << 10;
/// Maximum patterns of one search for several.
pub(crate) const MAX_PATTERNS: usize = 256;
/// Maximum bytes of the patterns of one search. Preparing the search for this much takes about a
/// millisecond.
pub(crate) const MAX_PATTERN_BYTES: usize = 8 << 10;
/// Maximum outcomes of one call of `on-complete` and `on-outcome`.
pub(crate) const MAX_BATCH: usize = 256;
