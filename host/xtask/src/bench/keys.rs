//! What keys, limits and usage cost: instructions and CPU time per request without keys, with
//! 10,000 of them, and with limits of each kind.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use pointsman_xtask::command::target_dir;
use pointsman_xtask::sha256;

use super::SECRET;
use super::instructions::instructions;
use super::load::{compare, table};
use super::server::{configuration, free_port, pointsman, start};

/// Keys beside that of the load generator.
const KEYS: usize = 10_000;
/// Limits that the load does not reach.
pub(super) const LIMITS: &str = "limits = { requests-per-minute = 100000000, \
    tokens-per-minute = 100000000000, concurrent = 1000, queued = 1000, \
    budget = [{ period = \"day\", tokens = 100000000000000 }, \
    { period = \"month\", tokens = 1000000000000000 }] }\n";

pub(super) fn keys(root: &Path) -> Result<()> {
    let release = super::programs()?;
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(release.join("fake-engine"));
    let engine = start("direct", command.args(["--bench", "--port"]), free_port()?, true)?;
    let mut access = vec![("no keys", String::new())];
    for (name, limits) in [("keys and usage", ""), ("keys, usage, limits", LIMITS)] {
        access.push((name, access_section(&folder, name, limits)?));
    }
    let loads = [
        ("whole answers", &["--connections", "4", "--seconds", "3"][..]),
        ("streams of 10 chunks", &["--connections", "4", "--seconds", "3", "--stream"]),
    ];
    let mut hosts = Vec::new();
    for (name, access) in &access {
        hosts.push((*name, configuration(root, &folder, name, access, engine.port)?));
    }
    instructions(&release, &folder, &hosts, &loads)?;
    let mut servers = Vec::new();
    for (name, access) in &access {
        servers.push(pointsman(root, &release, &folder, name, access, engine.port)?);
    }
    servers.insert(0, engine);
    for (title, arguments) in [
        ("32 connections, whole answers", &["--connections", "32", "--seconds", "5"][..]),
        ("32 connections, streams of 10 chunks", &["--connections", "32", "--stream"]),
    ] {
        let medians = table(&release, title, arguments, &servers)?;
        compare(&servers[1..], &medians[1..]);
    }
    Ok(())
}

/// Writes a file of keys with these limits. Returns the section of a configuration with the file.
pub(super) fn access_section(folder: &Path, name: &str, limits: &str) -> Result<String> {
    let file = folder.join(format!("{}.toml", name.replace([' ', ','], "_")));
    fs::write(&file, keys_file(limits))?;
    Ok(format!("[access]\nkeys = {file:?}\n"))
}

fn keys_file(limits: &str) -> String {
    let tenant = format!("[[tenants]]\nname = \"bench\"\n{limits}");
    let key = |name: &str, secret: &str| {
        let hash = sha256(secret.as_bytes());
        format!("[[keys]]\nid = \"{name}\"\nhash = \"sha256:{hash}\"\ntenant = \"bench\"\n{limits}")
    };
    let others = (0..KEYS).map(|number| key(&format!("k_{number}"), &format!("pm_{number}")));
    tenant + &key("bench", SECRET) + &others.collect::<String>()
}
