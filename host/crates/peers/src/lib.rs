//! What hosts tell each other of their lanes: the events of `GET /fleet`.
//!
//! ```text
//!   event: topology    the host and its lanes, at once and when they change
//!   event: lanes       states and metrics of the lanes that have changed
//!   event: heartbeat   nothing has changed
//! ```
//!
//! [`EventDecoder`] turns the bytes of a stream into events, and [`PeerView`] folds them into what
//! is known of the host. Neither has a socket or a clock.
//!
//! Unknown events and unknown fields are ignored, so that later versions can add some. What an
//! earlier reader would misunderstand changes [`VERSION`], which a reader refuses.

mod decoder;
mod digest;
mod event;
mod limits;
mod topology;
mod view;
mod wire_error;

pub use self::decoder::EventDecoder;
pub use self::digest::{Digest, DigestChange};
pub use self::event::{Event, Heartbeat, LaneReport, LaneReports};
pub use self::limits::{MAX_EVENT_BYTES, MAX_LANES, MAX_NAMES, MAX_TEXT, VERSION};
pub use self::topology::{HostInfo, LaneDescription, TopologyEvent};
pub use self::view::{Liveness, PeerLane, PeerView, StaleLimits};
pub use self::wire_error::WireError;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
