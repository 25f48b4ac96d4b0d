//! What was used, as hosts add it up.

/// What was used, or has to be added to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) requests: i64,
    pub(super) tokens: i64,
    pub(super) engine_ms: i64,
}

impl Figures {
    fn combine(self, other: Self, with: impl Fn(i64, i64) -> i64) -> Self {
        Self {
            requests: with(self.requests, other.requests),
            tokens: with(self.tokens, other.tokens),
            engine_ms: with(self.engine_ms, other.engine_ms),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        self.combine(other, i64::saturating_add)
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.combine(other, i64::saturating_sub)
    }

    pub(super) fn max(self, other: Self) -> Self {
        self.combine(other, i64::max)
    }
}
