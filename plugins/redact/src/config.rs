//! The configuration of the policy.

use pointsman_sdk::{PolicyError, config};

use crate::find::{Kind, Rules};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What to search for.
    pub(crate) rules: Rules,
    /// What to do if something is found.
    pub(crate) action: Action,
    /// What to do with a prompt that cannot be scanned completely.
    pub(crate) unreadable: Unreadable,
    /// Replacement for a match; `{kind}` is replaced by its kind.
    pub(crate) mask: String,
    /// Label and value of private lanes, which may receive sensitive content.
    pub(crate) private: (String, String),
}

/// What to do if something is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Matches are masked.
    Rewrite,
    /// The request is rejected.
    Reject,
    /// The request uses private lanes only.
    Private,
}

/// What to do with a prompt that cannot be scanned completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The request is rejected.
    Reject,
    /// The request uses private lanes only.
    Private,
    /// The request continues, and `action` applies to the matches that were found.
    Pass,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            rules: Rules { kinds: Kind::PATTERNS.to_vec(), words: Vec::new() },
            action: Action::Rewrite,
            unreadable: Unreadable::Reject,
            mask: "[{kind}]".to_owned(),
            private: ("private".to_owned(), "true".to_owned()),
        };
        config::read(json, |key, value| {
            match key {
                "find" => {
                    let choices = Kind::PATTERNS.map(|kind| (kind.name(), kind));
                    config.rules.kinds = value.list(|kind| kind.choice(&choices))?;
                }
                "words" => config.rules.words = value.strings()?,
                "action" => {
                    config.action = value.choice(&[
                        ("rewrite", Action::Rewrite),
                        ("reject", Action::Reject),
                        ("private", Action::Private),
                    ])?;
                }
                "unreadable" => {
                    config.unreadable = value.choice(&[
                        ("reject", Unreadable::Reject),
                        ("private", Unreadable::Private),
                        ("pass", Unreadable::Pass),
                    ])?;
                }
                "mask" => config.mask = value.string()?,
                "private" => value.entries(|key, value| {
                    match key {
                        "label" => config.private.0 = value.string()?,
                        "value" => config.private.1 = value.string()?,
                        _ => return Err(value.unknown_key()),
                    }
                    Ok(())
                })?,
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        if config.rules.kinds.is_empty() && config.rules.words.is_empty() {
            return Err(PolicyError::InvalidConfig(
                "find: expected at least one kind, or `words`".into(),
            ));
        }
        Ok(config)
    }
}
