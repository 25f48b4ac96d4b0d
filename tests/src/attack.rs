//! The pieces of attacks: an engine that sends what a test says, a raw client, and many of them.
//!
//! Everything here works on sockets and bytes, because an attack is not valid HTTP in general.

mod engine;
mod launcher;
mod memory;
mod socket;

pub use engine::{
    GOOD_BODY, GOOD_STREAM, HostileEngine, Next, ReceivedRequest, STREAM_HEAD, answer, chunk,
    external_lane,
};
pub use launcher::launcher;
pub use memory::MemorySampler;
pub use socket::{
    RawClient, RawResponse, client_that_does_not_read, idle_connections, request_head,
};
