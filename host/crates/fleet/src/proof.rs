//! Proof that a response belongs to its request.
//!
//! On a connection that is used for several requests, an engine that sends one response too many
//! gives every later request the response of another one. vLLM repeats the id of a request at the
//! beginning of its response, as `chatcmpl-<id>` or `cmpl-<id>`, by which this is found before
//! anything reaches a client.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::activity::{Activity, is_data};

/// The id of a request, in requests and responses.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The endpoints whose responses begin with the id of the request.
const PROVABLE_PATHS: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];
/// Length of the random part of an id.
const RANDOM_DIGITS: usize = 16;
/// Bytes of a response within which its id is expected.
const MAX_BEFORE_ID: usize = 1024;

/// Whether connections to an engine are used for several requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Each request has a connection of its own.
    Never,
    /// If the engine proves which request a response belongs to.
    Proven,
    /// The operator vouches for the engine.
    Always,
}

/// Gives a request an id of the host's own for the engine, and returns it: the client's id, which
/// other clients may have chosen too, followed by a random part.
pub(crate) fn set_engine_id(headers: &mut HeaderMap) -> String {
    let given = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let mut id = String::with_capacity(given.map_or(0, |given| given.len() + 1) + RANDOM_DIGITS);
    if let Some(given) = given {
        id.push_str(given);
        id.push('-');
    }
    let random = RandomState::new().build_hasher().finish();
    write!(id, "{random:0RANDOM_DIGITS$x}").ok(); // A string accepts everything.
    // An id that was a header value is one with these characters too.
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    id
}

/// Returns true if the headers of a response name another request. Only to be asked about engines
/// that repeat the header; remote APIs have ids of their own.
pub(crate) fn names_other(headers: &HeaderMap, id: &str) -> bool {
    headers.get(&REQUEST_ID).is_some_and(|echoed| echoed.as_bytes() != id.as_bytes())
}

/// Returns true if the headers of a response name this request, which proves that it is its own.
pub(crate) fn names_this(headers: &HeaderMap, id: &str) -> bool {
    headers.get(&REQUEST_ID).is_some_and(|echoed| echoed.as_bytes() == id.as_bytes())
}

/// Returns true if the responses of this path begin with the id of their request.
pub(crate) fn is_provable(path: &str) -> bool {
    PROVABLE_PATHS.contains(&path.split('?').next().unwrap_or_default())
}

/// The response does not belong to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mismatch;

/// Looks for the id of a request at the beginning of its response.
#[derive(Debug)]
pub(crate) struct Proof {
    /// The random part of the id. What the client chose of it may have characters that JSON
    /// escapes.
    unique: String,
    /// Without the id, the response is not accepted.
    required: bool,
    activity: Arc<Activity>,
    held: BytesMut,
}

impl Proof {
    /// Returns the proof for a successful response; `None` if the responses of this path have no
    /// ids.
    pub(crate) fn new(
        path: &str,
        id: &str,
        required: bool,
        activity: &Arc<Activity>,
    ) -> Option<Self> {
        let unique = id.get(id.len().saturating_sub(RANDOM_DIGITS)..).unwrap_or(id);
        is_provable(path).then(|| Self {
            unique: unique.to_owned(),
            required,
            activity: Arc::clone(activity),
            held: BytesMut::new(),
        })
    }

    /// Takes a chunk. Returns what has to be passed on, and whether the search is over.
    ///
    /// # Errors
    /// If the response belongs to another request.
    pub(crate) fn chunk(&mut self, chunk: Bytes) -> Result<(Bytes, bool), Mismatch> {
        if self.held.is_empty() && !is_data(&chunk) {
            // Comments come before the response.
            return Ok((chunk, false));
        }
        self.held.extend_from_slice(&chunk);
        let found = contains(&self.held, self.unique.as_bytes());
        if !found && self.held.len() < MAX_BEFORE_ID {
            return Ok((Bytes::new(), false));
        }
        self.conclude(found).map(|held| (held, true))
    }

    /// Takes the end of the response. Returns what was held back.
    ///
    /// # Errors
    /// If the response belongs to another request.
    pub(crate) fn end(&mut self) -> Result<Bytes, Mismatch> {
        if self.held.is_empty() {
            return Ok(Bytes::new());
        }
        self.conclude(false)
    }

    fn conclude(&mut self, found: bool) -> Result<Bytes, Mismatch> {
        match (found, self.required) {
            (true, _) => self.activity.prove_ids(),
            (false, false) => {}
            // An error that is sent instead of a completion has no id.
            (false, true) if is_error(&self.held) => {}
            (false, true) => {
                self.activity.distrust_ids();
                return Err(Mismatch);
            }
        }
        Ok(std::mem::take(&mut self.held).freeze())
    }
}

/// Returns true for an error object. Within the text of a completion, quotes are escaped.
fn is_error(text: &[u8]) -> bool {
    contains(text, b"\"error\"") && !contains(text, b"\"choices\"")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(required: bool, activity: &Arc<Activity>) -> Proof {
        Proof::new("/v1/chat/completions", "abc-1", required, activity).unwrap()
    }

    #[test]
    fn id_is_found_across_chunks() {
        let activity = Arc::new(Activity::default());
        assert!(!activity.repeats_ids());
        let mut proof = proof(false, &activity);
        let chunk = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(proof.chunk(chunk(": ping\n\n")), Ok((chunk(": ping\n\n"), false)));
        assert_eq!(proof.chunk(chunk("data: {\"id\":\"chatcmpl-ab")), Ok((Bytes::new(), false)));
        let all = chunk("data: {\"id\":\"chatcmpl-abc-1\"}");
        assert_eq!(proof.chunk(chunk("c-1\"}")), Ok((all, true)));
        assert!(activity.repeats_ids());
        assert!(Proof::new("/v1/embeddings", "", true, &activity).is_none());
    }

    #[test]
    fn response_of_another_request_is_refused_once_the_engine_repeats_ids() {
        let activity = Arc::new(Activity::default());
        let other = Bytes::from_static(b"{\"id\":\"chatcmpl-abc-2\"}");
        // An engine that repeats no ids is served, on connections of their own.
        let mut lenient = proof(false, &activity);
        assert_eq!(lenient.chunk(other.clone()), Ok((Bytes::new(), false)));
        assert_eq!((lenient.end(), activity.repeats_ids()), (Ok(other.clone()), false));
        activity.prove_ids();
        let mut strict = proof(true, &activity);
        assert_eq!(strict.chunk(other), Ok((Bytes::new(), false)));
        assert_eq!(strict.end(), Err(Mismatch));
        let error = Bytes::from_static(b"{\"error\":{\"message\":\"core died\"}}");
        let mut strict = proof(true, &activity);
        assert_eq!(strict.chunk(error.clone()), Ok((Bytes::new(), false)));
        assert_eq!(strict.end(), Ok(error));
        // From then on no connection is used again.
        activity.prove_ids();
        assert!(!activity.repeats_ids());
        let long = Bytes::from(vec![b' '; MAX_BEFORE_ID]);
        assert_eq!(proof(true, &activity).chunk(long), Err(Mismatch));
    }

    #[test]
    fn engines_get_ids_of_the_hosts_own() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("mine"));
        let (first, mut second) = (set_engine_id(&mut headers.clone()), headers.clone());
        let id = set_engine_id(&mut second);
        assert!(id.starts_with("mine-") && first != id && second[REQUEST_ID] == *id);
        assert!(!names_other(&second, &id) && names_other(&headers, &id));
        assert!(!names_other(&HeaderMap::new(), &id));
        assert!(names_this(&second, &id) && !names_this(&headers, &id));
        assert!(!names_this(&HeaderMap::new(), &id));
        assert_eq!(set_engine_id(&mut HeaderMap::new()).len(), RANDOM_DIGITS);
    }

    #[test]
    fn id_that_json_escapes_is_found() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("a\"b\\c"));
        let id = set_engine_id(&mut headers);
        let activity = Arc::new(Activity::default());
        let mut proof = Proof::new("/v1/completions", &id, true, &activity).unwrap();
        let body = serde_json::json!({ "id": format!("cmpl-{id}-0") }).to_string();
        let (passed, is_over) = proof.chunk(Bytes::from(body.clone())).unwrap();
        assert!(is_over && passed == body.as_bytes());
    }
}
