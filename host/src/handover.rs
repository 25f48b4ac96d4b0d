//! The hand-over of a running host to its successor, which is another process: `pointsman upgrade`.
//!
//! ```text
//!   old host                              new host
//!   starts it ─────── sockets ──────────>   reads and validates the configuration, loads policies
//!             <────── prepared ──────────
//!   stops to dispatch, writes and closes
//!   the store, announces it to the keeper
//!             ─────── go ───────────────>   opens the store, takes over the engines, listens
//!             <────── serving ───────────
//!   finishes its requests ── slots, usage, entries of the store ──>   decides and writes
//! ```
//!
//! Up to `serving` the old host can go on: it takes everything back if the new one fails. From then
//! on it accepts no connections, and ends with its last one.

mod channel;
mod message;
mod next_store;
mod predecessor;
mod retire;
mod successor;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_gateway::ListenerCopy;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::sockets::ListenerId;

pub(crate) use self::predecessor::{Served, TakeOver};
pub(crate) use self::retire::retire;
pub(crate) use self::successor::{HandedOver, UpgradeError, hand_over, prepare};

/// The default of the maximum time until the new host is prepared: it may compile policies.
pub(crate) const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);

/// The request of an operator to hand over.
#[derive(Debug)]
pub(crate) struct UpgradeRequest {
    /// The new program; `None` for the file that this one was started from.
    pub(crate) program: Option<PathBuf>,
    /// Maximum time until the new host is prepared.
    pub(crate) timeout: Duration,
    /// `None` if the request came as a signal.
    pub(crate) reply: Option<std::sync::mpsc::Sender<Result<Value, String>>>,
}

impl UpgradeRequest {
    /// Returns the request of a signal.
    pub(crate) fn by_signal() -> Self {
        Self { program: None, timeout: PREPARE_TIMEOUT, reply: None }
    }

    /// Tells the operator what became of it.
    pub(crate) fn answer(&self, handed_over: &Result<HandedOver, UpgradeError>) {
        let result = match handed_over {
            Ok(next) => {
                let pause_ms = u64::try_from(next.pause().as_millis()).unwrap_or(u64::MAX);
                Ok(json!({ "result": "handed_over", "pid": next.pid(), "pause_ms": pause_ms }))
            }
            Err(error) => {
                let text = error.to_string();
                tracing::error!(event = "handover_failed", error = text, "not handed over");
                Err(text)
            }
        };
        if let Some(reply) = &self.reply {
            reply.send(result).ok(); // Fails only if the operator does not wait.
        }
    }
}

/// What the successor of this host needs.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// How this process was started.
    pub(crate) start: StartedAs,
    /// The sockets that it listens on.
    pub(crate) listeners: Vec<(ListenerId, ListenerCopy)>,
    pub(crate) state_dir: Option<PathBuf>,
    /// The requests of operators.
    pub(crate) upgrades: UnboundedReceiver<UpgradeRequest>,
}

/// Sends the requests of operators.
pub(crate) type Upgrades = UnboundedSender<UpgradeRequest>;

/// Returns both ends of the requests of operators.
pub(crate) fn upgrades() -> (Upgrades, UnboundedReceiver<UpgradeRequest>) {
    unbounded_channel()
}

/// How this process was started: its program may be replaced while it runs.
#[derive(Debug, Clone)]
pub(crate) struct StartedAs {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// The argument of a host that takes over from another one.
const TAKE_OVER: &str = "--take-over";

impl StartedAs {
    /// Notes it. To be called at the start.
    pub(crate) fn note() -> Self {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        // A path may lead through a link that is replaced; a name was found in `PATH`.
        let program =
            if name.components().count() > 1 { std::path::absolute(&name).ok() } else { None };
        let program = program.or_else(|| std::env::current_exe().ok()).unwrap_or(name);
        let arguments = arguments.filter(|argument| argument != TAKE_OVER).collect();
        Self { program, arguments }
    }

    fn program(&self) -> &Path {
        &self.program
    }
}
