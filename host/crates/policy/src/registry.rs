//! The policies of a running host: their versions, the store, and the background threads.

pub(crate) mod background;
pub(crate) mod events;
pub(crate) mod fleet_link;
pub(crate) mod in_service;
pub(crate) mod policies;
pub(crate) mod slot;
pub(crate) mod status;
pub(crate) mod store;
