//! The steps of a completion: how a prompt is read, and how tokens are generated, counted and sent.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::completion::{Completion, core_dead_event};
use super::options::Flavour;
use super::response_body::Step;
use super::script::ResponseScript;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Appends the steps of reading a prompt.
fn read_prompt(script: &ResponseScript, completion: &Completion, steps: &mut VecDeque<Step>) {
    let llama = completion.flavour == Flavour::LlamaCpp;
    if script.computes {
        steps.push_back(Step::Compute(millis(script.prompt_ms)));
    }
    let batches = script.prompt_batches.max(1);
    let ends = (1..=batches).map(|batch| (script.prompt_ms * batch / batches, false));
    let pings = (1..=script.prompt_ms / script.ping_ms.max(1)).map(|n| (n * script.ping_ms, true));
    let streamed = llama && completion.streamed;
    let mut events: Vec<(u64, bool)> = ends.chain(pings.filter(|_| streamed)).collect();
    events.sort_unstable();
    let mut now = 0;
    for (at, is_ping) in events {
        steps.extend((at > now).then(|| Step::Wait(millis(at - now))));
        now = at;
        match is_ping {
            true => steps.push_back(Step::Send(Bytes::from_static(b":\n\n"))),
            false => steps.extend(llama.then_some(Step::CountBatch)),
        }
    }
    let Completion { prompt_tokens, cached_tokens, .. } = completion;
    // llama.cpp counts a prompt when it has been read, vLLM with the first output.
    steps.extend(llama.then_some(Step::CountPrompt(*prompt_tokens, *cached_tokens)));
}

/// Appends the steps of counting a token: llama.cpp counts batches at once, and tokens at the end.
fn count_token(completion: &Completion, token: u64, steps: &mut VecDeque<Step>) {
    let Completion { prompt_tokens, cached_tokens, .. } = completion;
    match completion.flavour {
        Flavour::Vllm => {
            let prompt = Step::CountPrompt(*prompt_tokens, *cached_tokens);
            steps.extend((token == 0).then_some(prompt));
            steps.push_back(Step::Count(1));
        }
        Flavour::LlamaCpp => steps.push_back(Step::CountBatch),
    }
}

/// Appends the steps of counting a completion that has finished.
fn finish(completion: &Completion, steps: &mut VecDeque<Step>) {
    if completion.flavour == Flavour::LlamaCpp {
        steps.push_back(Step::Count(completion.tokens));
    }
    steps.push_back(Step::Finish(completion.finish));
}

/// Appends the steps of a completion that is not streamed.
pub(super) fn whole(script: &ResponseScript, completion: &Completion, steps: &mut VecDeque<Step>) {
    read_prompt(script, completion, steps);
    for token in 0..completion.tokens {
        steps.extend((script.token_ms > 0).then(|| Step::Wait(millis(script.token_ms))));
        count_token(completion, token, steps);
    }
    steps.extend(script.die_after.map(|_| Step::Die));
    steps.extend(script.oom_after.map(|_| Step::Oom));
    finish(completion, steps);
}

/// Appends the steps of a streamed completion.
pub(super) fn stream(script: &ResponseScript, completion: &Completion, steps: &mut VecDeque<Step>) {
    let send = |steps: &mut VecDeque<Step>, text: String| {
        let bytes = Bytes::from(text);
        let size = script.chunk_size.unwrap_or(bytes.len()).max(1);
        let chunks = (0..bytes.len())
            .step_by(size)
            .map(|start| bytes.slice(start..(start + size).min(bytes.len())));
        steps.extend(chunks.map(Step::Send));
    };
    let vllm = completion.flavour == Flavour::Vllm;
    read_prompt(script, completion, steps);
    if let Some(first) = completion.first() {
        send(steps, first);
    }
    for token in 0..completion.tokens {
        steps.push_back(Step::Wait(millis(script.token_ms)));
        let here = |fault: Option<u64>| fault == Some(token);
        steps.extend(here(script.stall_after).then_some(Step::Stall));
        steps.extend(here(script.die_after).then_some(Step::Die));
        steps.extend(here(script.oom_after).then_some(Step::Oom));
        if here(script.malformed) {
            send(
                steps,
                format!(
                    "data: {{\"id\":\"{}\",\"choices\":[{{\"index\":0,\"del\n\n",
                    completion.id
                ),
            );
        }
        if here(script.end_after) {
            return;
        }
        if here(script.error_after) {
            return send(steps, core_dead_event());
        }
        count_token(completion, token, steps);
        let finish = (vllm && token + 1 == completion.tokens).then_some(completion.finish);
        send(steps, completion.piece(&completion.token(token), finish));
    }
    if !vllm || completion.tokens == 0 {
        send(steps, completion.piece("", Some(completion.finish)));
    }
    finish(completion, steps);
    send(steps, completion.last());
}
