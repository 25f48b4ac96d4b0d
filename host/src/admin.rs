//! The operators' entrance: opened as the configuration says, with the policies behind it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_gateway::{AdminError, AdminSocket, PolicyAdmin, PolicyCommand};
use pointsman_policy::{Command, CommandError, Policies};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::config;
use crate::reload::Reloader;

/// Open the entrances, before anything is started that would be in the way of another host.
pub(crate) async fn open(admin: &config::Admin) -> Result<pointsman_gateway::Admin> {
    let socket = admin.socket.as_deref().map(AdminSocket::bind).transpose()?;
    let port = match &admin.port {
        None => None,
        Some((address, token)) => {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("operators cannot be listened for on {address} (`admin.listen`)")
            })?;
            let address = listener.local_addr().context("the listener has no address")?;
            tracing::info!("operators are listened for on http://{address}");
            Some((listener, token.0.clone()))
        }
    };
    if let Some(socket) = &socket {
        tracing::info!("operators are listened for at {}", socket.path().display());
    }
    Ok(pointsman_gateway::Admin { socket, port })
}

/// The policies of a running host, as its operators see them.
#[derive(Debug)]
pub(crate) struct Operated {
    pub(crate) policies: Arc<Policies>,
    pub(crate) reloader: Arc<Reloader>,
}

impl PolicyAdmin for Operated {
    fn list(&self) -> Value {
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
            Err(CommandError::Refused(why)) => Err(AdminError::Refused(why)),
            Err(CommandError::NoSuchPolicy(name)) => {
                let names = self.policies.status().into_iter().map(|policy| policy.name).collect();
                Err(AdminError::NoSuchPolicy(name, names))
            }
        }
    }

    fn reload(&self) -> Value {
        self.reloader.reload();
        self.list()
    }
}
