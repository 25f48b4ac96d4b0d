use super::*;

fn launch(words: &[&str]) -> Launch {
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    Launch { command, ..Launch::default() }
}

#[test]
fn placeholder_becomes_the_folder_or_goes_with_its_option() {
    let words =
        ["e", "--slot-save-path", "{conversations}", "--x={conversations}/y", "--port", "1"];
    let mut filled = launch(&words);
    fill_folder(&mut filled, Some("/state/conversations/a".into()));
    let expected = ["e", "--slot-save-path", "/state/conversations/a"];
    assert_eq!(filled.command[..3], expected);
    assert_eq!(filled.command[3], "--x=/state/conversations/a/y");
    let mut removed = launch(&words);
    removed.env = vec![("LLAMA_ARG_SLOT_SAVE_PATH".to_owned(), "{conversations}".to_owned())];
    fill_folder(&mut removed, None);
    assert_eq!(removed, launch(&["e", "--port", "1"]));
}

#[test]
fn restores_without_use_are_turned_off_for_the_same_engine() {
    let dir = tempfile::tempdir().unwrap();
    let metrics =
        ConversationMetrics::register(&mut prometheus_client::registry::Registry::default());
    let settings = Some(ConversationSettings::default());
    let store = Conversations::open(settings, Some(dir.path()), metrics.clone());
    for (was_useful, is_on) in [(false, true), (true, true), (false, true), (false, false)] {
        store.note_restore("a", 1, was_useful);
        assert_eq!(store.is_on("a", 1), is_on);
    }
    assert!(store.is_on("a", 2) && store.is_on("b", 1));
    assert_eq!(store.status("a").unwrap().off, Some("useless"));
    let closed = Conversations::open(None, Some(dir.path()), metrics);
    assert_eq!((closed.status("a"), closed.is_on("a", 1)), (None, false));
}
