//! `driver = "llama-cpp"`: a llama.cpp server that the host starts.
//!
//! It returns 503 on every path while loading, then 200 on `/health`.

mod flags;
pub(crate) mod metrics;
mod section;

use std::path::PathBuf;

use pointsman_domain::{Endpoint, EndpointSet, EngineKind, public_name};

use self::flags::Flags;
use super::process_section::{fill, missing_model};
use crate::conversations::FOLDER_PLACEHOLDER;
use crate::driver::{
    Description, Driver, DriverInfo, LaneContext, LaneDefaults, MetricsSource, Prepared, is_equal,
};
use crate::engine_spec::{CommandLine, ProcessSpec};
use crate::footprint::weight_files;
use crate::memory::Pool;
use crate::memory_estimate::MemoryEstimate;
use crate::model_card::ModelCard;
use crate::progress::Evidence;
use crate::proof::Reuse;

/// The driver.
pub static DRIVER: DriverInfo = DriverInfo {
    key: "llama-cpp",
    purpose: None,
    kind: EngineKind::LlamaCpp,
    defaults: LaneDefaults::MANAGED,
    read: section::read,
};

/// A llama.cpp server.
#[derive(Debug, PartialEq)]
pub struct LlamaCpp {
    /// Program, arguments and environment.
    pub command_line: CommandLine,
    /// How the host runs the process.
    pub run: ProcessSpec,
    /// The memory that was computed from the model's files.
    pub estimate: Option<MemoryEstimate>,
}

impl Driver for LlamaCpp {
    fn info(&self) -> &'static DriverInfo {
        &DRIVER
    }

    fn equals(&self, other: &dyn Driver) -> bool {
        is_equal(self, other)
    }

    fn run(&self) -> Option<&ProcessSpec> {
        Some(&self.run)
    }

    fn prepare(&self, lane: &str, port: u16) -> Prepared {
        fill(&self.command_line, &self.run, lane, port)
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec!["/health"]
    }

    fn reuse(&self) -> Reuse {
        // The server closes the connection after a stream without announcing it (seen with b115xx).
        Reuse::Never
    }

    fn progress_evidence(&self) -> Evidence {
        // `n_decode` and the slots move with each batch of a prompt. A batch can take longer than
        // any timeout on a processor, which is then in use.
        Evidence { prompts: true, counters: true, computing: true }
    }

    fn metrics_sources(&self) -> &'static [MetricsSource] {
        &metrics::SOURCES
    }

    fn estimate(&self) -> Option<MemoryEstimate> {
        self.estimate
    }

    fn set_estimate(&mut self, estimate: MemoryEstimate) {
        self.estimate = Some(estimate);
    }

    fn weights(&self) -> Vec<PathBuf> {
        let folder = self.run.directory.clone().unwrap_or_default();
        let files = Flags::new(&self.command_line).files(&folder);
        files.iter().flat_map(|file| weight_files(file)).collect()
    }

    fn card(&self) -> ModelCard {
        let command = self.command_line.command.as_slice();
        let projector = ["--mmproj", "-mm", "--mmproj-url", "-mmu"];
        ModelCard {
            root: model(command).map(|model| public_name(model).to_owned()),
            owner: Some("llamacpp".to_owned()),
            vision: flag_value(command, &projector).is_some(),
            ..ModelCard::default()
        }
    }

    fn keeps_conversations(&self) -> bool {
        let CommandLine { command, env } = &self.command_line;
        let mut words = command.iter().chain(env.iter().map(|(_, value)| value));
        words.any(|word| word.contains(FOLDER_PLACEHOLDER))
    }

    fn endpoints(&self) -> EndpointSet {
        let CommandLine { command, env } = &self.command_line;
        let has = |flags: &[&str], variable: &str| {
            let is_on = |value: &str| !matches!(value, "" | "0" | "off" | "false" | "disabled");
            command.iter().any(|word| flags.contains(&word.as_str()))
                || env.iter().any(|(name, value)| name == variable && is_on(value))
        };
        // Presets of embedding models, such as `--embd-gemma-default`.
        let is_preset = |word: &String| word.starts_with("--embd-") && word.ends_with("-default");
        let embeds = has(&["--embedding", "--embeddings"], "LLAMA_ARG_EMBEDDINGS")
            || command.iter().any(is_preset);
        let ranks = has(&["--rerank", "--reranking"], "LLAMA_ARG_RERANKING");
        endpoints(embeds, ranks)
    }

    fn describe(&self, lane: &LaneContext<'_>) -> Description {
        let command = &self.command_line.command;
        let missing = flag_value(command, &["--model", "-m"])
            .and_then(|model| missing_model(model, command, self.run.directory.as_deref()));
        let warnings = missing.into_iter().chain(prompt_cache(&self.command_line, lane.pool));
        Description { command: Some(self.command_line.clone()), warnings: warnings.collect() }
    }
}

/// Returns the endpoints of llama-server. It has those for embeddings and for ranking only if it
/// was started for them, and generates text all the same.
pub(crate) fn endpoints(embeds: bool, ranks: bool) -> EndpointSet {
    let always = EndpointSet::new([
        Endpoint::ChatCompletions,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Messages,
        Endpoint::CountTokens,
        Endpoint::Tokenize,
        Endpoint::Detokenize,
        Endpoint::LlamaCompletion,
        Endpoint::LlamaInfill,
        Endpoint::LlamaApplyTemplate,
    ]);
    let embed = [Endpoint::Embeddings, Endpoint::LlamaEmbedding].into_iter().filter(|_| embeds);
    let rank = [Endpoint::Rerank].into_iter().filter(|_| ranks);
    always.union(EndpointSet::new(embed.chain(rank)))
}

/// Returns the model in a command line: a file, or a name on the hub.
fn model(command: &[String]) -> Option<&str> {
    flag_value(command, &["--model", "-m", "-hf", "-hfr", "--hf-repo"])
}

/// Returns the value of the first of these flags.
fn flag_value<'a>(command: &'a [String], flags: &[&str]) -> Option<&'a str> {
    let place = command.iter().position(|word| flags.contains(&word.as_str()));
    let next = place.and_then(|place| command.get(place + 1)).map(String::as_str);
    let joined = || {
        let parts = command.iter().filter_map(|word| word.split_once('='));
        parts.into_iter().find(|(flag, _)| flags.contains(flag)).map(|(_, value)| value)
    };
    next.or_else(joined)
}

/// Warns about llama-server's prompt cache in system memory, which is not part of any budget.
fn prompt_cache(command_line: &CommandLine, pool: Option<Pool>) -> Option<String> {
    let counted = pool == Some(Pool::System);
    let is_set = command_line
        .command
        .iter()
        .any(|word| ["--cache-ram", "-cram"].contains(&word.split('=').next().unwrap_or_default()));
    (counted && !is_set).then(|| {
        "llama-server also caches up to 8 GiB of prompts in memory; set \
         `arguments = [\"--cache-ram\", \"MIB\"]`, and include that in `memory`"
            .to_owned()
    })
}
