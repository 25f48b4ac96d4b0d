//! The operator's configuration.

use pointsman_sdk::{PolicyError, config};

use crate::find::{Kind, Rules};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What is looked for.
    pub(crate) rules: Rules,
    /// What happens when something is found.
    pub(crate) action: Action,
    /// What happens to a prompt that cannot be read whole.
    pub(crate) unreadable: Unreadable,
    /// What stands in for what was found; `{kind}` is replaced.
    pub(crate) mask: String,
    /// Label of lanes that may see everything, and its value.
    pub(crate) private: (String, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// What is found is masked.
    Rewrite,
    /// The request is refused.
    Refuse,
    /// The request goes to private lanes only.
    Private,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Refuse,
    Private,
    /// It goes on, with what was found masked or treated as `action` says.
    Pass,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            rules: Rules { kinds: Kind::PATTERNS.to_vec(), words: Vec::new() },
            action: Action::Rewrite,
            unreadable: Unreadable::Refuse,
            mask: "[{kind}]".to_owned(),
            private: ("private".to_owned(), "true".to_owned()),
        };
        config::read(json, |key, value| {
            match key {
                "find" => {
                    let words = Kind::PATTERNS.map(|kind| (kind.name(), kind));
                    config.rules.kinds = value.list(|kind| kind.word(&words))?;
                }
                "words" => config.rules.words = value.texts()?,
                "action" => {
                    config.action = value.word(&[
                        ("rewrite", Action::Rewrite),
                        ("refuse", Action::Refuse),
                        ("private", Action::Private),
                    ])?;
                }
                "unreadable" => {
                    config.unreadable = value.word(&[
                        ("refuse", Unreadable::Refuse),
                        ("private", Unreadable::Private),
                        ("pass", Unreadable::Pass),
                    ])?;
                }
                "mask" => config.mask = value.text()?,
                "private" => value.each(|key, value| {
                    match key {
                        "label" => config.private.0 = value.text()?,
                        "value" => config.private.1 = value.text()?,
                        _ => return Err(value.unknown()),
                    }
                    Ok(())
                })?,
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        if config.rules.kinds.is_empty() && config.rules.words.is_empty() {
            return Err(PolicyError::InvalidConfig(
                "find: is empty, and there are no `words` either".into(),
            ));
        }
        Ok(config)
    }
}
