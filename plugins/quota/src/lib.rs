//! Limits requests and tokens per tenant, and sets priorities.
//!
//! Time is divided into fixed windows, the same for all tenants (`now / window-s`). A tenant has a
//! limit of requests and of tokens per window. A request counts with its prompt tokens and its
//! maximum output tokens. Requests over the limit are rejected with 429 and the time until the next
//! window. Counters are atomic in the host's `state`, so all instances and versions of the policy
//! share them.
//!
//! If the state is full, requests are admitted and counted as `unmetered`: a full table must not
//! stop the service.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{Advice, Call, Level, Policy, PolicyError, StateError, stable_hash};

use self::config::{Config, Limits, Unknown};

/// The configured policy.
#[derive(Debug)]
pub struct Quota {
    config: Config,
}

pointsman_sdk::export_policy!(Quota);

/// Maximum length of a tenant name in a state key; longer names are hashed.
const MAX_NAME_BYTES: usize = 64;

/// Endpoints whose responses are not generated token by token.
const WITHOUT_OUTPUT: [&str; 17] = [
    "embeddings",
    "count-tokens",
    "rerank",
    "score",
    "classify",
    "pooling",
    "tokenize",
    "detokenize",
    "moderations",
    "image-generations",
    "image-edits",
    "image-variations",
    "speech",
    "llama-embedding",
    "llama-apply-template",
    "ollama-embed",
    "ollama-embeddings",
];

/// The account that a request is counted on.
struct Account<'a> {
    /// Name for messages and logs.
    name: &'a str,
    /// Name in state keys.
    key: String,
    limits: Limits,
}

/// A time window.
#[derive(Clone, Copy)]
struct Window {
    number: u64,
    length_ms: u32,
    /// Seconds until the next window.
    left_s: u32,
}

/// A resource with a limit.
#[derive(Clone, Copy)]
struct Resource {
    name: &'static str,
    code: &'static str,
}

const REQUESTS: Resource = Resource { name: "requests", code: "request_quota_exceeded" };
const TOKENS: Resource = Resource { name: "tokens", code: "token_quota_exceeded" };

impl Policy for Quota {
    const NAME: &'static str = "quota";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let tenant = call.request.tenant();
        let Some(account) = self.account(tenant.as_deref()) else {
            call.metrics.add("rejected", 1);
            let message = match tenant {
                Some(tenant) => format!("unknown tenant \"{tenant}\": no quota configured"),
                None => "request has no tenant: no quota configured".to_owned(),
            };
            return Ok(Advice::reject(403, "unknown_tenant", message));
        };
        // Retries of a request are not counted again.
        if call.context.attempt > 0 {
            return Ok(with_priority(Advice::any(), account.limits));
        }
        let advice = self.count(call, &account);
        call.metrics.add(if advice.reject.is_some() { "rejected" } else { "admitted" }, 1);
        Ok(advice)
    }
}

impl Quota {
    /// Returns the account of a tenant, or `None` if unknown tenants are rejected.
    fn account<'a>(&self, tenant: Option<&'a str>) -> Option<Account<'a>> {
        let own =
            tenant.and_then(|tenant| self.config.tenants.iter().find(|(known, _)| known == tenant));
        let (name, limits) = (tenant.unwrap_or("(none)"), self.config.default);
        // The first letter separates the kinds of accounts, so that no tenant name can collide.
        Some(match (own, tenant, self.config.unknown) {
            (Some((_, limits)), ..) => {
                Account { name, key: format!("t{}", account_key(name)), limits: *limits }
            }
            (None, _, Unknown::Reject) => return None,
            (None, _, Unknown::Shared) => {
                Account { name: "(all others)", key: "o".to_owned(), limits }
            }
            (None, Some(tenant), Unknown::Each) => {
                Account { name, key: format!("t{}", account_key(tenant)), limits }
            }
            (None, None, Unknown::Each) => Account { name, key: "n".to_owned(), limits },
        })
    }

    /// Counts the request and returns a rejection if that exceeds a limit.
    fn count(&self, call: &Call<'_>, account: &Account<'_>) -> Advice {
        let Limits { requests, tokens, .. } = account.limits;
        let window = window(call.context.now_ms, self.config.window_ms);
        let output = match call.context.max_output_tokens {
            0 if WITHOUT_OUTPUT.contains(&call.request.endpoint_kind().as_str()) => 0,
            0 => self.config.output_tokens,
            max => max,
        };
        let needed = i64::from(call.context.prompt_tokens) + i64::from(output);
        if let Some(max) = tokens.filter(|max| needed > i64::from(*max)) {
            // The request would not fit into any window, so there is no point in a `Retry-After`.
            let message = format!(
                "request too large for quota: needs up to {needed} tokens, quota is {max} tokens \
                 per {} s",
                window.length_ms / 1000
            );
            return Advice::reject(413, TOKENS.code, message);
        }
        let mut counted = Vec::with_capacity(2);
        for (resource, amount, max) in [(REQUESTS, 1, requests), (TOKENS, needed, tokens)] {
            let Some(max) = max else { continue };
            match self.add(call, account, window, resource, amount) {
                Ok(used) if used > i64::from(max) => {
                    // A rejected request does not use quota, so that a smaller one may still fit.
                    counted.push((resource, amount));
                    for (resource, amount) in counted {
                        // If this fails, the quota is too small for the rest of the window at
                        // worst.
                        self.add(call, account, window, resource, -amount).ok();
                    }
                    return quota_exceeded(account, window, resource, max);
                }
                Ok(_) => counted.push((resource, amount)),
                Err(error) => {
                    call.metrics.add("unmetered", 1);
                    call.log.write_with(Level::Warn, || {
                        format!(
                            "failed to count {}: account={}: {error}",
                            resource.name, account.name
                        )
                    });
                }
            }
        }
        let advice = match (requests, tokens) {
            (None, None) => Advice::any(),
            _ => Advice::any().with_reason(format!("{} is within quota", account.name)),
        };
        with_priority(advice, account.limits)
    }

    /// Adds to a counter of the account and returns its new value.
    fn add(
        &self,
        call: &Call<'_>,
        account: &Account<'_>,
        window: Window,
        resource: Resource,
        amount: i64,
    ) -> Result<i64, StateError> {
        let key = format!("{}/{}/{}", resource.name, window.number, account.key);
        // Entries outlive their window by one window length, in case the clock is set back.
        // Saturating is fine: the longest window is a day.
        call.state.increment(&key, amount, window.length_ms.saturating_mul(2))
    }
}

/// Returns the window that contains `now_ms`.
fn window(now_ms: u64, length_ms: u32) -> Window {
    let length = u64::from(length_ms.max(1));
    let left_ms = length - now_ms % length;
    Window {
        number: now_ms / length,
        length_ms,
        left_s: u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX),
    }
}

fn quota_exceeded(account: &Account<'_>, window: Window, resource: Resource, max: u32) -> Advice {
    let window_s = window.length_ms / 1000;
    let message = format!("quota exceeded: {max} {} per {window_s} s", resource.name);
    Advice::reject(429, resource.code, message)
        .with_retry_after_s(window.left_s)
        .with_note("quota", account.name)
}

/// Sets the priority, if there is one. Without a priority the advice has no queue settings, so that
/// it does not override those of earlier policies.
fn with_priority(advice: Advice, limits: Limits) -> Advice {
    if limits.priority == 0 { advice } else { advice.with_priority(limits.priority) }
}

/// Returns the part of a state key for a tenant. The prefix separates names from hashes.
fn account_key(name: &str) -> String {
    match name.len() <= MAX_NAME_BYTES {
        true => format!("={name}"),
        false => format!("#{:016x}", stable_hash(&[name.as_bytes()])),
    }
}
