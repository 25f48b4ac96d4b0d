//! What a key may be used for.

use std::ops::RangeInclusive;

use pointsman_domain::Endpoint;

/// What a key may be used for. `None` stands for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Model names, as the client writes them; `*` stands for any text.
    pub models: Option<Vec<String>>,
    /// Names of lanes; `*` stands for any text.
    pub lanes: Option<Vec<String>>,
    /// Endpoints.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Addresses of listeners, as the configuration has them.
    pub listeners: Option<Vec<String>>,
    /// The key may use paths of engines that show or change what clients share.
    pub engine_admin: bool,
    /// The priorities that requests may have; others are moved into this range.
    pub priority: Option<RangeInclusive<i32>>,
}
