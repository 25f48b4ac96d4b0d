//! Sampling: a percentage of the requests, selected by request id, and optionally all requests that
//! end in an error.

use pointsman_domain::fnv1a_chain;
use pointsman_domain::units::UnitError;

/// A fraction of all requests, in parts per million. The same requests are selected on every host,
/// and a smaller sample is a subset of every larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample(u32);

/// Whether a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Not recorded.
    No,
    /// Recorded if the request ends in an error.
    IfError,
    /// Recorded.
    Yes,
}

const MILLION: u32 = 1_000_000;

impl Sample {
    /// Selects every request.
    pub const ALL: Self = Self(MILLION);

    /// Parses a percentage such as `"1%"`, `"0.05%"` or `"100%"`.
    ///
    /// # Errors
    /// If `text` is not a percentage from `"0%"` to `"100%"`.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let invalid = || UnitError::Percentage(text.to_owned());
        let number = text.strip_suffix('%').map(str::trim_end).ok_or_else(invalid)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(invalid());
        }
        let percent: f64 = number.parse().map_err(|_| invalid())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(invalid());
        }
        Ok(Self((percent * 10_000.0).round() as u32))
    }

    /// Returns the fraction, from 0.0 to 1.0.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(MILLION)
    }

    /// Returns true if the sample contains the request with this id.
    pub fn contains(self, request_id: &str) -> bool {
        // Not the seed that policies get: the sample would be biased by their random choices.
        let id = request_id.as_bytes();
        let hash =
            fnv1a_chain([b"record:".as_slice(), id], 7 + id.len(), 1).first().copied().unwrap_or(0);
        ((u128::from(mix(hash)) * u128::from(MILLION)) >> 64) < u128::from(self.0)
    }

    /// Returns whether a request is recorded. `errors` includes all requests that end in an error.
    pub fn interest(self, request_id: &str, errors: bool) -> Interest {
        match (self.contains(request_id), errors) {
            (true, _) => Interest::Yes,
            (false, true) => Interest::IfError,
            (false, false) => Interest::No,
        }
    }
}

/// Makes every bit depend on all others, which the high bits of an FNV hash of short texts do not.
/// This is the finaliser of splitmix64.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_parsed() {
        for (text, share) in
            [("1%", Some(10_000)), ("0.05 %", Some(500)), ("100%", Some(MILLION)), ("0%", Some(0))]
        {
            assert_eq!(Sample::parse(text).ok(), share.map(Sample), "{text}");
        }
        for text in ["", "%", "1", "101%", "-1%", "1e1%", "nan%", "half", "1.2.3%"] {
            assert_eq!(Sample::parse(text), Err(UnitError::Percentage(text.to_owned())));
        }
    }

    #[test]
    fn samples_are_uniform_stable_and_nested() {
        let ids: Vec<String> = (0..100_000).map(|number| format!("request-{number}")).collect();
        let select = |share: &str| {
            let sample = Sample::parse(share).unwrap();
            ids.iter().filter(|id| sample.contains(id)).collect::<Vec<_>>()
        };
        let (small, large) = (select("1%"), select("10%"));
        assert!((900..1100).contains(&small.len()), "{}", small.len());
        assert!((9_700..10_300).contains(&large.len()), "{}", large.len());
        assert!(small.iter().all(|id| large.contains(id)));
        assert!(select("0%").is_empty() && select("100%").len() == ids.len());
        // Fixed, because files of several hosts and versions are combined.
        assert_eq!(small[..3], ["request-4", "request-99", "request-136"]);
    }

    #[test]
    fn errors_are_recorded_if_requested() {
        assert_eq!(Sample::ALL.interest("a", false), Interest::Yes);
        assert_eq!(Sample(0).interest("a", true), Interest::IfError);
        assert_eq!(Sample(0).interest("a", false), Interest::No);
    }
}
