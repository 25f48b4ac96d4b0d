//! What is loaded together with a model: a draft model, a projector of images, adapters.

use std::fmt;
use std::path::Path;

use super::{Footprint, FootprintError, Serving, estimate_footprint, format_size, weight_files};

/// Something that is loaded with a model. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// What it is, for people.
    pub name: &'static str,
    /// Its weights.
    pub weights: u64,
    /// What of its weights engines report together with those of the model.
    pub reported: u64,
    /// Its KV cache.
    pub kv: u64,
}

impl Extra {
    /// Creates an extra that engines do not report.
    pub fn new(name: &'static str, weights: u64) -> Self {
        Self { name, weights, reported: 0, kv: 0 }
    }

    /// Returns its size.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv)
    }

    /// Computes the size of what is only loaded: a projector or an adapter at `path`.
    pub fn of_files(name: &'static str, path: &Path) -> Self {
        let sizes = weight_files(path).into_iter().filter_map(|file| file.metadata().ok());
        Self::new(name, sizes.fold(0, |sum: u64, file| sum.saturating_add(file.len())))
    }

    /// Computes the size of a draft model at `path`. It drafts for the sequences of the model that
    /// it is loaded with.
    ///
    /// # Errors
    /// Returns an error if it is incomplete, or its description lacks a value.
    pub fn draft(path: &Path, serving: &Serving) -> Result<Self, FootprintError> {
        let Footprint { weights, kv, .. } = estimate_footprint(path, serving)?;
        Ok(Self { name: "draft model", weights, reported: weights, kv })
    }
}

impl fmt::Display for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, format_size(self.total()))?;
        if self.kv > 0 {
            write!(f, " ({} of which KV)", format_size(self.kv))?;
        }
        Ok(())
    }
}
