//! The address of a listener: a TCP address, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pointsman_settings::{Code, Section};

use crate::admin::MAX_SOCKET_PATH;

/// The beginning of an address that is a Unix socket.
const UNIX: &str = "unix:";
/// Mode of a socket without `mode`: the host's user and group.
const DEFAULT_MODE: u32 = 0o660;

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// Mode of the socket's file.
        mode: u32,
    },
}

impl Default for Address {
    /// Returns the address without `server.listen`.
    fn default() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], 8000)))
    }
}

impl Address {
    /// Returns the TCP address; `None` for a Unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix { .. } => None,
        }
    }

    /// Returns true if both cannot be listened on at the same time. A wildcard address takes the
    /// port of all addresses.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => overlap(*one, *other),
            (Self::Unix { path, .. }, Self::Unix { path: other, .. }) => path == other,
            (Self::Tcp(_), Self::Unix { .. }) | (Self::Unix { .. }, Self::Tcp(_)) => false,
        }
    }
}

/// Returns true if both addresses cannot be listened on at the same time.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_same_ip =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    // Port 0 is a free one.
    one.port() == other.port() && one.port() != 0 && is_same_ip
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Reads an address. The path of a socket is relative to `folder`.
pub(super) fn read(section: &Section<'_>, key: &str, folder: &Path) -> Option<Address> {
    section.parsed(key, |text| match text.strip_prefix(UNIX) {
        Some("") => Err(Code::InvalidValue.with(format!(
            "invalid address \"{text}\": expected a path, for example \
             unix:/run/pointsman/api.sock"
        ))),
        Some(path) => {
            let path = folder.join(path);
            let length = path.as_os_str().len();
            if length > MAX_SOCKET_PATH {
                return Err(Code::OutOfRange.with(format!(
                    "socket path {} has {length} bytes, which exceeds the limit of \
                     {MAX_SOCKET_PATH}",
                    path.display()
                )));
            }
            Ok(Address::Unix { path, mode: DEFAULT_MODE })
        }
        None => text.parse().map(Address::Tcp).map_err(|_| {
            Code::InvalidValue.with(format!(
                "invalid address \"{text}\": expected IP:PORT, for example 127.0.0.1:8000, or \
                 unix:PATH"
            ))
        }),
    })
}

/// Reads `mode`, and returns the address with it.
pub(super) fn read_mode(section: &Section<'_>, address: Option<Address>) -> Option<Address> {
    let mode = section.parsed("mode", |text| {
        let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        mode.ok_or_else(|| {
            format!("invalid mode \"{text}\": expected three octal digits, for example \"660\"")
        })
    });
    match (address?, mode) {
        (Address::Unix { path, .. }, Some(mode)) => Some(Address::Unix { path, mode }),
        (address @ Address::Tcp(_), Some(_)) => {
            let message = "only used with a Unix socket, and the address is not one";
            section.error_at("mode", Code::Conflict.with(message));
            Some(address)
        }
        (address, None) => Some(address),
    }
}
