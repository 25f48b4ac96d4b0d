//! The encodings of keys and signatures in text: PEM, base64 and hexadecimal.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pem::Pem;

/// Maximum length of a key or a signature as text, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// Returns the content of the first section with this label in a PEM file.
pub fn pem_section(text: &str, label: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let sections = pem::parse_many(text).ok()?;
    sections.into_iter().find(|section| section.tag() == label).map(Pem::into_contents)
}

/// Decodes exactly `LENGTH` bytes in hexadecimal or base64 (RFC 4648, section 4).
pub fn decode<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    let text = text.trim();
    // The two encodings of the same number of bytes differ in length.
    let bytes = if text.len() == 2 * LENGTH { unhex(text) } else { decode_base64(text) };
    bytes?.try_into().ok()
}

/// Decodes base64 with padding. Line breaks are allowed; otherwise every value has one text only.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(digits).ok()
}

/// Returns the bytes that `text` encodes in hexadecimal; `None` if it has other characters, or an
/// odd number of digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_accepts_only_the_canonical_encoding() {
        for (text, decoded) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\r\nYmFy\n", "foobar")]
        {
            assert_eq!(decode_base64(text).as_deref(), Some(decoded.as_bytes()), "{text}");
        }
        for text in
            ["Zg", "Zg=", "Zh==", "Zm9=", "Z===", "====", "=Zg=", "Zm9v!", "Zm-_", "Zg==Zg=="]
        {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }
}
