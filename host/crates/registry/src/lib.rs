//! Policies in OCI registries: pushes and pulls them, and keeps what was pulled.
//!
//! ```text
//!   tag ── HEAD ──> digest ── manifest ── config ── component ──> artifact ──> cache
//!                      each is verified against its digest, and bounded in size and time
//! ```
//!
//! The client is written for servers that are not trusted. Every response is read up to a limit,
//! a redirect never takes credentials to another host, and only the registry and its token host get
//! them.

mod auth;
mod cache;
mod client;
mod credentials;
mod digest;
mod error;
mod http_client;
mod layout;
mod push;

pub use self::cache::Cache;
pub use self::client::{Client, Pulled};
pub use self::credentials::DockerConfig;
pub use self::digest::digest;
pub use self::error::RegistryError;
pub use self::layout::{Artifact, LayoutError};

#[cfg(test)]
mod tests;
