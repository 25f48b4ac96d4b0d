//! The encoding of bytes in records.

use serde::{Deserialize, Serialize};

use pointsman_spec::encoding::unhex;

use crate::digest::hex;

/// The encoding of bytes in records: as text if they are printable UTF-8, otherwise in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EncodedBytes {
    Text(String),
    Hex(String),
}

/// Bytes that a host call returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "EncodedBytes", try_from = "EncodedBytes")]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl From<Bytes> for EncodedBytes {
    fn from(Bytes(bytes): Bytes) -> Self {
        let is_text =
            |text: &str| !text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace());
        match String::from_utf8(bytes) {
            Ok(text) if is_text(&text) => Self::Text(text),
            Ok(text) => Self::Hex(hex(text.as_bytes())),
            Err(other) => Self::Hex(hex(other.as_bytes())),
        }
    }
}

/// An error of decoding [`EncodedBytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid bytes: expected pairs of hexadecimal digits")]
pub(crate) struct InvalidBytes;

impl TryFrom<EncodedBytes> for Bytes {
    type Error = InvalidBytes;

    fn try_from(encoded: EncodedBytes) -> Result<Self, Self::Error> {
        match encoded {
            EncodedBytes::Text(text) => Ok(Self(text.into_bytes())),
            EncodedBytes::Hex(hex) => unhex(&hex).map(Self).ok_or(InvalidBytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_are_encoded_without_loss() {
        for (bytes, encoded) in [
            ("two\nlines ä".as_bytes(), json!({ "text": "two\nlines ä" })),
            (&5i64.to_le_bytes(), json!({ "hex": "0500000000000000" })),
            (&[0xff, 0x00], json!({ "hex": "ff00" })),
            (b"", json!({ "text": "" })),
        ] {
            let bytes = Bytes(bytes.to_vec());
            assert_eq!(json!(bytes), encoded);
            assert_eq!(serde_json::from_value::<Bytes>(encoded).unwrap(), bytes);
        }
    }

    #[test]
    fn invalid_encodings_are_rejected() {
        for invalid in [
            json!({ "hex": "f" }),
            json!({ "hex": "+f" }),
            json!({ "hex": "redacted:4" }),
            json!("x"),
        ] {
            assert!(serde_json::from_value::<Bytes>(invalid.clone()).is_err(), "{invalid}");
        }
    }
}
