//! What the key of a request may be used for, and how that is checked: on every route, by what
//! names stand for and not by how they are spelled.

use std::sync::Arc;

use http::{Extensions, HeaderMap};
use pointsman_access::{Identity, Keys, Rights};
use pointsman_domain::{Endpoint, FleetView, LaneId, LaneInfo, Topology};

use crate::error::RouteError;
use crate::settings::ListenerSettings;

/// Returns who sent a request with these headers, on the listener that is one of the extensions.
///
/// # Errors
/// If the request has no valid key, or one that may not use the listener.
pub(crate) fn identify(
    keys: &Keys,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Arc<Identity>, RouteError> {
    let identity = keys.identity(headers)?;
    let listener = extensions.get::<Arc<ListenerSettings>>();
    check_listener(&identity.rights, listener.map(|listener| &**listener))?;
    Ok(identity)
}

/// Checks that a listener may be used.
pub(crate) fn check_listener(
    rights: &Rights,
    listener: Option<&ListenerSettings>,
) -> Result<(), RouteError> {
    let addresses = listener.map_or(&[][..], |listener| listener.addresses.as_slice());
    match rights.allows_listener(addresses) {
        true => Ok(()),
        false => Err(RouteError::ListenerNotAllowed),
    }
}

/// Checks that an endpoint may be used.
pub(crate) fn check_endpoint(rights: &Rights, endpoint: Endpoint) -> Result<(), RouteError> {
    match rights.allows_endpoint(endpoint) {
        true => Ok(()),
        false => Err(RouteError::EndpointNotAllowed(endpoint)),
    }
}

/// Returns true if a model may be used that a client names `written`, and for which the listener
/// has `target`. A name that only one of them lists counts as what it stands for, because any
/// spelling of a name would match some pattern.
pub(crate) fn allows_model(
    rights: &Rights,
    topology: &Topology,
    listener: &ListenerSettings,
    written: &str,
    target: &str,
) -> bool {
    if rights.models.is_none() {
        return true;
    }
    let is_of_listener = listener.models.contains_key(written);
    (is_of_listener && rights.allows_model(written))
        || topology.resolved(target).is_some_and(|name| rights.allows_model(name))
}

/// Returns the view in which only lanes that may be used can serve requests.
pub(crate) fn restricted(view: Arc<FleetView>, rights: &Rights) -> Arc<FleetView> {
    if rights.lanes.is_none() {
        return view;
    }
    let mut restricted = FleetView::clone(&view);
    let topology = view.topology.without(|lane| !rights.allows_lane(&lane.name));
    restricted.topology = Arc::new(topology);
    Arc::new(restricted)
}

/// Returns true if a lane is shown: it may be used, for one of its models at least.
pub(crate) fn shows_lane(rights: &Rights, lane: &LaneInfo) -> bool {
    rights.allows_lane(&lane.name)
        && names_of(lane).chain([&lane.name]).any(|name| rights.allows_model(name))
}

/// Checks that paths of a lane's engine may be used, which serve all of its models at all
/// endpoints.
pub(crate) fn check_engine_paths(rights: &Rights, lane: &LaneInfo) -> Result<(), RouteError> {
    check_endpoint(rights, Endpoint::Other)?;
    if !rights.allows_lane(&lane.name) {
        return Err(RouteError::LaneNotAllowed { what: format!("lane `{}`", lane.name) });
    }
    let mut names = names_of(lane).peekable();
    let is_allowed = match names.peek() {
        Some(_) => names.all(|name| rights.allows_model(name)),
        None => rights.allows_model(&lane.name),
    };
    match is_allowed {
        true => Ok(()),
        false => Err(RouteError::ModelNotAllowed { model: lane.name.clone() }),
    }
}

/// Returns the error of a model whose lanes that could serve a request may not be used; `None` if
/// there are not such lanes.
pub(crate) fn lane_not_allowed(
    topology: &Topology,
    model: &str,
    endpoint: Endpoint,
) -> Option<RouteError> {
    let is_kept = |lane: &LaneId| topology.is_barred_for(*lane, endpoint);
    let kept = topology.candidates(model).iter().any(is_kept);
    kept.then(|| RouteError::LaneNotAllowed { what: format!("the lanes of model `{model}`") })
}

fn names_of(lane: &LaneInfo) -> impl Iterator<Item = &String> {
    lane.models.iter().chain(&lane.names.adapters)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use pointsman_domain::{EndpointSet, EngineKind, LaneNames};

    use super::*;

    fn lane(name: &str, models: &[&str], adapters: &[&str]) -> LaneInfo {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        LaneInfo {
            id: LaneId(0),
            name: name.to_owned(),
            engine: EngineKind::Vllm,
            models: owned(models),
            names: LaneNames { adapters: owned(adapters), ..LaneNames::default() },
            labels: Vec::new(),
            max_context: 0,
            endpoints: EndpointSet::all(),
            slots: 1,
            group: 0,
            cost_milli: 0,
            is_peer: false,
        }
    }

    fn rights(models: &[&str]) -> Rights {
        let models = models.iter().map(|name| (*name).to_owned()).collect();
        Rights { models: Some(models), ..Rights::default() }
    }

    #[test]
    fn models_are_what_names_stand_for() {
        let lanes = vec![lane("a", &["org/one", "both"], &["poet"]), lane("b", &["both"], &[])];
        let topology = Topology::new(1, lanes);
        let alias = |name: &str, target: &str| (name.to_owned(), target.to_owned());
        let models = HashMap::from([alias("gpt", "org/one"), alias("*", "both")]);
        let with_names = ListenerSettings { models, ..ListenerSettings::default() };
        let plain = ListenerSettings::default();
        for (listener, allowed, written, target, expected) in [
            (&plain, "org/one", "org/one", "org/one", true),
            (&plain, "org/one", "one", "one", true),
            (&plain, "org/one", "x/one:latest", "x/one:latest", false),
            (&plain, "org/*", "org/poet", "org/poet", false),
            (&plain, "poet", "org/poet", "org/poet", true),
            (&plain, "a:*", "a:poet", "a:poet", true),
            (&plain, "org/one", "a", "a", false),
            (&plain, "*", "both", "both", true),
            (&plain, "b*", "both", "both", true),
            (&with_names, "gpt", "gpt", "org/one", true),
            (&with_names, "org/one", "gpt", "org/one", true),
            (&with_names, "g*", "g-any", "both", false),
            (&with_names, "both", "g-any", "both", true),
        ] {
            let found = allows_model(&rights(&[allowed]), &topology, listener, written, target);
            assert_eq!(found, expected, "{allowed} {written}");
        }
    }

    #[test]
    fn paths_of_an_engine_need_all_of_its_models() {
        let both = lane("a", &["one", "two"], &["poet"]);
        for (models, expected) in
            [(&["one"][..], false), (&["one", "two"], false), (&["one", "two", "poet"], true)]
        {
            let checked = check_engine_paths(&rights(models), &both);
            assert_eq!(checked.is_ok(), expected, "{models:?}");
        }
        assert!(check_engine_paths(&Rights::default(), &both).is_ok());
        let unnamed = lane("a", &[], &[]);
        assert!(check_engine_paths(&rights(&["a"]), &unnamed).is_ok());
        assert!(check_engine_paths(&rights(&["b"]), &unnamed).is_err());
        let endpoints = Some(vec![Endpoint::ChatCompletions]);
        let only_chat = Rights { endpoints, ..Rights::default() };
        assert!(check_engine_paths(&only_chat, &unnamed).is_err());
    }

    #[test]
    fn barred_lanes_serve_nothing() {
        let topology = Topology::new(1, vec![lane("a", &["m"], &[]), lane("b", &["m"], &[])]);
        let without = topology.without(|lane| lane.name == "a");
        let able = |topology: &Topology| -> Vec<LaneId> {
            topology.candidates_for("m", Endpoint::ChatCompletions).collect()
        };
        assert_eq!((able(&topology).len(), able(&without)), (2, vec![LaneId(1)]));
        assert!(lane_not_allowed(&topology, "m", Endpoint::Completions).is_none());
        let none = topology.without(|_| true);
        assert!(lane_not_allowed(&none, "m", Endpoint::Completions).is_some());
        assert!(able(&none.with_only(LaneId(0))).is_empty());
    }
}
