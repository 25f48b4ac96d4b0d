//! Reads `[access.tokens]`: whose tokens are accepted, and what they mean.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_access::{ClaimPath, TokenAlgorithm, TokenSettings};
use pointsman_files::read_regular;
use pointsman_fleet::FetchUrl;
use pointsman_settings::{Code, Location, Section, missing};

/// Maximum size of the file with further root certificates in bytes.
const MAX_CA: u64 = 1 << 20;
/// Maximum of `leeway`: tokens live for minutes.
const MAX_LEEWAY: Duration = Duration::from_secs(600);

/// Whose tokens are accepted.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// What a token must have, and what its claims mean.
    pub settings: TokenSettings,
    /// Where the keys of the issuer are.
    pub source: KeySource,
    /// PEM of root certificates to trust in addition to the system's.
    pub ca: Option<Vec<u8>>,
    /// How often the keys are fetched.
    pub refresh: Duration,
    /// Where `default-group` is, which is only known to exist when the keys file is read.
    pub default_group_location: Location,
}

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// At the address that the document of an issuer names, which is at this URL.
    Discovery(FetchUrl),
    /// At this URL.
    Url(FetchUrl),
    /// In this file.
    File(PathBuf),
}

/// Reads `tokens` of the section `[access]`; `None` if tokens are not accepted, or if an error was
/// reported.
pub(super) fn read(access: &Section<'_>, folder: &Path) -> Option<Tokens> {
    if !access.has("tokens") {
        return None;
    }
    let section = &access.section("tokens");
    let issuer = section.required_string("issuer", "\"https://login.example.org/realms/main\"");
    let audiences = section.strings("audience").unwrap_or_default();
    if !section.has("audience") {
        section.error_at("audience", missing("`audience = [\"pointsman\"]`"));
    } else if audiences.iter().any(String::is_empty) || audiences.is_empty() {
        let message = "must name at least one audience: without it, tokens for other services of \
                       the issuer would be accepted";
        section.error_at("audience", Code::InvalidValue.with(message));
    }
    let source = read_source(section, issuer, folder);
    let leeway = section.duration("leeway", Duration::from_secs(30));
    if leeway > MAX_LEEWAY {
        section.error_at("leeway", Code::OutOfRange.with("must be at most 10m"));
    }
    let refresh = section.positive_duration("refresh", Duration::from_secs(900));
    if refresh < Duration::from_secs(1) {
        section.error_at("refresh", Code::OutOfRange.with("must be at least 1s"));
    }
    let grace = section.positive_duration("grace", Duration::from_secs(24 * 3600));
    if grace <= refresh {
        section.error_at("grace", Code::OutOfRange.with("must be longer than `refresh`"));
    }
    let ca = read_ca(section, folder);
    let text = |key: &str| section.string(key).map(str::to_owned);
    let settings = TokenSettings {
        issuer: issuer.unwrap_or_default().to_owned(),
        audiences,
        algorithms: read_algorithms(section),
        leeway,
        grace,
        tenant_claim: ClaimPath::new(section.string("tenant-claim").unwrap_or("tenant")),
        group_claim: section.string("group-claim").map(ClaimPath::new),
        default_tenant: text("default-tenant"),
        default_group: text("default-group"),
    };
    let default_group_location = section.location("default-group");
    section.report_unknown();
    issuer?;
    Some(Tokens { settings, source: source?, ca, refresh, default_group_location })
}

fn read_source(section: &Section<'_>, issuer: Option<&str>, folder: &Path) -> Option<KeySource> {
    let url =
        section.parsed("jwks-url", |text| FetchUrl::parse(text).map_err(|error| error.to_string()));
    match (section.has("jwks-url"), section.string("jwks-file")) {
        (true, Some(_)) => {
            let message = "conflicts with `jwks-url`; remove one of the two";
            section.error_at("jwks-file", Code::Conflict.with(message));
            None
        }
        (true, None) => url.map(KeySource::Url),
        (false, Some(file)) => Some(KeySource::File(folder.join(file))),
        (false, None) => {
            let url = format!("{}/.well-known/openid-configuration", issuer?.trim_end_matches('/'));
            match FetchUrl::parse(&url) {
                Ok(url) => Some(KeySource::Discovery(url)),
                Err(error) => {
                    let message = format!("{error}; or set `jwks-url` or `jwks-file`");
                    section.error_at("issuer", Code::InvalidValue.with(message));
                    None
                }
            }
        }
    }
}

fn read_algorithms(section: &Section<'_>) -> Vec<TokenAlgorithm> {
    use TokenAlgorithm::{EdDsa, Es256, Rs256};
    let Some(names) = section.strings("algorithms") else { return vec![Rs256, Es256, EdDsa] };
    if names.is_empty() {
        section.error_at("algorithms", Code::InvalidValue.with("must name an algorithm"));
    }
    let found = names.iter().filter_map(|name| {
        let algorithm = TokenAlgorithm::from_name(name);
        if algorithm.is_none() {
            let known = TokenAlgorithm::ALL.map(|(name, _)| format!("\"{name}\"")).join(", ");
            let message = format!("unknown algorithm \"{name}\": expected some of {known}");
            section.error_at("algorithms", Code::InvalidValue.with(message));
        }
        algorithm
    });
    found.collect()
}

fn read_ca(section: &Section<'_>, folder: &Path) -> Option<Vec<u8>> {
    let path = folder.join(section.string("ca")?);
    match read_regular(&path, MAX_CA) {
        Ok(pem) => Some(pem),
        Err(error) => {
            section.error_at("ca", Code::Unavailable.with(error.to_string()));
            None
        }
    }
}
