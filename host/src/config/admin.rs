//! Where operators come in: `[admin]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pointsman_gateway::AdminSocket;
use toml::de::DeTable;

use super::{ConfigError, secret, state_dir};
use pointsman_settings::{Code, Diagnostics, Section, folder_of};

/// The entrances for operators. There may be none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Admin {
    pub(crate) socket: Option<PathBuf>,
    /// An address of this machine, and the token that is needed there.
    pub(crate) port: Option<(SocketAddr, Token)>,
}

/// A secret that is never shown.
#[derive(PartialEq, Eq)]
pub(crate) struct Token(pub(crate) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The whole section. `state` is the folder that the socket is in, if nothing else is said.
pub(super) fn read(section: &Section<'_>, folder: &Path, state: Option<&Path>) -> Admin {
    let admin = Admin { socket: socket(section, folder, state), port: port(section, folder) };
    section.report_unknown();
    admin
}

fn socket(section: &Section<'_>, folder: &Path, state: Option<&Path>) -> Option<PathBuf> {
    let path = match section.string("socket") {
        Some("") => return None,
        Some(path) => folder.join(path),
        None => state?.join("admin.sock"),
    };
    let (length, most) = (path.as_os_str().len(), AdminSocket::LONGEST_PATH);
    if length > most {
        section.error_at(
            "socket",
            format!(
                "the path of the socket, {}, has {length} bytes, and {most} are the limit; set `admin.socket` to a shorter \
                 one, such as \"/run/pointsman/admin.sock\", or to \"\" for none",
                path.display()
            ),
        );
        return None;
    }
    Some(path)
}

fn port(section: &Section<'_>, folder: &Path) -> Option<(SocketAddr, Token)> {
    let token = secret(section, "token-env", "token-file", folder);
    let address = section.parsed("listen", |text| match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err(format!(
            "\"{text}\" can be reached from other machines, and what is said here is not encrypted; write a loopback address, \
             such as \"127.0.0.1:9101\", and reach it from elsewhere through SSH or a proxy with TLS"
        )),
        Err(_) => Err(format!(
            "\"{text}\" is no address; write an IP address and a port, such as \"127.0.0.1:9101\""
        )),
    });
    match (section.has("token-env") || section.has("token-file"), section.has("listen")) {
        (false, true) => section.error_at(
            "listen",
            "needs a token; name the environment variable (`token-env`) or the file (`token-file`) that holds it",
        ),
        (true, false) => {
            let key = if section.has("token-env") { "token-env" } else { "token-file" };
            section.error_at(key, "is for `listen` alone, which is missing; the socket needs no token");
        }
        _ => {}
    }
    Some((address?, Token(token?)))
}

impl Admin {
    /// Where the host with this configuration lets operators in, for a program that is not that host: nothing else of the
    /// file is looked at, and no token is wanted where there is a socket.
    ///
    /// # Errors
    /// With what is wrong in that part of the file.
    pub(crate) fn find(file: &Path) -> Result<Self, ConfigError> {
        let source = ConfigError::source(file)?;
        let diagnostics = Diagnostics::new(&source);
        let (document, errors) = DeTable::parse_recoverable(&source);
        for error in &errors {
            let problem = Code::Syntax.with(format!("invalid TOML: {}", error.message()));
            diagnostics.add(error.span().unwrap_or(0..0), "", problem);
        }
        let root = Section::root(&diagnostics, document.get_ref());
        let folder = folder_of(file);
        let state = state_dir(&root.section("state"), file, folder);
        let section = root.section("admin");
        let socket = socket(&section, folder, state.as_deref());
        let port = if socket.is_none() { port(&section, folder) } else { None };
        match diagnostics.into_sorted() {
            errors if errors.is_empty() => Ok(Self { socket, port }),
            errors => Err(ConfigError::new(file, errors)),
        }
    }
}
