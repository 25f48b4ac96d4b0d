//! `pointsman policy …`: commands for policy authors, and for operators of a running host.

mod author;
mod case;
mod client;
mod coverage;
mod dev;
mod formats;
mod install;
mod progress;
pub(crate) mod recorded;
mod registry;
mod report;
mod shadow_table;
mod table;
mod test;
mod test_report;
mod test_results;
mod trace;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};

pub(crate) use self::author::PolicyLoadError;
pub(crate) use self::client::{ClientError, HostClient, read_response};
pub(crate) use self::table::aligned;
use crate::cli::policy::{HostOptions, Policy, PolicyTarget};
use crate::output;

/// Runs a subcommand.
pub(crate) fn policy(command: Policy) -> Result<ExitCode> {
    match command {
        Policy::New { name, lang, dir } => author::new(&dir, &name, lang),
        Policy::Build { dir, verbose, force, update_sdk } => {
            if update_sdk {
                pointsman_build::update_sdk(&dir)?;
            }
            author::build(&dir, verbose, force)
        }
        Policy::Test(options) => return test::test(&options),
        Policy::Dev(options) => return dev::dev(&options),
        Policy::Trace(options) => trace::trace(&options),
        Policy::Case(options) => case::case(&options),
        Policy::Bench(options) => author::bench(&options),
        Policy::Sign { dir, key } => author::sign(&dir, &key),
        Policy::Install(options) => return install::install(&options),
        Policy::Push { dir, reference, options } => registry::push(&dir, &reference, &options),
        Policy::Pull { reference, dir, options } => registry::pull(&reference, &dir, &options),
        Policy::Verify { reference, options } => registry::verify(&reference, &options),
        Policy::List(host) => print_list(&host, Method::GET, "/policies"),
        Policy::Reload(host) => print_list(&host, Method::POST, "/reload"),
        Policy::Show(PolicyTarget { name, host }) => {
            print(&host, &details(&name, &host)?, shadow_table::details)
        }
        Policy::History(PolicyTarget { name, host }) => {
            print(&host, &details(&name, &host)?["events"], table::history)
        }
        Policy::Rollback { target, to } => send_command(&target, "rollback", to),
        Policy::Promote { target, version } => send_command(&target, "promote", version),
        Policy::Disable(target) => send_command(&target, "disable", None),
        Policy::Enable(target) => send_command(&target, "enable", None),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the details of a policy.
fn details(name: &str, host: &HostOptions) -> Result<Value> {
    call(host, Method::GET, &format!("/policies/{}", percent_encoded(name)), None)
}

/// Prints the policies in the response to a request.
fn print_list(host: &HostOptions, method: Method, path: &str) -> Result<()> {
    let mut response = call(host, method, path, None)?;
    print(host, &response["policies"].take(), |policies| {
        table::list(policies.as_array().map_or(&[], Vec::as_slice))
    })
}

/// Sends a command and prints the policy after it.
fn send_command(
    PolicyTarget { name, host }: &PolicyTarget,
    command: &str,
    version: Option<String>,
) -> Result<()> {
    let path = format!("/policies/{}/{command}", percent_encoded(name));
    let body = version.map(|version| json!({ "version": version }));
    let policy = call(host, Method::POST, &path, body)?;
    print(host, &policy, |policy| table::list(std::slice::from_ref(policy)))
}

/// Sends a request to a running host.
pub(crate) fn call(
    host: &HostOptions,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value> {
    let client = HostClient::new(&host.target)?;
    let body = body.map_or_else(String::new, |body| body.to_string());
    call_with(&client, method, path, body)
}

/// Sends a request with this client.
pub(crate) fn call_with(
    client: &HostClient,
    method: Method,
    path: &str,
    body: String,
) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    Ok(runtime.block_on(client.call(method, path, body))?)
}

fn print(host: &HostOptions, value: &Value, to_text: impl Fn(&Value) -> String) -> Result<()> {
    output::print(&if host.json { format!("{value:#}\n") } else { to_text(value) })
}

/// Encodes a name as one segment of a path.
pub(crate) fn percent_encoded(name: &str) -> String {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let encode = |byte: u8| match is_unreserved(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn names_are_encoded_as_one_path_segment() {
        assert_eq!(percent_encoded("cortex-1.0_a~"), "cortex-1.0_a~");
        assert_eq!(percent_encoded("a/../b?ä %"), "a%2F..%2Fb%3F%C3%A4%20%25");
    }
}
