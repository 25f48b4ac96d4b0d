//! The endpoints of a vLLM, as far as its model and its arguments tell: vLLM only has the routes
//! that its model can serve. Once it is ready, it lists them itself.

use pointsman_domain::{Endpoint, EndpointSet};
use serde_json::Value;

use super::model_folder::ModelFolder;

/// Endpoints of every model.
const ALWAYS: [Endpoint; 2] = [Endpoint::Tokenize, Endpoint::Detokenize];
const GENERATE: [Endpoint; 5] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
];
/// Two texts are compared by their embeddings, or by a model for pairs of texts.
const EMBED: [Endpoint; 4] =
    [Endpoint::Embeddings, Endpoint::Pooling, Endpoint::Score, Endpoint::Rerank];
const CLASSIFY: [Endpoint; 4] =
    [Endpoint::Classify, Endpoint::Pooling, Endpoint::Score, Endpoint::Rerank];
const REWARD: [Endpoint; 2] = [Endpoint::Pooling, Endpoint::Classify];
const SPEECH: [Endpoint; 2] = [Endpoint::Transcriptions, Endpoint::Translations];

/// What vLLM does with architectures whose names end like this, in the order in which it looks for
/// the endings.
const ENDINGS: [(&str, Task); 14] = [
    ("ForCausalLM", Task::Generate),
    ("ForConditionalGeneration", Task::Generate),
    ("ChatModel", Task::Generate),
    ("ChatGLMModel", Task::Generate),
    ("LMHeadModel", Task::Generate),
    ("ForTextEncoding", Task::Embed),
    ("EmbeddingModel", Task::Embed),
    ("ForSequenceClassification", Task::Classify),
    ("ForTokenClassification", Task::Classify),
    ("ForImageClassification", Task::Classify),
    ("ForAudioClassification", Task::Classify),
    ("ClassificationModel", Task::Classify),
    ("ForRewardModeling", Task::Reward),
    ("RewardModel", Task::Reward),
];
/// Parts of the names of architectures that transcribe speech and generate text too.
const HEARING: [&str; 7] = ["Voxtral", "Speech", "Asr", "ASR", "Audio", "Omni", "Gemma3n"];

/// What a model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Generate,
    Embed,
    Classify,
    Reward,
    /// One of the tasks of models that generate no text.
    AnyPooling,
    Transcribe,
    GenerateAndTranscribe,
    Any,
}

impl Task {
    fn endpoints(self) -> EndpointSet {
        let set = |lists: &[&[Endpoint]]| EndpointSet::new(lists.concat());
        let own = match self {
            Self::Generate => set(&[&GENERATE]),
            Self::Embed => set(&[&EMBED]),
            Self::Classify => set(&[&CLASSIFY]),
            Self::Reward => set(&[&REWARD]),
            Self::AnyPooling => set(&[&EMBED, &CLASSIFY]),
            Self::Transcribe => set(&[&SPEECH]),
            Self::GenerateAndTranscribe => set(&[&GENERATE, &SPEECH]),
            Self::Any => set(&[&GENERATE, &EMBED, &CLASSIFY, &SPEECH]),
        };
        own.union(EndpointSet::new(ALWAYS))
    }
}

/// Returns the endpoints of a model. Without its files, it might be any: a request has to reach the
/// engine before the engine can say what it has.
pub(super) fn endpoints(folder: &ModelFolder, arguments: &[String]) -> EndpointSet {
    task(folder, arguments).endpoints()
}

fn task(folder: &ModelFolder, arguments: &[String]) -> Task {
    let of_model = task_of_model(folder, arguments);
    let converted = match value(arguments, "convert") {
        Some("embed") => Some(Task::Embed),
        Some("classify") => Some(Task::Classify),
        Some("reward") => Some(Task::Reward),
        _ => None,
    };
    // The name before `--runner` and `--convert`.
    match value(arguments, "task") {
        Some("generate") => return generating(of_model),
        Some("embed" | "embedding") => return Task::Embed,
        Some("classify" | "score") => return Task::Classify,
        Some("reward") => return Task::Reward,
        Some("transcription") => return Task::Transcribe,
        _ => {}
    }
    match (value(arguments, "runner"), converted) {
        (Some("generate"), _) => generating(of_model),
        (Some("pooling"), Some(converted)) => converted,
        (Some("pooling"), None) => match of_model {
            Task::Embed | Task::Classify | Task::Reward => of_model,
            // vLLM makes an embedding model of one that generates text.
            Task::Generate | Task::GenerateAndTranscribe => Task::Embed,
            Task::AnyPooling | Task::Transcribe | Task::Any => Task::AnyPooling,
        },
        (_, Some(converted)) if of_model != Task::Generate => converted,
        // Depends on the model's files whether vLLM converts it.
        (_, Some(_)) => Task::Any,
        (_, None) => of_model,
    }
}

fn generating(of_model: Task) -> Task {
    match of_model {
        Task::Transcribe | Task::GenerateAndTranscribe => of_model,
        Task::Generate
        | Task::Embed
        | Task::Classify
        | Task::Reward
        | Task::AnyPooling
        | Task::Any => Task::Generate,
    }
}

/// Returns the task that vLLM chooses for a model by itself.
fn task_of_model(folder: &ModelFolder, arguments: &[String]) -> Task {
    let overrides = value(arguments, "hf-overrides");
    let overrides = overrides.and_then(|json| serde_json::from_str::<Value>(json).ok());
    let overridden = overrides.as_ref().and_then(|json| json["architectures"][0].as_str());
    let Some(name) = overridden.or_else(|| folder.architectures.first().map(String::as_str)) else {
        return Task::Any;
    };
    let ending = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending));
    match ending {
        Some((_, Task::Generate)) if folder.is_embedding && overridden.is_none() => Task::Embed,
        Some((_, Task::Generate)) if name.starts_with("Whisper") => Task::Transcribe,
        Some((_, Task::Generate)) if HEARING.iter().any(|part| name.contains(part)) => {
            Task::GenerateAndTranscribe
        }
        Some((_, task)) => *task,
        None if name.ends_with("Model") => Task::Embed,
        None => Task::Any,
    }
}

/// Returns the value of a flag of vLLM, in which underscores are like dashes.
fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    arguments.iter().enumerate().rev().find_map(|(index, word)| {
        let flag = word.strip_prefix("--")?;
        match flag.split_once('=') {
            Some((flag, value)) => (flag.replace('_', "-") == name).then_some(value),
            None if flag.replace('_', "-") == name => arguments.get(index + 1).map(String::as_str),
            None => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(architecture: &str, is_embedding: bool, arguments: &[&str]) -> EndpointSet {
        let architectures = [architecture].into_iter().filter(|name| !name.is_empty());
        let folder = ModelFolder {
            has_vision: false,
            architectures: architectures.map(str::to_owned).collect(),
            is_embedding,
        };
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        endpoints(&folder, &arguments)
    }

    #[test]
    fn endpoints_follow_from_the_architecture_and_the_arguments() {
        use Endpoint::{ChatCompletions, Classify, Embeddings, Messages, Rerank, Transcriptions};
        let qwen = "Qwen3ForCausalLM";
        let overrides = r#"{"architectures":["Qwen3ForSequenceClassification"]}"#;
        for (architecture, is_embedding, arguments, has, lacks) in [
            (qwen, false, &[][..], &[ChatCompletions, Messages][..], &[Embeddings, Rerank][..]),
            (qwen, true, &[], &[Embeddings, Rerank], &[ChatCompletions, Classify]),
            (qwen, true, &["--runner", "generate"], &[ChatCompletions], &[Embeddings]),
            (qwen, false, &["--runner=pooling"], &[Embeddings], &[ChatCompletions]),
            (qwen, false, &["--task", "embed"], &[Embeddings], &[ChatCompletions, Classify]),
            (
                qwen,
                false,
                &["--runner", "pooling", "--convert", "classify"],
                &[Classify],
                &[Embeddings],
            ),
            (qwen, false, &["--hf_overrides", overrides], &[Classify, Rerank], &[Embeddings]),
            ("BertModel", false, &[], &[Embeddings, Rerank], &[ChatCompletions]),
            ("XLMRobertaForSequenceClassification", false, &[], &[Rerank, Classify], &[Embeddings]),
            ("WhisperForConditionalGeneration", false, &[], &[Transcriptions], &[ChatCompletions]),
            (
                "VoxtralForConditionalGeneration",
                false,
                &[],
                &[Transcriptions, ChatCompletions],
                &[],
            ),
            ("ChatGLMModel", false, &[], &[ChatCompletions], &[Embeddings]),
            ("GPT2LMHeadModel", false, &[], &[ChatCompletions], &[Embeddings]),
            // Nothing is known.
            ("", false, &[], &[ChatCompletions, Embeddings, Transcriptions], &[]),
            ("", false, &["--runner", "pooling"], &[Embeddings, Classify], &[ChatCompletions]),
        ] {
            let set = found(architecture, is_embedding, arguments);
            assert!(set.contains(Endpoint::Tokenize), "{architecture}");
            let wrong = has.iter().filter(|endpoint| !set.contains(**endpoint));
            let wrong: Vec<_> =
                wrong.chain(lacks.iter().filter(|endpoint| set.contains(**endpoint))).collect();
            assert!(wrong.is_empty(), "{architecture} {arguments:?}: {wrong:?} of {set:?}");
        }
    }

    #[test]
    fn a_local_model_is_described_by_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(task(&ModelFolder::read(folder.path()), &[]), Task::Any);
        write("config.json", r#"{"architectures":["Qwen3ForCausalLM"],"vision_config":null}"#);
        let read = || ModelFolder::read(folder.path());
        assert_eq!((task(&read(), &[]), read().has_vision), (Task::Generate, false));
        write("modules.json", r#"[{"type":"sentence_transformers.models.Pooling"}]"#);
        assert_eq!(task(&read(), &[]), Task::Embed);
        for broken in ["", "{", "[]", r#"{"architectures":5}"#] {
            write("config.json", broken);
            assert_eq!(task(&read(), &[]), Task::Any, "{broken}");
        }
    }
}
