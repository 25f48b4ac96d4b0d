//! Bodies in the content encodings of HTTP, without compression: every decoder accepts them.

/// Encodes as gzip.
///
/// # Panics
/// If the data has more than 65535 bytes.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    bytes.extend(stored(data));
    bytes.extend(crc32(data).to_le_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    bytes
}

/// Encodes as `deflate`, which is the format of zlib.
///
/// # Panics
/// If the data has more than 65535 bytes.
pub fn deflate(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x78, 0x01];
    bytes.extend(stored(data));
    let (mut a, mut b) = (1, 0);
    for byte in data {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    bytes.extend((b << 16 | a).to_be_bytes());
    bytes
}

/// Encodes as Zstandard, as one raw block.
///
/// # Panics
/// If the data has more than 65535 bytes.
pub fn zstd(data: &[u8]) -> Vec<u8> {
    // A window of 64 KiB, and no size of the content.
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x30];
    let size = u32::from(u16::try_from(data.len()).unwrap());
    bytes.extend(&(size << 3 | 1).to_le_bytes()[..3]);
    bytes.extend(data);
    bytes
}

/// Returns one block of the deflate format that is stored.
fn stored(data: &[u8]) -> Vec<u8> {
    let size = u16::try_from(data.len()).unwrap();
    let mut bytes = vec![1];
    bytes.extend(size.to_le_bytes());
    bytes.extend((!size).to_le_bytes());
    bytes.extend(data);
    bytes
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0xedb8_8320 & mask);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_that_of_gzip() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(deflate(b"Wikipedia")[16..], 0x11e6_0398_u32.to_be_bytes());
    }
}
