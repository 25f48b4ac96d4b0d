//! The admin API of this host: opens its listeners and connects it to the policies.

mod state;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_gateway::{AdminError, ErrorCode, PolicyAdmin, PolicyCommand, SocketFile};
use pointsman_policy::{Command, CommandError, Policies, SlotError};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::reload::{Outcome, Reloader};

// The configuration checks the length of the path, so that an error names its line.
const _: () = assert!(pointsman_config::MAX_SOCKET_PATH == SocketFile::MAX_PATH);

/// Opens the listeners. Called before any engine is started, so that a second host with the same
/// configuration fails without side effects.
pub(crate) async fn open(admin: &pointsman_config::Admin) -> Result<pointsman_gateway::Admin> {
    let socket = admin.socket.as_deref().map(SocketFile::bind_admin).transpose()?;
    let port = match &admin.port {
        None => None,
        Some((address, token)) => {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("admin API cannot listen on {address} (`admin.listen`)")
            })?;
            let address = listener.local_addr().context("listener has no local address")?;
            tracing::info!(event = "admin_listening", %address, "admin API listening");
            Some((listener, token.reveal().to_owned()))
        }
    };
    if let Some(socket) = &socket {
        let path = socket.path().display();
        tracing::info!(event = "admin_listening", socket = %path, "admin API listening");
    }
    Ok(pointsman_gateway::Admin { socket, port })
}

/// The policies of a running host, as the admin API sees them.
#[derive(Debug)]
pub(crate) struct AdminBackend {
    pub(crate) policies: Arc<Policies>,
    pub(crate) reloader: Arc<Reloader>,
}

impl PolicyAdmin for AdminBackend {
    fn list(&self) -> Value {
        // Statuses consist of strings, numbers and lists, so they always serialise.
        serde_json::to_value(self.policies.status()).unwrap_or_default()
    }

    fn show(&self, name: &str) -> Option<Value> {
        let policy = self.policies.status().into_iter().find(|policy| policy.name == name)?;
        serde_json::to_value(policy).ok()
    }

    fn command(&self, name: &str, command: PolicyCommand) -> Result<Value, AdminError> {
        let command = match command {
            PolicyCommand::RollBack { to } => Command::RollBack(to),
            PolicyCommand::Promote { version } => Command::Promote(version),
            PolicyCommand::Disable => Command::Disable,
            PolicyCommand::Enable => Command::Enable,
        };
        match self.policies.command(name, &command) {
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
