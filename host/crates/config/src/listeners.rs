//! Reads the addresses on which clients are served: `server.listen`, and `[[listeners]]`.

mod address;
mod check;
mod cors;

use std::path::{Path, PathBuf};

use pointsman_settings::{Code, Location, Section, missing};

pub use self::address::Address;
pub(super) use self::check::check;
pub use self::cors::Cors;

/// An address on which clients are served, with its options.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The address.
    pub address: Address,
    /// Path below which all routes are, with a leading slash and without a trailing one; empty for
    /// none.
    pub path_prefix: String,
    /// Model of requests that name none.
    pub default_model: Option<String>,
    /// Model names that only this listener has, each with the model name that it stands for.
    pub models: Vec<(String, String)>,
    /// When `/health` is 200.
    pub health: HealthRule,
    /// The files of TLS, if the listener has it.
    pub tls: Option<Tls>,
    /// True if clients may speak HTTP/2.
    pub http2: bool,
    /// True if each connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Which pages of other origins may use the listener; `None` for none.
    pub cors: Option<Cors>,
    /// Compress responses, except streams, for clients that accept it.
    pub compression: bool,
}

/// When `/health` is 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthRule {
    /// If a request for some model can be served now.
    AnyLane,
    /// If no lane is loading, being switched or down.
    AllLanes,
}

/// The files of a listener's TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate of the host, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities that sign certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// When clients need a certificate, if there is `client_ca`.
    pub client_certificates: ClientCertificates,
    /// Where the table is, for errors that only appear when the files are read.
    pub location: Location,
}

/// When clients need a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Always.
    Required,
    /// A certificate is checked if the client has one.
    Optional,
}

/// Reads `server.listen` with the options beside it, and the further listeners. Paths are relative
/// to `folder`. Returns `None` only if an error was reported.
pub(super) fn read(
    root: &Section<'_>,
    server: &Section<'_>,
    folder: &Path,
) -> Option<Vec<Listener>> {
    let first = match server.has("listen") {
        true => address::read(server, "listen", folder),
        false => Some(Address::default()),
    };
    let first = options(server, first, folder);
    let further = root.sections("listeners").into_iter().map(|section| {
        let address = match section.has("address") {
            true => address::read(&section, "address", folder),
            false => {
                let message = "missing; set it to IP:PORT, for example \"127.0.0.1:11434\", or to \
                               \"unix:PATH\"";
                section.error_at("address", Code::MissingKey.with(message));
                None
            }
        };
        let listener = options(&section, address, folder);
        section.report_unknown();
        listener
    });
    let listeners: Vec<_> = std::iter::once(first).chain(further).collect();
    listeners.into_iter().collect()
}

fn options(section: &Section<'_>, address: Option<Address>, folder: &Path) -> Option<Listener> {
    let path_prefix = section.string("path-prefix").unwrap_or_default();
    let path_prefix = path_prefix.trim_end_matches('/').to_owned();
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        let message = format!("invalid path \"{path_prefix}\": expected for example \"/llm\"");
        section.error_at("path-prefix", Code::InvalidValue.with(message));
    }
    let default_model = section.string("default-model").map(str::to_owned);
    let models = section.string_pairs("models");
    let rules = [("any-lane", HealthRule::AnyLane), ("all-lanes", HealthRule::AllLanes)];
    let health = section.choice("health", &rules, HealthRule::AnyLane);
    let tls = match section.has("tls") {
        true => Some(read_tls(section, folder)),
        false => None,
    };
    let http2 = section.bool("http2", true);
    let proxy_protocol = section.bool("proxy-protocol", false);
    let address = address::read_mode(section, address);
    let cors = section.has("cors").then(|| cors::read(&section.section("cors")));
    let compression = section.bool("compression", true);
    let tls = match tls {
        Some(tls) => Some(tls?),
        None => None,
    };
    Some(Listener {
        address: address?,
        path_prefix,
        default_model,
        models,
        health,
        tls,
        http2,
        proxy_protocol,
        cors,
        compression,
    })
}

/// Reads the table `tls`. The files are read when the host starts.
fn read_tls(listener: &Section<'_>, folder: &Path) -> Option<Tls> {
    let section = listener.section("tls");
    let file = |key: &str| section.string(key).map(|path| folder.join(path));
    let required = |key: &str, example: &str| {
        if !section.has(key) {
            section.error_at(key, missing(format_args!("`{key} = \"{example}\"`")));
        }
        file(key)
    };
    let certificate = required("certificate", "fullchain.pem");
    let key = required("key", "key.pem");
    let client_ca = file("client-ca");
    let rules =
        [("required", ClientCertificates::Required), ("optional", ClientCertificates::Optional)];
    let client_certificates =
        section.choice("client-certificates", &rules, ClientCertificates::Required);
    if section.has("client-certificates") && !section.has("client-ca") {
        let message = "only used with `client-ca`, which is not set";
        section.error_at("client-certificates", Code::Conflict.with(message));
    }
    section.report_unknown();
    let location = listener.location("tls");
    Some(Tls { certificate: certificate?, key: key?, client_ca, client_certificates, location })
}

#[cfg(test)]
mod tests;
