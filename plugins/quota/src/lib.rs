//! Quotas and priorities of tenants.
//!
//! Time is cut into windows, the same for everybody (`now / window-s`). In each a tenant may have so many requests and so
//! many tokens: those of the prompt, and of the longest answer that the request allows. What is over is refused with 429
//! and the time until the next window. Counting is atomic in the host's `state`, so all instances and the next version of
//! the policy count together.
//!
//! If the state has no room, requests are let through and counted as `unmetered`: a full table must not stop the service.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{Advice, Call, Level, Policy, PolicyError, Scalar, StateError, stable_hash};

use self::config::{Config, Limits, Unknown};

/// The configured policy.
#[derive(Debug)]
pub struct Quota {
    config: Config,
}

pointsman_sdk::export_policy!(Quota);

/// Names of tenants up to this length are used as they are in the keys of the state; longer ones are hashed.
const LONGEST_NAME: usize = 64;

/// Where a request is counted.
struct Account<'a> {
    /// Who it is, for people.
    name: &'a str,
    /// Who it is, in keys.
    key: String,
    limits: Limits,
}

/// The window of now.
#[derive(Clone, Copy)]
struct Window {
    number: u64,
    length_ms: u32,
    /// Seconds until the next.
    left_s: u32,
}

/// One kind of thing that is counted.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    code: &'static str,
}

const REQUESTS: Kind = Kind { name: "requests", code: "request_quota_exceeded" };
const TOKENS: Kind = Kind { name: "tokens", code: "token_quota_exceeded" };

impl Policy for Quota {
    const NAME: &'static str = "quota";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let tenant = call.request.tenant();
        let Some(account) = self.account(tenant.as_deref()) else {
            call.metrics.add("refused", 1);
            let who = tenant.map_or_else(
                || "A request without a tenant".to_owned(),
                |it| format!("Tenant `{it}`"),
            );
            return Ok(Advice::refuse(403, "unknown_tenant", format!("{who} has no quota here.")));
        };
        // A second decision about the same request is no second request.
        if call.context.attempt > 0 {
            return Ok(with_priority(Advice::any(), account.limits));
        }
        let advice = self.count(call, &account);
        call.metrics.add(if advice.reject.is_some() { "refused" } else { "admitted" }, 1);
        Ok(advice)
    }
}

impl Quota {
    fn account<'a>(&self, tenant: Option<&'a str>) -> Option<Account<'a>> {
        let own =
            tenant.and_then(|tenant| self.config.tenants.iter().find(|(known, _)| known == tenant));
        let (name, limits) = (tenant.unwrap_or("(none)"), self.config.default);
        // The first letter keeps the kinds of accounts apart, whatever tenants are called.
        Some(match (own, tenant, self.config.unknown) {
            (Some((_, limits)), ..) => {
                Account { name, key: format!("t{}", short(name)), limits: *limits }
            }
            (None, _, Unknown::Refuse) => return None,
            (None, _, Unknown::Shared) => {
                Account { name: "(all others)", key: "o".to_owned(), limits }
            }
            (None, Some(tenant), Unknown::Each) => {
                Account { name, key: format!("t{}", short(tenant)), limits }
            }
            (None, None, Unknown::Each) => Account { name, key: "n".to_owned(), limits },
        })
    }

    fn count(&self, call: &Call<'_>, account: &Account<'_>) -> Advice {
        let Limits { requests, tokens, .. } = account.limits;
        let window = window(call.context.now_ms, self.config.window_ms);
        let answer = match call.context.max_output_tokens {
            0 => self.config.output_tokens,
            most => most,
        };
        let wanted = i64::from(call.context.prompt_tokens) + i64::from(answer);
        if let Some(most) = tokens.filter(|most| wanted > i64::from(*most)) {
            // No window has room for it, so there is no use in coming again.
            let message = format!(
                "The request may need {wanted} tokens, and `{}` may have {most}.",
                account.name
            );
            return Advice::refuse(413, TOKENS.code, message);
        }
        let mut counted = Vec::with_capacity(2);
        for (kind, by, most) in [(REQUESTS, 1, requests), (TOKENS, wanted, tokens)] {
            let Some(most) = most else { continue };
            match self.take(call, account, window, kind, by) {
                Ok(used) if used > i64::from(most) => {
                    // What is refused takes nothing: the small request after it may still have room.
                    counted.push((kind, by));
                    for (kind, by) in counted {
                        let _given_back = self.take(call, account, window, kind, -by);
                    }
                    return over(account, window, kind, most);
                }
                Ok(_) => counted.push((kind, by)),
                Err(error) => {
                    call.metrics.add("unmetered", 1);
                    call.log.write_with(Level::Warn, || {
                        format!("{} of {} are not counted: {error}", kind.name, account.name)
                    });
                }
            }
        }
        let advice = match (requests, tokens) {
            (None, None) => Advice::any(),
            _ => Advice::any().because(format!("{} is within its quota", account.name)),
        };
        with_priority(advice, account.limits)
    }

    /// Count, and say how much is counted now.
    fn take(
        &self,
        call: &Call<'_>,
        account: &Account<'_>,
        window: Window,
        kind: Kind,
        by: i64,
    ) -> Result<i64, StateError> {
        let key = format!("{}/{}/{}", kind.name, window.number, account.key);
        // An entry outlives its window by one, in case clocks are moved.
        call.state.increment(&key, by, window.length_ms.saturating_mul(2))
    }
}

fn window(now_ms: u64, length_ms: u32) -> Window {
    let length = u64::from(length_ms.max(1));
    let left_ms = length - now_ms % length;
    Window {
        number: now_ms / length,
        length_ms,
        left_s: u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX),
    }
}

fn over(account: &Account<'_>, window: Window, kind: Kind, most: u32) -> Advice {
    let per = window.length_ms / 1000;
    let message =
        format!("`{}` may have {most} {} in {per} s, and has had them.", account.name, kind.name);
    Advice::refuse(429, kind.code, message)
        .retry_after_s(window.left_s)
        .note("quota", Scalar::Text(account.name.to_owned()))
}

/// The queue is only spoken of where there is something to say: of several policies that do, the last one counts.
fn with_priority(advice: Advice, limits: Limits) -> Advice {
    if limits.priority == 0 { advice } else { advice.with_priority(limits.priority) }
}

fn short(name: &str) -> String {
    match name.len() <= LONGEST_NAME {
        true => format!("={name}"),
        false => format!("#{:016x}", stable_hash(&[name.as_bytes()])),
    }
}
