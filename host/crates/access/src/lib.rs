//! Who may ask what, how much of it, and what was used.
//!
//! ```text
//!   headers ──Keys──> Identity ──Rights──> may it use this model, lane, endpoint, listener?
//!                        │
//!                        └──Accounts──> Admission ──(the request)──> settled with the tokens used
//!                                           │
//!                                           └──> UsageBook: by hour, tenant, key, model, lane
//! ```
//!
//! Keys are compared by their digests, and a set of keys is replaced as a whole. A token of another
//! issuer gives an identity as well: it is checked with the issuer's public keys, and its claims
//! name tenant and group. Limits are kept in
//! accounts: one for each key, for each group of keys with shared limits, and for each tenant with
//! limits. Decisions are functions of the time that the caller gives; tasks and sockets are the
//! caller's.

mod accounts;
mod activity;
mod credential;
mod edit;
mod file;
mod groups;
mod identity;
mod keys;
mod limits;
mod moment;
mod rights;
mod secret;
mod time;
mod tokens;
mod usage;

pub use self::accounts::{
    Accounts, Admission, Ask, BudgetRow, BudgetUse, LimitUse, Refusal, SharedCounter,
    SharedCounters,
};
pub use self::activity::{Activity, KeyActivity, LastRefusal};
pub use self::edit::{EditError, KeysFile, NewKey};
pub use self::groups::{Definitions, Grants, GroupSpec, KeySpec, TenantSpec};
pub use self::identity::Identity;
pub use self::keys::{
    ApiKey, KeySet, Keys, KeysVersion, LimitOwner, MinuteLimit, Unauthorized, UnknownGroup,
};
pub use self::limits::{AccountId, AccountLimits, Budget, Limit, Limits, Period};
pub use self::moment::Moment;
pub use self::rights::{Rights, endpoint_named};
pub use self::secret::{NewSecret, NoRandomness, SecretHash};
pub use self::time::{format_time, parse_time, parse_time_from};
pub use self::tokens::{
    ClaimPath, Claims, KeySetError, MAX_KEY_SET, PublicKeys, Schedule, TokenAlgorithm, TokenError,
    TokenRefusal, TokenSettings, TokenStatus, TokenVerifier,
};
pub use self::usage::{
    Column, Counts, ForeignUsage, HostValue, OtherHosts, ReportedHost, Saved, UsageBook,
    UsageError, UsageEvent, UsagePart, UsageQuery, UsageReport, UsageSettings,
};

#[cfg(test)]
mod fuzz;
