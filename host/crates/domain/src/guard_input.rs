//! The inputs of guards, from a request that has been read.

use std::sync::Arc;

use crate::constraint::Constraint;
use crate::facts::RequestView;
use crate::guards::{GuardInput, Guards};

impl Guards {
    /// Returns what the guards demand of a request; `None` if none applies.
    pub fn for_request(&self, request: &dyn RequestView) -> Option<Arc<Constraint>> {
        if self.0.is_empty() {
            return None;
        }
        let info = request.info();
        let input = GuardInput {
            tenant: request.tenant(),
            group: request.key_group(),
            headers: request.headers(),
            endpoint: Some(info.endpoint),
            body_bytes: info.body_bytes,
            prompt_tokens: Some(info.prompt_tokens),
        };
        self.constraint(&input, request.model())
    }
}
