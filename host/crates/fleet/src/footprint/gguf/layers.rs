//! What the layers of a GGUF model store of each sequence, by llama.cpp's rules for each
//! architecture. What these rules do not know is counted as full attention, which needs most.

use std::path::Path;

use super::super::cache::{Cache, LLAMA_CPP_BLOCK};
use super::super::{CacheType, FootprintError, Serving, key_error};
use super::{Header, Value, problem};

/// Tokens that llama.cpp computes at once (`--ubatch-size`).
const STEP: u64 = 512;
/// Maximum number of layers, as in llama.cpp.
const MAX_LAYERS: u64 = 512;
/// Bytes of an element of a recurrent state, which is an f32.
const STATE_BYTES: u64 = 4;
/// Llama 4 attends to chunks of this many tokens, which its files do not say.
const LLAMA4_CHUNK: u64 = 8192;

/// Architectures that keep nothing of a sequence: encoders, and models of diffusion.
const WITHOUT_CACHE: [&str; 14] = [
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "t5encoder",
    "dream",
    "llada",
    "llada-moe",
    "rnd1",
];

/// Architectures without attention.
const RECURRENT: [&str; 6] = ["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"];

/// Which layers have a sliding window, unless the file says so: of `period` layers all but the last
/// one, or the first one if `dense_first`. 0 stands for all layers, and 1 for none.
struct Windows {
    architecture: &'static str,
    period: u64,
    dense_first: bool,
}

const fn windows(architecture: &'static str, period: u64) -> Windows {
    Windows { architecture, period, dense_first: false }
}

const WINDOWS: [Windows; 13] = [
    windows("gemma2", 2),
    windows("gemma3", 6),
    windows("gemma3n", 5),
    windows("cohere2", 4),
    windows("gpt-oss", 2),
    windows("llama4", 4),
    windows("exaone4", 4),
    windows("exaone-moe", 4),
    windows("olmo2", 4),
    windows("afmoe", 4),
    windows("plamo3", 8),
    windows("phi3", 1),
    Windows { architecture: "smallthinker", period: 4, dense_first: true },
];

/// The values of a model that its cache depends on.
struct Layers<'a> {
    header: &'a Header,
    file: &'a Path,
    architecture: &'a str,
    /// Number of layers that are computed; those for the prediction of several tokens are not.
    count: u64,
}

/// Returns what the layers of a model store.
pub(super) fn cache(
    header: &Header,
    file: &Path,
    serving: &Serving,
) -> Result<Cache, FootprintError> {
    let layers = Layers::new(header, file)?;
    let step = if serving.step == 0 { STEP } else { serving.step };
    let mut cache = Cache { block: LLAMA_CPP_BLOCK, step, step_for_each: true, ..Cache::default() };
    if WITHOUT_CACHE.contains(&layers.architecture) {
        return Ok(cache);
    }
    let kinds = Kinds::new(&layers)?;
    let with_kv = layers.count.saturating_sub(layers.or("attention.shared_kv_layers", 0)?);
    for layer in 0..layers.count {
        if kinds.is_recurrent(&layers, layer)? {
            cache.state = cache.state.saturating_add(kinds.state);
        }
        if layer >= with_kv || !kinds.attends(layer) {
            continue;
        }
        let sliding = kinds.slides(layer);
        let bytes = layers.row(layer, sliding, serving)?;
        let sum = if sliding { &mut cache.sliding } else { &mut cache.full };
        *sum = sum.saturating_add(bytes);
    }
    cache.window = kinds.window;
    Ok(cache)
}

/// Returns the bytes of llama.cpp's buffers for activations: those of the widest layer, and the
/// mask of the attention.
pub(super) fn compute(header: &Header, file: &Path, serving: &Serving) -> Option<u64> {
    let layers = Layers::new(header, file).ok()?;
    let step = if serving.step == 0 { STEP } else { serving.step };
    let width = layers.number("embedding_length").ok()?;
    let experts = layers.or("expert_feed_forward_length", 0).ok()?;
    let experts = experts.saturating_mul(layers.or("expert_used_count", 1).ok()?);
    let dense = (0..layers.count).filter_map(|layer| layers.at("feed_forward_length", layer).ok());
    let wide = dense.max().unwrap_or(0).max(experts);
    // Gate and up of the feed-forward network, and eight vectors of the model's width.
    let activations = wide.saturating_mul(2).saturating_add(width.saturating_mul(8));
    let cells = match serving.unified {
        true => serving.context.saturating_mul(serving.sequences),
        false => serving.context,
    };
    let heads = (0..layers.count).filter_map(|layer| layers.at("attention.head_count", layer).ok());
    // Without flash attention, the scores of all heads as well, each with four bytes.
    let scores = match serving.no_flash_attention {
        true => heads.max().unwrap_or(1).saturating_mul(8),
        false => 0,
    };
    let for_each_cell = scores.saturating_add(2);
    let values = activations.saturating_mul(4).saturating_add(cells.saturating_mul(for_each_cell));
    Some(values.saturating_mul(step))
}

impl<'a> Layers<'a> {
    fn new(header: &'a Header, file: &'a Path) -> Result<Self, FootprintError> {
        let architecture = header.architecture(file)?;
        let mut layers = Self { header, file, architecture, count: 0 };
        let all = layers.number("block_count")?;
        if all > MAX_LAYERS {
            return Err(layers.error("block_count", "is implausible"));
        }
        layers.count = all.saturating_sub(layers.or("nextn_predict_layers", 0)?);
        Ok(layers)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.header.get(&format!("{}.{name}", self.architecture))
    }

    fn error(&self, name: &str, problem: &'static str) -> FootprintError {
        key_error(self.file, &format!("{}.{name}", self.architecture), problem)
    }

    fn number(&self, name: &str) -> Result<u64, FootprintError> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            found => Err(self.error(name, problem(found, "is not an integer"))),
        }
    }

    fn or(&self, name: &str, default: u64) -> Result<u64, FootprintError> {
        if self.get(name).is_some() { self.number(name) } else { Ok(default) }
    }

    /// Returns the value for one layer: files have one for all layers, or an array.
    fn at(&self, name: &str, layer: u64) -> Result<u64, FootprintError> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            Some(Value::List(list)) => {
                let value = usize::try_from(layer).ok().and_then(|layer| list.get(layer));
                value
                    .copied()
                    .ok_or_else(|| self.error(name, "has fewer elements than the model has layers"))
            }
            found => {
                let wrong = "is neither an integer nor an array of integers";
                Err(self.error(name, problem(found, wrong)))
            }
        }
    }

    /// Returns the number of heads of a layer for which keys and values are stored.
    fn kv_heads(&self, layer: u64) -> Result<u64, FootprintError> {
        let grouped = self.get("attention.head_count_kv").is_some();
        let name = if grouped { "attention.head_count_kv" } else { "attention.head_count" };
        self.at(name, layer)
    }

    /// Returns the elements of a key or a value of one head.
    fn length(&self, name: &str) -> Result<u64, FootprintError> {
        if self.get(name).is_some() {
            return self.number(name);
        }
        let mut most = 0;
        for layer in 0..self.count {
            most = most.max(self.at("attention.head_count", layer)?);
        }
        let each = self.number("embedding_length")?.checked_div(most);
        each.ok_or_else(|| self.error("attention.head_count", "is 0"))
    }

    /// Returns the bytes of a token in one layer.
    fn row(&self, layer: u64, sliding: bool, serving: &Serving) -> Result<u64, FootprintError> {
        let heads = self.kv_heads(layer)?;
        let own = |name: &str| {
            let swa = format!("{name}_swa");
            if sliding && self.get(&swa).is_some() { self.number(&swa) } else { self.length(name) }
        };
        let keys = heads.saturating_mul(own("attention.key_length")?);
        // Multi-head latent attention (DeepSeek) stores one compressed vector, the key, from which
        // the value is computed.
        let is_latent = self.or("attention.key_length_mla", 0)? > 0
            && self.or("attention.value_length_mla", 0)? > 0;
        let values = match is_latent {
            true => 0,
            false => heads.saturating_mul(own("attention.value_length")?),
        };
        let row = |kind: Option<CacheType>, elements| kind.unwrap_or(CacheType::F16).row(elements);
        Ok(row(serving.keys, keys).saturating_add(row(serving.values, values)))
    }
}

/// What kind each layer is of.
struct Kinds {
    recurrent: Recurrent,
    /// Bytes of the state of one recurrent layer.
    state: u64,
    window: u64,
    /// Whether each layer has a window, if the file says so.
    listed: Option<Vec<u64>>,
    period: u64,
    dense_first: bool,
}

/// Which layers are recurrent.
enum Recurrent {
    None,
    All,
    /// All layers are, and they attend as well.
    Both,
    /// All but each layer of this number.
    Except(u64),
    /// Those without heads for keys and values.
    WithoutHeads,
}

impl Kinds {
    fn new(layers: &Layers<'_>) -> Result<Self, FootprintError> {
        let state = state(layers)?;
        let architecture = layers.architecture;
        let interval = layers.or("full_attention_interval", 4)?;
        let recurrent = if RECURRENT.contains(&architecture) {
            Recurrent::All
        } else if architecture == "falcon-h1" {
            Recurrent::Both
        } else if matches!(architecture, "qwen3next" | "qwen35" | "qwen35moe") {
            Recurrent::Except(interval)
        } else if state > 0 {
            Recurrent::WithoutHeads
        } else {
            Recurrent::None
        };
        let known = WINDOWS.iter().find(|known| known.architecture == architecture);
        let chunk = if architecture == "llama4" { LLAMA4_CHUNK } else { 0 };
        let window = layers.or("attention.sliding_window", chunk)?;
        // EXAONE 4 only has windows in its larger model.
        let is_small = architecture == "exaone4" && layers.count < 64;
        let default = known.filter(|_| !is_small).map_or(1, |known| known.period);
        let (listed, period) = match layers.get("attention.sliding_window_pattern") {
            Some(Value::List(list)) => (Some(list.clone()), 1),
            Some(Value::Number(period)) => (None, *period),
            Some(Value::Text(_) | Value::Other) | None => (None, default),
        };
        let dense_first = known.is_some_and(|known| known.dense_first);
        Ok(Self { recurrent, state, window, listed, period, dense_first })
    }

    fn is_recurrent(&self, layers: &Layers<'_>, layer: u64) -> Result<bool, FootprintError> {
        Ok(match self.recurrent {
            Recurrent::None => false,
            Recurrent::All | Recurrent::Both => true,
            Recurrent::Except(_) => !self.attends(layer),
            Recurrent::WithoutHeads => {
                let feeds = layers.architecture.starts_with("nemotron_h")
                    && layers.at("feed_forward_length", layer)? > 0;
                layers.kv_heads(layer)? == 0 && !feeds
            }
        })
    }

    /// Returns true if the layer stores keys and values, as far as its kind tells.
    fn attends(&self, layer: u64) -> bool {
        match self.recurrent {
            Recurrent::None | Recurrent::Both | Recurrent::WithoutHeads => true,
            Recurrent::All => false,
            Recurrent::Except(interval) => interval > 0 && (layer + 1).is_multiple_of(interval),
        }
    }

    fn slides(&self, layer: u64) -> bool {
        if self.window == 0 {
            return false;
        }
        if let Some(listed) = &self.listed {
            let listed = usize::try_from(layer).ok().and_then(|layer| listed.get(layer));
            return listed.is_some_and(|slides| *slides > 0);
        }
        match layer.checked_rem(self.period) {
            None => true,
            Some(place) if self.dense_first => place != 0,
            Some(place) => place + 1 < self.period,
        }
    }
}

/// Returns the bytes of the state of one recurrent layer.
fn state(layers: &Layers<'_>) -> Result<u64, FootprintError> {
    let width = layers.or("embedding_length", 0)?;
    let head = layers.or("wkv.head_size", 0)?;
    let short = layers.or("shortconv.l_cache", 0)?;
    let kernel = layers.or("ssm.conv_kernel", 0)?.saturating_sub(1);
    let elements = if head > 0 {
        // RWKV: the last tokens, and a matrix for each head.
        width.saturating_mul(layers.or("token_shift_count", 2)?.saturating_add(head))
    } else if short > 0 {
        width.saturating_mul(short - 1)
    } else if layers.or("kda.head_dim", 0)? > 0 {
        // Kimi Linear: three convolutions, and a matrix for each head.
        let (head, heads) = (layers.or("kda.head_dim", 0)?, layers.at("attention.head_count", 0)?);
        let each = kernel.saturating_mul(3).saturating_add(head).saturating_mul(head);
        heads.saturating_mul(each)
    } else {
        // Mamba: a convolution, and a state for each element.
        let (inner, size) = (layers.or("ssm.inner_size", 0)?, layers.or("ssm.state_size", 0)?);
        let groups = layers.or("ssm.group_count", 0)?.saturating_mul(2).saturating_mul(size);
        let convolution = kernel.saturating_mul(inner.saturating_add(groups));
        convolution.saturating_add(size.saturating_mul(inner))
    };
    Ok(elements.saturating_mul(STATE_BYTES))
}

#[cfg(test)]
mod tests;
