//! Reads `[[registries]]`, and the policies of the chain that come from registries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_files::read_regular;
use pointsman_settings::{Code, PolicyPlace, Secrets, Section, folder_of, read_expanded, secret};
use pointsman_spec::{
    OciReference, PolicySource, RegistryCredentials, RegistrySettings, is_registry_host,
};

use super::{Config, ConfigError};

/// Maximum size of the file with further root certificates in bytes.
const MAX_CA: u64 = 1 << 20;
/// Maximum number of mirrors of a registry.
const MAX_MIRRORS: usize = 8;
/// How often a tag is resolved, unless the configuration says otherwise.
const DEFAULT_FOLLOW_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum of `follow-interval`.
const MIN_FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

impl Config {
    /// Reads only the registries of a file, with their secrets: those of other sections may be
    /// missing where a command is run.
    ///
    /// # Errors
    /// All errors in `[[registries]]`.
    pub fn registries(file: &Path) -> Result<Vec<RegistrySettings>, ConfigError> {
        let read_registries = |root: &Section<'_>| Some(read(root, folder_of(file)));
        read_expanded(&ConfigError::source(file)?, &[], Secrets::Read, read_registries)
            .map_err(|errors| ConfigError::new(file, errors))
    }
}

/// Returns the folder in which artifacts are kept: below the state directory, or else beside the
/// compiled policies.
pub(super) fn cache(state: Option<&Path>, compiled: Option<&Path>) -> Option<PathBuf> {
    let parent = state.or_else(|| compiled.and_then(Path::parent))?;
    Some(parent.join("registry"))
}

/// Reads the registries.
pub(super) fn read(root: &Section<'_>, folder: &Path) -> Vec<RegistrySettings> {
    let mut registries: Vec<RegistrySettings> = Vec::new();
    for section in root.sections("registries") {
        let Some(registry) = read_registry(&section, folder) else { continue };
        if registries.iter().any(|other| other.host == registry.host) {
            let message = format!("registry \"{}\" is configured already", registry.host);
            section.error_at("host", Code::Duplicate.with(message));
        } else {
            registries.push(registry);
        }
    }
    registries
}

fn read_registry(section: &Section<'_>, folder: &Path) -> Option<RegistrySettings> {
    let host = section.required_string("host", "\"registry.example.org\"");
    let mirrors = section.strings("mirrors").unwrap_or_default();
    if mirrors.len() > MAX_MIRRORS {
        let message = format!("must have at most {MAX_MIRRORS} mirrors");
        section.error_at("mirrors", Code::OutOfRange.with(message));
    }
    let token_host = section.string("token-host");
    let hosts = host.map(|host| ("host", host)).into_iter();
    let hosts = hosts.chain(mirrors.iter().map(|host| ("mirrors", host.as_str())));
    for (key, host) in hosts.chain(token_host.map(|host| ("token-host", host))) {
        if !is_registry_host(host) {
            let message = format!(
                "invalid host \"{host}\": expected for example \"registry.example.org\" or \
                 \"127.0.0.1:5000\""
            );
            section.error_at(key, Code::InvalidValue.with(message));
        }
    }
    let ca = section.string("ca").and_then(|file| {
        let read = read_regular(&folder.join(file), MAX_CA);
        read.map_err(|error| section.error_at("ca", Code::Unavailable.with(error.to_string()))).ok()
    });
    let plain_http = section.bool("plain-http", false);
    let username = secret(section, "username-env", "username-file", folder);
    let password = secret(section, "password-env", "password-file", folder);
    let has = |keys: [&str; 2]| keys.iter().any(|key| section.has(key));
    let is_half = has(["username-env", "username-file"]) != has(["password-env", "password-file"]);
    if is_half {
        let message = "credentials need a user name and a password: set `username-env` and \
                       `password-env`, or the keys for files";
        section.error(Code::Conflict.with(message));
    }
    section.report_unknown();
    let credentials = username.zip(password);
    Some(RegistrySettings {
        host: host?.to_owned(),
        mirrors,
        ca,
        plain_http,
        token_host: token_host.map(str::to_owned),
        credentials: credentials
            .map(|(username, password)| RegistryCredentials { username, password }),
    })
}

/// Reads where a policy of the chain comes from. `cache` is the folder of artifacts.
pub(super) fn read_source(section: &Section<'_>, cache: Option<&Path>) -> Option<PolicyPlace> {
    let parse = |text: &str| text.parse::<OciReference>().map_err(|error| error.to_string());
    let reference = section.parsed("source", parse);
    let is_followed = section.bool("follow", false);
    let interval = section.positive_duration("follow-interval", DEFAULT_FOLLOW_INTERVAL);
    if interval < MIN_FOLLOW_INTERVAL {
        section.error_at("follow-interval", Code::OutOfRange.with("must be at least 1s"));
    }
    let Some(cache) = cache else {
        let message = "needs a folder for what is pulled; set `state.dir`";
        section.error_at("source", Code::Conflict.with(message));
        return None;
    };
    let reference = reference?;
    match (reference.digest(), is_followed) {
        (None, false) => {
            let message = "a tag may be moved to another version: write the digest, which \
                           `pointsman policy verify` prints, or set `follow = true`";
            section.error_at("source", Code::Conflict.with(message));
        }
        (Some(_), true) => {
            let message = "a digest never changes; remove it from `source`, or remove `follow`";
            section.error_at("follow", Code::Conflict.with(message));
        }
        (None, true) | (Some(_), false) => {}
    }
    if !is_followed && section.has("follow-interval") {
        section.error_at("follow-interval", Code::Conflict.with("needs `follow = true`"));
    }
    let source = PolicySource { reference, follow: is_followed.then_some(interval), problem: None };
    Some(PolicyPlace { dir: source.folder(cache), source: Some(source) })
}

/// Reports the keys of a policy that only concern registries, if it does not come from one.
pub(super) fn refuse_surplus(section: &Section<'_>) {
    section.bool("follow", false);
    section.positive_duration("follow-interval", DEFAULT_FOLLOW_INTERVAL);
    for key in ["follow", "follow-interval"] {
        if section.has(key) {
            section.error_at(key, Code::Conflict.with("needs `source = \"oci://…\"`"));
        }
    }
}
