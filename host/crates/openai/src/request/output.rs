//! How many tokens a request lets an engine generate.

use serde_json::value::RawValue;

use super::prompt::saturating_u32;
use super::shape::Shape;
use crate::endpoint::{EndpointShape, OutputLimit};
use crate::error_form::ErrorForm;
use crate::index;

/// The value of a field that limits the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// At most this many tokens.
    Tokens(u64),
    /// No limit: a negative number (llama.cpp's -1), or what is not a number.
    Unlimited,
}

impl Limit {
    /// Reads the JSON text of a field; `None` if it is `null`, which counts as missing. vLLM and
    /// llama.cpp take numbers like `1e2` and `100.0`, and vLLM takes numbers in strings.
    pub(crate) fn read(json: &str) -> Option<Self> {
        if json == "null" {
            return None;
        }
        let number: Option<f64> = json.trim_matches('"').trim().parse().ok();
        Some(match number {
            Some(number) if number.is_finite() && number >= 0.0 => Self::Tokens(round_up(number)),
            Some(_) | None => Self::Unlimited,
        })
    }
}

/// Returns the lowest limit of those that Ollama reads, of which a policy may have added one;
/// `None` if there is none. Numbers below 1 are not limits there.
pub(crate) fn lowest_limit<'a>(limits: impl Iterator<Item = &'a str>) -> Option<u64> {
    let limits = limits.filter_map(|json| match Limit::read(json)? {
        Limit::Tokens(tokens) if tokens > 0 => Some(tokens),
        Limit::Tokens(_) | Limit::Unlimited => None,
    });
    limits.min()
}

/// Saturates, as casts of floats do.
fn round_up(number: f64) -> u64 {
    number.ceil() as u64
}

/// Returns the maximum number of tokens of all choices of the response; 0 if it is not limited.
///
/// Engines differ in which of several limits counts: llama.cpp prefers `n_predict` to `max_tokens`,
/// vLLM ignores it. So the highest limit counts. A limit that some engines ignore counts even
/// if it is the only one: an edit that caps the output adds one that all of them read.
pub(super) fn output_limit(shape: &Shape<'_>, format: &EndpointShape) -> u32 {
    if format.errors == ErrorForm::Ollama {
        let path = ["num_predict".to_owned()];
        let predict = shape.options.and_then(|options| index::find(options.get(), &path));
        let others = [shape.max_tokens, shape.max_completion_tokens].map(|f| f.map(RawValue::get));
        let lowest = lowest_limit(others.into_iter().chain([predict]).flatten()).unwrap_or(0);
        return saturating_u32(usize::try_from(lowest).unwrap_or(usize::MAX));
    }
    let limits = format.output_limits.iter().filter_map(|limit| {
        let field = match limit {
            OutputLimit::CompletionTokens => shape.max_completion_tokens,
            OutputLimit::Predict => shape.n_predict,
            OutputLimit::Tokens => shape.max_tokens,
            OutputLimit::OutputTokens => shape.max_output_tokens,
        };
        Limit::read(field?.get())
    });
    let mut highest = 0;
    for limit in limits {
        match limit {
            Limit::Tokens(tokens) => highest = highest.max(tokens),
            Limit::Unlimited => return 0,
        }
    }
    // vLLM rejects a minimum above the maximum; another engine may generate that many.
    if highest > 0
        && let Some(Limit::Tokens(minimum)) =
            shape.min_tokens.and_then(|minimum| Limit::read(minimum.get()))
    {
        highest = highest.max(minimum);
    }
    let total = highest.saturating_mul(generated(shape));
    saturating_u32(usize::try_from(total).unwrap_or(usize::MAX))
}

/// Returns the number of choices that the client asks for, for each prompt: `n`, or llama.cpp's
/// `n_cmpl`.
pub(super) fn choices(shape: &Shape<'_>) -> u64 {
    count(shape.n).max(count(shape.n_cmpl))
}

/// Returns the number of choices that an engine generates for each prompt, of which it may return
/// only the best.
pub(super) fn generated(shape: &Shape<'_>) -> u64 {
    count(shape.best_of).max(choices(shape))
}

/// Reads a number of choices. What is missing, or what engines reject, counts as 1.
fn count(field: Option<&RawValue>) -> u64 {
    match field.and_then(|field| Limit::read(field.get())) {
        Some(Limit::Tokens(count)) => count.max(1),
        Some(Limit::Unlimited) | None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_all_forms_that_engines_take() {
        for (json, limit) in [
            ("null", None),
            ("0", Some(Limit::Tokens(0))),
            ("100", Some(Limit::Tokens(100))),
            ("100000.0", Some(Limit::Tokens(100_000))),
            ("1.5", Some(Limit::Tokens(2))),
            ("1e2", Some(Limit::Tokens(100))),
            ("\"7\"", Some(Limit::Tokens(7))),
            ("1e300", Some(Limit::Tokens(u64::MAX))),
            ("-1", Some(Limit::Unlimited)),
            ("1e999", Some(Limit::Unlimited)),
            ("\"inf\"", Some(Limit::Unlimited)),
            ("true", Some(Limit::Unlimited)),
            ("[5]", Some(Limit::Unlimited)),
        ] {
            assert_eq!(Limit::read(json), limit, "{json}");
        }
    }
}
