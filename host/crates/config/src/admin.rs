//! Reads `[admin]`: where the admin API listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pointsman_settings::{Code, Diagnostics, Section, expand, folder_of, secret};
use toml::de::DeTable;

use super::ConfigError;
use super::folders::{env_folder, runtime_socket, state_dir};

/// Bytes of a socket's path: the system's limit is 107, and the temporary name has six more.
pub const MAX_SOCKET_PATH: usize = 101;

/// Minimum length of a token: 64 bits, if it is random and hexadecimal.
const MIN_TOKEN: usize = 16;

/// Requests that have ended and are kept for operators, by default.
const DEFAULT_DECISIONS: usize = 500;

/// The listeners of the admin API, which are optional, and what it keeps.
#[derive(Debug, PartialEq, Eq)]
pub struct Admin {
    /// Path of the Unix socket.
    pub socket: Option<PathBuf>,
    /// Where the state directory has a link to the socket, if it is elsewhere by default: commands
    /// find it there whatever their environment is.
    pub link: Option<PathBuf>,
    /// A loopback address, and the token that its clients need.
    pub port: Option<(SocketAddr, Token)>,
    /// Maximum number of requests that have ended and are kept for operators; 0 keeps none.
    pub decisions: usize,
}

impl Admin {
    /// Returns the port that is listened on.
    pub(super) fn tcp_port(&self) -> Option<u16> {
        self.port.as_ref().map(|(address, _)| address.port())
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: None, link: None, port: None, decisions: DEFAULT_DECISIONS }
    }
}

/// A secret that is never printed.
#[derive(PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Returns the secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Reads the section. `state` is the state directory, the default location of the socket.
pub(super) fn read(section: &Section<'_>, folder: &Path, state: Option<&Path>) -> Admin {
    let (socket, link) = socket(section, folder, state);
    let admin = Admin {
        socket,
        link,
        port: port(section, folder),
        decisions: section.integer("decisions", 0..=100_000, DEFAULT_DECISIONS),
    };
    section.report_unknown();
    admin
}

/// Returns the path of the socket, and that of the link to it.
fn socket(
    section: &Section<'_>,
    folder: &Path,
    state: Option<&Path>,
) -> (Option<PathBuf>, Option<PathBuf>) {
    let in_state = || state.map(|state| state.join("admin.sock"));
    match section.string("socket") {
        Some("") => (None, None),
        Some(path) => (checked(section, folder.join(path)), None),
        None => {
            let fits = |path: &PathBuf| path.as_os_str().len() <= MAX_SOCKET_PATH;
            match runtime_socket(state, env_folder).filter(fits) {
                Some(path) => (Some(path), in_state()),
                None => (in_state().and_then(|path| checked(section, path)), None),
            }
        }
    }
}

/// Returns the path of a socket, unless it is too long.
fn checked(section: &Section<'_>, path: PathBuf) -> Option<PathBuf> {
    let (length, max) = (path.as_os_str().len(), MAX_SOCKET_PATH);
    if length > max {
        section.error_at(
            "socket",
            Code::OutOfRange.with(format!(
                "socket path {} has {length} bytes, which exceeds the limit of {max}; set \
                 `admin.socket` to a shorter path, for example \"/run/pointsman/admin.sock\", or \
                 to \"\" to turn the socket off",
                path.display()
            )),
        );
        return None;
    }
    Some(path)
}

fn port(section: &Section<'_>, folder: &Path) -> Option<(SocketAddr, Token)> {
    // First, so that the key is known whatever is wrong with the token.
    let address = section.parsed("listen", |text| match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err(format!(
            "address \"{text}\" is reachable from other machines, and the admin API is not \
             encrypted; use a \
             loopback address, for example 127.0.0.1:9101, behind SSH or a TLS proxy"
        )),
        Err(_) => {
            Err(format!("invalid address \"{text}\": expected IP:PORT, for example 127.0.0.1:9101"))
        }
    });
    let token = secret(section, "token-env", "token-file", folder);
    if token.as_ref().is_some_and(|token| token.len() < MIN_TOKEN) {
        let key = if section.has("token-env") { "token-env" } else { "token-file" };
        let message = format!(
            "the token has fewer than {MIN_TOKEN} characters and could be guessed; generate one, \
             for example with `openssl rand -hex 32`"
        );
        section.error_at(key, Code::OutOfRange.with(message));
        return None;
    }
    match (section.has("token-env") || section.has("token-file"), section.has("listen")) {
        (false, true) => section.error_at(
            "listen",
            Code::MissingKey.with("needs a token; set `token-env` or `token-file`"),
        ),
        (true, false) => {
            let key = if section.has("token-env") { "token-env" } else { "token-file" };
            let message = "only used with `listen`, which is not set; the socket needs no token";
            section.error_at(key, Code::Conflict.with(message));
        }
        _ => {}
    }
    Some((address?, Token(token?)))
}

impl Admin {
    /// Finds the admin API of the host that uses a configuration file, for use by clients. Other
    /// parts of the file are not validated, and no token is required if there is a socket.
    ///
    /// # Errors
    /// The errors in `[state]` and `[admin]`.
    pub fn find(file: &Path) -> Result<Self, ConfigError> {
        read_part(file, |root, folder| {
            let state = state_dir(&root.section("state"), file, folder);
            let section = root.section("admin");
            let (socket, link) = socket(&section, folder, state.as_deref());
            let port = if socket.is_none() { port(&section, folder) } else { None };
            Self { socket, link, port, decisions: DEFAULT_DECISIONS }
        })
    }

    /// Returns the path at which clients find the socket.
    pub fn client_socket(&self) -> Option<&Path> {
        let link = self.link.as_deref().filter(|link| link.exists());
        link.or(self.socket.as_deref())
    }
}

/// Finds the state directory of the host that uses a configuration file; `None` if it has none.
/// Other parts of the file are not validated.
///
/// # Errors
/// The errors in `[state]`.
pub fn find_state_dir(file: &Path) -> Result<Option<PathBuf>, ConfigError> {
    read_part(file, |root, folder| state_dir(&root.section("state"), file, folder))
}

fn read_part<T>(
    file: &Path,
    read: impl FnOnce(&Section<'_>, &Path) -> T,
) -> Result<T, ConfigError> {
    let source = ConfigError::source(file)?;
    let diagnostics = Diagnostics::new(&source);
    let (document, errors) = DeTable::parse_recoverable(&source);
    for error in &errors {
        let problem = Code::Syntax.with(format!("invalid TOML: {}", error.message()));
        diagnostics.add(error.span().unwrap_or(0..0), "", problem);
    }
    // A client need not have the variables of other parts.
    let is_part = |key: &str| ["state", "admin"].contains(&key);
    let parts = document.into_inner().into_iter().filter(|(key, _)| is_part(key.get_ref()));
    let mut table: DeTable<'_> = parts.collect();
    expand(&mut table, &diagnostics);
    let root = Section::root(&diagnostics, &table);
    let part = read(&root, folder_of(file));
    match diagnostics.into_sorted() {
        errors if errors.is_empty() => Ok(part),
        errors => Err(ConfigError::new(file, errors)),
    }
}
