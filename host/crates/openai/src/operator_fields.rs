//! Fields of a request's body that are the operator's: they order an engine's queue, choose its
//! slots, caches and adapters, or name what the host names. A client could get ahead of others with
//! them, evict what they have cached, or read it.

use bytes::Bytes;
use pointsman_domain::{FieldValue, RequestView as _};

use crate::bad_request::BadRequest;
use crate::document::Node;
use crate::limits::MAX_MEMBERS;
use crate::request::Request;

/// The fields, with the engine that reads them. Policies may set any of them.
const FIELDS: [&str; 13] = [
    // vLLM: orders the queue; lower is earlier.
    "priority",
    // vLLM: separates prefix caches.
    "cache_salt",
    // vLLM: moves key-value caches and encoder caches between servers.
    "kv_transfer_params",
    "ec_transfer_params",
    // vLLM: the id of the request, which the host chooses.
    "request_id",
    // vLLM: the engine of a data-parallel deployment.
    "data_parallel_rank",
    "session_id",
    // llama.cpp: the slot, and with it the cache of another conversation.
    "id_slot",
    "slot_id",
    // llama.cpp: adapters, and the reuse of cached tokens.
    "lora",
    "n_cache_reuse",
    // vLLM's older name of an adapter.
    "lora_request",
    // Ollama: how long the model stays loaded.
    "keep_alive",
];

/// Returns true if a field of a body is the operator's.
pub(crate) fn is_operators(field: &str) -> bool {
    FIELDS.contains(&field)
}

impl Request {
    /// Returns the request without the fields that are the operator's. A request without such
    /// fields keeps its bytes.
    ///
    /// # Errors
    /// Never for a request that was parsed: none of these fields is required, and the number of
    /// members is limited.
    pub fn without_operator_fields(self) -> Result<Self, BadRequest> {
        let is_given = |field: &&str| self.field(&format!("/{field}"), 0) != FieldValue::Absent;
        if !FIELDS.iter().any(is_given) {
            return Ok(self);
        }
        let mut body = Node::new(self.json().trim_ascii());
        // A field may be given several times, of which engines read any.
        body.remove_members(|key| FIELDS.contains(&key))
            .map_err(|_| BadRequest::TooMany { what: "members of objects", max: MAX_MEMBERS })?;
        Self::parse(self.endpoint(), Bytes::from(body.write()), self.head().clone())
    }
}

#[cfg(test)]
mod tests {
    use pointsman_domain::Endpoint;

    use super::*;
    use crate::request::Head;

    fn without(body: &str) -> String {
        let head = Head { id: "r".to_owned(), ..Head::default() };
        let request = Request::parse(Endpoint::Completions, body.to_owned().into(), head).unwrap();
        let request = request.without_operator_fields().unwrap();
        String::from_utf8(request.body().to_vec()).unwrap()
    }

    #[test]
    fn fields_of_the_operator_are_removed() {
        let body = r#"{"priority": -999, "model":"m", "id_slot":0,"prompt":"p" ,"cache_salt":"x","#;
        let body = format!(r#"{body}"\u0070riority":-7,"priority":-1,"lora":[{{"id":0}}],"n":1}}"#);
        assert_eq!(without(&body), r#"{ "model":"m","prompt":"p","n":1}"#);
    }

    #[test]
    fn other_requests_keep_their_bytes() {
        for body in [
            r#" {"model" : "m","prompt":"priority", "metadata":{"priority":1}, "seed":1 } "#,
            r#"{"model":"m","prompt":"p","Priority":1,"prompt_cache_key":"k"}"#,
        ] {
            assert_eq!(without(body), body);
        }
    }
}
