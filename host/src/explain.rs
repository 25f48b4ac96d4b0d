//! `pointsman explain` and `pointsman decide`: why a request was decided as it was, and what would
//! be decided about one now.

mod text;
mod without_host;

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use pointsman_config::Config;
use pointsman_files::read_regular_text;
use pointsman_record::Explanation;

pub(crate) use self::text::{explanation, host_calls, section, value_lines};
use crate::cli::explain::{Decide, Explain};
use crate::output::{print, print_error, with_causes};
use crate::policy::{ClientError, HostClient, call_with, percent_encoded, recorded};

/// Maximum bytes of the body of a request, as in a host.
const MAX_BODY: u64 = 8 << 20;
/// Headers that have another meaning for the admin API.
const RESERVED: [HeaderName; 4] =
    [header::AUTHORIZATION, header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Prints why a request was decided as it was.
///
/// # Errors
/// If the request is not found, or the host is not reachable.
pub(crate) fn explain(options: &Explain) -> Result<()> {
    let records = &options.records;
    let explained = if records.is_empty() {
        explain_by_host(options)?
    } else {
        recorded::find(records, &options.id)?.explain()
    };
    show(&explained, options.json)
}

/// Asks the host; if none runs with the configuration, its records are searched.
fn explain_by_host(options: &Explain) -> Result<Explanation> {
    let ask = || {
        let client = HostClient::new(&options.target)?;
        let path = format!("/decisions/{}", percent_encoded(&options.id));
        parse(call_with(&client, Method::GET, &path, String::new())?)
    };
    let error = match ask() {
        Err(error) if is_without_host(&error) => error,
        asked => return asked,
    };
    let Some(file) = &options.target.address.config else { return Err(error) };
    let config = Config::load_without_secrets(file, &[])?;
    let Some(records) = config.records else { return Err(error) };
    let dir = records.dir;
    print_error(format!("note: {}; searching {}", with_causes(&error), dir.display()));
    Ok(recorded::find(&[dir], &options.id)?.explain())
}

/// Prints what would be decided about a request now. A host decides; if none runs with the
/// configuration, what it would decide after its start is printed.
///
/// # Errors
/// If the file cannot be read, the configuration is not valid, or the host that was named is not
/// reachable.
pub(crate) fn decide(options: &Decide) -> Result<()> {
    let body = read_body(&options.body)?;
    let (headers, path) = (headers(&options.header)?, decide_path(options));
    let host = &options.host;
    let alone = |body: String| {
        // clap ensures that there is a configuration.
        let file = host.target.address.config.as_deref().unwrap_or(Path::new(""));
        let mut request = Request::post(path.as_str()).body(body)?;
        request.headers_mut().extend(headers.clone());
        show(&without_host::decide(file, request)?, host.json)
    };
    if options.offline {
        return alone(body);
    }
    let ask = |body: String| {
        let client = HostClient::new(&host.target)?.with_headers(headers.clone());
        parse(call_with(&client, Method::POST, &path, body)?)
    };
    match ask(body.clone()) {
        Ok(decided) => show(&decided, host.json),
        Err(error) if host.target.address.config.is_some() && is_without_host(&error) => {
            print_error(format!("note: {}; deciding without a host", with_causes(&error)));
            alone(body)
        }
        Err(error) => Err(error),
    }
}

fn is_without_host(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ClientError>().is_some_and(ClientError::is_without_host)
}

fn decide_path(options: &Decide) -> String {
    let mut path = format!("/decide?endpoint={}", percent_encoded(&options.endpoint));
    if let Some(key) = &options.key_id {
        path.push_str(&format!("&key={}", percent_encoded(key)));
    }
    path
}

fn parse(value: serde_json::Value) -> Result<Explanation> {
    serde_json::from_value(value).context("the host is a different version")
}

fn show(explained: &Explanation, as_json: bool) -> Result<()> {
    match as_json {
        true => print(&format!("{:#}\n", serde_json::json!(explained))),
        false => print(&explanation(explained)),
    }
}

fn read_body(file: &Path) -> Result<String> {
    if file != Path::new("-") {
        return Ok(read_regular_text(file, MAX_BODY)?);
    }
    let mut body = String::new();
    let mut input = std::io::stdin().take(MAX_BODY + 1);
    input.read_to_string(&mut body).context("failed to read standard input")?;
    if body.len() as u64 > MAX_BODY {
        bail!("standard input exceeds {} MiB", MAX_BODY >> 20);
    }
    Ok(body)
}

/// Parses headers of the command line.
fn headers(given: &[String]) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for text in given {
        let invalid = || format!("invalid header {text:?}: expected \"NAME: VALUE\"");
        let (name, value) = text.split_once(':').with_context(invalid)?;
        let name: HeaderName = name.trim().parse().with_context(invalid)?;
        if RESERVED.contains(&name) {
            bail!("header `{name}` cannot be set; use --key-id to decide as for a key");
        }
        headers.append(name, HeaderValue::from_str(value.trim()).with_context(invalid)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::headers;
    use crate::cli::Cli;

    #[test]
    fn explain_takes_a_host_or_records() {
        let parse = |arguments: &[&str]| {
            let explain = ["pointsman", "explain", "id"].iter();
            Cli::try_parse_from(explain.chain(arguments)).map(drop).map_err(|error| error.kind())
        };
        let (config, records) = (["--config", "a.toml"], ["--records", "a", "b"]);
        let url = ["--url", "http://127.0.0.1:1", "--token-env", "T"];
        for valid in [&config[..], &records, &url, &["--socket", "s"]] {
            assert_eq!(parse(valid), Ok(()), "{valid:?}");
        }
        for (invalid, kind) in [
            (&[][..], ErrorKind::MissingRequiredArgument),
            (&url[..2], ErrorKind::MissingRequiredArgument),
            (&[config, ["--socket", "s"]].concat(), ErrorKind::ArgumentConflict),
            (&[&config[..], &records].concat(), ErrorKind::ArgumentConflict),
        ] {
            assert_eq!(parse(invalid), Err(kind), "{invalid:?}");
        }
    }

    #[test]
    fn headers_have_a_name_and_are_not_those_of_the_admin_api() {
        let given = |text: &str| headers(&[text.to_owned()]);
        assert_eq!(given("X-Team:  search: a ").unwrap()["x-team"], "search: a");
        for invalid in ["no-colon", ": x", "a b: c", "x: \u{7f}\n", "Authorization: Bearer x"] {
            assert!(given(invalid).is_err(), "{invalid}");
        }
    }
}
