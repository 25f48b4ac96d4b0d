//! The memory need of a model as its lane serves it, with all that is loaded with it.

use std::path::{Path, PathBuf};

use crate::footprint::{Extra, Footprint, FootprintError, Serving, estimate_footprint};

/// What an engine with this footprint offers against a need that exceeds the budget, for people.
/// The number is the bytes that the budget leaves for the KV cache; `None` if the weights alone
/// exceed it.
pub type Remedies = fn(&Footprint, Option<u64>) -> Vec<String>;

/// A model on disk, and how it is served: what its memory need is computed from.
#[derive(Debug)]
pub struct Model {
    /// The model's folder or file.
    pub path: PathBuf,
    /// Maximum sequence length in tokens, if known.
    pub context: Option<u32>,
    /// Number of concurrent sequences.
    pub sequences: u32,
    /// How the engine is told to serve it, apart from context and sequences.
    pub serving: Serving,
    /// What is loaded with it.
    pub extras: Vec<ExtraSpec>,
    /// Size of the KV cache in bytes, if configured instead of computed from the sequences.
    pub cache: Option<u64>,
    /// What this kind of engine offers against a need that exceeds the budget.
    pub remedies: Remedies,
}

/// What an engine loads with its model.
#[derive(Debug)]
pub enum ExtraSpec {
    /// A model that drafts for it.
    Draft {
        /// The model's folder or file.
        path: PathBuf,
        /// How it is served; a context of 0 stands for that of the model.
        serving: Serving,
    },
    /// What takes as much memory as its files, with a name for people.
    Files(&'static str, PathBuf),
    /// What is known already.
    Known(Extra),
}

impl ExtraSpec {
    /// Creates what takes as much memory as its files at `path` in `folder`.
    pub(crate) fn files(name: &'static str, folder: &Path, path: &str) -> Self {
        Self::Files(name, folder.join(path))
    }

    /// Computes its memory, next to a model with this need. `None` for a draft model that is not on
    /// this machine.
    fn footprint(
        &self,
        model: &Footprint,
        sequences: u64,
    ) -> Result<Option<Extra>, FootprintError> {
        Ok(Some(match self {
            Self::Draft { path, serving } => {
                if !path.exists() {
                    return Ok(None);
                }
                let context = if serving.context == 0 { model.context() } else { serving.context };
                Extra::draft(path, &Serving { context, sequences, ..*serving })?
            }
            Self::Files(name, path) => Extra::of_files(name, path),
            Self::Known(extra) => extra.clone(),
        }))
    }
}

impl Model {
    /// Computes the memory need with this context, from the files of the model and of what is
    /// loaded with it.
    ///
    /// # Errors
    /// Returns an error if a model is incomplete, or its description lacks a value.
    pub fn footprint(&self, context: u32, sequences: u32) -> Result<Footprint, FootprintError> {
        let (context, sequences) = (u64::from(context), u64::from(sequences));
        let serving = Serving { context, sequences, ..self.serving };
        let mut footprint = estimate_footprint(&self.path, &serving)?;
        for extra in &self.extras {
            let found = extra.footprint(&footprint, sequences)?;
            footprint.extras.extend(found);
        }
        Ok(footprint)
    }
}
