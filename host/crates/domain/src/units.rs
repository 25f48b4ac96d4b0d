//! Values with units, as written in configurations and manifests: `"30s"`, `"48GiB"`.

use std::time::Duration;

/// The error for a text that is not a value with a known unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text is not a duration.
    #[error(
        "invalid duration \"{0}\": expected an integer with a unit, for example \"250ms\", \
         \"30s\", \"5m\" or \"2h\""
    )]
    Duration(String),
    /// The text is not a size.
    #[error(
        "invalid size \"{0}\": expected an integer with a unit, for example \"512KiB\", \
         \"32MiB\" or \"48GiB\""
    )]
    Size(String),
    /// The text is not a percentage.
    #[error(
        "invalid percentage \"{0}\": expected a value from \"0%\" to \"100%\", for example \"2.5%\""
    )]
    Percentage(String),
}

/// Parses a duration such as `"250ms"`, `"30s"`, `"5m"` or `"2h"`.
///
/// # Errors
/// If the text is not an integer with one of the units `us`, `ms`, `s`, `m` and `h`, or is too
/// large.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    const UNITS: [(&str, u64); 5] =
        [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
    let micros = scaled(text, &UNITS).ok_or_else(|| UnitError::Duration(text.to_owned()))?;
    Ok(Duration::from_micros(micros))
}

/// Parses a size in bytes such as `"512KiB"`, `"32MiB"` or `"48GiB"`.
///
/// # Errors
/// If the text is not an integer with one of the units `B`, `KiB`, `MiB`, `GiB` and `TiB`, or is
/// too large.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    const UNITS: [(&str, u64); 5] =
        [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    scaled(text, &UNITS).ok_or_else(|| UnitError::Size(text.to_owned()))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Serialises a duration as whole microseconds, for `#[serde(with)]`; such keys end with `-us`.
pub mod micros {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the signature is serde's")]
    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX).serialize(to)
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the signature is serde's")]
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

/// Serialises an optional duration as whole microseconds, for `#[serde(with)]`.
pub mod maybe_micros {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the signature is serde's")]
    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).serialize(to)
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "the signature is serde's")]
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_a_known_unit_are_rejected() {
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
