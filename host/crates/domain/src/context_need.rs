//! Whether a request fits into the context of a lane.
//!
//! The length of a prompt is an estimate from its bytes, which may be wrong by a third, and by more
//! for unusual texts. So it only orders lanes, and never excludes the only one: the engine itself
//! decides what is too long.

use serde::{Deserialize, Serialize};

use crate::facts::RequestInfo;

/// What a request needs of the context of a lane, in tokens. All zero if it is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ContextNeed {
    /// Estimated length of the prompt.
    pub prompt: u32,
    /// Maximum number of output tokens; 0 if the request sets no limit.
    pub output: u32,
}

/// How well a request fits into a context, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ContextFit {
    /// The request fits by its estimate, or the context is unknown.
    Fits,
    /// The request is too long by its estimate, which may be wrong.
    Doubtful,
    /// The request is too long even if the estimate is a third above the true length.
    TooLong,
}

impl ContextNeed {
    /// Returns true if nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// Returns how well the request fits into a context of this many tokens; 0 is unknown.
    pub(crate) fn fit(self, max_context: u32) -> ContextFit {
        let (prompt, output) = (u64::from(self.prompt), u64::from(self.output));
        let max = u64::from(max_context);
        if max == 0 || prompt + output <= max {
            ContextFit::Fits
        } else if prompt * 3 / 4 + output <= max {
            ContextFit::Doubtful
        } else {
            ContextFit::TooLong
        }
    }
}

impl From<RequestInfo> for ContextNeed {
    fn from(info: RequestInfo) -> Self {
        Self { prompt: info.prompt_tokens, output: info.max_output_tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::ContextFit::{Doubtful, Fits, TooLong};
    use super::*;

    #[test]
    fn estimates_are_trusted_up_to_a_third() {
        for (prompt, output, max_context, expected) in [
            (3000, 0, 0, Fits),
            (1000, 0, 1000, Fits),
            (1001, 0, 1000, Doubtful),
            (1334, 0, 1000, Doubtful),
            (1335, 0, 1000, TooLong),
            (400, 600, 1000, Fits),
            (400, 601, 1000, Doubtful),
            // The limit of the output is exact.
            (400, 701, 1000, TooLong),
            (u32::MAX, u32::MAX, u32::MAX, TooLong),
        ] {
            let need = ContextNeed { prompt, output };
            assert_eq!(need.fit(max_context), expected, "{need:?} in {max_context}");
        }
    }
}
