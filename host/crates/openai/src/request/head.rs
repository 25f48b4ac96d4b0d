//! The metadata of a request.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use pointsman_domain::{Allowance, Constraint};

use super::Request;
use crate::form::Form;

/// The metadata of a request.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Request id.
    pub id: String,
    /// A random number, which differs even between requests with the same id.
    pub draw: u64,
    /// Authenticated tenant.
    pub tenant: Option<String>,
    /// What distinguishes the API key from others; 0 if the host has no keys.
    pub key: u64,
    /// The name of the key, which is never a part of its secret.
    pub key_name: Option<String>,
    /// The group of the key.
    pub key_group: Option<String>,
    /// What the limits of the key leave.
    pub allowance: Allowance,
    /// What the operator's guards demand; `None` if none applies.
    pub constraint: Option<Arc<Constraint>>,
    /// When the request arrived; `None` for now.
    pub arrived: Option<Instant>,
    /// Headers of the request. Credential headers are removed on parsing.
    pub headers: HeaderMap,
    /// The model name for responses, whatever becomes of that in the body; `None` before parsing,
    /// for the name in the body.
    pub response_model: Option<String>,
    /// The model name by which the prompt is hashed; `None` for that of the request.
    pub hashed_model: Option<String>,
    /// The id of the response, if it is one that the host names and keeps.
    pub response_id: Option<String>,
    /// The query of the request for external engines; empty for none.
    pub query: String,
    /// What the request holds until it ends, whatever becomes of its body; all edited copies hold
    /// the same.
    pub hold: Option<Hold>,
    /// The form that the client sent; the body has what policies see of it.
    pub form: Option<Arc<Form>>,
}

/// Something that is held for a request, and dropped with the last copy of the request.
#[derive(Clone)]
pub struct Hold(Arc<dyn Any + Send + Sync>);

impl Hold {
    /// Shares `held` with a request.
    pub fn new<T: Any + Send + Sync>(held: Arc<T>) -> Self {
        Self(held)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("copies", &Arc::strong_count(&self.0)).finish()
    }
}

impl Request {
    /// Returns the request with what the limits of its key leave, which is known once the request
    /// has been counted.
    #[must_use]
    pub fn with_allowance(mut self, allowance: Allowance) -> Self {
        // Copies nothing, because no other copy of the request exists before its decision.
        Arc::make_mut(&mut self.head).allowance = allowance;
        self
    }

    /// Returns the request with what the operator's guards demand of it, which is known once it has
    /// been read.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Option<Arc<Constraint>>) -> Self {
        Arc::make_mut(&mut self.head).constraint = constraint;
        self
    }
}
