//! What a host and the keeper tell each other, as JSON. See [`wire`](super::wire) for the frames.
//!
//! ```text
//!   host                             keeper
//!   hello ──────────────────────────>         first; once for each connection
//!         <──────── refused, and the connection ends
//!         <──────── engine, listener … attached     what the keeper has
//!   start (pipes) ──────────────────>
//!         <──────── started or not_started
//!   adopt (pipes), update, forget ──>         the records of engines
//!         <──────── ended                     the first process of an engine has ended
//!   deposit (socket), withdraw ─────>         listening sockets
//!   hand_over, farewell ────────────>
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process::command::StartPlan;

/// Version of the protocol. A keeper and a host of different versions do not work together.
pub(in crate::process) const PROTOCOL: u32 = 1;

/// A message of a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Request {
    /// The first message, which asks for the ownership of the engines.
    Hello {
        /// The version of the protocol, in every version of it.
        protocol: u32,
        /// How long engines are kept after the connection has ended without a farewell.
        grace_ms: u64,
    },
    /// Starts an engine. Descriptors: the write ends of its standard output and standard error, and
    /// the read ends.
    Start { id: u64, record: Value, plan: StartPlan },
    /// Takes over an engine that another process started. Descriptors: the read ends of its
    /// standard output and standard error, or none if they are not known.
    Adopt { record: Value },
    /// Replaces the record of an engine.
    Update { record: Value },
    /// No process of the engine is left.
    Forget { marker: String },
    /// Keeps a listening socket under a name, for the next owner. Descriptor: the socket.
    Deposit { name: String },
    /// Closes a listening socket.
    Withdraw { name: String },
    /// The host with this process id becomes the owner when it attaches; `None` takes that back.
    HandOver { pid: Option<u32> },
    /// The host stops: engines that are left when the connection ends are ended then.
    Farewell,
}

/// A message of the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Report {
    /// The host is not the owner, and the connection ends.
    Refused { code: Refusal, protocol: u32, owner: Option<u32> },
    /// An engine that the keeper has. Descriptors: the read ends of its standard output and
    /// standard error, or none.
    Engine {
        record: Value,
        /// What was read of both outputs while no host was attached.
        output: [String; 2],
        /// Set if the first process has ended.
        ended: Option<Ended>,
    },
    /// A listening socket that the keeper has. Descriptor: the socket.
    Listener { name: String },
    /// The host is the owner from now on. With the process id of the keeper, because the socket was
    /// opened by a host.
    Attached { pid: u32 },
    /// The engine was started.
    Started { id: u64, pid: u32, start: u64 },
    /// The engine could not be started.
    NotStarted { id: u64, errno: Option<i32>, error: String },
    /// The first process of an engine has ended.
    Ended { marker: String, ended: Ended },
}

/// How the first process of an engine ended: its wait status, or `None` if the keeper is not its
/// parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::process) struct Ended(pub(in crate::process) Option<i32>);

/// Why a host cannot attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::process) enum Refusal {
    /// Another host is attached.
    InUse,
    /// The keeper has another version of the protocol.
    Protocol,
    /// The message was not valid.
    Invalid,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InUse => "in_use",
            Self::Protocol => "protocol",
            Self::Invalid => "invalid",
        })
    }
}
