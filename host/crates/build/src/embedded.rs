//! The contract, the SDKs and the templates, as they were when this was built.

use crate::Language;

include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// Files of the SDK for a language: path and text.
pub(crate) fn sdk(language: Language) -> &'static [(&'static str, &'static str)] {
    match language {
        Language::Rust => SDK_RUST,
        Language::JavaScript => SDK_JAVASCRIPT,
        Language::Python => SDK_PYTHON,
        Language::C => SDK_C,
    }
}
