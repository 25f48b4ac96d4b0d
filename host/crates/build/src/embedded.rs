//! The contract, the SDKs and the templates, embedded at build time.

use crate::language::Language;

include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// Returns the files of the SDK for a language, as pairs of path and text.
pub(crate) fn sdk(language: Language) -> &'static [(&'static str, &'static str)] {
    match language {
        Language::Rust => SDK_RUST,
        Language::JavaScript => SDK_JAVASCRIPT,
        Language::Python => SDK_PYTHON,
        Language::C => SDK_C,
    }
}
