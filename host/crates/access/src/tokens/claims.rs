//! The claims of a token: who has issued it, for which service, and for whom.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::TokenSettings;
use super::error::TokenError;

/// Maximum length of `sub` in bytes: that of OpenID Connect.
const MAX_SUBJECT: usize = 255;
/// Maximum length of the name that is made of it, in bytes.
const MAX_NAME: usize = 100;
/// Maximum length of a tenant or group in bytes.
const MAX_CLAIM: usize = 200;
/// Groups of a token that are looked at.
const MAX_GROUPS: usize = 256;
/// Latest time of a claim: the end of the year 9999.
const MAX_TIME: f64 = 253_402_300_799.0;

/// Where a claim is in a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath(String);

impl ClaimPath {
    /// Creates a path: a name, names with dots between them for a claim inside of others, or a JSON
    /// Pointer if it begins with a slash.
    pub fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn find<'c>(&self, claims: &'c Value) -> Option<&'c Value> {
        if self.0.starts_with('/') {
            return claims.pointer(&self.0);
        }
        // Some issuers require names that are URLs, which contain dots.
        let nested = || self.0.split('.').try_fold(claims, |value, name| value.get(name));
        claims.get(&self.0).or_else(nested)
    }
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The subject in a form for the log and the usage: escaped, and cut if it is long.
    pub name: String,
    /// The tenant; `None` if neither the token nor the configuration names one.
    pub tenant: Option<String>,
    /// Groups, of which the first that exists applies.
    pub groups: Vec<String>,
    /// True if the token is of no use without one of its groups.
    pub needs_group: bool,
    /// When it expires, by the clock of the issuer.
    pub expires: SystemTime,
    not_before: Option<SystemTime>,
}

impl Claims {
    /// Reads the payload of a token whose signature is valid. Its times are not checked.
    pub(super) fn read(payload: &Value, settings: &TokenSettings) -> Result<Self, TokenError> {
        let text = |name: &'static str| payload.get(name).and_then(Value::as_str);
        if text("iss") != Some(settings.issuer.as_str()) {
            return Err(TokenError::Claim("iss"));
        }
        if !has_audience(payload, &settings.audiences) {
            return Err(TokenError::Claim("aud"));
        }
        // Such a token must be useless without a key of the client, and the host cannot check that
        // the sender has the key.
        if payload.get("cnf").is_some() {
            return Err(TokenError::Bound);
        }
        let is_subject = |subject: &&str| (1..=MAX_SUBJECT).contains(&subject.len());
        let subject = text("sub").filter(is_subject).ok_or(TokenError::Claim("sub"))?;
        let expires = time(payload, "exp")?.ok_or(TokenError::Claim("exp"))?;
        let tenant = match settings.tenant_claim.find(payload) {
            Some(claim) => Some(claim_text(claim).ok_or(TokenError::Claim("tenant"))?),
            None => settings.default_tenant.as_deref(),
        };
        let (group_claim, default_group) = (&settings.group_claim, &settings.default_group);
        let groups = group_claim.as_ref().and_then(|path| path.find(payload));
        let groups = groups.map(claim_texts).unwrap_or_default().into_iter();
        let groups = groups.take(MAX_GROUPS).chain(default_group.as_deref()).map(str::to_owned);
        Ok(Self {
            name: name_of(subject),
            tenant: tenant.map(str::to_owned),
            groups: groups.collect(),
            // The token of a user without any group may lack the claim: without this, it would have
            // more rights than one with a group.
            needs_group: group_claim.is_some() || default_group.is_some(),
            expires,
            not_before: time(payload, "nbf")?,
        })
    }

    /// Checks when the token is valid.
    pub(super) fn check_times(&self, now: SystemTime, leeway: Duration) -> Result<(), TokenError> {
        if now >= self.expires + leeway {
            return Err(TokenError::Expired);
        }
        if self.not_before.is_some_and(|begin| now + leeway < begin) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }

    /// Returns the memory of the texts in bytes.
    pub(super) fn size(&self) -> usize {
        let texts = self.groups.iter().chain(&self.tenant).chain([&self.name]);
        texts.map(|text| text.len() + size_of::<String>()).sum()
    }
}

fn has_audience(payload: &Value, accepted: &[String]) -> bool {
    let is_accepted = |audience: &Value| {
        audience.as_str().is_some_and(|audience| accepted.iter().any(|own| own == audience))
    };
    match payload.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_accepted),
        Some(audience) => is_accepted(audience),
        None => false,
    }
}

/// Returns a time in seconds since 1970, which may have decimals.
fn time(payload: &Value, name: &'static str) -> Result<Option<SystemTime>, TokenError> {
    let Some(value) = payload.get(name) else { return Ok(None) };
    let seconds = value.as_f64().filter(|seconds| (0.0..=MAX_TIME).contains(seconds));
    let seconds = seconds.ok_or(TokenError::Claim(name))?;
    Ok(Some(UNIX_EPOCH + Duration::from_secs_f64(seconds)))
}

fn claim_text(claim: &Value) -> Option<&str> {
    let is_name =
        |text: &&str| (1..=MAX_CLAIM).contains(&text.len()) && !text.chars().any(char::is_control);
    claim.as_str().filter(is_name)
}

/// Returns the text of a claim, or those of a list. Others in the list are left out.
fn claim_texts(claim: &Value) -> Vec<&str> {
    match claim {
        Value::Array(items) => items.iter().filter_map(claim_text).collect(),
        one => claim_text(one).into_iter().collect(),
    }
}

/// Returns the name of a subject. Different subjects have different names.
fn name_of(subject: &str) -> String {
    let escaped = subject.escape_debug().to_string();
    if escaped == subject && escaped.len() <= MAX_NAME {
        return escaped;
    }
    let digest = Sha256::digest(subject.as_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let begin = &escaped[..escaped.floor_char_boundary(MAX_NAME - digest.len() - 1)];
    format!("{begin}-{digest}")
}
