//! Routes teams to their home lanes, code and long prompts to dedicated lanes, and all other
//! requests to the lane with the earliest start.

mod config;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use pointsman_sdk::{
    Advice, Background, Call, Finished, LaneId, LaneState, Learn, Level, Metric, Note, Policy,
    PolicyError, Scalar, Switching, TryResult,
};

use crate::config::Config;

/// The policy.
#[derive(Debug)]
pub struct TeamLanes {
    config: Config,
    topology: Cell<Option<u64>>,
    lanes: RefCell<BTreeMap<String, Option<LaneId>>>,
}

/// A rule that applies to a request.
struct Rule<'a> {
    /// Name of the lane that the rule selects.
    lane: &'a str,
    name: &'static str,
    reason: String,
}

impl Policy for TeamLanes {
    const NAME: &'static str = "team-lanes";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        let config = Config::parse(config)?;
        Ok(Self { config, topology: Cell::new(None), lanes: RefCell::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        // Earlier policies may have filters.
        let candidates = call.fleet.lanes_left();
        let (chosen, unavailable) = self.choose(call, &candidates);
        let (advice, reason, rule) = match &chosen {
            Some((lane, rule)) => {
                (Advice::only([*lane]), format!("{}: {}", rule.lane, rule.reason), rule.name)
            }
            None => {
                let advice = Advice::blend([(Metric::EstWait, 700), (Metric::CachedTokens, 300)]);
                (advice, "shortest wait and warmest cache".to_owned(), "blend")
            }
        };
        let skipped: String =
            unavailable.iter().map(|lane| format!("; {lane} is unavailable")).collect();
        let chosen = chosen.map(|(lane, _)| lane);
        let advice = advice
            .with_reason(reason + &skipped)
            .with_note("rule", rule)
            .with_note("prompt-tokens", call.context.prompt_tokens)
            .with_fallback(candidates.into_iter().filter(|lane| Some(*lane) != chosen));
        let priority = call.request.header("x-priority").as_deref().and_then(parse_integer);
        Ok(match priority.map(|priority| priority.clamp(-10, 10)) {
            None => advice,
            // Requests of low priority should not delay those of other lanes by a switch.
            Some(low @ ..0) => advice.with_priority(low).with_switching(Switching::WhenIdle),
            Some(priority) => advice.with_priority(priority),
        })
    }
}

impl Learn for TeamLanes {
    /// Counts the requests whose lane by rule failed.
    fn learn(&self, background: &Background<'_>, done: &[Finished]) {
        let is_by_rule = |note: &Note| {
            note.key == "rule" && !matches!(&note.value, Scalar::Text(rule) if rule == "blend")
        };
        let failed = |one: &&Finished| {
            one.attempts.first().is_some_and(|first| first.ended != TryResult::Ok)
                && one.notes.iter().any(is_by_rule)
        };
        let count = done.iter().filter(failed).count();
        if count > 0 {
            background.metrics.add("rule-failed", count as u64);
        }
    }
}

impl TeamLanes {
    /// Returns the first rule whose lane is available, and the unavailable lanes of earlier rules.
    fn choose(
        &self,
        call: &Call<'_>,
        candidates: &[LaneId],
    ) -> (Option<(LaneId, Rule<'_>)>, Vec<&str>) {
        let mut unavailable = Vec::new();
        let rules: [for<'a> fn(&'a Self, &Call<'_>) -> Option<Rule<'a>>; 3] =
            [Self::home, Self::code, Self::long];
        // Rules are evaluated lazily: the prompt is searched only if no earlier rule applies.
        for rule in rules {
            let Some(rule) = rule(self, call) else { continue };
            let Some(lane) = self.find(call, rule.lane).filter(|lane| candidates.contains(lane))
            else {
                continue;
            };
            match call.fleet.stat(lane).map(|stat| stat.state) {
                Some(state @ (LaneState::Down | LaneState::Draining)) => {
                    unavailable.push(rule.lane);
                    call.metrics.add("skipped", 1);
                    let state = if state == LaneState::Down { "down" } else { "draining" };
                    call.log.write_with(Level::Debug, || {
                        format!("skipped lane {}: {state}", rule.lane)
                    });
                }
                Some(_) => return (Some((lane, rule)), unavailable),
                None => {}
            }
        }
        (None, unavailable)
    }

    fn home(&self, call: &Call<'_>) -> Option<Rule<'_>> {
        let tenant = call.request.tenant()?;
        let lane = self.config.teams.get(&tenant)?;
        Some(Rule { lane, name: "home", reason: format!("home lane of {tenant}") })
    }

    fn code(&self, call: &Call<'_>) -> Option<Rule<'_>> {
        let lane = self.config.code_lane.as_deref()?;
        let reason = "the prompt contains code".to_owned();
        call.request.contains("```", false).then_some(Rule { lane, name: "code", reason })
    }

    fn long(&self, call: &Call<'_>) -> Option<Rule<'_>> {
        let lane = self.config.long_lane.as_deref()?;
        let limit = self.config.long_tokens;
        let reason = format!("the prompt is longer than {limit} tokens");
        (call.context.prompt_tokens > limit).then_some(Rule { lane, name: "long", reason })
    }

    /// Returns the lane with this name. Lookups are cached per topology.
    fn find(&self, call: &Call<'_>, name: &str) -> Option<LaneId> {
        let mut lanes = self.lanes.borrow_mut();
        if self.topology.replace(Some(call.context.topology)) != Some(call.context.topology) {
            lanes.clear();
        }
        *lanes.entry(name.to_owned()).or_insert_with(|| call.fleet.find(name))
    }
}

/// Parses an integer of at most nine digits.
fn parse_integer(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_valid =
        (1..=9).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_valid.then(|| text.parse().ok()).flatten()
}

pointsman_sdk::export_policy!(TeamLanes, on_outcome);

#[cfg(test)]
mod tests;
