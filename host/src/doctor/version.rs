//! Versions of kernels and of ROCm.

use std::fmt;

/// A version of three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) [u32; 3]);

impl Version {
    /// Parses the beginning of a text, such as `6.18.4-arch1-1` or `7.0.2-38`; missing numbers are
    /// 0.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let mut parts = text[..end.unwrap_or(text.len())].split('.').map(str::parse);
        let first = parts.next()?.ok()?;
        let mut next = || parts.next().and_then(Result::ok).unwrap_or(0);
        Some(Self([first, next(), next()]))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_parsed_and_ordered() {
        for (text, expected) in [
            ("6.18.4-arch1-1", Some([6, 18, 4])),
            ("7.0-rc3", Some([7, 0, 0])),
            ("6.8.0-45-generic", Some([6, 8, 0])),
            ("7.14", Some([7, 14, 0])),
            ("", None),
            ("generic", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(Version::parse(text), expected.map(Version), "{text}");
        }
        assert!(
            Version([6, 18, 4]) > Version([6, 17, 9]) && Version([7, 0, 0]) > Version([6, 18, 4])
        );
    }
}
