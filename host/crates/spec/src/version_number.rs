//! Version numbers of policies that can be compared.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Numbers separated by dots. Missing numbers are zero, so `1.2` and `1.2.0` are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionNumber(Vec<u64>);

/// A text is not a version number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected numbers separated by dots, for example \"1.2.0\"")]
pub struct VersionNumberError;

impl FromStr for VersionNumber {
    type Err = VersionNumberError;

    fn from_str(text: &str) -> Result<Self, VersionNumberError> {
        let number = |part: &str| {
            let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| is_number).ok_or(VersionNumberError)
        };
        let mut numbers: Vec<u64> = text.split('.').map(number).collect::<Result<_, _>>()?;
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Ok(Self(numbers))
    }
}

impl Ord for VersionNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for VersionNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |at| self.0.get(at).copied().unwrap_or_default();
        write!(f, "{}.{}.{}", part(0), part(1), part(2))?;
        self.0.iter().skip(3).try_for_each(|number| write!(f, ".{number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let parse = |text: &str| text.parse::<VersionNumber>();
        assert!(parse("1.9").unwrap() < parse("1.10.0").unwrap());
        assert!(parse("2").unwrap() > parse("1.99.99.1").unwrap());
        assert_eq!(parse("1.2"), parse("1.2.0"));
        assert_eq!(parse("1.2").unwrap().to_string(), "1.2.0");
        for text in ["", "1.", "v1", "1.2-beta", "+1", "-1", "99999999999999999999"] {
            assert_eq!(parse(text), Err(VersionNumberError), "{text}");
        }
    }
}
