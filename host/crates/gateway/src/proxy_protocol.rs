//! The header of the PROXY protocol, with which a load balancer begins each connection: it names
//! the client that the balancer has accepted.
//!
//! Exactly the header is read, so that what follows it, such as a TLS handshake, is left.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Maximum length of a header of version 1, from the specification.
const MAX_V1: usize = 107;
/// Maximum length of a header of version 2. Addresses have at most 232 bytes with what precedes
/// them; the rest is for what balancers add, such as ids and names of certificates.
const MAX_V2: usize = 4 << 10;
/// Bytes of a header of version 2 up to and including its length.
const V2_START: usize = 16;

/// An error in reading a header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The connection has ended, or failed.
    #[error("connection ended before a header of the PROXY protocol: {0}")]
    Io(#[from] io::Error),
    /// The header is text, and not valid.
    #[error("invalid header of the PROXY protocol: {0}")]
    V1(#[from] v1::BinaryParseError),
    /// The header is binary, and not valid.
    #[error("invalid header of the PROXY protocol: {0}")]
    V2(#[from] v2::ParseError),
    /// The header is too long.
    #[error("header of the PROXY protocol has {0} bytes, which exceeds the limit of {MAX_V2}")]
    TooLong(usize),
}

/// Reads a header, and returns the address of the client. `None` if it names none: a health check
/// of the load balancer itself, or a client of another kind of network.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, ProxyError> {
    // Every header of version 1 is longer than the prefix of version 2.
    let mut header = vec![0; v2::PROTOCOL_PREFIX.len()];
    stream.read_exact(&mut header).await?;
    match header == v2::PROTOCOL_PREFIX {
        true => read_v2(stream, header).await,
        false => read_v1(stream, header).await,
    }
}

async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    mut header: Vec<u8>,
) -> Result<Option<SocketAddr>, ProxyError> {
    // Byte by byte, because the length is not known. A stream that does not begin with `PROXY` is
    // refused at once, whatever it is.
    while header.starts_with(v1::PROTOCOL_PREFIX.as_bytes())
        && !header.ends_with(b"\n")
        && header.len() < MAX_V1
    {
        header.push(stream.read_u8().await?);
    }
    Ok(match v1::Header::try_from(header.as_slice())?.addresses {
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

async fn read_v2(
    stream: &mut (impl AsyncRead + Unpin),
    mut header: Vec<u8>,
) -> Result<Option<SocketAddr>, ProxyError> {
    header.resize(V2_START, 0);
    stream.read_exact(&mut header[v2::PROTOCOL_PREFIX.len()..]).await?;
    let length = V2_START + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if length > MAX_V2 {
        return Err(ProxyError::TooLong(length));
    }
    header.resize(length, 0);
    stream.read_exact(&mut header[V2_START..]).await?;
    let header = v2::Header::try_from(header.as_slice())?;
    Ok(match (header.command, header.addresses) {
        // The balancer's own connection, whatever the addresses are.
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => {
            Some((ip.source_address, ip.source_port).into())
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => {
            Some((ip.source_address, ip.source_port).into())
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a header that is followed by `rest`. Returns the address, and what is left.
    async fn parse(header: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
        let bytes = [header, b"rest"].concat();
        let mut stream = bytes.as_slice();
        let client = read(&mut stream).await?;
        assert_eq!(stream, b"rest");
        Ok(client)
    }

    fn v2_header(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, addresses].concat()
    }

    #[tokio::test]
    async fn valid_headers_name_the_client() {
        let address = |text: &str| Some(text.parse().unwrap());
        let ip4 = [10, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90, 0, 80];
        let with_tlv = [&ip4[..], &[4, 0, 2, 0, 0]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 10.0.0.1 127.0.0.1 8080 80\r\n".to_vec(), address("10.0.0.1:8080")),
            (b"PROXY TCP6 fd00::1 ::1 8080 80\r\n".to_vec(), address("[fd00::1]:8080")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN a b c d\r\n".to_vec(), None),
            (v2_header(0x21, 0x11, &ip4), address("10.0.0.1:8080")),
            (v2_header(0x21, 0x11, &with_tlv), address("10.0.0.1:8080")),
            (v2_header(0x20, 0x11, &ip4), None),
            (v2_header(0x20, 0x00, &[]), None),
        ] {
            assert_eq!(parse(&header).await.unwrap(), expected, "{header:?}");
        }
    }

    #[tokio::test]
    async fn other_beginnings_are_refused() {
        for header in [
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec(),
            b"PROXY TCP4 10.0.0.1 127.0.0.1 8080\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 127.0.0.1 80800 80\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 127.0.0.1 8080 80\n".to_vec(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; MAX_V1]].concat(),
            v2_header(0x31, 0x11, &[0; 12]),
            v2_header(0x21, 0x11, &[0; 11]),
            v2_header(0x21, 0x11, &[0; MAX_V2]),
            b"PROXY".to_vec(),
            b"".to_vec(),
        ] {
            let mut stream = header.as_slice();
            assert!(read(&mut stream).await.is_err(), "{header:?}");
        }
    }
}
