//! What is counted, and how it is written.

use serde::{Deserialize, Serialize};

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that ended with an error.
    pub failed: u64,
    /// Tokens of prompts, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens of prompts that engines had cached.
    pub cached_tokens: u64,
    /// Tokens of outputs.
    pub output_tokens: u64,
    /// Milliseconds for which requests waited for slots.
    pub waiting_ms: u64,
    /// Milliseconds for which engines worked on requests.
    pub engine_ms: u64,
}

impl Counts {
    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        let mut fields = self.fields();
        for (field, other) in fields.iter_mut().zip(other.fields()) {
            *field = field.saturating_add(other);
        }
        *self = Self::from_fields(fields);
    }

    /// Returns the counts without others, which were counted before.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut fields = self.fields();
        for (field, other) in fields.iter_mut().zip(other.fields()) {
            // Saturating: rows that are being added up are in the file in part.
            *field = field.saturating_sub(other);
        }
        Self::from_fields(fields)
    }

    fn fields(&self) -> [u64; 7] {
        let Self { requests, failed, prompt_tokens, cached_tokens, output_tokens, .. } = *self;
        let tokens = [prompt_tokens, cached_tokens, output_tokens];
        [requests, failed, tokens[0], tokens[1], tokens[2], self.waiting_ms, self.engine_ms]
    }

    fn from_fields(fields: [u64; 7]) -> Self {
        let [requests, failed, prompt_tokens, cached_tokens, output_tokens, waiting_ms, engine_ms] =
            fields;
        Self {
            requests,
            failed,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            waiting_ms,
            engine_ms,
        }
    }

    /// Writes the counts: each as a number of 7 bits per byte, so that a row is small. More of them
    /// can be added at the end.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        for mut field in self.fields() {
            while field >= 0x80 {
                bytes.push((field & 0x7f) as u8 | 0x80);
                field >>= 7;
            }
            bytes.push(field as u8);
        }
        bytes
    }

    /// Reads what [`Counts::to_bytes`] has written; what is missing is zero, and what a later
    /// version has added is ignored.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut rest = bytes.iter();
        Self::from_fields(std::array::from_fn(|_| {
            let mut field = 0;
            for (shift, byte) in (0..64).step_by(7).zip(rest.by_ref()) {
                field |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            field
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_are_read_as_they_were_written(fields in any::<[u64; 7]>(), cut in 0usize..64) {
            let counts = Counts::from_fields(fields);
            let bytes = counts.to_bytes();
            prop_assert_eq!(Counts::from_bytes(&bytes), counts);
            // Any bytes are counts.
            Counts::from_bytes(&bytes[..cut.min(bytes.len())]);
        }
    }
}
