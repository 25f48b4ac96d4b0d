//! The marker of an engine: an environment variable that all its processes inherit.
//!
//! The marker alone is not sufficient. vLLM names its processes with `setproctitle`, which
//! overwrites the memory that `/proc/<pid>/environ` shows, so that `VLLM::EngineCore` and
//! `VLLM::Worker` do not have a marker any more (seen with setproctitle 1.3.8). They are found by
//! the session and the pipes of their [`Record`](super::record::Record).

use std::fmt;

/// The environment variable that contains the marker.
pub(super) const VARIABLE: &str = "POINTSMAN_ENGINE";

/// The marker of one start of a lane's engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Marker {
    /// The id of the state directory. Contains no colon.
    pub(super) state_dir: String,
    /// The name of the lane.
    pub(super) lane: String,
    /// Distinguishes the starts of a lane's engine. Contains no colon.
    pub(super) nonce: String,
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.state_dir, escape(&self.lane), self.nonce)
    }
}

impl Marker {
    /// Parses the value of [`VARIABLE`].
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (state_dir, rest) = value.split_once(':')?;
        let (lane, nonce) = rest.rsplit_once(':')?;
        if state_dir.is_empty() || nonce.is_empty() || nonce.contains(':') {
            return None;
        }
        Some(Self {
            state_dir: state_dir.to_owned(),
            lane: unescape(lane)?,
            nonce: nonce.to_owned(),
        })
    }
}

/// Finds the marker in an environment as `/proc/<pid>/environ` shows it: entries that end with a
/// zero byte. The first entry with the name counts, as it does for `getenv`.
pub(super) fn in_environ(environ: &[u8]) -> Option<Marker> {
    environ
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))
        .and_then(|value| Marker::parse(str::from_utf8(value).ok()?))
}

/// Escapes the name of a lane for file names: everything but ASCII letters, digits, `-` and `_`
/// becomes `%XX`.
pub(crate) fn escape(lane: &str) -> String {
    lane.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Reverses [`escape`].
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
        fn marker_is_found_among_other_variables(
            state_dir in "[0-9a-f-]{1,20}",
            lane in ".{0,20}",
            nonce in "[0-9a-f-]{1,36}",
            before in proptest::collection::vec("[A-Z_]{1,8}=[^\0]{0,20}", 0..5),
            after in proptest::collection::vec("[^\0]{0,20}", 0..5),
            ends_with_zero: bool,
        ) {
            let marker = Marker { state_dir, lane, nonce };
            prop_assert_eq!(Marker::parse(&marker.to_string()), Some(marker.clone()));
            prop_assert!(!marker.to_string().contains([' ', '\n', '/']));
            let ours = format!("{VARIABLE}={marker}");
            let entries: Vec<String> = before.into_iter().chain([ours]).chain(after).collect();
            let mut environ = entries.join("\0").into_bytes();
            environ.extend(ends_with_zero.then_some(0));
            prop_assert_eq!(in_environ(&environ), Some(marker));
        }

        #[test]
        fn any_bytes_are_accepted_as_an_environment(bytes: Vec<u8>, value in "[:a%0-9]{0,12}") {
            prop_assert_eq!(in_environ(&bytes), None);
            // Must not panic; the result depends on the value.
            let _ = in_environ(format!("X=1\0{VARIABLE}={value}").as_bytes());
            let longer = format!("{VARIABLE}S=a:b:c\0X{VARIABLE}=a:b:c\0{VARIABLE}");
            prop_assert_eq!(in_environ(longer.as_bytes()), None);
        }
    }
}
