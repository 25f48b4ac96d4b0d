//! `pointsman key …`: changes the keys file. Running hosts watch it, so that they need no signal.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use pointsman_access::{
    Definitions, EditError, Grants, KeySpec, Limits, NewSecret, endpoint_named, format_time,
    parse_time_from,
};
use pointsman_config::Config;
use pointsman_domain::Endpoint;
use pointsman_settings::folder_of;
use serde_json::{Value, json};

use crate::cli::key::{Key, KeysFile, NewKey};
use crate::output::{print, print_error};
use crate::policy::aligned;

/// When a change is in force, for the operator.
const IN_FORCE: &str =
    "running hosts follow within 2 s, or `policies.poll-interval` without file events";

/// Runs a subcommand.
pub(crate) fn key(command: Key) -> Result<()> {
    let now = SystemTime::now();
    match command {
        Key::New(options) => new(options, now),
        Key::List { file, json } => {
            let keys = Definitions::load(&path(&file)?)?.keys;
            print(&if json { format!("{:#}\n", to_json(&keys, now)) } else { table(&keys, now) })
        }
        Key::Revoke { id, file } => {
            let mut file = open(&file)?;
            file.remove(&id).and_then(|()| file.save()).map_err(of_file)?;
            print_error(format!("key `{id}` is revoked; {IN_FORCE}"));
            Ok(())
        }
        Key::Rotate { id, grace, file } => {
            let until = parse_time_from(&grace, now);
            let until = until.with_context(|| format!("invalid duration \"{grace}\""))?;
            let mut file = open(&file)?;
            let secret = file.rotate(&id, Some(until), now).map_err(of_file)?;
            file.save().map_err(of_file)?;
            let old = match until > now {
                true => format!("the old one is valid until {}", format_time(until)),
                false => "the old one is refused".to_owned(),
            };
            show(&secret, format!("new secret of key `{id}`; {old}; {IN_FORCE}"))
        }
    }
}

fn new(options: NewKey, now: SystemTime) -> Result<()> {
    let expires = options.expires.as_deref().map(|text| {
        parse_time_from(text, now).with_context(|| {
            format!("invalid time \"{text}\": expected for example \"30d\" or \"2027-01-01\"")
        })
    });
    let endpoints = options
        .endpoints
        .iter()
        .map(|name| endpoint_named(name).with_context(|| format!("unknown endpoint `{name}`")));
    let endpoints = endpoints.collect::<Result<Vec<Endpoint>>>()?;
    let listed = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    let key = pointsman_access::NewKey {
        id: options.name,
        tenant: options.tenant,
        group: options.group,
        expires: expires.transpose()?,
        grants: Grants {
            models: listed(options.models),
            lanes: listed(options.lanes),
            endpoints: Some(endpoints).filter(|list| !list.is_empty()),
            listeners: listed(options.listeners),
            engine_admin: options.engine_admin.then_some(true),
            priority: options.priority,
        },
        limits: Limits {
            requests_per_minute: options.requests_per_minute,
            tokens_per_minute: options.tokens_per_minute,
            concurrent: options.concurrent,
            queued: options.queued,
            budgets: options.budgets,
        },
    };
    let mut file = open(&options.file)?;
    let (id, secret) = file.add(key).map_err(of_file)?;
    file.save().map_err(of_file)?;
    let told = format!("secret of key `{id}`, which cannot be shown again; {IN_FORCE}");
    show(&secret, told)
}

/// Prints a secret alone on standard output, so that scripts can take it.
fn show(secret: &NewSecret, told: String) -> Result<()> {
    print(&format!("{}\n", secret.reveal()))?;
    print_error(told);
    Ok(())
}

fn open(file: &KeysFile) -> Result<pointsman_access::KeysFile> {
    pointsman_access::KeysFile::lock(&path(file)?).map_err(of_file)
}

/// Errors in the file have the exit code of those in a configuration.
fn of_file(error: EditError) -> anyhow::Error {
    match error {
        EditError::Invalid(error) => error.into(),
        error => error.into(),
    }
}

/// Returns the path of the keys file. Of a configuration, only that key is read: its secrets may
/// not be in the environment of the command.
fn path(file: &KeysFile) -> Result<PathBuf> {
    if let Some(path) = &file.keys {
        return Ok(path.clone());
    }
    // The command line has one of the two.
    let config = file.config.clone().unwrap_or_default();
    let text = Config::source(&config)?;
    let Ok(table) = text.parse::<toml::Table>() else {
        // With line and code.
        Config::load(&config)?;
        bail!("{}: invalid TOML", config.display());
    };
    let keys = table.get("access").and_then(|access| access.get("keys")?.as_str());
    let keys = keys.with_context(|| {
        format!("{}: access.keys is not set; set for example \"keys.toml\"", config.display())
    })?;
    Ok(folder_of(&config).join(keys))
}

/// Returns when a key is over, and why it is.
fn state(key: &KeySpec, now: SystemTime) -> &'static str {
    let is_over = |expires: Option<SystemTime>| expires.is_some_and(|expires| expires <= now);
    match is_over(key.expires) || key.hashes.iter().all(|(_, expires)| is_over(*expires)) {
        true => "expired",
        false if key.hashes.len() > 1 => "rotating",
        false => "valid",
    }
}

fn table(keys: &[KeySpec], now: SystemTime) -> String {
    let mut rows = vec![["ID", "TENANT", "GROUP", "EXPIRES", "STATE"].map(str::to_owned)];
    rows.extend(keys.iter().map(|key| {
        let dash = || "-".to_owned();
        [
            key.id.clone(),
            key.tenant.clone(),
            key.group.clone().unwrap_or_else(dash),
            key.expires.map_or_else(dash, format_time),
            state(key, now).to_owned(),
        ]
    }));
    aligned(&rows)
}

fn to_json(keys: &[KeySpec], now: SystemTime) -> Value {
    let time = |time: Option<SystemTime>| time.map(format_time);
    let key = |key: &KeySpec| {
        let secrets = key.hashes.iter().map(|(_, expires)| json!({ "expires": time(*expires) }));
        json!({
            "id": key.id,
            "tenant": key.tenant,
            "group": key.group,
            "expires": time(key.expires),
            "state": state(key, now),
            "secrets": secrets.collect::<Vec<_>>(),
        })
    };
    keys.iter().map(key).collect()
}
