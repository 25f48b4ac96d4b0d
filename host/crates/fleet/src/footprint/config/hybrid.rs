//! Layers without a KV cache in models that are described by a config.json: recurrent ones, whose
//! state does not grow with the sequence, and those without attention.

use serde_json::Value;

use super::super::FootprintError;
use super::Config;

/// Bytes of an element of a convolution's state, and of a recurrent state.
const CONVOLUTION_BYTES: u64 = 2;
const STATE_BYTES: u64 = 4;

/// The layers of a model that do not store keys and values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hybrid {
    /// Number of layers that store nothing for each token.
    pub(super) without_cache: u64,
    /// Number of recurrent layers.
    pub(super) recurrent: u64,
    /// Bytes of the state of one recurrent layer for each sequence.
    pub(super) state: u64,
}

/// Returns how many elements are one of these texts.
pub(super) fn count(list: &[Value], texts: &[&str]) -> u64 {
    let is_one = |kind: &&Value| kind.as_str().is_some_and(|kind| texts.contains(&kind));
    list.iter().filter(is_one).count() as u64
}

impl Hybrid {
    /// Counts the layers of a model with `layers` layers in the ways in which families describe
    /// them.
    pub(super) fn new(config: &Config<'_>, layers: u64) -> Result<Self, FootprintError> {
        let (without_cache, recurrent) = Self::count(config, layers)?;
        let state = if recurrent > 0 { state(config)? } else { 0 };
        Ok(Self { without_cache: without_cache.min(layers), recurrent, state })
    }

    fn count(config: &Config<'_>, layers: u64) -> Result<(u64, u64), FootprintError> {
        let text =
            config.get("hybrid_override_pattern", Value::as_str, "is not a string")?.unwrap_or("");
        let letters = |letter: char| text.matches(letter).count() as u64;
        if !text.is_empty() {
            // Nemotron-H: M is Mamba, * is attention, - and E are feed-forward networks.
            return Ok((layers.saturating_sub(letters('*')), letters('M')));
        }
        for key in ["layer_types", "layers_block_type"] {
            if let Some(list) = config.list(key)? {
                let recurrent = count(list, &["linear_attention", "mamba", "recurrent"]);
                let short = count(list, &["conv"]);
                let both = count(list, &["hybrid"]);
                return Ok((recurrent + short, recurrent + short + both));
            }
        }
        let attending = match (
            config.list("attn_layer_indices")?,
            config.number("attn_layer_period")?.filter(|period| *period > 0),
            config.number("full_attention_interval")?.filter(|interval| *interval > 0),
        ) {
            (Some(list), _, _) => list.len() as u64,
            (None, Some(period), _) => {
                let offset = config.number("attn_layer_offset")?.unwrap_or(0);
                layers.saturating_sub(offset).div_ceil(period)
            }
            (None, None, Some(interval)) => layers / interval,
            (None, None, None) => layers,
        };
        let recurrent = layers.saturating_sub(attending);
        Ok((recurrent, recurrent))
    }
}

/// Returns the bytes of the state of one recurrent layer.
fn state(config: &Config<'_>) -> Result<u64, FootprintError> {
    let first = |keys: &[&str]| -> Result<u64, FootprintError> {
        for key in keys {
            if let Some(number) = config.number(key)? {
                return Ok(number);
            }
        }
        Ok(0)
    };
    let product = |numbers: [u64; 3]| numbers.into_iter().fold(1, u64::saturating_mul);
    let width = first(&["hidden_size"])?;
    let (convolved, elements, kernel) = if let Some(heads) =
        config.number("linear_num_value_heads")?
    {
        // Qwen3-Next.
        let (key, value) = (first(&["linear_key_head_dim"])?, first(&["linear_value_head_dim"])?);
        let keys = first(&["linear_num_key_heads"])?.saturating_mul(key);
        let convolved = keys.saturating_mul(2).saturating_add(heads.saturating_mul(value));
        (convolved, product([heads, key, value]), first(&["linear_conv_kernel_dim"])?)
    } else if let Some(length) = config.number("conv_L_cache")? {
        // LFM2: a convolution only.
        (width, 0, length)
    } else {
        // Mamba 2, and Mamba, which has neither heads nor groups.
        let size = first(&["ssm_state_size", "mamba_d_state", "state_size"])?;
        let heads = first(&["mamba_num_heads", "mamba_n_heads", "num_heads"])?;
        let head = first(&["mamba_head_dim", "mamba_d_head", "head_dim"])?;
        let expand = first(&["expand", "mamba_expand"])?;
        let inner = match heads.saturating_mul(head) {
            0 => expand.saturating_mul(width),
            inner => inner,
        };
        let groups = first(&["n_groups", "mamba_n_groups"])?;
        let convolved = inner.saturating_add(product([2, groups, size]));
        let kernel = first(&["conv_kernel", "mamba_d_conv"])?;
        (convolved, inner.saturating_mul(size), kernel)
    };
    let convolution = product([convolved, kernel.saturating_sub(1), CONVOLUTION_BYTES]);
    Ok(convolution.saturating_add(elements.saturating_mul(STATE_BYTES)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn hybrid(config: &Value, layers: u64) -> (u64, u64, u64) {
        let object = config.as_object().unwrap();
        let config = Config { file: Path::new("config.json"), text: object, top: object };
        let Hybrid { without_cache, recurrent, state } = Hybrid::new(&config, layers).unwrap();
        (without_cache, recurrent, state)
    }

    #[test]
    fn layers_without_a_cache_are_counted() {
        // Qwen3-Next-80B-A3B: 36 of 48 layers, each with a convolution of 8192 elements.
        let next = json!({
            "linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
            "full_attention_interval": 4,
        });
        let state = 8192 * 3 * 2 + 32 * 128 * 128 * 4;
        assert_eq!(hybrid(&next, 48), (36, 36, state));
        // Nemotron-H-8B: 52 layers, of which 24 are Mamba 2 and 4 attend.
        let pattern = format!("{}{}{}", "M-".repeat(20), "M*".repeat(4), "----");
        let nemotron = json!({
            "hybrid_override_pattern": pattern, "ssm_state_size": 128, "mamba_num_heads": 128,
            "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4, "hidden_size": 4096,
        });
        let state = (8192 + 2 * 8 * 128) * 3 * 2 + 8192 * 128 * 4;
        assert_eq!(hybrid(&nemotron, 52), (48, 24, state));
        // Granite 4: a list. Jamba: a period. Bamba: indices.
        let mamba = json!({ "mamba_d_state": 16, "mamba_expand": 2, "hidden_size": 64,
            "mamba_d_conv": 4 });
        let with = |key: &str, value: Value| {
            let mut config = mamba.clone();
            config[key] = value;
            config
        };
        let state = 128 * 3 * 2 + 128 * 16 * 4;
        let list = with("layers_block_type", json!(["mamba", "mamba", "attention"]));
        assert_eq!(hybrid(&list, 3), (2, 2, state));
        let mut jamba = with("attn_layer_period", json!(8));
        jamba["attn_layer_offset"] = json!(4);
        assert_eq!(hybrid(&jamba, 32), (28, 28, state));
        assert_eq!(hybrid(&with("attn_layer_indices", json!([1, 5])), 8), (6, 6, state));
        assert_eq!(hybrid(&with("layer_types", json!(["hybrid", "hybrid"])), 2), (0, 2, state));
        let lfm = json!({ "layer_types": ["conv", "full_attention"], "conv_L_cache": 3,
            "hidden_size": 64 });
        assert_eq!(hybrid(&lfm, 2), (1, 1, 64 * 2 * 2));
        assert_eq!(hybrid(&json!({}), 2), (0, 0, 0));
    }
}
