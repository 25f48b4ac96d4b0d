//! The responses API: its requests as chat requests, and its responses from those.
//!
//! ```text
//!   instructions, input ──items──> messages        chunks, completion ──Builder──> items, events
//!   tools, text.format  ──tools──> tools, response_format
//! ```
//!
//! What only the host knows (the id, `previous_response_id`, `store`, …) is written into the
//! response by the gateway, also into those of engines that have the API themselves.

mod builder;
mod convert;
mod events;
mod items;
mod tools;
mod turn;

pub(crate) use self::convert::translate;
pub use self::events::EventBuffer;
pub use self::turn::{Item, TurnRequest, referenced};

#[cfg(test)]
mod tests;
