//! The admin API of this host: opens its listeners and connects it to the policies.

mod shadow_report;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pointsman_gateway::{
    AdminError, ErrorCode, ListenerCopy, PolicyAdmin, PolicyCommand, SocketFile,
};
use pointsman_policy::{Command, CommandError, Policies, SlotError};
use serde_json::Value;

use crate::handover::{self, UpgradeRequest, Upgrades};
use crate::listeners::{bind_tcp, inherit_unix};
use crate::reload::{Outcome, Reloader};
use crate::sockets::{ListenerId, Sockets};

// The configuration checks the length of the path, so that an error names its line.
const _: () = assert!(pointsman_config::MAX_SOCKET_PATH == SocketFile::MAX_PATH);

/// Opens the listeners; those that another process has passed are taken over. Called before any
/// engine is started, so that a second host with the same configuration fails without side effects.
pub(crate) async fn open(
    admin: &pointsman_config::Admin,
    sockets: &mut Sockets,
) -> Result<pointsman_gateway::Admin> {
    let socket = match &admin.socket {
        None => None,
        Some(path) => Some(match sockets.take(&ListenerId::AdminSocket(path.clone())) {
            Some(socket) => inherit_unix(path, socket, 0o600)?,
            None => SocketFile::bind_admin(path)?,
        }),
    };
    let port = match &admin.port {
        None => None,
        Some((address, token)) => {
            let inherited = sockets.take(&ListenerId::AdminPort(address.to_string()));
            let listener = bind_tcp(*address, inherited).await.with_context(|| {
                format!("admin API cannot listen on {address} (`admin.listen`)")
            })?;
            let address = listener.local_addr().context("listener has no local address")?;
            tracing::info!(event = "admin_listening", %address, "admin API listening");
            Some((listener, token.reveal().to_owned()))
        }
    };
    if let (Some(socket), Some(link)) = (&socket, &admin.link) {
        socket.link_from(link)?;
    }
    if let Some(socket) = &socket {
        let path = socket.path().display();
        tracing::info!(event = "admin_listening", socket = %path, "admin API listening");
    }
    Ok(pointsman_gateway::Admin { socket, port })
}

/// Copies the sockets for the next host.
///
/// # Errors
/// If the process has too many descriptors.
pub(crate) fn copies(
    admin: &pointsman_gateway::Admin,
    config: &pointsman_config::Admin,
) -> std::io::Result<Vec<(ListenerId, ListenerCopy)>> {
    let mut copies = Vec::new();
    if let Some(socket) = &admin.socket {
        copies.push((ListenerId::AdminSocket(socket.path().to_owned()), socket.copy()?));
    }
    if let (Some((listener, _)), Some((address, _))) = (&admin.port, &config.port) {
        let id = ListenerId::AdminPort(address.to_string());
        copies.push((id, ListenerCopy::tcp(listener)?));
    }
    Ok(copies)
}

/// The policies of a running host, as the admin API sees them.
#[derive(Debug)]
pub(crate) struct AdminBackend {
    pub(crate) policies: Arc<Policies>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) upgrades: Upgrades,
}

impl PolicyAdmin for AdminBackend {
    fn list(&self) -> Value {
        // Statuses consist of strings, numbers and lists, so they always serialise.
        serde_json::to_value(self.policies.status()).unwrap_or_default()
    }

    fn show(&self, name: &str) -> Option<Value> {
        let policy = self.policies.status().into_iter().find(|policy| policy.name == name)?;
        let mut details = serde_json::to_value(policy).ok()?;
        // Not in the list, which would become long.
        details["events"] = serde_json::to_value(self.policies.events(name)).ok()?;
        if let (Some(topology), Some(candidate)) =
            (self.policies.topology(), details["candidate"].as_object_mut())
        {
            let report = shadow_report::describe(candidate.get("differences"), &topology);
            candidate.insert("report".to_owned(), report);
        }
        Some(details)
    }

    fn command(&self, name: &str, command: PolicyCommand, by: &str) -> Result<Value, AdminError> {
        let command = match command {
            PolicyCommand::RollBack { to } => Command::RollBack(to),
            PolicyCommand::Promote { version } => Command::Promote(version),
            PolicyCommand::Disable => Command::Disable,
            PolicyCommand::Enable => Command::Enable,
        };
        match self.policies.command(name, &command, by) {
            Ok(_) => Ok(self.show(name).unwrap_or_default()),
            Err(error) => Err(self.admin_error(name, &error)),
        }
    }

    fn reload(&self) -> Value {
        // `None` means that the host stops; the list is still that of the running policies.
        let mut outcome = as_json(self.reloader.reload().as_ref());
        if let Value::Object(fields) = &mut outcome {
            fields.insert("policies".to_owned(), self.list());
        }
        outcome
    }

    fn upgrade(
        &self,
        program: Option<PathBuf>,
        timeout: Option<Duration>,
    ) -> Result<Value, AdminError> {
        let failed = |error: String| AdminError::new(ErrorCode::UpgradeFailed, error);
        let timeout = timeout.unwrap_or(handover::PREPARE_TIMEOUT);
        let (reply, replied) = std::sync::mpsc::channel();
        let request = UpgradeRequest { program, timeout, reply: Some(reply) };
        let stopping = || failed("the host is stopping, or has handed over".to_owned());
        self.upgrades.send(request).map_err(|_| stopping())?;
        replied.recv().map_err(|_| stopping())?.map_err(failed)
    }

    fn plan(&self, text: Option<String>) -> Value {
        as_json(self.reloader.plan(text).as_ref())
    }
}

/// Returns the result of a reload; an empty object while the host stops.
fn as_json(outcome: Option<&Outcome>) -> Value {
    let value = outcome.and_then(|outcome| serde_json::to_value(outcome).ok());
    value.unwrap_or_else(|| Value::Object(serde_json::Map::new()))
}

impl AdminBackend {
    fn admin_error(&self, name: &str, error: &CommandError) -> AdminError {
        let code = match error {
            CommandError::PolicyNotFound(_) => {
                let known = self.policies.status().into_iter().map(|policy| policy.name);
                return AdminError::policy_not_found(name, &known.collect::<Vec<_>>());
            }
            CommandError::Slot(SlotError::NoEarlierVersion) => ErrorCode::NoEarlierVersion,
            CommandError::Slot(SlotError::VersionNotFound { .. }) => ErrorCode::VersionNotFound,
            CommandError::Slot(SlotError::NoCandidate) => ErrorCode::NoCandidate,
            CommandError::Slot(SlotError::AlreadyActive(_)) => ErrorCode::VersionAlreadyActive,
            CommandError::Activation { .. } => ErrorCode::ActivationFailed,
        };
        AdminError::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests;
