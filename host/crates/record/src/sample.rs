//! Which requests are recorded: a share of them, found by their ids, and by wish all that end in an error.

use pointsman_domain::fnv1a_chain;

/// A share of all requests, in parts of a million. The same request is in it or not on every host, and a request that is in a
/// share is in every larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample(u32);

/// Is a request to be recorded?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// In no case.
    No,
    /// If it ends in an error.
    IfError,
    /// In any case.
    Yes,
}

const MILLION: u32 = 1_000_000;

impl Sample {
    /// Every request.
    pub const ALL: Self = Self(MILLION);

    /// A share such as `"1%"`, `"0.05%"`, `"100%"`.
    ///
    /// # Errors
    /// With what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no share; write per cent from \"0%\" to \"100%\", such as \"1%\" or \"0.05%\""
            )
        };
        let number = text.strip_suffix('%').map(str::trim_end).ok_or_else(wrong)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(wrong());
        }
        let percent: f64 = number.parse().map_err(|_| wrong())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(wrong());
        }
        Ok(Self((percent * 10_000.0).round() as u32))
    }

    /// Is the request with this id in the share?
    pub fn contains(self, request_id: &str) -> bool {
        // Not by the seed that policies get: a share of their random choices would not be a fair one.
        let id = request_id.as_bytes();
        let hash =
            fnv1a_chain([b"record:".as_slice(), id], 7 + id.len(), 1).first().copied().unwrap_or(0);
        ((u128::from(mixed(hash)) * u128::from(MILLION)) >> 64) < u128::from(self.0)
    }

    /// Is that request to be recorded?
    pub fn interest(self, request_id: &str, errors: bool) -> Interest {
        match (self.contains(request_id), errors) {
            (true, _) => Interest::Yes,
            (false, true) => Interest::IfError,
            (false, false) => Interest::No,
        }
    }
}

/// Makes every bit depend on every other, which the high ones of an FNV hash of short texts do not: the finaliser of
/// splitmix64.
fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_per_cent() {
        for (text, share) in
            [("1%", Some(10_000)), ("0.05 %", Some(500)), ("100%", Some(MILLION)), ("0%", Some(0))]
        {
            assert_eq!(Sample::parse(text).ok(), share.map(Sample), "{text}");
        }
        for text in ["", "%", "1", "101%", "-1%", "1e1%", "nan%", "half", "1.2.3%"] {
            assert!(Sample::parse(text).unwrap_err().contains("such as"), "{text}");
        }
    }

    #[test]
    fn a_share_is_fair_stable_and_part_of_every_larger_one() {
        let ids: Vec<String> = (0..100_000).map(|number| format!("request-{number}")).collect();
        let of = |share: &str| {
            let sample = Sample::parse(share).unwrap();
            ids.iter().filter(|id| sample.contains(id)).collect::<Vec<_>>()
        };
        let (small, large) = (of("1%"), of("10%"));
        assert!((900..1100).contains(&small.len()), "{}", small.len());
        assert!((9_700..10_300).contains(&large.len()), "{}", large.len());
        assert!(small.iter().all(|id| large.contains(id)));
        assert!(of("0%").is_empty() && of("100%").len() == ids.len());
        // Written down, because files of several hosts and versions are put together.
        assert_eq!(small[..3], ["request-4", "request-99", "request-136"]);
    }

    #[test]
    fn errors_are_of_interest_by_wish() {
        assert_eq!(Sample::ALL.interest("a", false), Interest::Yes);
        assert_eq!(Sample(0).interest("a", true), Interest::IfError);
        assert_eq!(Sample(0).interest("a", false), Interest::No);
    }
}
