//! Lanes on the admin API: what they do, and how they are loaded and unloaded by hand.

use axum::Router;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, header};
use pointsman_domain::dispatch::{LaneCommand, LaneCommandError, Problem};
use pointsman_domain::{FleetView, LaneId};
use pointsman_fleet::{EngineLogLine, Fleet, LaneStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use super::operator::Operator;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::peer_status;
use crate::response::{error, only};
use crate::status::{StatusSources, manual};

/// Lines of a log that are returned unless the request asks for another number.
const DEFAULT_LINES: usize = 100;

pub(super) fn routes() -> Router<Arc<StatusSources>> {
    Router::new()
        .route("/lanes", only("GET, HEAD", get(list)))
        .route("/lanes/{name}/logs", only("GET, HEAD", get(logs)))
        .route("/lanes/{name}/{command}", only("POST", post(command)))
}

/// The parameters of a command. An unknown one may be a misspelt one, and is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    /// Of `unload`: keep the lane unloaded.
    hold: bool,
    /// Of `drain`: end the drain.
    undo: bool,
    /// Respond when the command is done.
    wait: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { hold: false, undo: false, wait: true }
    }
}

/// The parameters of a log.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogParameters {
    lines: Option<usize>,
    follow: bool,
    /// Each line is a JSON object.
    json: bool,
}

async fn list(State(host): State<Arc<StatusSources>>) -> Response {
    let (fleet, view) = (&host.fleet, host.fleet.view());
    let statuses = fleet.status();
    let lanes: Vec<Value> = statuses.iter().map(|status| lane(fleet, &view, status)).collect();
    crate::response::json(json!({ "lanes": lanes }).to_string())
}

/// Describes a lane.
fn lane(fleet: &Fleet, view: &FleetView, status: &LaneStatus) -> Value {
    let stat = view.stat(status.lane);
    json!({
        "name": status.name,
        "state": status.state.label(),
        "engine": status.engine.label(),
        "manual": manual(status),
        "progress": status.progress,
        "running": stat.map(|stat| stat.running),
        "queued": stat.map(|stat| stat.queued),
        "slots": view.topology.lane(status.lane).map(|lane| lane.slots),
        "pid": status.pid,
        "problem": status.problem.as_ref().map(ToString::to_string),
        "problem_code": status.problem.as_ref().and_then(Problem::code),
        "host": peer_status::lane_host(fleet, &status.name),
    })
}

async fn command(
    State(host): State<Arc<StatusSources>>,
    Extension(operator): Extension<Operator>,
    Path((name, command)): Path<(String, String)>,
    request: Request,
) -> Response {
    let parsed = parse(&command, &request);
    let request = request.map(|_| Body::empty());
    let done = async {
        let (command, wait) = parsed?;
        execute(&host, &name, command, wait, &operator).await
    };
    match done.await {
        Ok(lane) => crate::response::json(lane.to_string()),
        Err(refused) => error(request, refused.into()),
    }
}

fn parse(command: &str, request: &Request) -> Result<(LaneCommand, bool), AdminError> {
    let Query(Parameters { hold, undo, wait }) = query(request)?;
    let command = match (command, hold, undo) {
        ("load", false, false) => LaneCommand::Load,
        ("unload", hold, false) => LaneCommand::Unload { hold },
        ("drain", false, false) => LaneCommand::Drain,
        ("drain", false, true) => LaneCommand::Resume,
        ("restart", false, false) => LaneCommand::Restart,
        ("load" | "unload" | "drain" | "restart", ..) => {
            let message = format!("`{command}` does not take this parameter");
            return Err(AdminError::new(ErrorCode::InvalidRequest, message));
        }
        _ => {
            let message = "unknown command: expected load, unload, drain or restart";
            return Err(AdminError::new(ErrorCode::NotFound, message));
        }
    };
    Ok((command, wait))
}

fn query<T: serde::de::DeserializeOwned>(request: &Request) -> Result<Query<T>, AdminError> {
    Query::try_from_uri(request.uri())
        .map_err(|error| AdminError::new(ErrorCode::InvalidRequest, error.body_text()))
}

/// Carries out a command, and returns the lane after it.
async fn execute(
    host: &StatusSources,
    name: &str,
    command: LaneCommand,
    wait: bool,
    Operator(by): &Operator,
) -> Result<Value, AdminError> {
    let fleet = &host.fleet;
    let id = find(fleet, name)?;
    fleet.command(id, command, by).await.map_err(|error| refused(fleet, name, &error))?;
    if wait {
        // A host that stops does not wait for operators.
        let done = host.stop.run_until_cancelled(fleet.command_done(id)).await;
        let done = done.ok_or_else(|| refused(fleet, name, &LaneCommandError::Closing))?;
        let done = done.ok_or_else(|| unknown(fleet, name))?;
        let loads = matches!(command, LaneCommand::Load | LaneCommand::Restart);
        if loads && !done.state.serving() {
            let problem = done.problem.as_ref().map(ToString::to_string);
            let problem = problem.unwrap_or_else(|| format!("it is {}", done.state.label()));
            let message = format!("lane `{name}` could not be loaded: {problem}");
            return Err(AdminError::new(ErrorCode::LaneLoadFailed, message));
        }
    }
    let statuses = fleet.status();
    let status = LaneStatus::find(&statuses, id).ok_or_else(|| unknown(fleet, name))?;
    Ok(lane(fleet, &fleet.view(), status))
}

fn find(fleet: &Fleet, name: &str) -> Result<LaneId, AdminError> {
    fleet.view().topology.find(name).ok_or_else(|| unknown(fleet, name))
}

/// Returns the error for an unknown lane, which lists the known ones.
fn unknown(fleet: &Fleet, name: &str) -> AdminError {
    let known: Vec<String> = fleet.status().into_iter().map(|status| status.name).collect();
    let message = format!("unknown lane `{name}`: expected `{}`", known.join("` or `"));
    AdminError::new(ErrorCode::LaneNotFound, message)
}

fn refused(fleet: &Fleet, name: &str, error: &LaneCommandError) -> AdminError {
    let code = match error {
        LaneCommandError::UnknownLane => return unknown(fleet, name),
        LaneCommandError::NotManaged => ErrorCode::LaneNotManaged,
        LaneCommandError::Held => ErrorCode::LaneHeld,
        LaneCommandError::NotDraining => ErrorCode::LaneNotDraining,
        LaneCommandError::Closing => ErrorCode::Stopping,
    };
    AdminError::new(code, format!("lane `{name}`: {error}"))
}

async fn logs(
    State(host): State<Arc<StatusSources>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let parsed = query::<LogParameters>(&request)
        .and_then(|parameters| find(&host.fleet, &name).map(|_| parameters));
    let Query(LogParameters { lines, follow, json }) = match parsed {
        Ok(parameters) => parameters,
        Err(refused) => return error(request, refused.into()),
    };
    let (log, stop) = (host.fleet.engine_log(&name), host.stop.clone());
    let kept = log.last(usize::MAX);
    // Fewer lines than the request asks for may be kept.
    let begin = kept.len().saturating_sub(lines.unwrap_or(DEFAULT_LINES));
    let text = move |lines: &[EngineLogLine]| -> String {
        lines.iter().map(|line| if json { as_json(line) } else { as_text(line) }).collect()
    };
    let first = text(&kept[begin..]);
    let last = kept.last().map_or(0, |line| line.number);
    let body = if follow {
        let rest = stream::unfold(last, move |number| {
            let (log, stop) = (log.clone(), stop.clone());
            async move {
                let lines = stop.run_until_cancelled(log.after(number)).await?;
                let number = lines.last()?.number;
                Some((text(&lines), number))
            }
        });
        let all = stream::once(std::future::ready(first)).chain(rest);
        Body::from_stream(all.map(Ok::<_, Infallible>))
    } else {
        Body::from(first)
    };
    let mut response = Response::new(body);
    let kind = if json { "application/x-ndjson" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn as_text(line: &EngineLogLine) -> String {
    format!("{} {}\n", humantime::format_rfc3339_millis(line.time), line.text)
}

fn as_json(line: &EngineLogLine) -> String {
    let time = humantime::format_rfc3339_millis(line.time).to_string();
    format!("{}\n", json!({ "number": line.number, "time": time, "text": &*line.text }))
}
