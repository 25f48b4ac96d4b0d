//! The fields that control the generation, from Ollama's `options`, `format` and `think`.

use serde_json::{Map, Value, json};

use crate::bad_request::BadRequest;
use crate::request::lowest_limit;

type Object = Map<String, Value>;

/// Options with the fields by which engines know them. Options that concern how a model is loaded
/// are not among them.
const OPTIONS: [(&str, &str); 17] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("stop", "stop"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    // The name of vLLM, and that of llama.cpp: both ignore the other one.
    ("repeat_penalty", "repetition_penalty"),
    ("repeat_penalty", "repeat_penalty"),
    ("repeat_last_n", "repeat_last_n"),
    ("typical_p", "typical_p"),
    ("mirostat", "mirostat"),
    ("mirostat_tau", "mirostat_tau"),
    ("mirostat_eta", "mirostat_eta"),
    ("tfs_z", "tfs_z"),
    ("num_keep", "n_keep"),
];

/// Adds the options, and what limits the response.
pub(super) fn add(body: &Object, fields: &mut Object) {
    let options = body.get("options").and_then(Value::as_object);
    for (option, field) in OPTIONS {
        let value = options.and_then(|options| options.get(option));
        if let Some(value) = value.filter(|value| !value.is_null()) {
            fields.insert(field.to_owned(), value.clone());
        }
    }
    let predict = options.and_then(|options| options.get("num_predict"));
    let limits = [predict, body.get("max_tokens"), body.get("max_completion_tokens")];
    let limits = limits.map(|limit| limit.map(Value::to_string));
    if let Some(limit) = lowest_limit(limits.iter().flatten().map(String::as_str)) {
        fields.insert("max_tokens".to_owned(), limit.into());
    }
    for name in ["logprobs", "top_logprobs"] {
        super::copy(body, name, fields);
    }
}

/// Adds the format of the response.
pub(super) fn add_format(body: &Object, fields: &mut Object) -> Result<(), BadRequest> {
    let format = match body.get("format") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(name)) if name.is_empty() => return Ok(()),
        Some(Value::String(name)) if name == "json" => json!({ "type": "json_object" }),
        Some(Value::Object(schema)) => {
            let schema = json!({ "name": "response", "schema": schema, "strict": true });
            json!({ "type": "json_schema", "json_schema": schema })
        }
        Some(_) => return Err(BadRequest::invalid("format", "\"json\" or a JSON schema")),
    };
    fields.insert("response_format".to_owned(), format);
    Ok(())
}

/// Adds whether, or how much, the model thinks before its answer. Chat templates know the former
/// by the name that Qwen has given it.
pub(super) fn add_thinking(body: &Object, fields: &mut Object) {
    match body.get("think") {
        Some(Value::Bool(thinks)) => {
            let arguments = json!({ "enable_thinking": thinks });
            fields.insert("chat_template_kwargs".to_owned(), arguments);
        }
        Some(Value::String(effort)) if !effort.is_empty() => {
            fields.insert("reasoning_effort".to_owned(), effort.as_str().into());
        }
        _ => {}
    }
}
