//! Values with units, as people write them in configurations and manifests: `"30s"`, `"48GiB"`.

use std::time::Duration;

/// A duration such as `"250ms"`, `"30s"`, `"5m"`, `"2h"`.
///
/// # Errors
/// With what to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 5] =
        [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
    scaled(text, &UNITS).map(Duration::from_micros).ok_or_else(|| {
        format!("\"{text}\" is no duration; write a whole number with a unit, such as \"250ms\", \"30s\", \"5m\" or \"2h\"")
    })
}

/// A size in bytes such as `"512KiB"`, `"32MiB"`, `"48GiB"`.
///
/// # Errors
/// With what to write instead.
pub fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    scaled(text, &UNITS).ok_or_else(|| {
        format!("\"{text}\" is no size; write a whole number with a unit, such as \"512KiB\", \"32MiB\" or \"48GiB\"")
    })
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A duration as whole microseconds, for `#[serde(with)]`; keys of such values end with `-us`.
pub mod micros {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the form that serde wants")]
    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX).serialize(to)
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the form that serde wants")]
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

/// The same for one that may be missing.
pub mod maybe_micros {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the form that serde wants")]
    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).serialize(to)
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the form that serde wants")]
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_need_a_known_unit() {
        for (text, ms) in [
            ("250ms", Some(250)),
            ("30s", Some(30_000)),
            ("5 m", Some(300_000)),
            ("2h", Some(7_200_000)),
        ] {
            assert_eq!(duration(text).ok(), ms.map(Duration::from_millis), "{text}");
        }
        for (text, size) in [
            ("0B", Some(0)),
            ("3KiB", Some(3072)),
            ("48GiB", Some(48 << 30)),
            ("1 MiB", Some(1 << 20)),
        ] {
            assert_eq!(bytes(text).ok(), size, "{text}");
        }
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "1sec",
            "1GB",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err() && bytes(text).is_err(), "{text}");
        }
    }
}
