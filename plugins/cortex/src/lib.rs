//! The policy for Cortex: five lanes, of which orchestrator, coder and fast_rag take turns on one GPU, while super_reader
//! and governance are always on.
//!
//! 1. A model name that names a lane, by itself or as an alias, gets that lane.
//! 2. Any other name (such as `auto`) gets a lane by what the request is about: what its task header says; else a long
//!    prompt goes to super_reader, one about code to coder, one that brings its sources to fast_rag, and the rest to
//!    orchestrator.
//! 3. Among the lanes that would do, a busy or cold one is passed over if another could start much sooner.
//!
//! Whatever fails falls back to super_reader, if the request fits into its context. Governance never leaves its lane, and
//! nothing else enters it.

mod config;
mod lanes;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Call, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, LaneStat, LaneState,
    Policy, PolicyError, RequestView, Triggers, default_triggers,
};

use self::config::Config;
use self::lanes::{Lane, Lanes};

/// The configured policy.
#[derive(Debug)]
pub struct Cortex {
    config: Config,
    lanes: Lanes,
}

impl Policy for Cortex {
    const NAME: &'static str = "cortex";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        let config = Config::parse(config)?;
        for (alias, lane) in &config.aliases {
            if Lane::named(lane).is_none() {
                return Err(PolicyError::InvalidConfig(format!(
                    "aliases.{alias}: there is no lane `{lane}`"
                )));
            }
        }
        let prompted = config.system_prompt.iter().flat_map(|prompt| &prompt.lanes);
        if let Some(lane) = prompted.into_iter().find(|lane| Lane::named(lane).is_none()) {
            return Err(PolicyError::InvalidConfig(format!(
                "system-prompt.lanes: there is no lane `{lane}`"
            )));
        }
        Ok(Self { config, lanes: Lanes::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        self.lanes.refresh(call);
        let candidates = call.fleet.candidates();
        let model = call.request.model();
        let named = self.lane_of(&model).and_then(|lane| Some((lane, self.lanes.id(lane)?)));
        Ok(match named.filter(|(_, id)| candidates.contains(id)) {
            Some((lane, id)) => self.to_named_lane(call, lane, id),
            None => self.by_content(call, &candidates),
        })
    }
}

pointsman_sdk::export_policy!(Cortex);

/// What a request without a lane of its own is about, and why we think so.
struct Task {
    lanes: &'static [Lane],
    why: &'static str,
}

impl Cortex {
    fn lane_of(&self, model: &str) -> Option<Lane> {
        Lane::named(model).or_else(|| {
            let (_, lane) = self.config.aliases.iter().find(|(alias, _)| alias == model)?;
            Lane::named(lane)
        })
    }

    fn to_named_lane(&self, call: &Call<'_>, lane: Lane, id: LaneId) -> Advice {
        let advice =
            Advice::only([id]).because(format!("the model name stands for {}", lane.name()));
        self.complete(call, lane, advice)
    }

    fn by_content(&self, call: &Call<'_>, candidates: &[LaneId]) -> Advice {
        let task = self.task(call);
        let mut usable: Vec<(Lane, LaneId)> = Vec::with_capacity(task.lanes.len());
        for lane in task.lanes {
            let id = self.lanes.id(*lane).filter(|id| candidates.contains(id));
            if let Some(id) = id.filter(|_| self.lanes.fits(*lane, call.context)) {
                usable.push((*lane, id));
            }
        }
        let Some(chosen) = self.by_load(call, &usable) else {
            // Whatever else there is will do, but for governance.
            let advice = Advice::any().because("none of Cortex's lanes answers to this model name");
            let governance = self.lanes.id(Lane::Governance);
            return Advice { lanes: LaneAdvice::Avoid(governance.into_iter().collect()), ..advice };
        };
        let passed_over = chosen > 0;
        let (lane, _) = usable[chosen];
        usable.swap(0, chosen);
        let order: Vec<LaneId> = usable.iter().map(|(_, id)| *id).collect();
        let why = match passed_over {
            false => format!("{}: {}", lane.name(), task.why),
            true => {
                format!(
                    "{}: {}, and {} could not start soon",
                    lane.name(),
                    task.why,
                    usable[chosen].0.name()
                )
            }
        };
        self.complete(call, lane, Advice::ordered(order).because(why))
    }

    /// What the request is about. The lanes are in order of preference, all of them but governance: a request is better
    /// answered by the wrong model than not at all.
    fn task(&self, call: &Call<'_>) -> Task {
        use Lane::{Coder, FastRag, Orchestrator, SuperReader};
        let reading = |why| Task { lanes: &[SuperReader, Orchestrator, Coder, FastRag], why };
        let code = |why| Task { lanes: &[Coder, Orchestrator, SuperReader, FastRag], why };
        let retrieval = |why| Task { lanes: &[FastRag, SuperReader, Orchestrator, Coder], why };
        let planning = |why| Task { lanes: &[Orchestrator, SuperReader, Coder, FastRag], why };
        match call.request.header(&self.config.task_header).as_deref() {
            Some("code") => return code("the task header says code"),
            Some("retrieval") => return retrieval("the task header says retrieval"),
            Some("reading") => return reading("the task header says reading"),
            Some("planning") => return planning("the task header says planning"),
            _ => {}
        }
        if call.context.prompt_tokens > self.config.long_context_tokens {
            reading("a long prompt")
        } else if any_in(call.request, &self.config.code_markers, false) {
            code("the prompt is about code")
        } else if any_in(call.request, &self.config.retrieval_markers, true) {
            retrieval("the prompt brings its sources")
        } else {
            planning("nothing points elsewhere")
        }
    }

    /// The first lane that could start soon; where none could, the one that could start first.
    fn by_load(&self, call: &Call<'_>, usable: &[(Lane, LaneId)]) -> Option<usize> {
        let starts: Vec<u64> = usable
            .iter()
            .map(|(_, id)| call.fleet.stat(*id).map_or(u64::MAX, |stat| start(&stat)))
            .collect();
        let soon = starts.iter().position(|start| *start <= u64::from(self.config.patience_ms));
        soon.or_else(|| (0..starts.len()).min_by_key(|index| starts[*index]))
    }

    /// Fallback and system prompt, which depend on the lane alone.
    fn complete(&self, call: &Call<'_>, lane: Lane, mut advice: Advice) -> Advice {
        let reserve = match lane {
            Lane::Orchestrator | Lane::Coder | Lane::FastRag => self.lanes.reserve(call.context),
            Lane::SuperReader | Lane::Governance => None,
        };
        let steps: Vec<FallbackStep> =
            reserve.into_iter().map(|lane| FallbackStep { lane, edits: Vec::new() }).collect();
        let on = if steps.is_empty() { Triggers::empty() } else { default_triggers() };
        advice.fallback =
            Some(FallbackAdvice { on, steps, first_token_ms: self.config.first_token_ms });
        if let Some(prompt) = &self.config.system_prompt
            && call.context.messages > 0
            && (prompt.lanes.is_empty() || prompt.lanes.iter().any(|name| name == lane.name()))
        {
            advice.edits.push(Edit::PrependSystem(prompt.text.clone()));
        }
        advice
    }
}

/// Milliseconds until a request given to this lane now would start.
fn start(stat: &LaneStat) -> u64 {
    match stat.state {
        LaneState::Down | LaneState::Draining => u64::MAX,
        _ => u64::from(stat.est_wait_ms) + u64::from(stat.ready_in_ms),
    }
}

fn any_in(request: &dyn RequestView, markers: &[String], ignore_case: bool) -> bool {
    markers.iter().any(|marker| request.contains(marker, ignore_case))
}
