//! The responses API: the host itself keeps responses, so that they outlive engines and restarts.
//!
//! ```text
//!   POST ──> create ──> serve: accept ──> expand: earlier items, limits ──> decide, execute, …
//!              │                            a turn: what is kept of the request
//!              └──> body: own id in every event, the final response ──> stored
//!   GET, DELETE, cancel, input_items ──> routes: of the same tenant and key only
//!   if another host keeps the response ──> elsewhere: passed on to that host
//! ```
//!
//! Policies see the whole conversation: the items of earlier turns are in the input before they are
//! asked. Engines get no ids of the host, and are told to store nothing.

mod body;
mod create;
mod elsewhere;
mod expand;
mod lanes;
mod remote_turn;
mod routes;
mod stored;
mod turn;

pub(crate) use self::create::create;
pub(crate) use self::lanes::bound;
pub(crate) use self::routes::{cancel, delete, input_items, retrieve};
pub(crate) use self::stored::Responses;
pub use self::stored::{ResponseLimits, response_namespace};
pub(crate) use self::turn::TurnSlot;
