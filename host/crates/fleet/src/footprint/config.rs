//! The KV cache of a model, from its config.json.

mod hybrid;

use std::path::Path;

use serde_json::{Map, Value};

use self::hybrid::{Hybrid, count};
use super::cache::{Cache, VLLM_BLOCK};
use super::{CacheType, FootprintError, Serving, key_error};

/// The contents of config.json.
pub(super) struct Config<'a> {
    pub(super) file: &'a Path,
    /// The object that describes the language model.
    pub(super) text: &'a Map<String, Value>,
    /// The top-level object.
    pub(super) top: &'a Map<String, Value>,
}

impl Config<'_> {
    /// Reads a value of the language model. Many tools write `null` for a missing value.
    pub(super) fn get<'v, T>(
        &'v self,
        key: &str,
        read: impl Fn(&'v Value) -> Option<T>,
        problem: &'static str,
    ) -> Result<Option<T>, FootprintError> {
        let value = self.text.get(key).filter(|value| !value.is_null());
        value.map(|value| read(value).ok_or_else(|| key_error(self.file, key, problem))).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, FootprintError> {
        self.get(key, Value::as_u64, "is not an integer")
    }

    pub(super) fn positive(&self, key: &str) -> Result<u64, FootprintError> {
        match self.number(key)? {
            Some(0) => Err(key_error(self.file, key, "is 0")),
            Some(number) => Ok(number),
            None => Err(key_error(self.file, key, "is missing")),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&Vec<Value>>, FootprintError> {
        self.get(key, Value::as_array, "is not an array")
    }

    pub(super) fn dtype(&self) -> Result<Option<&str>, FootprintError> {
        for map in [self.text, self.top] {
            for key in ["torch_dtype", "dtype"] {
                if let Some(value) = map.get(key).filter(|value| !value.is_null()) {
                    return value
                        .as_str()
                        .map(Some)
                        .ok_or_else(|| key_error(self.file, key, "is not a string"));
                }
            }
        }
        Ok(None)
    }

    /// Returns the number of elements that one layer stores per token.
    fn elements(&self) -> Result<u64, FootprintError> {
        // Multi-head latent attention (DeepSeek) stores one compressed vector instead of keys and
        // values.
        if let Some(rank) = self.number("kv_lora_rank")?.filter(|rank| *rank > 0) {
            return Ok(rank.saturating_add(self.number("qk_rope_head_dim")?.unwrap_or(0)));
        }
        let kv_heads = match self.number("num_key_value_heads")? {
            Some(heads) => heads,
            None => self.positive("num_attention_heads")?,
        };
        let head_dim = match self.number("head_dim")? {
            Some(head_dim) => head_dim,
            None => self.positive("hidden_size")? / self.positive("num_attention_heads")?,
        };
        Ok(kv_heads.saturating_mul(head_dim).saturating_mul(2))
    }

    pub(super) fn cache(&self, serving: &Serving) -> Result<Cache, FootprintError> {
        let own = if serving.single_precision { CacheType::F32 } else { CacheType::F16 };
        let bytes = serving.keys.unwrap_or(own).row(self.elements()?);
        let cross_attention =
            self.list("cross_attention_layers")?.map_or(0, |list| list.len() as u64);
        let layers = self.positive("num_hidden_layers")?.saturating_sub(cross_attention);
        // Qwen2 configures a window that it does not use.
        let uses_window =
            self.get("use_sliding_window", Value::as_bool, "is not a boolean")?.unwrap_or(true);
        let window = self.number("sliding_window")?.filter(|window| uses_window && *window > 0);
        let hybrid = Hybrid::new(self, layers)?;
        let attending = layers.saturating_sub(hybrid.without_cache);
        let sliding = match self.list("layer_types")? {
            Some(list) => count(list, &["sliding_attention", "chunked_attention"]),
            None => layers - self.full_layers(layers)?,
        };
        let sliding = if window.is_some() { sliding.min(attending) } else { 0 };
        Ok(Cache {
            full: (attending - sliding).saturating_mul(bytes),
            sliding: sliding.saturating_mul(bytes),
            window: window.unwrap_or(0),
            state: hybrid.recurrent.saturating_mul(hybrid.state),
            block: VLLM_BLOCK,
            step: serving.step,
            step_for_each: false,
        })
    }

    /// Returns the number of layers with full attention, for a model with a window that does not
    /// list its layer types.
    fn full_layers(&self, layers: u64) -> Result<u64, FootprintError> {
        // One layer in this many. Gemma's older files leave the number out.
        let family_default = match self.top.get("model_type").and_then(Value::as_str) {
            Some(family) if family.starts_with("gemma2") => Some(2),
            Some(family) if family.starts_with("gemma3") => Some(6),
            Some(_) | None => None,
        };
        if let Some(every) =
            self.number("sliding_window_pattern")?.or(family_default).filter(|every| *every > 0)
        {
            return Ok(layers / every);
        }
        // Qwen2: the first layers.
        Ok(self.number("max_window_layers")?.map_or(0, |first| first.min(layers)))
    }
}
