//! Commands of operators: roll back, promote, disable, enable.

use crate::registry::events::{PolicyEvent, PolicyEventKind};
use crate::registry::policies::{Policies, Registry, now_ms, write_slot};
use crate::registry::slot::{RejectReason, SlotError};
use crate::version::error::LoadError;

/// A command of an operator about one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Drop the candidate; without one, roll back to this version, or to the previous one.
    RollBack(Option<String>),
    /// Activate this version, or the candidate.
    Promote(Option<String>),
    /// Remove the policy from the chain until it is enabled.
    Disable,
    /// Return the policy to the chain.
    Enable,
}

impl Command {
    /// Returns the name of the command, for logs.
    fn name(&self) -> &'static str {
        match self {
            Self::RollBack(_) => "roll-back",
            Self::Promote(_) => "promote",
            Self::Disable => "disable",
            Self::Enable => "enable",
        }
    }
}

/// An error of an operator's command. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The chain has no policy of this name.
    #[error("no policy `{0}` in the chain")]
    PolicyNotFound(String),
    /// The command does not apply to the versions of the policy.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The version that the command chose cannot be activated.
    #[error("failed to activate version {version}: {error}")]
    Activation {
        /// The version.
        version: String,
        /// The error.
        error: Box<LoadError>,
    },
}

impl CommandError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PolicyNotFound(_) => "policy_not_found",
            Self::Slot(error) => error.code(),
            Self::Activation { .. } => "activation_failed",
        }
    }
}

impl Policies {
    /// Executes a command of the operator `by`. Returns a message about the result.
    ///
    /// # Errors
    /// If there is no such policy, or the command does not apply; then nothing has changed.
    pub fn command(&self, name: &str, command: &Command, by: &str) -> Result<String, CommandError> {
        let mut registry = self.registry();
        let Registry { spec, entries } = &mut *registry;
        let policy = spec.policies.iter().find(|policy| policy.name == name);
        let (Some(policy), Some(entry)) = (policy, entries.get_mut(name)) else {
            return Err(CommandError::PolicyNotFound(name.to_owned()));
        };
        let slot = &mut entry.slot;
        let before = slot.clone();
        let event = |kind, version: &str| PolicyEvent::new(kind, now_ms(), version, by);
        let current = before.active.as_ref().map_or("", |version| version.id());
        let (result, message, event) = match command {
            Command::RollBack(to) => {
                let reason = RejectReason::operator();
                let replaced = slot.roll_back(to.as_deref(), &reason)?;
                let event = event(PolicyEventKind::RolledBack, replaced.id())
                    .because(reason.code.as_str(), &reason.message);
                let active = slot.active.as_ref().map_or("none", |version| version.id());
                ("rolled-back", format!("rolled back {}; active: {active}", replaced.id()), event)
            }
            Command::Promote(version) => {
                let now = self.now();
                let chosen = slot.promote(version.as_deref(), policy.probation, now, spec.keep)?;
                let event = event(PolicyEventKind::Promoted, chosen.id());
                ("promoted", format!("promoted {}", chosen.id()), event)
            }
            Command::Disable => {
                slot.disabled = true;
                ("disabled", "disabled".to_owned(), event(PolicyEventKind::Disabled, current))
            }
            Command::Enable => {
                slot.disabled = false;
                ("enabled", "enabled".to_owned(), event(PolicyEventKind::Enabled, current))
            }
        };
        if let Err(error) = self.activate_instances(slot, &before) {
            let version =
                slot.active.as_ref().map_or_else(String::new, |version| version.id().into());
            *slot = before;
            let error = Box::new(error);
            return Err(CommandError::Activation { version, error });
        }
        self.metrics.record_change(name, result);
        let version = slot.active.as_ref().map_or("none", |version| version.id());
        tracing::info!(
            policy = name,
            version,
            command = command.name(),
            result,
            operator = by,
            "operator command executed"
        );
        write_slot(spec, name, slot);
        entry.add_event(spec, name, event);
        self.publish(&mut registry);
        Ok(message)
    }
}
