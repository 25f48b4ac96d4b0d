//! Masks sensitive content in prompts, rejects such requests, or keeps them on private lanes.
//!
//! The policy scans all texts that engines read, at every endpoint, for email addresses, telephone
//! numbers, API keys, bank accounts and configured words. A request with matches is *rewritten*,
//! *rejected*, or uses *private* lanes only.
//!
//! The prompt is read in the largest pieces that the host returns, and each piece with a match
//! becomes one edit. A prompt that cannot be read completely (also a form with files, or the ids of
//! tokens) is unreadable and is rejected by default, because the part that was not scanned may
//! contain anything.

mod config;
mod find;
mod rewrite;
mod scan;
#[cfg(test)]
mod tests;

use pointsman_sdk::{Advice, Call, Edit, LaneId, Policy, PolicyError};

use self::config::{Action, Config, Unreadable};
use self::rewrite::Masker;
use self::scan::{Obstacle, Scan};

/// The configured policy.
#[derive(Debug)]
pub struct Redact {
    config: Config,
}

pointsman_sdk::export_policy!(Redact);

impl Policy for Redact {
    const NAME: &'static str = "redact";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let masker = Masker { rules: &self.config.rules, mask: &self.config.mask };
        let mut scan = Scan::new(call, masker, &self.config);
        scan.request();
        let too_many = scan.has_too_many_edits();
        let Scan { edits, counts, mut unreadable, .. } = scan;
        if too_many && self.config.action == Action::Rewrite {
            unreadable.get_or_insert(Obstacle::Size);
        }
        call.metrics.add("found", counts.total());
        call.metrics.add("unreadable", u64::from(unreadable.is_some()));
        if let Some(obstacle) = unreadable {
            match self.config.unreadable {
                Unreadable::Reject => return Ok(obstacle.rejection()),
                Unreadable::Private => {
                    return Ok(self.private_only(call, obstacle.reason()));
                }
                // Masking only some of the matches would look as if all were masked.
                Unreadable::Pass if too_many => {
                    return Ok(
                        Advice::any().with_reason("too many matches to mask; none are masked")
                    );
                }
                Unreadable::Pass => {}
            }
        }
        if counts.total() == 0 {
            return Ok(Advice::any());
        }
        let found = counts.summary();
        Ok(match self.config.action {
            Action::Rewrite => {
                let edits = edits.into_iter().map(Edit::SetField).collect();
                Advice { edits, ..Advice::any() }.with_reason(format!("masked: {found}"))
            }
            Action::Reject => {
                // The message has the kinds only, because error messages end up in logs.
                let message = format!("prompt contains sensitive content: {found}");
                Advice::reject(400, "sensitive_content", message)
            }
            Action::Private => self.private_only(call, &format!("found {found}")),
        })
    }
}

impl Redact {
    /// Returns advice that allows only private lanes, including as fallbacks.
    fn private_only(&self, call: &Call<'_>, reason: &str) -> Advice {
        let (label, value) = &self.config.private;
        let candidates = call.fleet.candidates();
        let is_available =
            |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.is_available());
        let lanes: Vec<LaneId> = call
            .fleet
            .with_label(label, value)
            .into_iter()
            .filter(|lane| candidates.contains(lane) && is_available(lane))
            .collect();
        if lanes.is_empty() {
            let message = "prompt requires a private lane, and none is available for this model";
            return Advice::reject(503, "no_private_lane", message).with_reason(reason);
        }
        Advice::only(lanes.clone())
            .with_reason(format!("private lanes only: {reason}"))
            .with_fallback(lanes)
    }
}
