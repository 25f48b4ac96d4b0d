//! `pointsman policy …`: what authors do with a policy's folder, and what operators ask of a running host.

mod author;
mod client;
mod report;
mod table;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};

pub(crate) use self::author::CannotLoad;
use self::author::print as print_text;
use self::client::Host;
use crate::cli::policy::{Asked, OfOne, Policy};

/// Carry out one of the commands.
pub(crate) fn policy(command: Policy) -> Result<ExitCode> {
    match command {
        Policy::New { name, lang, dir } => author::new(&dir, &name, lang),
        Policy::Build { dir, verbose } => author::build(&dir, verbose),
        Policy::Test(options) => return author::test(&options),
        Policy::Bench(options) => author::bench(&options),
        Policy::Sign { dir, key } => author::sign(&dir, &key),
        Policy::List(asked) => listed(&asked, Method::GET, "/policies"),
        Policy::Reload(asked) => listed(&asked, Method::POST, "/reload"),
        Policy::Show(OfOne { name, asked }) => {
            let policy = ask(&asked, Method::GET, &format!("/policies/{}", quoted(&name)), None)?;
            print(&asked, &policy, table::details)
        }
        Policy::Rollback { of, to } => ordered(&of, "rollback", to),
        Policy::Promote { of, version } => ordered(&of, "promote", version),
        Policy::Disable(of) => ordered(&of, "disable", None),
        Policy::Enable(of) => ordered(&of, "enable", None),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn listed(asked: &Asked, method: Method, path: &str) -> Result<()> {
    let mut answer = ask(asked, method, path, None)?;
    print(asked, &answer["policies"].take(), |policies| {
        table::of(policies.as_array().map_or(&[], Vec::as_slice))
    })
}

fn ordered(OfOne { name, asked }: &OfOne, order: &str, version: Option<String>) -> Result<()> {
    let path = format!("/policies/{}/{order}", quoted(name));
    let policy =
        ask(asked, Method::POST, &path, version.map(|version| json!({ "version": version })))?;
    print(asked, &policy, |policy| table::of(std::slice::from_ref(policy)))
}

fn ask(asked: &Asked, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
    let host = Host::find(&asked.at, asked.token_env.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the runtime cannot be started")?;
    runtime.block_on(host.ask(method, path, body.map_or_else(String::new, |body| body.to_string())))
}

fn print(asked: &Asked, value: &Value, format_duration: impl Fn(&Value) -> String) -> Result<()> {
    print_text(&if asked.json { format!("{value:#}\n") } else { format_duration(value) });
    Ok(())
}

/// A name as part of a path.
fn quoted(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(
            |byte| {
                if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_are_one_part_of_a_path() {
        assert_eq!(quoted("cortex-1.0_a~"), "cortex-1.0_a~");
        assert_eq!(quoted("a/../b?ä %"), "a%2F..%2Fb%3F%C3%A4%20%25");
    }
}
