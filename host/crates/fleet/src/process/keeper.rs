//! The keeper: a small process of the host's own program that starts the engines and is their
//! parent, so that they outlive a host that is killed or replaced.
//!
//! ```text
//!   host ──── Unix socket ────> keeper ────> engine (session)
//!     │  start, adopt, forget …    │ parent, exit status    │
//!     └──────── read ends of the engine's pipes <───────────┘
//! ```
//!
//! One host is the owner at a time. It reads the pipes while it is attached; otherwise the keeper
//! does, so that an engine never blocks. After the connection to the owner has ended without a
//! farewell, the engines are kept for the grace time and then ended.
//!
//! The socket is the keeper's standard input. With a state directory it listens in the file system,
//! where the next host finds it; without one it is a connection to the only host.

mod client;
mod connection;
mod end;
mod engine;
mod establish;
mod message;
mod server;
mod wire;

pub(super) use self::client::{Held, Keeper};
pub(super) use self::establish::{KeeperError, KeeperSettings, Reported};
pub(super) use self::message::Ended;
pub use self::server::keeper_main;
pub use self::wire::{Frame, FrameReceiver, OutgoingFrame};

#[cfg(test)]
mod tests;
