//! The `config.yaml` of LiteLLM's proxy.

use super::document::{Lane, is_reference, reference};
use super::fields::Fields;
use super::output::Output;
use super::words::is_plain;
use super::yaml::{Entry, Node};

/// Providers with the OpenAI API, and its address.
const PROVIDERS: [(&str, &str); 12] = [
    ("openai", "https://api.openai.com/v1"),
    ("groq", "https://api.groq.com/openai/v1"),
    ("mistral", "https://api.mistral.ai/v1"),
    ("deepseek", "https://api.deepseek.com/v1"),
    ("openrouter", "https://openrouter.ai/api/v1"),
    ("together_ai", "https://api.together.xyz/v1"),
    ("fireworks_ai", "https://api.fireworks.ai/inference/v1"),
    ("xai", "https://api.x.ai/v1"),
    ("ollama", "http://127.0.0.1:11434/v1"),
    ("ollama_chat", "http://127.0.0.1:11434/v1"),
    ("hosted_vllm", ""),
    ("lm_studio", ""),
];
/// Providers whose APIs are different ones, even if `api_base` is set.
const OTHERS: [&str; 8] =
    ["azure", "bedrock", "vertex_ai", "gemini", "sagemaker", "anthropic", "cohere", "huggingface"];
/// Parameters of a model without a counterpart.
const PARAMETERS: [(&str, &str, &str); 11] = [
    ("rpm", "requests per minute", "set `requests-per-minute` of a key or group (keys file)"),
    ("tpm", "tokens per minute", "set `tokens-per-minute` of a key or group (keys file)"),
    ("timeout", "maximum duration of a request", "set `server.deadline`"),
    ("stream_timeout", "maximum time to the first chunk", "set `lanes.timeouts.first-byte`"),
    ("max_retries", "retries at the same server", "set `server.max-attempts` for other lanes"),
    ("temperature", "a default of requests", "write a policy that edits requests"),
    ("max_tokens", "a default of requests", "see `max-output-tokens` of `[[guards]]`"),
    ("weight", "the share of requests", "policy `spread` distributes requests"),
    ("order", "the order of servers", "a policy orders lanes"),
    ("custom_llm_provider", "the API of the server", "lanes have the OpenAI API"),
    ("organization", "a header for OpenAI", "no counterpart"),
];
const ROUTER: [(&str, &str, &str); 8] = [
    ("routing_strategy", "how a server is chosen", "the lane that can start first; or a policy"),
    (
        "fallbacks",
        "other models after errors",
        "list the lanes in `[[models]]`, ranked by a policy",
    ),
    ("context_window_fallbacks", "other models for long prompts", "set `max-context` of lanes"),
    ("content_policy_fallbacks", "other models after a refusal", "no counterpart"),
    ("retry_after", "pause before a retry", "no counterpart"),
    ("allowed_fails", "failures before a pause", "a circuit breaker does this"),
    ("cooldown_time", "the pause of a failing server", "a circuit breaker does this"),
    ("enable_pre_call_checks", "checks of the context", "`max-context` is always checked"),
];
const SETTINGS: [(&str, &str, &str); 6] = [
    ("drop_params", "drops unknown parameters", "requests are passed on as they are"),
    ("set_verbose", "more in the log", "set `log.level`"),
    ("callbacks", "functions after a request", "see `records` and `telemetry`"),
    ("success_callback", "functions after a response", "see `records` and `telemetry`"),
    ("failure_callback", "functions after an error", "see `records` and `telemetry`"),
    ("cache", "a cache of responses", "no counterpart"),
];

pub(crate) fn read(root: &Node, output: &mut Output) {
    let mut fields = Fields::new("", root);
    if let Some(list) = fields.take("model_list")
        && let Node::List(models) = &list.value
    {
        for (index, (line, model)) in models.iter().enumerate() {
            read_model(index, *line, model, output);
        }
    }
    let mut fallbacks = ROUTER.to_vec();
    fallbacks.extend(SETTINGS);
    for section in ["router_settings", "litellm_settings", "general_settings"] {
        let Some(entry) = fields.take(section) else { continue };
        let mut settings = Fields::new(section, &entry.value);
        read_settings(&mut settings, output);
        for (key, there, here) in &fallbacks {
            settings.report(output, key, there, here);
        }
        settings.report_rest(output);
    }
    if let Some(entry) = fields.take("environment_variables") {
        let here = "set them in the environment of the host";
        output.note(entry.line, "environment_variables", "variables of the proxy", here);
    }
    fields.report_rest(output);
}

fn read_settings(settings: &mut Fields<'_>, output: &mut Output) {
    if let Some((_, retries)) = settings.number("num_retries", 0) {
        let attempts = i64::try_from(retries.min(9)).unwrap_or(9) + 1;
        output.document.server.set("max-attempts", attempts);
    }
    for key in ["request_timeout", "timeout"] {
        if let Some((_, seconds)) = settings.number(key, 1) {
            output.document.server.set("deadline", format!("{}s", seconds.min(86_400)));
        }
    }
    if let Some(entry) = settings.take("master_key") {
        let written = entry.value.text().and_then(environment);
        let variable = written.unwrap_or("LITELLM_MASTER_KEY");
        output.document.require_key(variable);
        let here = format!("set {variable}: clients send this key; commands need none");
        output.note(entry.line, settings.path("master_key"), "the key of clients and admins", here);
    }
    let here = "keys, groups and usage are in files: see `pointsman key` and `pointsman usage`";
    settings.report(output, "database_url", "a database of keys and usage", here);
    let Some(entry) = settings.take("model_group_alias") else { return };
    for alias in entry.value.entries() {
        let target = alias.value.text().or_else(|| alias.value.get("model")?.text());
        let lanes = output.document.lanes.iter_mut();
        let mut found = false;
        for lane in
            lanes.filter(|lane| lane.models.iter().any(|name| Some(name.as_str()) == target))
        {
            lane.add_model(&alias.key);
            found = true;
        }
        if !found {
            let key = settings.path(&format!("model_group_alias.{}", alias.key));
            output.note(alias.line, key, "a name of a model that is missing", "left out");
        }
    }
}

/// Returns the variable of `os.environ/NAME`.
fn environment(text: &str) -> Option<&str> {
    let name = text.strip_prefix("os.environ/")?;
    let is_name = !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some(name)
}

/// Returns the variable for the key of a lane.
pub(crate) fn key_variable(lane: &str) -> String {
    let name: String = lane
        .chars()
        .map(
            |letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' },
        )
        .collect();
    format!("LANE_{name}_API_KEY")
}

fn read_model(index: usize, line: usize, model: &Node, output: &mut Output) {
    let path = format!("model_list[{index}]");
    let mut fields = Fields::new(path.clone(), model);
    let name = fields.text("model_name");
    let parameters = fields.take("litellm_params");
    fields.report(output, "model_info", "data of the model", "set `max-context` and `cost`");
    fields.report_rest(output);
    let (Some((_, name)), Some(parameters)) = (name, parameters) else {
        let here = "add a lane by hand";
        output.note(line, path, "an entry without model_name or litellm_params", here);
        return;
    };
    let mut fields = Fields::new(format!("{path}.litellm_params"), &parameters.value);
    let model = fields.text("model").map_or(name, |(_, model)| model);
    let (provider, rest) = model.split_once('/').unwrap_or(("openai", model));
    let known = PROVIDERS.iter().find(|(known, _)| *known == provider);
    let base = fields.text("api_base").or_else(|| fields.text("base_url"));
    let key = fields.take("api_key");
    let mut lane = Lane::new(name);
    for (key, there, here) in PARAMETERS {
        fields.report(output, key, there, here);
    }
    fields.report_rest(output);
    let is_other = OTHERS.contains(&provider);
    let url = match (base, known) {
        _ if is_other => None,
        (Some((line, url)), _) => match url.strip_prefix("os.environ/") {
            Some(_) => {
                let Some(reference) = environment(url).and_then(reference) else {
                    let there = "an address in a variable without a valid name";
                    output.note(line, format!("{path}.api_base"), there, "write the lane by hand");
                    return;
                };
                let here = "set this variable in the host's environment";
                output.note(line, format!("{path}.api_base"), "a variable with the address", here);
                Some((line, reference))
            }
            None => Some((line, with_api_path(provider, url))),
        },
        (None, Some((_, url))) if !url.is_empty() => Some((line, (*url).to_owned())),
        (None, Some(_) | None) => None,
    };
    let Some((url_line, url)) = url else {
        let there = format!("a model of {provider}");
        let here = "lanes have the OpenAI API: set `api_base` to a server that has it";
        output.note(line, path, there, here);
        return;
    };
    if !set_url(&mut lane, &url, url_line, &format!("{path}.api_base"), output) {
        return;
    }
    let sent = if known.is_some() { rest } else { model };
    let is_wildcard = name.contains('*') || sent.contains('*');
    if is_wildcard {
        let here = "a lane answers to the names that it lists: add them to `models`";
        output.note(line, format!("{path}.model_name"), "a pattern of names", here);
    } else if !sent.is_empty() && is_plain(sent) {
        lane.settings.set_text("engine-model", sent);
    }
    set_key(&mut lane, key, provider, &path, output);
    output.document.add(lane);
}

/// Returns the address of the API of a server. Ollama's own API has another path.
fn with_api_path(provider: &str, url: &str) -> String {
    let url = url.trim_end_matches('/');
    match provider.starts_with("ollama") && !url.ends_with("/v1") {
        true => format!("{url}/v1"),
        false => url.to_owned(),
    }
}

fn set_key(lane: &mut Lane, key: Option<&Entry>, provider: &str, path: &str, output: &mut Output) {
    let Some(entry) = key else {
        // LiteLLM reads the variable of the provider, such as OPENAI_API_KEY.
        if let Some((known, url)) = PROVIDERS.iter().find(|(known, _)| *known == provider)
            && url.starts_with("https")
            && lane.engine.get("url").and_then(|own| own.as_str()) == Some(url)
        {
            lane.engine.set("key-env", format!("{}_API_KEY", known.to_ascii_uppercase()));
        }
        return;
    };
    match entry.value.text() {
        None | Some("" | "none" | "None" | "dummy" | "EMPTY") => {}
        Some(text) => match environment(text) {
            Some(variable) => lane.engine.set("key-env", variable),
            None => {
                let variable = key_variable(&output.document.unique(&lane.name));
                let here = format!("not copied; set {variable} to it");
                let key = format!("{path}.litellm_params.api_key");
                output.note(entry.line, key, "the key of the server", here);
                lane.engine.set("key-env", variable);
            }
        },
    }
}

/// Makes a lane of an existing server. Returns false, and reports it, if the URL is invalid.
pub(crate) fn set_url(
    lane: &mut Lane,
    url: &str,
    line: usize,
    key: &str,
    output: &mut Output,
) -> bool {
    let is_valid = is_reference(url)
        || pointsman_fleet::ExternalSpec::try_new(url, None, std::time::Duration::from_secs(1))
            .is_ok();
    if !is_valid || !is_plain(url) || url.contains('@') {
        // The URL is not quoted: it may have a password.
        let here = "write the lane by hand, with driver \"external\"";
        output.note(line, key, "an address that is not a URL of a server", here);
        return false;
    }
    lane.engine.set("driver", "external");
    lane.engine.set_text("url", url);
    true
}
