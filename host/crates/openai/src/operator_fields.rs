//! Removes the fields of a request's body that are the operator's.

use bytes::Bytes;

use crate::bad_request::BadRequest;
use crate::document::Node;
use crate::limits::MAX_MEMBERS;
use crate::operator_names::FIELDS;
use crate::request::Request;
use crate::scan::{self, Child, Children};

impl Request {
    /// Returns the request without the fields that are the operator's. A request without such
    /// fields keeps its bytes.
    ///
    /// # Errors
    /// Never for a request that was parsed: none of these fields is required, and the number of
    /// members is limited.
    pub fn without_operator_fields(self) -> Result<Self, BadRequest> {
        let json = self.json().trim_ascii();
        // One scan for all fields, because nearly all requests have none of them.
        let is_operators = |member: Child| {
            FIELDS.contains(&&*scan::key(json.as_bytes().get(member.key).unwrap_or_default()))
        };
        if !Children::new(json.as_bytes(), 0).into_iter().flatten().any(is_operators) {
            return Ok(self);
        }
        let mut body = Node::new(json);
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
