//! The size of a KV cache, for the layers of a model and the workload that it serves.

use super::{Serving, format_size};

/// Tokens in a block of vLLM's KV cache (`--block-size`); a sequence takes whole blocks.
pub(super) const VLLM_BLOCK: u64 = 16;
/// llama.cpp rounds the cells of a cache up to a multiple of this.
pub(super) const LLAMA_CPP_BLOCK: u64 = 256;

/// What the layers of a model store of each sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cache {
    /// Bytes per token in layers with full attention.
    pub(super) full: u64,
    /// Bytes per token in layers that attend to the last `window` tokens only.
    pub(super) sliding: u64,
    pub(super) window: u64,
    /// Bytes per sequence in recurrent layers, whatever its length.
    pub(super) state: u64,
    /// Tokens are rounded up to a multiple of this.
    pub(super) block: u64,
    /// Tokens that layers with a window hold in addition while a prompt is read.
    pub(super) step: u64,
    /// Each sequence reserves the tokens of a step (llama.cpp), and not only one of them.
    pub(super) step_for_each: bool,
}

/// The tokens that a cache holds, in all sequences together.
struct Tokens {
    full: u64,
    sliding: u64,
}

impl Cache {
    fn whole(&self, tokens: u64) -> u64 {
        let block = self.block.max(1);
        tokens.div_ceil(block).saturating_mul(block)
    }

    fn tokens(&self, serving: &Serving) -> Tokens {
        let Serving { context, sequences, .. } = *serving;
        if serving.unified {
            // One buffer for all sequences, which share its cells.
            let full = self.whole(context.saturating_mul(sequences));
            let windows = self.window.saturating_mul(sequences).saturating_add(self.step);
            let sliding = if serving.full_windows { full } else { self.whole(windows.min(full)) };
            return Tokens { full, sliding };
        }
        let full = self.whole(context);
        let (own, shared) = if self.step_for_each { (self.step, 0) } else { (0, self.step) };
        let window = self.whole(context.min(self.window.saturating_add(own)));
        let rest = self.whole(context.saturating_sub(self.window).min(shared));
        let sliding = if serving.full_windows { full } else { window };
        let sliding = sliding.saturating_mul(sequences).saturating_add(rest);
        Tokens { full: full.saturating_mul(sequences), sliding }
    }

    pub(super) fn bytes(&self, serving: &Serving) -> u64 {
        let Tokens { full, sliding } = self.tokens(serving);
        let (full, sliding) =
            (self.full.saturating_mul(full), self.sliding.saturating_mul(sliding));
        let states = self.state.saturating_mul(serving.sequences);
        full.saturating_add(sliding).saturating_add(states)
    }

    pub(super) fn per_token(&self) -> u64 {
        self.full.saturating_add(self.sliding)
    }

    /// Returns the computation of the size: `256 KiB per token x 32768 tokens x 2 sequences`.
    pub(super) fn explain(&self, serving: &Serving) -> String {
        let each = Serving { sequences: 1, ..*serving };
        let Tokens { full, sliding } = self.tokens(&each);
        let product = |bytes, tokens| format!("{} per token x {tokens} tokens", format_size(bytes));
        let mut parts = Vec::new();
        if self.sliding == 0 || sliding == full {
            parts.extend((self.per_token() > 0).then(|| product(self.per_token(), full)));
        } else {
            parts.extend((self.full > 0).then(|| product(self.full, full)));
            parts.push(format!("{} in sliding windows", product(self.sliding, sliding)));
        }
        parts.extend((self.state > 0).then(|| format!("{} of states", format_size(self.state))));
        let sum = match parts.as_slice() {
            [] => "none".to_owned(),
            [one] => one.clone(),
            several => format!("({})", several.join(" + ")),
        };
        let s = if serving.sequences == 1 { "" } else { "s" };
        format!("{sum} x {} sequence{s}", serving.sequences)
    }
}
