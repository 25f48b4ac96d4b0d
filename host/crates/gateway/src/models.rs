//! `GET /v1/models` and `GET /v1/models/{id}`: the models that clients can name on a listener, and
//! what is known of them. The answers are the same while a lane is unloaded, except for the state.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use pointsman_access::{Identity, Rights};
use pointsman_domain::{
    Endpoint, FleetView, LaneId, LaneInfo, LaneState, Topology, adapter_of_lane,
};
use pointsman_fleet::{LaneStatus, ModelCard};
use pointsman_openai::models::{ModelEntry, anthropic_list, anthropic_one, list, one};
use pointsman_openai::{ANY_MODEL, ModelNames, SERVED};

use crate::error::RouteError;
use crate::pipeline::Pipeline;
use crate::response::{error, json};
use crate::rights;
use crate::settings::ListenerSettings;

/// The owner of models that no kind of engine, or more than one, serves.
const OWNER: &str = "pointsman";
/// Maximum number of models that an error names.
const MAX_NAMED: usize = 20;
/// Length in bytes above which a name is not compared with the known ones.
const MAX_COMPARED: usize = 200;
/// Similarity above which a known name is suggested; 1 for equal names.
const SIMILAR: f64 = 0.8;

pub(crate) async fn models(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    let catalog = match Catalog::new(&pipeline, &request) {
        Ok(catalog) => catalog,
        Err(refused) => return error(request, refused),
    };
    let names = catalog.names();
    let entries: Vec<ModelEntry<'_>> =
        names.iter().filter_map(|name| catalog.entry(name)).collect();
    let list = if is_anthropic(&request) { anthropic_list } else { list };
    json(list(&entries, pipeline.settings.started_at))
}

pub(crate) async fn model(
    State(pipeline): State<Arc<Pipeline>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let catalog = match Catalog::new(&pipeline, &request) {
        Ok(catalog) => catalog,
        Err(refused) => return error(request, refused),
    };
    // An id that is not UTF-8 is as unknown as any other; the message has it as it was sent.
    let id = id.map_or_else(|_| request.uri().path().to_owned(), |Path(id)| id);
    // A client that joins the id to the path, or a proxy between, may make one slash of two.
    let absolute = format!("/{id}");
    match catalog.entry(&id).or_else(|| catalog.entry(&absolute)) {
        Some(entry) => {
            let one = if is_anthropic(&request) { anthropic_one } else { one };
            json(one(&entry, pipeline.settings.started_at))
        }
        None => error(request, catalog.refusal(&id)),
    }
}

/// Returns true for a request of Anthropic's libraries, whose lists have another form.
fn is_anthropic(request: &Request) -> bool {
    request.headers().contains_key("anthropic-version")
}

/// Returns the error for a model that no lane serves.
pub(crate) fn unknown_model(
    topology: &Topology,
    listener: &ListenerSettings,
    rights: &Rights,
    model: &str,
) -> RouteError {
    let known = listed_names(topology, listener, rights);
    let near = nearest(model, &known).map(|near| format!("did you mean `{near}`? "));
    let hint = format!("{}available models: {}", near.unwrap_or_default(), enumerated(&known));
    RouteError::UnknownModel { model: model.to_owned(), hint }
}

/// Returns the error for an endpoint that no lane of a model can serve.
pub(crate) fn endpoint_not_supported(
    topology: &Topology,
    listener: &ListenerSettings,
    rights: &Rights,
    model: &str,
    endpoint: Endpoint,
) -> RouteError {
    let names = names_of(listener);
    let is_able = |name: &String| {
        let model = names.target(name).unwrap_or(name);
        topology.candidates_for(model, endpoint).next().is_some()
    };
    let known = listed_names(topology, listener, rights);
    let able: Vec<String> = known.into_iter().filter(is_able).collect();
    let hint = match able.is_empty() {
        true => "no model can".to_owned(),
        false => format!("models that can: {}", enumerated(&able)),
    };
    RouteError::EndpointNotSupported { model: model.to_owned(), endpoint, hint }
}

/// Returns the first names, and how many more there are.
fn enumerated(names: &[String]) -> String {
    let named = names.get(..MAX_NAMED).unwrap_or(names).join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => named,
        rest => format!("{named} and {rest} more"),
    }
}

fn names_of(listener: &ListenerSettings) -> ModelNames<'_> {
    ModelNames { default: listener.default_model.as_deref(), targets: &listener.models }
}

/// Returns the known name that is most similar to `name`, with and without organisations, and
/// whichever letters are capitals.
fn nearest<'n>(name: &str, known: &'n [String]) -> Option<&'n str> {
    if name.len() > MAX_COMPARED {
        return None;
    }
    let last = |name: &str| name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let (whole, own) = (name.to_lowercase(), last(name));
    known
        .iter()
        .map(|known| {
            let of_whole = strsim::jaro_winkler(&known.to_lowercase(), &whole);
            (of_whole.max(strsim::jaro_winkler(&last(known), &own)), known.as_str())
        })
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, near)| near)
}

/// Returns the names that are listed on a listener for a key with these rights, sorted. If one of
/// its names stands for all others, those of the lanes would all be the same model.
fn listed_names(topology: &Topology, listener: &ListenerSettings, rights: &Rights) -> Vec<String> {
    let mut names = match listener.models.get(ANY_MODEL) {
        Some(target) => vec![target.clone()],
        None => names_of_lanes(topology),
    };
    names.extend(listener.models.keys().filter(|name| *name != ANY_MODEL).cloned());
    names.extend(listener.default_model.clone());
    names.retain(|name| is_usable(topology, listener, rights, name));
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns true if a key may use a model, and one of the model's lanes.
fn is_usable(
    topology: &Topology,
    listener: &ListenerSettings,
    rights: &Rights,
    name: &str,
) -> bool {
    let target = names_of(listener).target(name).unwrap_or(name);
    let lanes = topology.candidates(target);
    rights::allows_model(rights, topology, listener, name, target)
        && (lanes.is_empty() || lanes.iter().any(|lane| !topology.is_barred(*lane)))
}

fn names_of_lanes(topology: &Topology) -> Vec<String> {
    let mut names: Vec<String> = topology.models().into_iter().map(str::to_owned).collect();
    for lane in topology.lanes() {
        for adapter in &lane.names.adapters {
            names.extend([adapter.clone(), adapter_of_lane(&lane.name, adapter)]);
        }
    }
    names
}

/// The models of a listener that a key may use, at one time.
pub(crate) struct Catalog {
    pub(crate) view: Arc<FleetView>,
    /// The status of each lane, in the order of their ids.
    pub(crate) statuses: Vec<LaneStatus>,
    listener: Arc<ListenerSettings>,
    identity: Arc<Identity>,
}

impl Catalog {
    /// # Errors
    /// If the request has no valid key.
    pub(crate) fn new(pipeline: &Pipeline, request: &Request) -> Result<Self, RouteError> {
        let (headers, extensions) = (request.headers(), request.extensions());
        let identity = rights::identify(&pipeline.keys, headers, extensions)?;
        let listener = extensions.get::<Arc<ListenerSettings>>();
        Ok(Self {
            view: rights::restricted(pipeline.fleet.view(), &identity.rights),
            statuses: pipeline.fleet.status(),
            listener: listener.cloned().unwrap_or_default(),
            identity,
        })
    }

    /// Returns the tenant of the key.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.identity.tenant.as_deref()
    }

    /// Returns the names of the models.
    pub(crate) fn names(&self) -> Vec<String> {
        listed_names(&self.view.topology, &self.listener, &self.identity.rights)
    }

    /// Returns true if the key may see a lane.
    pub(crate) fn shows(&self, lane: &LaneInfo) -> bool {
        rights::shows_lane(&self.identity.rights, lane)
    }

    /// Returns true if the key may use the model with a name.
    pub(crate) fn allows(&self, name: &str) -> bool {
        is_usable(&self.view.topology, &self.listener, &self.identity.rights, name)
    }

    /// Returns why there is no entry for a name.
    pub(crate) fn refusal(&self, name: &str) -> RouteError {
        let topology = &self.view.topology;
        let target = names_of(&self.listener).target(name).unwrap_or(name);
        if topology.candidates(target).is_empty() {
            return unknown_model(topology, &self.listener, &self.identity.rights, name);
        }
        RouteError::ModelNotAllowed { model: name.to_owned() }
    }

    /// Returns the model with a name, which may be any that a request may have; `None` if no lane
    /// serves it, or the key may not use it.
    pub(crate) fn entry<'a>(&'a self, name: &'a str) -> Option<ModelEntry<'a>> {
        let model = names_of(&self.listener).target(name).unwrap_or(name);
        let topology = &self.view.topology;
        if !self.allows(name) {
            return None;
        }
        let lanes = topology.candidates(model).iter().copied();
        let lanes: Vec<LaneId> = lanes.filter(|lane| !topology.is_barred(*lane)).collect();
        let first = lanes.first()?;
        let adapter = topology.adapter(*first, model);
        let cards: Vec<&ModelCard> = lanes.iter().filter_map(|lane| self.card(*lane)).collect();
        let root = |card: &&'a ModelCard| match adapter {
            None => card.root.as_deref(),
            Some(name) => {
                card.adapters.iter().find(|adapter| adapter.name == name)?.root.as_deref()
            }
        };
        let infos = || lanes.iter().filter_map(|lane| topology.lane(*lane));
        let contexts = infos().map(|lane| lane.max_context).filter(|tokens| *tokens > 0);
        let serves =
            |endpoint: &Endpoint| lanes.iter().any(|lane| topology.can_serve(*lane, *endpoint));
        Some(ModelEntry {
            id: name,
            owner: shared(cards.iter().map(|card| card.owner.as_deref())).unwrap_or(OWNER),
            root: shared(cards.iter().map(root)),
            parent: adapter.map(|_| topology.name(*first)),
            // The smallest, because any of the lanes may get a request.
            context: contexts.min(),
            trained_context: cards.iter().filter_map(|card| card.trained_context).min(),
            lanes: lanes.iter().map(|lane| topology.name(*lane)).collect(),
            state: self.state(&lanes),
            capabilities: capabilities(&cards, infos),
            endpoints: SERVED.into_iter().filter(serves).map(Endpoint::label).collect(),
        })
    }

    fn card(&self, lane: LaneId) -> Option<&ModelCard> {
        LaneStatus::find(&self.statuses, lane).map(|status| &status.card)
    }

    /// Returns the state of the lane that is nearest to serving.
    fn state(&self, lanes: &[LaneId]) -> &'static str {
        let states = lanes.iter().filter_map(|lane| self.view.stat(*lane));
        let (_, word) = states.map(|stat| distance(stat.state)).min().unwrap_or((0, "unknown"));
        word
    }
}

/// Returns how far a state is from serving, and the word for it.
fn distance(state: LaneState) -> (u8, &'static str) {
    match state {
        LaneState::Ready => (0, "ready"),
        LaneState::Degraded => (1, "degraded"),
        LaneState::Starting => (2, "loading"),
        LaneState::Draining => (3, "draining"),
        LaneState::Unloaded => (4, "unloaded"),
        LaneState::Down => (5, "down"),
    }
}

/// Returns what all lanes can do.
fn capabilities<'a, I: Iterator<Item = &'a LaneInfo>>(
    cards: &[&ModelCard],
    lanes: impl Fn() -> I,
) -> Vec<&'static str> {
    let has = |endpoint| lanes().all(|lane| lane.endpoints.contains(endpoint));
    let mut all = Vec::new();
    for (name, has) in [
        ("chat", has(Endpoint::ChatCompletions)),
        ("completion", has(Endpoint::Completions)),
        ("tools", cards.iter().all(|card| card.tools)),
        ("reasoning", cards.iter().all(|card| card.reasoning)),
        ("vision", cards.iter().all(|card| card.vision)),
    ] {
        all.extend(has.then_some(name));
    }
    all
}

/// Returns the value that all lanes have.
fn shared<'a>(mut values: impl Iterator<Item = Option<&'a str>>) -> Option<&'a str> {
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}
