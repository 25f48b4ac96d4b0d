//! A reference to an environment variable, and whether its value may be shown.

use std::fmt;

/// Minimum length of a secret in bytes. A shorter value is a part of ordinary words, which would be
/// hidden with it.
const MIN_SECRET: usize = 4;
/// Words in the names of variables whose values are never shown.
const SECRET_WORDS: [&str; 11] = [
    "auth",
    "credential",
    "credentials",
    "key",
    "pass",
    "passphrase",
    "passwd",
    "password",
    "pat",
    "secret",
    "token",
];

/// A reference to an environment variable in a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Variable {
    /// Dotted path of the key whose value has the reference.
    pub key: String,
    /// Name of the variable.
    pub name: String,
    /// True if the variable was unset or empty, so that the default of the file applies.
    pub is_default: bool,
    /// Its value, or nothing if the default applies.
    pub(crate) value: String,
}

impl Variable {
    /// Returns true if the name says that the value is a secret, such as `HF_TOKEN`.
    pub fn is_secret(&self) -> bool {
        let words = self.name.split('_').map(str::to_ascii_lowercase);
        !self.is_default && words.into_iter().any(|word| SECRET_WORDS.contains(&word.as_str()))
    }

    /// Returns the text with the value replaced by the reference, if it is a secret.
    pub fn hide_in(&self, text: String) -> String {
        match self.is_secret() && self.value.len() >= MIN_SECRET && text.contains(&self.value) {
            true => text.replace(&self.value, &format!("${{{}}}", self.name)),
            false => text,
        }
    }
}

impl fmt::Debug for Variable {
    /// Leaves the value out, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, name, is_default, value: _ } = self;
        let mut shown = f.debug_struct("Variable");
        shown.field("key", key).field("name", name).field("is_default", is_default);
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let variable = |name: &str, value: &str| Variable {
            key: "k".to_owned(),
            name: name.to_owned(),
            is_default: false,
            value: value.to_owned(),
        };
        let token = variable("HF_TOKEN", "s3cret");
        assert_eq!(token.hide_in("a s3cret b".to_owned()), "a ${HF_TOKEN} b");
        assert!(!format!("{token:?}").contains("s3cret"));
        for (name, value) in [("MODEL_DIR", "models"), ("API_KEY", "a"), ("MONKEY", "models")] {
            assert_eq!(variable(name, value).hide_in("all models".to_owned()), "all models");
        }
    }
}
