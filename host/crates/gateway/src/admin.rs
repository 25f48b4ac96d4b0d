//! The admin API: what operators can query and change, on listeners of its own.
//!
//! ```text
//!   GET  /policies                             all policies, in the order of the chain
//!   GET  /policies/{name}                      details of a policy
//!   POST /policies/{name}/rollback             roll back, optionally to {"version": "ab12cd34"}
//!   POST /policies/{name}/promote              promote the candidate, or {"version": "ab12cd34"}
//!   POST /policies/{name}/disable, …/enable    disable or re-enable a policy
//!   POST /reload                               reload changed files now
//!   POST /reload?dry-run=true                  tell what that would change
//!   POST /reload?check=true                    tell what a configuration in the body would change
//!   POST /upgrade                              replace the host by a new process
//!   GET  /state, /state/{policy}?key=…         what policies have in their state
//!   POST /state/{policy}/clear?key=…           remove it
//!   GET  /lanes                                all lanes, and what was done with them by hand
//!   POST /lanes/{name}/load, …/restart         load the lane; replace its engine
//!   POST /lanes/{name}/unload?hold=true        unload it, until it is loaded by hand
//!   POST /lanes/{name}/drain?undo=true         send it no more requests; end that
//!   GET  /lanes/{name}/logs?lines=9&follow=true   the last lines of its engine
//!   GET  /lane-history                         the last changes of the states of lanes
//!   GET  /events                               all of that, the log and decisions, as they change
//!   GET  /actions                              what operators have done
//!   POST /playground/{endpoint}                a request of an operator, as one of a client
//!   GET  /requests                             the requests in flight
//!   DELETE /requests/{id}                      cancel a request
//!   GET  /decisions?limit=9&before=ID          the requests that have ended, newest first
//!   GET  /decisions/{id}                       why a request was decided as it was
//!   POST /decide?endpoint=…&key=…              what would be decided about a request now
//!   GET  /status                               more than clients see: configuration, problems, …
//!   GET  /metrics                              as for clients
//!   GET  /fleet                                what other hosts learn of the lanes
//!   GET  /usage?hosts=all                      what was used, as JSON or CSV
//!   GET  /keys?limit=9                         the limits of keys, and what is used of them
//!   DELETE /conversations?tenant=…            erase what was saved of conversations
//!   any  /upstream/{lane}/{path}               a path of the engine of a lane
//! ```
//!
//! The admin API never shares a listener with clients: the permission to send requests does not
//! include the permission to change policies. The console (`admin/console.rs`) is a page that uses
//! the same routes with a session; it can be served to clients, too, where it needs the token.

mod audit;
mod console;
mod conversations;
mod decisions;
mod events;
mod gate;
mod keys;
mod lanes;
mod operator;
mod playground;
mod reload;
mod requests;
mod respond;
mod same_origin;
mod snapshot;
mod state;
mod upgrade;
mod usage;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::console::{Access, Console};
pub use self::decisions::preview_request;
use self::gate::authenticate;
use self::operator::Operator;
use self::reload::reload;
use self::respond::respond;
pub use self::state::StateAdmin;
use self::upgrade::upgrade;
use crate::admin_error::AdminError;
use crate::client_listener::address_of;
use crate::error::RouteError;
use crate::gateway::Gateway;
use crate::idle::ConnectionPool;
use crate::listen::Fixed;
use crate::protocols::Protocols;
use crate::response::{error, only, unknown_path};
use crate::routes::Routes;
use crate::served::{Served, ServedSlot};
use crate::socket::SocketFile;
use crate::upstream_routes;
use crate::{fleet_stream, listen, status};
use pointsman_access::{ApiKey, Keys};

/// Open connections of a listener.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a command's body.
const MAX_BODY: usize = 64 << 10;
/// Bytes of a configuration.
const MAX_CONFIG: usize = 8 << 20;

/// The administration of the policies. Calls may block for seconds and run on a blocking thread.
pub trait PolicyAdmin: StateAdmin {
    /// Returns an array with the details of all policies, in the order of the chain.
    fn list(&self) -> Value;

    /// Returns the details of a policy; `None` if no policy has this name.
    fn show(&self, name: &str) -> Option<Value>;

    /// Executes a command of the operator `by`, and returns the details of the policy after it.
    ///
    /// # Errors
    /// If the command cannot be executed. Nothing has changed then.
    fn command(&self, name: &str, command: PolicyCommand, by: &str) -> Result<Value, AdminError>;

    /// Reloads changed files, and returns an object with the result, and the details of all
    /// policies after it.
    fn reload(&self) -> Value;

    /// Replaces the host by a new process, and returns an object with its process id. `program` is
    /// its file, `timeout` the maximum time until it is prepared; they have defaults.
    ///
    /// # Errors
    /// If the new process fails. The host goes on then.
    fn upgrade(
        &self,
        program: Option<PathBuf>,
        timeout: Option<Duration>,
    ) -> Result<Value, AdminError>;

    /// Returns an object with what a reload would change. `text` takes the place of the
    /// configuration file.
    fn plan(&self, text: Option<String>) -> Value;
}

/// A command for one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyCommand {
    /// Rejects the candidate version; without one, activates an earlier version.
    RollBack {
        /// Prefix of the fingerprint of the version to activate; `None`: the previous version.
        to: Option<String>,
    },
    /// Activates the candidate version.
    Promote {
        /// Prefix of the fingerprint of the version to activate; `None`: the candidate.
        version: Option<String>,
    },
    /// Removes the policy from the chain.
    Disable,
    /// Returns the policy to the chain.
    Enable,
}

/// The listeners of the admin API.
#[derive(Debug, Default)]
pub struct Admin {
    /// A Unix socket. Its file mode restricts access.
    pub socket: Option<SocketFile>,
    /// A TCP port, and the token that requests need there.
    pub port: Option<(TcpListener, String)>,
}

impl Admin {
    /// Lets listeners for clients serve the console if the configuration says so, to operators with
    /// the token of the port. Has to be called before these listeners serve.
    pub fn offer_console(&self, gateway: &Gateway, policies: &Arc<dyn PolicyAdmin>) {
        let Some((_, token)) = &self.port else { return };
        let access = Access::new(Keys::new([ApiKey::new(token, "operator")]));
        let policies = Arc::clone(policies);
        gateway.set_console(Box::new(move |gateway, listener, has_tls| {
            let api = api(gateway, Arc::clone(&policies));
            let prefix = listener.path_prefix.clone();
            console::routes(Console::for_clients(api, access.clone(), &prefix, has_tls))
        }));
    }

    /// Serves until the drain is closed.
    pub async fn serve(self, gateway: &Gateway, policies: Arc<dyn PolicyAdmin>) {
        let socket = async {
            if let Some(socket) = self.socket {
                // Without keys: the file mode restricts the socket to the host's user and root.
                // Host names are checked as on a loopback port, because a tunnel may make it one.
                let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
                let served = served(gateway, &policies, Keys::default(), ip);
                listen::listen(socket, served, fixed(gateway)).await;
            }
        };
        let port = async {
            if let Some((listener, token)) = self.port {
                let keys = Keys::new([ApiKey::new(&token, "operator")]);
                let served = served(gateway, &policies, keys, address_of(&listener));
                listen::listen(listener, served, fixed(gateway)).await;
            }
        };
        tokio::join!(socket, port);
    }
}

/// Returns what does not change of a listener, which has its own connections.
fn fixed(gateway: &Gateway) -> Fixed {
    gateway.fixed(ConnectionPool::new(MAX_CONNECTIONS), Protocols::default())
}

/// Adds a listener with this address.
fn served(gateway: &Gateway, policies: &Policies, keys: Keys, ip: IpAddr) -> ServedSlot {
    let (policies, access) = (Arc::clone(policies), Access::new(keys));
    gateway.add_listener(Box::new(move |gateway, _| {
        let router = router(gateway, Arc::clone(&policies), &access);
        Served::new(Routes::Operators(router), gateway.timeouts(), Some(gateway.allowed_hosts(ip)))
    }))
}

type Policies = Arc<dyn PolicyAdmin>;

/// Returns the routes of a listener.
fn router(gateway: &Gateway, policies: Policies, access: &Access) -> Router {
    let (api, audit) = (api(gateway, policies), gateway.status().audit.clone());
    let engine_routes =
        upstream_routes::routes(upstream_routes::Access::Operator).with_state(gateway.pipeline());
    let routes = api
        .clone()
        .merge(engine_routes.layer(middleware::from_fn_with_state(audit.clone(), audit::note)))
        .fallback(unknown_path)
        // Last, so that no route and no fallback responds without authentication.
        .layer(middleware::from_fn_with_state(Arc::clone(access.gate()), authenticate));
    match gateway.pipeline().settings.console.enabled {
        true => routes.merge(console::routes(Console::for_operators(api, access.clone()))),
        false => routes,
    }
}

/// Returns the routes that the console uses as well, which authenticates requests by itself. Those
/// of engines are not among them: what engines respond must not count as a page of the console.
fn api(gateway: &Gateway, policies: Policies) -> Router {
    let host_routes = Router::new()
        .route("/status", only("GET, HEAD", get(status::full_status)))
        .route("/metrics", only("GET, HEAD", get(status::metrics)))
        .with_state(Arc::clone(gateway.status()));
    let fleet_routes = Router::new()
        .route("/fleet", only("GET", get(fleet_stream::for_operators)))
        .with_state(Arc::clone(&gateway.status().fleet_stream));
    let usage_routes = Router::new()
        .route("/usage", only("GET, HEAD", get(usage::usage)))
        .with_state(Arc::clone(gateway.pipeline().meter.usage()));
    let conversation_routes = Router::new()
        .route("/conversations", only("DELETE", delete(conversations::erase)))
        .with_state(gateway.status().fleet.clone());
    Router::new()
        .route("/policies", only("GET, HEAD", get(list)))
        .route("/policies/{name}", only("GET, HEAD", get(show)))
        .route("/policies/{name}/{command}", only("POST", post(command)))
        .route("/reload", only("POST", post(reload)))
        .route("/upgrade", only("POST", post(upgrade)))
        .merge(state::routes())
        .with_state(policies)
        .merge(host_routes)
        .merge(fleet_routes)
        .merge(usage_routes)
        .merge(conversation_routes)
        .merge(lanes::routes().with_state(Arc::clone(gateway.status())))
        .merge(requests::routes().with_state(gateway.pipeline()))
        .merge(keys::routes().with_state(gateway.pipeline()))
        .merge(decisions::routes(gateway.pipeline(), Arc::clone(gateway.main_listener())))
        .merge(events::routes(gateway))
        .merge(audit::routes().with_state(Arc::clone(gateway.status())))
        .merge(playground::routes(gateway.pipeline(), Arc::clone(gateway.main_listener())))
        .layer(middleware::from_fn_with_state(gateway.status().audit.clone(), audit::note))
}

async fn list(State(policies): State<Policies>, request: Request) -> Response {
    respond(request, move || Ok(json!({ "policies": policies.list() }))).await
}

async fn show(
    State(policies): State<Policies>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let work = move || policies.show(&name).ok_or_else(|| not_found(&*policies, &name));
    respond(request, work).await
}

async fn command(
    State(policies): State<Policies>,
    Path((name, command)): Path<(String, String)>,
    Extension(Operator(by)): Extension<Operator>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let parsed = match read_version(body).await {
        Ok(version) => parse_command(&command, version),
        Err(error) => Err(error),
    };
    let request = Request::from_parts(parts, Body::empty());
    match parsed {
        Err(invalid) => error(request, invalid),
        Ok(command) => {
            tracing::info!(policy = name, ?command, operator = &*by, "operator command received");
            respond(request, move || policies.command(&name, command, &by)).await
        }
    }
}

fn not_found(policies: &dyn PolicyAdmin, name: &str) -> AdminError {
    let all = policies.list();
    let known = all.as_array().into_iter().flatten().filter_map(|policy| policy["name"].as_str());
    AdminError::policy_not_found(name, &known.map(str::to_owned).collect::<Vec<_>>())
}

/// Reads the version in the body of a command; `None` if the body is empty or has no version.
async fn read_version(body: Body) -> Result<Option<String>, RouteError> {
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(RouteError::IncompleteBody)?.to_bytes();
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&body) else {
        return Err(RouteError::InvalidCommandBody);
    };
    let version = match fields.remove("version") {
        None | Some(Value::Null) => None,
        Some(Value::String(version)) if !version.is_empty() => Some(version),
        Some(_) => return Err(RouteError::InvalidCommandBody),
    };
    // An unknown field may be a misspelt `version`, which must not select another one.
    if fields.is_empty() { Ok(version) } else { Err(RouteError::InvalidCommandBody) }
}

fn parse_command(command: &str, version: Option<String>) -> Result<PolicyCommand, RouteError> {
    match (command, version) {
        ("rollback", to) => Ok(PolicyCommand::RollBack { to }),
        ("promote", version) => Ok(PolicyCommand::Promote { version }),
        ("disable", None) => Ok(PolicyCommand::Disable),
        ("enable", None) => Ok(PolicyCommand::Enable),
        ("disable" | "enable", Some(_)) => Err(RouteError::VersionNotAllowed(command.to_owned())),
        _ => Err(RouteError::UnknownCommand(command.to_owned())),
    }
}

#[cfg(test)]
mod tests;
