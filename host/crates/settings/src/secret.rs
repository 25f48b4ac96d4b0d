//! Secrets, which are never written in a configuration itself.

use std::path::Path;

use pointsman_files::read_regular_text;

use crate::diagnostics::Code;
use crate::section::Section;

/// Maximum size of the file of a secret in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Reads a secret from the environment variable or the file that these keys name. Returns `None` if
/// neither key is set, or after reporting an error. With
/// [`Secrets::Placeholder`](crate::Secrets::Placeholder), returns a placeholder that differs
/// from those of all other secrets.
pub fn secret(
    section: &Section<'_>,
    env: &'static str,
    file: &'static str,
    folder: &Path,
) -> Option<String> {
    section.string(env).into_iter().for_each(|name| section.add_secret_variable(name));
    let (key, found) = match (section.string(env), section.string(file)) {
        (Some(_), Some(_)) => {
            let message = format!("conflicts with `{env}`; remove one of the two");
            section.error_at(file, Code::Conflict.with(message));
            return None;
        }
        (Some(_), None) | (None, Some(_)) if section.is_without_secrets() => {
            return Some(format!("placeholder-for-{}", section.path(env)));
        }
        (Some(name), None) => (
            env,
            std::env::var(name).map_err(|_| {
                format!("environment variable `{name}` is not set, or is not valid UTF-8")
            }),
        ),
        (None, Some(name)) => {
            let path = folder.join(name);
            (file, read_regular_text(&path, MAX_SECRET_BYTES).map_err(|error| error.to_string()))
        }
        (None, None) => return None,
    };
    let checked = found.and_then(|secret| match secret.trim() {
        "" => Err("the secret is empty".to_owned()),
        secret if secret.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(secret.to_owned()),
        _ => {
            Err("the secret contains characters that are not allowed in an HTTP header".to_owned())
        }
    });
    match checked {
        Ok(secret) => Some(secret),
        Err(message) => {
            section.error_at(key, Code::Unavailable.with(message));
            None
        }
    }
}
