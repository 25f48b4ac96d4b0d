//! Reads `/proc/<pid>/stat`. Format: proc_pid_stat(5).

use procfs_core::FromRead as _;
use procfs_core::process::Stat;

/// Parses the text of `/proc/<pid>/stat`; `None` unless it has the format of the kernel.
pub(crate) fn parse(text: &[u8]) -> Option<Stat> {
    // procfs-core 0.18 trims the text and then slices it one byte before the name and two bytes
    // after it, and panics if these are missing or a part of a character.
    let start = text.iter().position(|byte| *byte == b'(')?;
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let is_framed = start < end
        && text.first().is_some_and(u8::is_ascii_digit)
        && text[..start].ends_with(b" ")
        && text.get(end + 1) == Some(&b' ')
        && text.get(end + 2).is_some_and(u8::is_ascii_alphabetic);
    if !is_framed {
        return None;
    }
    Stat::from_read(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_process_is_parsed() {
        let text = std::fs::read("/proc/self/stat").unwrap();
        assert_eq!(parse(&text).unwrap().pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn texts_without_a_framed_name_are_refused() {
        for text in [
            "",
            "(",
            ")",
            "()",
            "1 ()",
            "1 () ",
            " (() S",
            "drm-client-id()\n",
            ")(",
            "1 )( S",
            " (",
        ] {
            assert!(parse(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_accepted(
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                "[ ()0-9SZé]{0,40}".prop_map(String::into_bytes),
                "[0-9é]{0,2} ?\\([()é ]{0,4}\\) ?[SZé ]{0,2}( [0-9]{1,3}){0,60}\n?"
                    .prop_map(String::into_bytes),
            ],
        ) {
            // Texts that are no process either are refused or are parsed; neither panics.
            let _ = parse(&text);
        }
    }
}
