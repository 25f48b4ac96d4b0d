//! The table of a key in a file.

use std::time::SystemTime;

use toml_edit::{Array, InlineTable, Item, Table, Value, value};

use super::NewKey;
use crate::groups::Grants;
use crate::limits::{Budget, Limits, Period};
use crate::secret::SecretHash;
use crate::time::format_time;

/// Returns the table of a new key.
pub(super) fn key_table(id: &str, hash: &SecretHash, key: &NewKey) -> Table {
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    table.insert("id", value(id));
    table.insert("hash", value(hash.to_string()));
    table.insert("tenant", value(key.tenant.as_str()));
    if let Some(group) = &key.group {
        table.insert("group", value(group.as_str()));
    }
    if let Some(expires) = key.expires {
        table.insert("expires", value(format_time(expires)));
    }
    add_grants(&mut table, &key.grants);
    let limits = limits(&key.limits);
    if !limits.is_empty() {
        table.insert("limits", value(limits));
    }
    table
}

/// Replaces the secret of a key. The old ones are valid until their times.
pub(super) fn replace_secret(
    table: &mut Table,
    hash: &SecretHash,
    old: &[(SecretHash, SystemTime)],
) {
    if old.is_empty() {
        table.remove("hashes");
        table.insert("hash", value(hash.to_string()));
        return;
    }
    let entry = |hash: &SecretHash, expires: Option<SystemTime>| {
        let mut entry = InlineTable::new();
        entry.insert("hash", hash.to_string().into());
        if let Some(expires) = expires {
            entry.insert("expires", format_time(expires).into());
        }
        Value::from(entry)
    };
    let mut hashes = Array::new();
    hashes.push(entry(hash, None));
    old.iter().for_each(|(hash, until)| hashes.push(entry(hash, Some(*until))));
    table.remove("hash");
    // Also if they were tables of their own.
    table.insert("hashes", Item::Value(hashes.into()));
}

fn add_grants(table: &mut Table, grants: &Grants) {
    let lists = [
        ("models", grants.models.clone()),
        ("lanes", grants.lanes.clone()),
        ("listeners", grants.listeners.clone()),
    ];
    for (name, list) in lists {
        if let Some(list) = list {
            table.insert(name, value(Array::from_iter(list)));
        }
    }
    if let Some(endpoints) = &grants.endpoints {
        let names = endpoints.iter().map(|endpoint| endpoint.label());
        table.insert("endpoints", value(Array::from_iter(names)));
    }
    if let Some(engine_admin) = grants.engine_admin {
        table.insert("engine-admin", value(engine_admin));
    }
    if let Some(priority) = &grants.priority {
        let mut range = InlineTable::new();
        range.insert("min", i64::from(*priority.start()).into());
        range.insert("max", i64::from(*priority.end()).into());
        table.insert("priority", value(range));
    }
}

fn limits(limits: &Limits) -> InlineTable {
    let mut table = InlineTable::new();
    let mut set = |name: &str, number: Option<u64>| {
        if let Some(number) = number {
            table.insert(name, integer(number));
        }
    };
    set("requests-per-minute", limits.requests_per_minute.map(u64::from));
    set("tokens-per-minute", limits.tokens_per_minute);
    set("concurrent", limits.concurrent.map(u64::from));
    set("queued", limits.queued.map(u64::from));
    if !limits.budgets.is_empty() {
        table.insert("budget", Array::from_iter(limits.budgets.iter().map(budget)).into());
    }
    table
}

fn budget(budget: &Budget) -> Value {
    let period = match budget.period {
        Period::Day => "day",
        Period::Week => "week",
        Period::Month => "month",
    };
    let mut table = InlineTable::new();
    table.insert("period", period.into());
    let amounts = [
        ("tokens", budget.tokens),
        ("requests", budget.requests),
        ("engine-seconds", budget.engine_seconds),
    ];
    for (name, amount) in amounts {
        if let Some(amount) = amount {
            table.insert(name, integer(amount));
        }
    }
    table.into()
}

/// Integers of TOML are signed; the reader accepts no larger ones.
fn integer(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}
