//! The policy for Cortex: five lanes, of which orchestrator, coder and fast_rag take turns on one
//! GPU, while super_reader and governance are always loaded.
//!
//! 1. A model name that is the name or an alias of a lane selects that lane.
//! 2. For any other model name (such as `auto`), the content selects the lane: the task header
//!    first; otherwise a long prompt goes to super_reader, one about code to coder, one that
//!    includes its sources to fast_rag, and all others to orchestrator.
//! 3. A request with images goes to a lane with the label `vision = "true"`, and one with tools to
//!    a lane with the label `tools = "true"`, if the model is served by such a lane.
//! 4. Among the suitable lanes, a busy or unloaded lane is skipped if another could start much
//!    sooner.
//!
//! Failed requests fall back to super_reader, if they fit into its context. A full queue is not a
//! failure of a request for one model: the client gets its error, because a later attempt gets the
//! model that it asked for (`fallback-on` changes this). Requests for governance never leave that
//! lane, and no other requests are sent to it.

mod config;
mod lanes;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Call, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, Policy, PolicyError,
    RequestView, Triggers,
};

use self::config::Config;
use self::lanes::{Lane, Lanes};

/// The configured policy.
#[derive(Debug)]
pub struct Cortex {
    config: Config,
    lanes: Lanes,
}

/// Endpoints whose media are audio.
const AUDIO_ENDPOINTS: [&str; 2] = ["transcriptions", "translations"];

impl Policy for Cortex {
    const NAME: &'static str = "cortex";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, lanes: Lanes::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        self.lanes.refresh(call);
        let candidates = call.fleet.candidates();
        let model = call.request.model();
        let named = self.lane_for_model(&model).and_then(|lane| Some((lane, self.lanes.id(lane)?)));
        Ok(match named.filter(|(_, id)| candidates.contains(id)) {
            Some((lane, id)) => self.to_named_lane(call, &candidates, lane, id),
            None => self.by_content(call, &candidates),
        })
    }
}

pointsman_sdk::export_policy!(Cortex);

/// The classification of a request whose model name does not select a lane.
struct Task {
    /// Suitable lanes, in order of preference.
    lanes: &'static [Lane],
    reason: &'static str,
}

impl Cortex {
    /// Returns the lane that a model name selects, by its name or an alias.
    fn lane_for_model(&self, model: &str) -> Option<Lane> {
        Lane::from_name(model).or_else(|| {
            let alias = self.config.aliases.iter().find(|(alias, _)| alias == model);
            alias.map(|(_, lane)| *lane)
        })
    }

    fn to_named_lane(
        &self,
        call: &Call<'_>,
        candidates: &[LaneId],
        lane: Lane,
        id: LaneId,
    ) -> Advice {
        let advice =
            Advice::only([id]).with_reason([lane.name(), ": requested by model name"].concat());
        self.with_lane_defaults(call, candidates, lane, advice)
    }

    fn by_content(&self, call: &Call<'_>, candidates: &[LaneId]) -> Advice {
        let task = self.classify(call);
        let mut usable: Vec<(Lane, LaneId)> = Vec::with_capacity(task.lanes.len());
        for lane in task.lanes {
            let id = self.lanes.id(*lane).filter(|id| candidates.contains(id));
            if let Some(id) = id.filter(|_| self.lanes.fits(*lane, call.context)) {
                usable.push((*lane, id));
            }
        }
        self.keep_capable(call, &mut usable);
        let Some(chosen) = self.choose_by_load(call, &usable) else {
            // Any lane that serves the model is fine, except governance.
            let advice = Advice::any().with_reason("no Cortex lane serves this model");
            let governance = self.lanes.id(Lane::Governance);
            return Advice { lanes: LaneAdvice::Avoid(governance.into_iter().collect()), ..advice };
        };
        let was_skipped = chosen > 0;
        let (lane, _) = usable[chosen];
        usable.swap(0, chosen);
        let order: Vec<LaneId> = usable.iter().map(|(_, id)| *id).collect();
        // `concat` instead of `format!`, whose code is slow in a component.
        let reason = match was_skipped {
            false => [lane.name(), ": ", task.reason].concat(),
            true => {
                let skipped = usable[chosen].0.name();
                [lane.name(), ": ", task.reason, "; ", skipped, " would start too late"].concat()
            }
        };
        let advice = Advice::ordered(order).with_reason(reason);
        self.with_lane_defaults(call, candidates, lane, advice)
    }

    /// Removes lanes that cannot read the images of a request or parse its tools, if others can. An
    /// operator who sets no labels gets the lanes of the task.
    fn keep_capable(&self, call: &Call<'_>, usable: &mut Vec<(Lane, LaneId)>) {
        let sees = |(lane, _): &(Lane, LaneId)| self.lanes.sees(*lane);
        // A lane that transcribes audio need not see.
        let is_audio = AUDIO_ENDPOINTS.contains(&call.request.endpoint_kind().as_str());
        if call.context.has_media && !is_audio && usable.iter().any(sees) {
            usable.retain(sees);
        }
        // A lane that is down does not exclude the others: their models may answer without tools.
        let calls_tools = |(lane, _): &(Lane, LaneId)| self.lanes.calls_tools(*lane);
        let is_available = |(_, id): &(Lane, LaneId)| {
            call.fleet.stat(*id).is_some_and(|stat| stat.start_in_ms().is_some())
        };
        if call.context.has_tools
            && usable.iter().any(|lane| calls_tools(lane) && is_available(lane))
        {
            usable.retain(calls_tools);
        }
    }

    /// Classifies a request. Every task allows all lanes except governance: a response from a less
    /// suitable model is better than none.
    fn classify(&self, call: &Call<'_>) -> Task {
        use Lane::{Coder, FastRag, Orchestrator, SuperReader};
        let reading = |reason| Task { lanes: &[SuperReader, Orchestrator, Coder, FastRag], reason };
        let code = |reason| Task { lanes: &[Coder, Orchestrator, SuperReader, FastRag], reason };
        let retrieval =
            |reason| Task { lanes: &[FastRag, SuperReader, Orchestrator, Coder], reason };
        let planning =
            |reason| Task { lanes: &[Orchestrator, SuperReader, Coder, FastRag], reason };
        match call.request.header(&self.config.task_header).as_deref() {
            Some("code") => return code("the task header says code"),
            Some("retrieval") => return retrieval("the task header says retrieval"),
            Some("reading") => return reading("the task header says reading"),
            Some("planning") => return planning("the task header says planning"),
            _ => {}
        }
        if call.context.prompt_tokens > self.config.long_context_tokens {
            reading("a long prompt")
        } else if contains_any(call.request, &self.config.code_markers, false) {
            code("the prompt is about code")
        } else if contains_any(call.request, &self.config.retrieval_markers, true) {
            retrieval("the prompt includes its sources")
        } else {
            planning("no other lane matches")
        }
    }

    /// Returns the index of the first lane that could start within the patience; if none could, of
    /// the lane that could start first.
    fn choose_by_load(&self, call: &Call<'_>, usable: &[(Lane, LaneId)]) -> Option<usize> {
        let starts: Vec<u64> = usable
            .iter()
            .map(|(_, id)| {
                call.fleet.stat(*id).and_then(|stat| stat.start_in_ms()).unwrap_or(u64::MAX)
            })
            .collect();
        let within_patience =
            starts.iter().position(|start| *start <= u64::from(self.config.patience_ms));
        within_patience.or_else(|| (0..starts.len()).min_by_key(|index| starts[*index]))
    }

    /// Adds the fallback and the system prompt, which depend only on the lane.
    fn with_lane_defaults(
        &self,
        call: &Call<'_>,
        candidates: &[LaneId],
        lane: Lane,
        mut advice: Advice,
    ) -> Advice {
        let fallback = match lane {
            Lane::Orchestrator | Lane::Coder | Lane::FastRag => {
                self.lanes.fallback(lane, call.context)
            }
            Lane::SuperReader | Lane::Governance => None,
        };
        let on = match fallback {
            None => Triggers::empty(),
            Some(id) => self.config.fallback_on.unwrap_or_else(|| match candidates.contains(&id) {
                true => Triggers::all(),
                false => Triggers::all() - Triggers::OVERLOADED,
            }),
        };
        let steps: Vec<FallbackStep> = fallback.into_iter().map(FallbackStep::new).collect();
        advice.fallback =
            Some(FallbackAdvice { on, steps, first_token_ms: self.config.first_token_ms });
        if let Some(prompt) = &self.config.system_prompt
            && call.context.messages > 0
            && (prompt.lanes.is_empty() || prompt.lanes.contains(&lane))
        {
            advice.edits.push(Edit::PrependSystem(prompt.text.clone()));
        }
        advice
    }
}

fn contains_any(request: &dyn RequestView, markers: &[String], ignore_case: bool) -> bool {
    markers.iter().any(|marker| request.contains(marker, ignore_case))
}
