//! The command lines of the real engines, as far as the fake engine understands them.

use clap::{CommandFactory as _, Parser as _};

use super::options::Options;

/// Flags of `vllm serve` with one value. Those that [`Options`] has as well have the same meaning;
/// the others are ignored.
const VLLM_VALUE: &str = "host port uds max-model-len max-num-seqs shutdown-timeout \
    scheduling-policy model dtype \
    device-memory-utilization tensor-parallel-size tp \
    pipeline-parallel-size pp \
    data-parallel-size dp load-format quantization q kv-cache-dtype block-size \
    max-num-batched-tokens tokenizer \
    tokenizer-mode revision tokenizer-revision download-dir config seed chat-template \
    tool-call-parser \
    reasoning-parser limit-mm-per-prompt kv-cache-memory-bytes kv-offloading-size \
    kv-offloading-backend \
    num-gpu-blocks-override safetensors-load-strategy performance-mode sse-keep-alive-interval \
    max-num-queued-reqs \
    max-num-queued-tokens max-log-len uvicorn-log-level disable-access-log-for-endpoints root-path \
    ssl-keyfile \
    ssl-certfile speculative-config compilation-config cc hf-overrides hf-config-path \
    override-generation-config \
    generation-config attention-backend distributed-executor-backend optimization-level O \
    max-loras max-lora-rank \
    max-logprobs runner convert task chat-template-content-format response-role allowed-origins \
    model-loader-extra-config \
    kv-transfer-config api-server-count stream-interval max-cudagraph-capture-size \
    logits-processors moe-backend \
    mm-processor-kwargs mamba-ssm-cache-dtype structured-outputs-config \
    default-chat-template-kwargs";
/// Flags of `vllm serve` without a value; each has a `no-` form.
const VLLM_SWITCH: &str = "enable-request-id-headers enable-sleep-mode disable-uvicorn-access-log \
    enforce-eager \
    trust-remote-code enable-prefix-caching enable-log-requests enable-log-outputs \
    disable-fastapi-docs \
    enable-server-load-tracking enable-force-include-usage enable-auto-tool-choice \
    enable-chunked-prefill \
    disable-log-stats fail-on-environ-validation enable-prompt-tokens-details enable-lora \
    async-scheduling headless \
    skip-tokenizer-init enable-tokenizer-info-endpoint enable-scale-out disable-custom-all-reduce \
    enable-expert-parallel language-model-only return-tokens-as-token-ids";
/// Flags of `vllm serve` with one value or more.
const VLLM_LIST: &str = "served-model-name api-key lora-modules middleware cudagraph-capture-sizes";
/// Flags of llama-server with one value, including short forms.
const LLAMA_VALUE: &str = "model m port host parallel np ctx-size c alias a api-key n-gpu-layers \
    gpu-layers ngl threads t \
    threads-batch tb batch-size b ubatch-size ub flash-attn fa cache-type-k ctk cache-type-v ctv \
    timeout to cache-ram \
    load-mode chat-template chat-template-file temp top-k top-p min-p seed s n-predict predict n \
    split-mode sm \
    tensor-split ts main-gpu mg device dev fit fit-target slot-save-path log-file log-verbosity lv \
    verbosity \
    sleep-idle-seconds sse-ping-interval rope-scaling rope-freq-base rope-freq-scale api-key-file \
    reasoning-format \
    reasoning-budget threads-http mmproj lora override-tensor ot n-cpu-moe ncmoe keep cache-reuse \
    slot-prompt-similarity \
    chat-template-kwargs defrag-thold hf-repo hf";
/// Flags of llama-server without a value.
const LLAMA_SWITCH: &str = "metrics slots no-slots jinja no-jinja embeddings embedding kv-unified \
    no-kv-unified cont-batching \
    cb no-cont-batching no-mmap mmap mlock no-webui no-ui verbose v props no-warmup warmup \
    log-timestamps log-prefix \
    log-disable offline no-context-shift context-shift swa-full reranking rerank direct-io \
    no-kv-offload cache-prompt \
    no-cache-prompt";

/// Flags of [`LLAMA_SWITCH`] that are not ignored.
const LLAMA_USED: [&str; 5] = ["metrics", "embedding", "embeddings", "rerank", "reranking"];

/// An invalid command line, as the real engine reports it.
#[derive(Debug)]
pub(super) struct UsageError {
    pub(super) message: String,
    pub(super) exit_code: u8,
}

fn contains(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|known| known == name)
}

/// Returns whether a flag of [`Options`] takes a value; `None` if the flag is unknown.
fn own_flag(name: &str) -> Option<bool> {
    let command = Options::command();
    let found = command.get_arguments().find(|argument| argument.get_long() == Some(name))?;
    Some(found.get_action().takes_values())
}

/// Splits a text into words as a shell does: quotes keep spaces.
fn split_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for letter in text.chars() {
        match quote {
            Some(mark) if mark == letter => quote = None,
            None if letter == '"' || letter == '\'' => (quote, begun) = (Some(letter), true),
            None if letter.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(letter);
                begun = true;
            }
        }
    }
    words.extend(begun.then_some(word));
    words
}

/// Parses the command line, without the name of the program, and the variable `FAKE_ENGINE`.
pub(super) fn parse(arguments: &[String], variable: &str) -> Result<Options, UsageError> {
    let mut flags = vec!["fake-engine".to_owned()];
    flags.extend(split_words(variable));
    let llama = |word: &String| {
        matches!(word.split('=').next(), Some("--model" | "-m" | "--hf-repo" | "-hf"))
    };
    if arguments.first().is_some_and(|first| first == "serve") {
        flags.extend(["--flavour", "vllm"].map(str::to_owned));
        vllm(&arguments[1..], &mut flags)?;
    } else if arguments.iter().any(llama) && !arguments.iter().any(|word| word == "--flavour") {
        llama_server(arguments, &mut flags)?;
    } else {
        flags.extend_from_slice(arguments);
    }
    Options::try_parse_from(flags).map_err(|error| UsageError {
        message: error.to_string(),
        exit_code: u8::try_from(error.exit_code()).unwrap_or(2),
    })
}

/// Splits a flag into its name and the value after `=`; `None` if the word is not a flag.
fn flag(word: &str) -> Option<(String, Option<String>)> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    if name.is_empty() || name.parse::<f64>().is_ok() {
        return None;
    }
    let (name, value) =
        name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
    Some((name.to_owned(), value.map(str::to_owned)))
}

fn vllm(arguments: &[String], flags: &mut Vec<String>) -> Result<(), UsageError> {
    let (mut model, mut unknown, mut at) = (None, Vec::new(), 0);
    while let Some(word) = arguments.get(at) {
        at += 1;
        let values = arguments[at..].iter().take_while(|word| flag(word).is_none()).count();
        let Some((name, value)) = flag(word) else {
            if model.is_none() {
                model = Some(word.clone())
            } else {
                unknown.push(word.clone())
            }
            continue;
        };
        let name = name.replace('_', "-");
        let plain = name.strip_prefix("no-").unwrap_or(&name);
        let max_values = if contains(VLLM_SWITCH, plain)
            || own_flag(&name) == Some(false)
            || name.starts_with('O')
        {
            0
        } else if contains(VLLM_LIST, &name) {
            usize::MAX
        } else if contains(VLLM_VALUE, &name) || own_flag(&name) == Some(true) {
            1
        } else {
            unknown.push(word.clone());
            continue;
        };
        let taken = if value.is_some() { 0 } else { max_values.min(values) };
        if max_values > 0 && taken == 0 && value.is_none() {
            return Err(argparse(&format!("argument --{name}: expected one argument")));
        }
        let given = value.into_iter().chain(arguments[at..at + taken].iter().cloned());
        at += taken;
        if name == "model" {
            model = given.last();
        } else if own_flag(&name).is_some() {
            flags.push(format!("--{name}"));
            flags.extend(given);
        }
    }
    if !unknown.is_empty() {
        return Err(argparse(&format!("unrecognized arguments: {}", unknown.join(" "))));
    }
    let model = model.unwrap_or_else(|| "Qwen/Qwen3-0.6B".to_owned());
    if !flags.iter().any(|flag| flag == "--served-model-name") {
        flags.extend(["--served-model-name".to_owned(), model.clone()]);
    }
    flags.extend(["--model".to_owned(), model]);
    Ok(())
}

/// Returns an error in the format of Python's argparse.
fn argparse(error: &str) -> UsageError {
    let message = format!(
        "usage: vllm [-h] [-v] {{chat,complete,serve,launch,bench,collect-env,run-batch}} ...\n\
         vllm: error: {error}\n"
    );
    UsageError { message, exit_code: 2 }
}

fn llama_server(arguments: &[String], flags: &mut Vec<String>) -> Result<(), UsageError> {
    let error = |text: String| UsageError { message: format!("{text}\n"), exit_code: 1 };
    let mut rest = arguments.iter();
    let mut model = String::new();
    let mut alias = None;
    while let Some(word) = rest.next() {
        let Some((name, value)) = flag(word) else {
            return Err(error(format!("error: invalid argument: {word}")));
        };
        let short = !word.starts_with("--");
        if contains(LLAMA_SWITCH, &name) || (!short && own_flag(&name) == Some(false)) {
            flags.extend(
                (LLAMA_USED.contains(&name.as_str()) || !contains(LLAMA_SWITCH, &name))
                    .then(|| word.clone()),
            );
            continue;
        }
        if !contains(LLAMA_VALUE, &name) && (short || own_flag(&name).is_none()) {
            return Err(error(format!("error: invalid argument: {word}")));
        }
        let Some(value) = value.or_else(|| rest.next().cloned()) else {
            return Err(error(format!(
                "error while handling argument \"{word}\": expected value for argument"
            )));
        };
        match name.as_str() {
            "model" | "m" | "hf-repo" | "hf" => model = value,
            "alias" | "a" => alias = Some(value),
            "parallel" | "np" => {
                for flag in ["--slots", "--max-num-seqs"] {
                    flags.extend([flag.to_owned(), value.clone()]);
                }
            }
            "ctx-size" | "c" => flags.extend(["--max-model-len".to_owned(), value]),
            "slot-save-path" if !std::path::Path::new(&value).is_dir() => {
                return Err(error(format!(
                    "error while handling argument \"{word}\": not a directory: {value}"
                )));
            }
            _ if own_flag(&name).is_some() => flags.extend([format!("--{name}"), value]),
            _ => {}
        }
    }
    flags.extend(["--alias".to_owned(), alias.unwrap_or_else(|| model.clone())]);
    flags.extend(["--model".to_owned(), model]);
    Ok(())
}
