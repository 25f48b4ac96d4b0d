//! Options of `import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pointsman_import::Kind;

#[derive(Debug, Clone, Args)]
pub(crate) struct Import {
    /// The source: a file, a folder with one such file, or `-` for standard input.
    pub(crate) source: PathBuf,
    /// What the source was written for. Default: detected from its content.
    #[arg(long, value_name = "KIND")]
    pub(crate) from: Option<From>,
    /// Write the configuration to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Overwrite the file of `--out` if it exists.
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
    /// Print the report as JSON. It goes to standard error, as the text does.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum From {
    /// The `config.yaml` of llama-swap.
    LlamaSwap,
    /// The presets of llama-server's router mode, `models.ini`.
    LlamaServer,
    /// The `config.yaml` of LiteLLM's proxy.
    Litellm,
    /// A compose file with services of vLLM or llama.cpp.
    Compose,
    /// An env file with settings of vLLM.
    Env,
}

impl From {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::LlamaSwap => Kind::LlamaSwap,
            Self::LlamaServer => Kind::LlamaServer,
            Self::Litellm => Kind::Litellm,
            Self::Compose => Kind::Compose,
            Self::Env => Kind::Env,
        }
    }
}
