//! The flags of llama-server that the memory need depends on.

use std::path::{Path, PathBuf};

use crate::engine_spec::CommandLine;
use crate::footprint::{CacheType, Serving};
use crate::model_need::{ExtraSpec, Model, Remedies};

/// A command line of llama-server. Flags take precedence over variables, and later flags over
/// earlier ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flags<'a>(&'a CommandLine);

const MODEL: [&str; 2] = ["--model", "-m"];
const CONTEXT: [&str; 2] = ["--ctx-size", "-c"];
const DRAFT: [&str; 3] = ["--model-draft", "-md", "--spec-draft-model"];

impl<'a> Flags<'a> {
    pub(super) fn new(command_line: &'a CommandLine) -> Self {
        Self(command_line)
    }

    /// Returns the values of all occurrences of a flag.
    fn values(self, flags: &'a [&str]) -> impl DoubleEndedIterator<Item = &'a str> {
        let words = &self.0.command;
        words.iter().enumerate().filter_map(move |(place, word)| {
            if flags.contains(&word.as_str()) {
                return words.get(place + 1).map(String::as_str);
            }
            let (flag, value) = word.split_once('=')?;
            flags.contains(&flag).then_some(value)
        })
    }

    fn value(self, flags: &'a [&str], variable: &str) -> Option<&'a str> {
        self.values(flags).next_back().or_else(|| self.variable(variable))
    }

    fn variable(self, name: &str) -> Option<&'a str> {
        let found = self.0.env.iter().find(|(known, _)| known == name && !name.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    fn number(self, flags: &'a [&str], variable: &str) -> Option<u32> {
        self.value(flags, variable)?.parse().ok()
    }

    /// Returns whether a setting is on: by one of the flags, or off by one of `off`.
    fn is_on(self, on: &[&str], off: &[&str], variable: &str) -> bool {
        let known = |word: &&String| on.contains(&word.as_str()) || off.contains(&word.as_str());
        match self.0.command.iter().rev().find(known) {
            Some(word) => on.contains(&word.as_str()),
            None => self
                .variable(variable)
                .is_some_and(|value| matches!(value, "1" | "on" | "true" | "enabled")),
        }
    }

    /// Returns the files of the model and of all that is loaded with it. Relative paths are those
    /// of `folder`.
    pub(super) fn files(self, folder: &Path) -> Vec<PathBuf> {
        let own = self.value(&MODEL, "LLAMA_ARG_MODEL");
        let others = [self.projector(), self.draft()];
        let paths = own.into_iter().chain(others.into_iter().flatten()).chain(self.adapters());
        paths.map(|path| folder.join(path)).collect()
    }

    fn projector(self) -> Option<&'a str> {
        let is_off = self.is_on(&["--no-mmproj"], &["--mmproj-auto"], "");
        self.value(&["--mmproj", "-mm"], "LLAMA_ARG_MMPROJ").filter(|_| !is_off)
    }

    fn draft(self) -> Option<&'a str> {
        self.value(&DRAFT, "LLAMA_ARG_MODEL_DRAFT")
    }

    /// Returns the paths of LoRA adapters: several in one value are separated by commas, and a
    /// factor may follow each of them.
    fn adapters(self) -> impl Iterator<Item = &'a str> {
        let scaled = self.values(&["--lora-scaled"]).flat_map(|value| value.split(','));
        let scaled = scaled.map(|value| match value.rsplit_once(':') {
            Some((path, factor)) if factor.parse::<f32>().is_ok() => path,
            Some(_) | None => value,
        });
        self.values(&["--lora"]).flat_map(|value| value.split(',')).chain(scaled)
    }

    /// Returns true if the flags are those of llama-server: a script that starts it another way may
    /// give them another meaning.
    fn are_known(self) -> bool {
        let program = self.0.command.first().map(|word| word.rsplit('/').next().unwrap_or(word));
        program.is_some_and(|program| program.starts_with("llama"))
            || self.values(&CONTEXT).next().is_some()
    }

    /// Returns the model with how it is served, for its memory need. `None` if the flags do not say
    /// which file it is.
    pub(super) fn model(self, folder: &Path, slots: u32, remedies: Remedies) -> Option<Model> {
        let path = self.value(&MODEL, "LLAMA_ARG_MODEL").filter(|_| self.are_known())?;
        // Without a number, llama-server has four slots that share one cache.
        let parallel = self.number(&["--parallel", "-np"], "LLAMA_ARG_N_PARALLEL");
        let sequences = parallel.filter(|slots| *slots > 0).unwrap_or(slots.max(1));
        let on = ["--kv-unified", "-kvu"];
        let off = ["--no-kv-unified", "-no-kvu"];
        let unified = self.is_on(&on, &off, "LLAMA_ARG_KV_UNIFIED") || parallel.is_none();
        let context = self.number(&CONTEXT, "LLAMA_ARG_CTX_SIZE").unwrap_or(0);
        let cache_type =
            |flags: &'a [&str], variable| self.value(flags, variable).and_then(CacheType::ggml);
        let flash = self.value(&["--flash-attn", "-fa"], "LLAMA_ARG_FLASH_ATTN");
        let step = self.number(&["--ubatch-size", "-ub"], "LLAMA_ARG_UBATCH");
        let serving = Serving {
            keys: cache_type(&["--cache-type-k", "-ctk"], "LLAMA_ARG_CACHE_TYPE_K"),
            values: cache_type(&["--cache-type-v", "-ctv"], "LLAMA_ARG_CACHE_TYPE_V"),
            unified,
            full_windows: self.is_on(&["--swa-full"], &[], "LLAMA_ARG_SWA_FULL"),
            no_flash_attention: flash.is_some_and(|flash| matches!(flash, "off" | "0" | "false")),
            step: step.unwrap_or(0).into(),
            eager: true,
            ..Serving::default()
        };
        let mut extras: Vec<ExtraSpec> = Vec::new();
        extras.extend(self.projector().map(|path| ExtraSpec::files("projector", folder, path)));
        extras.extend(self.adapters().map(|path| ExtraSpec::files("LoRA adapter", folder, path)));
        extras.extend(self.draft().map(|path| ExtraSpec::Draft {
            path: folder.join(path),
            serving: Serving {
                context: self.number(&["--ctx-size-draft", "-cd"], "").unwrap_or(0).into(),
                keys: cache_type(&["--cache-type-k-draft", "-ctkd"], ""),
                values: cache_type(&["--cache-type-v-draft", "-ctvd"], ""),
                unified: false,
                ..serving
            },
        }));
        Some(Model {
            path: folder.join(path),
            // A remainder is not used, so that all sequences have the same length.
            context: Some(context / sequences),
            sequences,
            serving,
            extras,
            cache: None,
            remedies,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(words: &str, env: &[(&str, &str)]) -> Option<Model> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let command = words.split_whitespace().map(str::to_owned).collect();
        let command_line = CommandLine { command, env: env.collect() };
        Flags::new(&command_line).model(Path::new("/m"), 3, |_, _| Vec::new())
    }

    #[test]
    fn context_and_slots_are_read() {
        for (flags, context, sequences, unified) in [
            ("-c 8192 -np 2", 4096, 2, false),
            ("--ctx-size 1000 --parallel 3", 333, 3, false),
            ("-c 8192 -np 2 --kv-unified", 4096, 2, true),
            ("-c 8192 -np 2 -kvu --no-kv-unified", 4096, 2, false),
            ("-c 1 -c 8192 --parallel=2", 4096, 2, false),
            // The context of the model, for the slots of the lane, which share it.
            ("--ctx-size 0", 0, 3, true),
            ("", 0, 3, true),
        ] {
            let found = model(&format!("llama-server -m a.gguf {flags}"), &[]).unwrap();
            let shown = (found.context, found.sequences, found.serving.unified);
            assert_eq!(shown, (Some(context), sequences, unified), "{flags}");
            assert_eq!(found.path, Path::new("/m/a.gguf"));
        }
        let env = [("LLAMA_ARG_CTX_SIZE", "64"), ("LLAMA_ARG_N_PARALLEL", "2")];
        let found = model("llama-server -m a.gguf", &env).unwrap();
        assert_eq!((found.context, found.sequences), (Some(32), 2));
        // Not llama-server, or without a file.
        assert!(model("python3 serve.py --model a.gguf --context 5", &[]).is_none());
        assert!(model("llama-server -hf a/b", &[]).is_none());
        assert!(model("/usr/bin/llama-server", &[("LLAMA_ARG_MODEL", "/a.gguf")]).is_some());
    }

    #[test]
    fn types_of_the_cache_and_extras_are_read() {
        let found = model(
            "llama-server -m a.gguf -c 64 -np 1 -ctk q8_0 --cache-type-v q4_0 -fa off -ub 256 \
             --swa-full --mmproj p.gguf --lora a,b --lora-scaled c:0.5,d:1 --lora-scaled e 0.5 \
             -md draft.gguf -cd 32 -ctkd f32",
            &[],
        )
        .unwrap();
        let serving = found.serving;
        assert_eq!(serving.keys, CacheType::ggml("q8_0"));
        assert_eq!(serving.values, CacheType::ggml("q4_0"));
        assert!(serving.no_flash_attention && serving.full_windows && !serving.unified);
        assert_eq!(serving.step, 256);
        let names: Vec<String> = found.extras.iter().map(|extra| format!("{extra:?}")).collect();
        let paths = ["/m/p.gguf", "/m/a", "/m/b", "/m/c", "/m/d", "/m/e", "/m/draft.gguf"];
        assert_eq!(names.len(), paths.len(), "{names:?}");
        for (name, path) in names.iter().zip(paths) {
            assert!(name.contains(&format!("{path:?}")), "{name}");
        }
        let Some(ExtraSpec::Draft { serving: draft, .. }) = found.extras.last() else { panic!() };
        assert_eq!((draft.context, draft.keys, draft.values), (32, Some(CacheType::F32), None));
        let off = model("llama-server -m a.gguf --mmproj p.gguf --no-mmproj", &[]).unwrap();
        assert!(off.extras.is_empty());
    }

    proptest! {
        #[test]
        fn any_words_are_accepted(words in prop::collection::vec(
            prop_oneof![
                Just("llama-server".to_owned()),
                "-{1,2}(m|model|c|np|parallel|lora|lora-scaled|ctk|fa|kvu|mmproj)=?[0-9a:,]{0,4}",
                any::<String>(),
            ], 0..12,
        )) {
            if let Some(found) = model(&words.join(" "), &[]) {
                prop_assert!(found.sequences > 0 && found.path.starts_with("/"));
            }
        }
    }
}
