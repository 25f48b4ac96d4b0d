//! What makes an engine's processes recognisable: an environment variable that all of them inherit.
//!
//! It is not enough by itself. vLLM names its processes with `setproctitle`, which writes over the memory that
//! `/proc/<pid>/environ` shows, so that `VLLM::EngineCore` and `VLLM::Worker` bear no marker any more (seen with setproctitle
//! 1.3.8). The session and the pipes of [`Record`](super::record::Record) are what gives those away.

use std::fmt;

/// The variable that says whose engine a process is.
pub(super) const VARIABLE: &str = "POINTSMAN_ENGINE";

/// One start of one lane's engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Marker {
    /// The state directory that it belongs to. Without a colon.
    pub(super) home: String,
    /// The lane's name.
    pub(super) lane: String,
    /// Tells the starts of a lane apart. Without a colon.
    pub(super) nonce: String,
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.home, escape(&self.lane), self.nonce)
    }
}

impl Marker {
    /// The value of [`VARIABLE`], read back.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (home, rest) = value.split_once(':')?;
        let (lane, nonce) = rest.rsplit_once(':')?;
        if home.is_empty() || nonce.is_empty() || nonce.contains(':') {
            return None;
        }
        Some(Self { home: home.to_owned(), lane: unescape(lane)?, nonce: nonce.to_owned() })
    }
}

/// The marker in an environment as `/proc/<pid>/environ` shows it: entries that end with a zero byte. The first entry of a
/// name counts, as it does for `getenv`.
pub(super) fn in_environ(environ: &[u8]) -> Option<Marker> {
    environ
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))
        .and_then(|value| Marker::parse(str::from_utf8(value).ok()?))
}

/// A lane's name as one word that can be a file's name: everything but letters, digits, `-` and `_` as `%XX`.
pub(super) fn escape(lane: &str) -> String {
    lane.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The lane's name that [`escape`] was given.
pub(super) fn unescape(word: &str) -> Option<String> {
    let mut parts = word.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_marker_is_found_among_other_variables(
            home in "[0-9a-f-]{1,20}",
            lane in ".{0,20}",
            nonce in "[0-9a-f-]{1,36}",
            before in proptest::collection::vec("[A-Z_]{1,8}=[^\0]{0,20}", 0..5),
            after in proptest::collection::vec("[^\0]{0,20}", 0..5),
            ends_with_zero: bool,
        ) {
            let marker = Marker { home, lane, nonce };
            prop_assert_eq!(Marker::parse(&marker.to_string()), Some(marker.clone()));
            prop_assert!(!marker.to_string().contains([' ', '\n', '/']));
            let ours = format!("{VARIABLE}={marker}");
            let entries: Vec<String> = before.into_iter().chain([ours]).chain(after).collect();
            let mut environ = entries.join("\0").into_bytes();
            environ.extend(ends_with_zero.then_some(0));
            prop_assert_eq!(in_environ(&environ), Some(marker));
        }

        #[test]
        fn anything_can_be_read_as_an_environment(bytes: Vec<u8>, value in "[:a%0-9]{0,12}") {
            prop_assert_eq!(in_environ(&bytes), None);
            let _whatever = in_environ(format!("X=1\0{VARIABLE}={value}").as_bytes());
            let longer = format!("{VARIABLE}S=a:b:c\0X{VARIABLE}=a:b:c\0{VARIABLE}");
            prop_assert_eq!(in_environ(longer.as_bytes()), None);
        }
    }
}
