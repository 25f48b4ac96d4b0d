//! Teams have home lanes; code and long prompts have lanes of their own; all else goes where it starts soonest.

mod config;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use pointsman_sdk::{
    Advice, Call, LaneAdvice, LaneId, LaneState, Level, Metric, MetricWeight, Note, OnTimeout,
    Policy, PolicyError, QueueAdvice, Scalar, Switching,
};

use crate::config::Config;

/// The policy.
#[derive(Debug)]
pub struct TeamLanes {
    config: Config,
    topology: Cell<Option<u64>>,
    lanes: RefCell<BTreeMap<String, Option<LaneId>>>,
}

/// A lane that a request should go to, which rule says so, and why.
struct Rule<'a> {
    lane: &'a str,
    name: &'static str,
    why: String,
}

impl Policy for TeamLanes {
    const NAME: &'static str = "team-lanes";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        let config = Config::parse(config).map_err(PolicyError::InvalidConfig)?;
        Ok(Self { config, topology: Cell::new(None), lanes: RefCell::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let candidates = call.fleet.candidates();
        let (chosen, passed_over) = self.choose(call, &candidates);
        let (mut advice, why, rule) = match &chosen {
            Some((lane, rule)) => {
                (Advice::only([*lane]), format!("{}: {}", rule.lane, rule.why), rule.name)
            }
            None => (blend(), "the shortest wait and the warmest cache".to_owned(), "blend"),
        };
        let cannot: String =
            passed_over.iter().map(|lane| format!(", and {lane} cannot serve")).collect();
        let chosen = chosen.map(|(lane, _)| lane);
        advice = advice
            .because(why + &cannot)
            .falling_back_to(candidates.into_iter().filter(|lane| Some(*lane) != chosen));
        advice.notes.push(Note { key: "rule".into(), value: Scalar::Text(rule.into()) });
        let tokens = Scalar::Int(call.context.prompt_tokens.into());
        advice.notes.push(Note { key: "prompt-tokens".into(), value: tokens });
        if let Some(priority) = call.request.header("x-priority").as_deref().and_then(integer) {
            advice.queue = Some(QueueAdvice {
                priority: priority.clamp(-10, 10),
                flow: None,
                max_wait_ms: None,
                on_timeout: OnTimeout::FallBack,
            });
            // What can wait holds up nobody else's work.
            if priority < 0 {
                advice.switching = Some(Switching::WhenIdle);
            }
        }
        Ok(advice)
    }
}

impl TeamLanes {
    /// The first rule whose lane can serve, and the lanes of rules that cannot.
    fn choose(
        &self,
        call: &Call<'_>,
        candidates: &[LaneId],
    ) -> (Option<(LaneId, Rule<'_>)>, Vec<&str>) {
        let mut passed_over = Vec::new();
        let rules: [for<'a> fn(&'a Self, &Call<'_>) -> Option<Rule<'a>>; 3] =
            [Self::home, Self::code, Self::long];
        // One after the other: a question about the text is asked only when it matters.
        for rule in rules {
            let Some(rule) = rule(self, call) else { continue };
            let Some(lane) = self.find(call, rule.lane).filter(|lane| candidates.contains(lane))
            else {
                continue;
            };
            match call.fleet.stat(lane).map(|stat| stat.state) {
                Some(state @ (LaneState::Down | LaneState::Draining)) => {
                    passed_over.push(rule.lane);
                    call.metrics.add("passed-over", 1);
                    let state = if state == LaneState::Down { "down" } else { "draining" };
                    call.log.write_with(Level::Debug, || {
                        format!("passed over {}, which is {state}", rule.lane)
                    });
                }
                Some(_) => return (Some((lane, rule)), passed_over),
                None => {}
            }
        }
        (None, passed_over)
    }

    fn home(&self, call: &Call<'_>) -> Option<Rule<'_>> {
        let tenant = call.request.tenant()?;
        let lane = self.config.teams.get(&tenant)?;
        Some(Rule { lane, name: "home", why: format!("the home of {tenant}") })
    }

    fn code(&self, call: &Call<'_>) -> Option<Rule<'_>> {
        let lane = self.config.code_lane.as_deref()?;
        let why = "the prompt has code in it".to_owned();
        call.request.contains("```", false).then_some(Rule { lane, name: "code", why })
    }

    fn long(&self, call: &Call<'_>) -> Option<Rule<'_>> {
        let lane = self.config.long_lane.as_deref()?;
        let most = self.config.long_tokens;
        let why = format!("the prompt is longer than {most} tokens");
        (call.context.prompt_tokens > most).then_some(Rule { lane, name: "long", why })
    }

    /// The lane of that name, asked for once per topology.
    fn find(&self, call: &Call<'_>, name: &str) -> Option<LaneId> {
        let mut lanes = self.lanes.borrow_mut();
        if self.topology.replace(Some(call.context.topology)) != Some(call.context.topology) {
            lanes.clear();
        }
        *lanes.entry(name.to_owned()).or_insert_with(|| call.fleet.find(name))
    }
}

fn blend() -> Advice {
    let weight = |metric, weight| MetricWeight { metric, weight };
    let weights = vec![weight(Metric::EstWait, 700), weight(Metric::CachedTokens, 300)];
    Advice { lanes: LaneAdvice::Blend(weights), ..Advice::any() }
}

/// A whole number of at most nine digits.
fn integer(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let good =
        (1..=9).contains(&digits.len()) && digits.bytes().all(|letter| letter.is_ascii_digit());
    good.then(|| text.parse().ok()).flatten()
}

pointsman_sdk::export_policy!(TeamLanes);

#[cfg(test)]
mod tests;
