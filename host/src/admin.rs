//! The operators' entrance: opened as the configuration says, with the policies behind it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_gateway::{AdminError, AdminSocket, PolicyAdmin, PolicyCommand};
use pointsman_policy::Chain;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::config;

/// Open the entrances, before anything is started that would be in the way of another host.
pub(crate) async fn open(admin: &config::Admin) -> Result<pointsman_gateway::Admin> {
    let socket = admin.socket.as_deref().map(AdminSocket::bind).transpose()?;
    let port = match &admin.port {
        None => None,
        Some((address, token)) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("operators cannot be listened for on {address} (`admin.listen`)"))?;
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

/// Policies that are loaded once, at the start: they can be looked at, and that is all.
#[derive(Debug)]
pub(crate) struct Loaded(pub(crate) Arc<Chain>);

impl PolicyAdmin for Loaded {
    fn list(&self) -> Value {
        serde_json::to_value(self.0.status()).unwrap_or_default()
    }

    fn show(&self, name: &str) -> Option<Value> {
        let policy = self.0.status().into_iter().find(|policy| policy.name == name)?;
        serde_json::to_value(policy).ok()
    }

    fn command(&self, name: &str, _: PolicyCommand) -> Result<Value, AdminError> {
        let names: Vec<String> = self.0.status().into_iter().map(|policy| policy.name).collect();
        if !names.iter().any(|known| known == name) {
            return Err(AdminError::NoSuchPolicy(name.to_owned(), names));
        }
        let why = "this host loads its policies when it starts; change the configuration and start it anew";
        Err(AdminError::Refused(why.to_owned()))
    }

    fn reload(&self) -> Value {
        self.list()
    }
}
