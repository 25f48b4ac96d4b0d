//! The stable codes of HTTP errors, for clients and for operators.
//!
//! [`ErrorCode`] is their only definition: code, HTTP status, OpenAI error type, whether the
//! response has a `Retry-After` header, and when the error occurs. The documentation of its
//! variants and the table in `docs/errors.md` are the same text; a test compares them.

use std::fmt;

use http::StatusCode;
use pointsman_access::{Limit, Refusal, TokenRefusal};

macro_rules! error_codes {
    ($(
        $(#[doc = $when:literal])+
        $name:ident = $code:literal, $status:ident, $kind:literal, retry_after: $retry:literal;
    )+) => {
        /// The code of an HTTP error: `error.code` in the body. Codes never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[doc = $when])+ $name,)+
        }

        impl ErrorCode {
            /// All codes, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Returns the code as it is sent, for example `queue_full`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }

            /// Returns the HTTP status of a response with this code.
            pub fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)+
                }
            }

            /// Returns `error.type`, the class that OpenAI's API has for such errors.
            pub fn kind(self) -> &'static str {
                match self {
                    $(Self::$name => $kind,)+
                }
            }

            /// Returns true if a response with this code has a `Retry-After` header.
            pub fn has_retry_after(self) -> bool {
                match self {
                    $(Self::$name => $retry,)+
                }
            }

            /// Returns when the error occurs, in one line of Markdown.
            pub fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($when),+).trim_ascii(),)+
                }
            }
        }
    };
}

error_codes! {
    /// The API key or admin token is missing or unknown.
    InvalidApiKey = "invalid_api_key", UNAUTHORIZED, "invalid_request_error", retry_after: false;
    /// The API key, or this secret of it, has expired.
    ApiKeyExpired = "api_key_expired", UNAUTHORIZED, "invalid_request_error", retry_after: false;
    /// The API key may not be used for the model.
    ModelNotAllowed = "model_not_allowed", FORBIDDEN, "invalid_request_error", retry_after: false;
    /// The API key may not use the lanes that could serve the request.
    LaneNotAllowed = "lane_not_allowed", FORBIDDEN, "invalid_request_error", retry_after: false;
    /// A guard of the operator leaves no lane for the request, or cannot limit it as it has to.
    GuardRefused = "guard_refused", FORBIDDEN, "invalid_request_error", retry_after: false;
    /// An attempt would have broken a guard of the operator: an error of the host.
    GuardViolation = "guard_violation", INTERNAL_SERVER_ERROR, "server_error", retry_after: false;
    /// The API key may not be used at the endpoint.
    EndpointNotAllowed = "endpoint_not_allowed", FORBIDDEN, "invalid_request_error",
        retry_after: false;
    /// The API key may not be used on the address.
    ListenerNotAllowed = "listener_not_allowed", FORBIDDEN, "invalid_request_error",
        retry_after: false;
    /// Only the keys of other hosts may read what this host tells of its lanes.
    PeerKeyRequired = "peer_key_required", FORBIDDEN, "invalid_request_error", retry_after: false;
    /// The keys of other hosts are for requests and for `/fleet` only.
    PeerNotAllowed = "peer_not_allowed", FORBIDDEN, "invalid_request_error", retry_after: false;
    /// The token is not valid: malformed, not signed by the issuer, or for another service.
    InvalidToken = "invalid_token", UNAUTHORIZED, "invalid_request_error", retry_after: false;
    /// The token has expired.
    TokenExpired = "token_expired", UNAUTHORIZED, "invalid_request_error", retry_after: false;
    /// The token is valid, but names no tenant or group that may use the host.
    TokenNotAllowed = "token_not_allowed", FORBIDDEN, "invalid_request_error", retry_after: false;
    /// The host has no current keys of the issuer of tokens, and cannot check them.
    TokenKeysUnavailable = "token_keys_unavailable", SERVICE_UNAVAILABLE, "server_error",
        retry_after: true;
    /// The `Host` is not one of the listener's; see `server.hosts`.
    HostNotAllowed = "host_not_allowed", MISDIRECTED_REQUEST, "invalid_request_error",
        retry_after: false;
    /// The request body ended early or could not be read.
    IncompleteBody = "incomplete_body", BAD_REQUEST, "invalid_request_error", retry_after: false;
    /// The request body is not UTF-8 or not a JSON object.
    InvalidJson = "invalid_json", BAD_REQUEST, "invalid_request_error", retry_after: false;
    /// A field or parameter is missing or invalid.
    InvalidRequest = "invalid_request", BAD_REQUEST, "invalid_request_error", retry_after: false;
    /// The request body has too many messages, parts, prompts or members of objects.
    TooManyItems = "too_many_items", BAD_REQUEST, "invalid_request_error", retry_after: false;
    /// Arrays and objects of the request body are nested too deeply.
    TooDeeplyNested = "too_deeply_nested", BAD_REQUEST, "invalid_request_error",
        retry_after: false;
    /// The request wants the host to keep a conversation of Anthropic's API, which it does not.
    ThreadUnsupportedRequest = "thread_unsupported_request", BAD_REQUEST,
        "invalid_request_error", retry_after: false;
    /// The `Idempotency-Key` was used for a request with another body.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY,
        "invalid_request_error", retry_after: false;
    /// The original with this `Idempotency-Key` is in progress, and too long to be joined.
    IdempotencyKeyInUse = "idempotency_key_in_use", CONFLICT, "invalid_request_error",
        retry_after: true;
    /// Another host executes the request with this `Idempotency-Key`, or has its response.
    IdempotencyKeyElsewhere = "idempotency_key_elsewhere", CONFLICT, "invalid_request_error",
        retry_after: true;
    /// The content type is not `application/json`, or `multipart/form-data` for endpoints that
    /// take files.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE,
        "invalid_request_error", retry_after: false;
    /// The request body is not a multipart form, ends early, or has parts with invalid headers.
    InvalidForm = "invalid_form", BAD_REQUEST, "invalid_request_error", retry_after: false;
    /// The request body has a content encoding that the host cannot decode, or several.
    UnsupportedEncoding = "unsupported_encoding", UNSUPPORTED_MEDIA_TYPE,
        "invalid_request_error", retry_after: false;
    /// The request body is not what its content encoding says, or ends early.
    InvalidEncoding = "invalid_encoding", BAD_REQUEST, "invalid_request_error",
        retry_after: false;
    /// The request body exceeds `server.max-body`, or a form `server.max-upload`.
    RequestTooLarge = "request_too_large", PAYLOAD_TOO_LARGE, "invalid_request_error",
        retry_after: false;
    /// The request body did not arrive in time; see `server.body-timeout`.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "invalid_request_error",
        retry_after: false;
    /// No lane serves the model.
    ModelNotFound = "model_not_found", NOT_FOUND, "invalid_request_error", retry_after: false;
    /// No lane that serves the model can serve the endpoint; see `lanes.endpoints`.
    EndpointNotSupported = "endpoint_not_supported", NOT_FOUND, "invalid_request_error",
        retry_after: false;
    /// No lane has the given name.
    LaneNotFound = "lane_not_found", NOT_FOUND, "invalid_request_error", retry_after: false;
    /// The lane is not loaded, and the request did not ask to load it; see `X-Pointsman-Load`.
    LaneNotLoaded = "lane_not_loaded", CONFLICT, "invalid_request_error", retry_after: false;
    /// The path of an engine needs a key with `engine-admin`, or the admin API.
    EngineAdminRequired = "engine_admin_required", FORBIDDEN, "invalid_request_error",
        retry_after: false;
    /// The path would stop an engine or change its memory, and is only served on the admin API.
    EnginePathRefused = "engine_path_refused", FORBIDDEN, "invalid_request_error",
        retry_after: false;
    /// The response that `previous_response_id` names does not exist, or is not the client's.
    PreviousResponseNotFound = "previous_response_not_found", NOT_FOUND, "invalid_request_error",
        retry_after: false;
    /// Another host keeps the response, which the message names.
    ResponseElsewhere = "response_elsewhere", NOT_FOUND, "invalid_request_error",
        retry_after: false;
    /// Another host keeps the response, which the message names, and does not respond.
    ResponseHostUnreachable = "response_host_unreachable", SERVICE_UNAVAILABLE, "server_error",
        retry_after: true;
    /// A limit per minute of the key, its group or its tenant is reached; the message says which.
    RateLimitExceeded = "rate_limit_exceeded", TOO_MANY_REQUESTS, "rate_limit_error",
        retry_after: true;
    /// The key, its group or its tenant has too many requests in flight.
    ConcurrencyLimit = "concurrency_limit", TOO_MANY_REQUESTS, "rate_limit_error",
        retry_after: true;
    /// The key, its group or its tenant has too many requests that wait for a slot.
    QueueLimit = "queue_limit", TOO_MANY_REQUESTS, "rate_limit_error", retry_after: true;
    /// The budget of the key, its group or its tenant is used up until the next period.
    BudgetExceeded = "budget_exceeded", TOO_MANY_REQUESTS, "insufficient_quota",
        retry_after: true;
    /// The request alone is larger than a limit of the key, its group or its tenant.
    RequestExceedsLimit = "request_exceeds_limit", TOO_MANY_REQUESTS, "rate_limit_error",
        retry_after: false;
    /// The tenant has too many responses in the background; see `responses.max-background`.
    TooManyBackground = "too_many_background", TOO_MANY_REQUESTS, "rate_limit_error",
        retry_after: true;
    /// The store of responses cannot be read or written at the moment.
    StoreUnavailable = "store_unavailable", SERVICE_UNAVAILABLE, "server_error",
        retry_after: true;
    /// The path, the response or the admin command does not exist.
    NotFound = "not_found", NOT_FOUND, "invalid_request_error", retry_after: false;
    /// The path does not support the method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "invalid_request_error",
        retry_after: false;
    /// The bodies of the requests in flight use all of `server.body-memory` or `server.spool-size`,
    /// or all places of requests with HTTP/2 are taken.
    HostOverloaded = "host_overloaded", SERVICE_UNAVAILABLE, "server_error", retry_after: true;
    /// An upload cannot be written to `server.spool-dir`, for example because the disk is full.
    InsufficientStorage = "insufficient_storage", INSUFFICIENT_STORAGE, "server_error",
        retry_after: true;
    /// No lane can serve the request now.
    NoLaneAvailable = "no_lane_available", SERVICE_UNAVAILABLE, "server_error", retry_after: true;
    /// The request has been on this host before, or on too many hosts, and only lanes of other
    /// hosts could serve it.
    LoopDetected = "loop_detected", LOOP_DETECTED, "server_error", retry_after: false;
    /// The operator has cancelled the request; it should not be sent again as it is.
    RequestCancelled = "request_cancelled", GONE, "invalid_request_error", retry_after: false;
    /// The host shuts down, and accepts no new requests.
    Stopping = "stopping", SERVICE_UNAVAILABLE, "server_error", retry_after: true;
    /// The queue has reached its limit.
    QueueFull = "queue_full", TOO_MANY_REQUESTS, "rate_limit_error", retry_after: true;
    /// No slot became free within the maximum wait.
    QueueTimeout = "queue_timeout", SERVICE_UNAVAILABLE, "server_error", retry_after: true;
    /// The engine returned 503, or an engine that the host runs 429.
    EngineOverloaded = "engine_overloaded", SERVICE_UNAVAILABLE, "server_error", retry_after: true;
    /// The engine failed, before or after the first byte of its response.
    EngineError = "engine_error", BAD_GATEWAY, "server_error", retry_after: true;
    /// The host took the engine for hung. It restarts the engine, unless another host or program
    /// runs it.
    EngineHung = "engine_hung", BAD_GATEWAY, "server_error", retry_after: true;
    /// The engine refused the host's own key; the operator has to correct it.
    EngineKeyRefused = "engine_key_refused", BAD_GATEWAY, "server_error", retry_after: false;
    /// An external engine returned 429: it limits the rate of the host's requests.
    EngineRateLimited = "engine_rate_limited", TOO_MANY_REQUESTS, "rate_limit_error",
        retry_after: true;
    /// The engine does not support what the request asks for, or the host does not (501).
    NotSupported = "not_supported", NOT_IMPLEMENTED, "invalid_request_error", retry_after: false;
    /// The engine sent no first byte in time, or stalled after it.
    EngineTimeout = "engine_timeout", GATEWAY_TIMEOUT, "timeout_error", retry_after: true;
    /// Admin: a page of another origin, or one without the session's token, may not change
    /// anything.
    CrossOriginRefused = "cross_origin_refused", FORBIDDEN, "invalid_request_error",
        retry_after: false;
    /// Admin: the request has no session of the console, or one that has ended.
    SessionRequired = "session_required", UNAUTHORIZED, "invalid_request_error",
        retry_after: false;
    /// Admin: no policy has this name.
    PolicyNotFound = "policy_not_found", NOT_FOUND, "invalid_request_error", retry_after: false;
    /// Admin: no version matches the given fingerprint.
    VersionNotFound = "version_not_found", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: no earlier version to roll back to.
    NoEarlierVersion = "no_earlier_version", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: no candidate version to promote.
    NoCandidate = "no_candidate", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the version is already active.
    VersionAlreadyActive = "version_already_active", CONFLICT, "invalid_request_error",
        retry_after: false;
    /// Admin: the version cannot be activated any more.
    ActivationFailed = "activation_failed", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the next host did not take over; this one goes on.
    UpgradeFailed = "upgrade_failed", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the state of the policy has no entry with this key.
    StateKeyNotFound = "state_key_not_found", NOT_FOUND, "invalid_request_error",
        retry_after: false;
    /// Admin: the host does not run the engine of the lane, and cannot load or stop it.
    LaneNotManaged = "lane_not_managed", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the lane is held, and has to be loaded first.
    LaneHeld = "lane_held", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the lane is not draining.
    LaneNotDraining = "lane_not_draining", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the engine of the lane could not be loaded; the message says why.
    LaneLoadFailed = "lane_load_failed", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: no request in flight has this id.
    RequestNotFound = "request_not_found", NOT_FOUND, "invalid_request_error", retry_after: false;
    /// Admin: neither the recent decisions nor the records have a request with this id.
    DecisionNotFound = "decision_not_found", NOT_FOUND, "invalid_request_error",
        retry_after: false;
    /// Admin: no API key has this id.
    KeyNotFound = "key_not_found", NOT_FOUND, "invalid_request_error", retry_after: false;
    /// Admin: hosts do not share their usage; `[shared-state]` lets them.
    UsageNotShared = "usage_not_shared", CONFLICT, "invalid_request_error", retry_after: false;
    /// Admin: the store that hosts share does not respond, or has too much for one report.
    SharedStateUnavailable = "shared_state_unavailable", SERVICE_UNAVAILABLE, "server_error",
        retry_after: true;
    /// An internal error of the host; its log has the cause.
    InternalError = "internal_error", INTERNAL_SERVER_ERROR, "server_error", retry_after: false;
}

impl ErrorCode {
    /// Returns the code of a token that is refused.
    pub(crate) fn of_token(refusal: TokenRefusal) -> Self {
        match refusal {
            TokenRefusal::Invalid => Self::InvalidToken,
            TokenRefusal::Expired => Self::TokenExpired,
            TokenRefusal::NotAllowed => Self::TokenNotAllowed,
            TokenRefusal::Unavailable => Self::TokenKeysUnavailable,
        }
    }
}

impl From<&Refusal> for ErrorCode {
    fn from(refusal: &Refusal) -> Self {
        if refusal.retry_after.is_none() {
            return Self::RequestExceedsLimit;
        }
        match refusal.limit {
            Limit::RequestsPerMinute | Limit::TokensPerMinute => Self::RateLimitExceeded,
            Limit::Concurrent => Self::ConcurrencyLimit,
            Limit::Queued => Self::QueueLimit,
            Limit::TokenBudget(_) | Limit::RequestBudget(_) | Limit::EngineBudget(_) => {
                Self::BudgetExceeded
            }
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/errors.md");

    #[test]
    fn documentation_lists_all_codes() {
        let mut table = "| code | status | Retry-After | when |\n|---|---|---|---|\n".to_owned();
        for code in ErrorCode::ALL {
            let retry = if code.has_retry_after() { "yes" } else { "no" };
            let (status, when) = (code.status().as_u16(), code.description());
            table.push_str(&format!("| `{code}` | {status} | {retry} | {when} |\n"));
        }
        // The blank line after the table proves that the page has no further rows.
        assert!(
            PAGE.contains(&format!("\n{table}\n")),
            "docs/errors.md needs this table:\n{table}"
        );
    }

    #[test]
    fn codes_are_unique() {
        let mut codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
    }
}
