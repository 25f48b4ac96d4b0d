//! What is written of requests that have ended.

use pointsman_gateway::{FinishedRequest, RequestObserver};

use super::access::AccessWriter;

/// Writes each request that has ended to the access log.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(super) access: Option<AccessWriter>,
}

impl RequestObserver for Observer {
    fn ended(&self, request: &FinishedRequest<'_>) {
        if let Some(access) = &self.access {
            access.write(request);
        }
    }
}
