//! The data types of the elements of a KV cache.

/// The size of a block of elements of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheType {
    /// Elements in a block.
    elements: u64,
    /// Bytes of a block.
    bytes: u64,
}

/// The types of ggml that llama.cpp accepts for a KV cache, or whose sizes are known: name,
/// elements and bytes of a block. A block of a quantised type has its scale with it.
const GGML: [(&str, u64, u64); 29] = [
    ("f64", 1, 8),
    ("f32", 1, 4),
    ("f16", 1, 2),
    ("bf16", 1, 2),
    ("i8", 1, 1),
    ("i16", 1, 2),
    ("i32", 1, 4),
    ("q8_0", 32, 34),
    ("q8_1", 32, 36),
    ("q4_0", 32, 18),
    ("q4_1", 32, 20),
    ("q5_0", 32, 22),
    ("q5_1", 32, 24),
    ("iq4_nl", 32, 18),
    ("mxfp4", 32, 17),
    ("q2_k", 256, 84),
    ("q3_k", 256, 110),
    ("q4_k", 256, 144),
    ("q5_k", 256, 176),
    ("q6_k", 256, 210),
    ("q8_k", 256, 292),
    ("iq4_xs", 256, 136),
    ("iq3_s", 256, 110),
    ("iq3_xxs", 256, 98),
    ("iq2_s", 256, 82),
    ("iq2_xxs", 256, 66),
    ("iq1_s", 256, 50),
    ("tq1_0", 256, 54),
    ("tq2_0", 256, 66),
];

/// The types of vLLM's `--kv-cache-dtype` that do not follow the model's own type: what their names
/// begin with, elements and bytes of a block.
const VLLM: [(&str, u64, u64); 7] = [
    // For each token of DeepSeek's sparse attention, 656 bytes instead of 576 elements.
    ("fp8_ds_mla", 576, 656),
    ("fp8", 1, 1),
    ("int8", 1, 1),
    ("nvfp4", 16, 9),
    ("bfloat16", 1, 2),
    ("float16", 1, 2),
    ("half", 1, 2),
];

impl CacheType {
    /// Two bytes for each element.
    pub const F16: Self = Self { elements: 1, bytes: 2 };
    /// Four bytes for each element.
    pub const F32: Self = Self { elements: 1, bytes: 4 };

    /// Returns the type of ggml with this name.
    pub fn ggml(name: &str) -> Option<Self> {
        let known = GGML.iter().find(|(known, _, _)| known.eq_ignore_ascii_case(name));
        known.map(|&(_, elements, bytes)| Self { elements, bytes })
    }

    /// Returns the type with this name in vLLM; `None` for `auto` and unknown ones.
    pub fn vllm(name: &str) -> Option<Self> {
        let known = VLLM.iter().find(|(start, _, _)| name.starts_with(start));
        known.map(|&(_, elements, bytes)| Self { elements, bytes })
    }

    /// Returns true if elements share a scale: such values require flash attention.
    pub fn is_quantised(&self) -> bool {
        self.elements > 1
    }

    /// Returns the bytes of a row of elements, which is a number of whole blocks.
    pub(super) fn row(&self, elements: u64) -> u64 {
        elements.div_ceil(self.elements).saturating_mul(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_blocks() {
        for (name, elements, bytes) in [
            ("f32", 192, 768),
            ("f16", 192, 384),
            ("BF16", 192, 384),
            ("q8_0", 192, 204),
            ("q4_0", 192, 108),
            ("q4_1", 192, 120),
            ("q5_0", 192, 132),
            ("q5_1", 192, 144),
            ("iq4_nl", 192, 108),
            // Not a multiple of a block.
            ("q8_0", 33, 68),
        ] {
            assert_eq!(CacheType::ggml(name).unwrap().row(elements), bytes, "{name}");
        }
        assert_eq!(CacheType::ggml("q3"), None);
        for (name, bytes) in [
            ("fp8", Some(576)),
            ("fp8_e4m3", Some(576)),
            ("fp8_ds_mla", Some(656)),
            ("bfloat16", Some(1152)),
            ("nvfp4", Some(324)),
            ("auto", None),
        ] {
            assert_eq!(CacheType::vllm(name).map(|kind| kind.row(576)), bytes, "{name}");
        }
        assert!(CacheType::ggml("q8_0").unwrap().is_quantised() && !CacheType::F16.is_quantised());
    }
}
