//! Command lines as words, in the way of a shell without expansions.

/// Splits a command line: quotes and backslashes are those of a shell, lines that begin with `#`
/// are comments. Returns `None` if a quote is not closed.
pub(crate) fn split(text: &str) -> Option<Vec<String>> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        '\'' => break,
                        other => word.push(other),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        '"' => break,
                        '\\' => match letters.next()? {
                            escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                            '\n' => {}
                            other => word.extend(['\\', other]),
                        },
                        other => word.push(other),
                    }
                }
            }
            '\\' => match letters.next() {
                Some('\n') | None => {}
                Some(other) => word.get_or_insert_default().push(other),
            },
            _ if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Some(words)
}

/// Returns true for a text that fits into an argument or a name.
pub(crate) fn is_plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// Returns true if a variable of this name usually has a secret.
pub(crate) fn is_secret_variable(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["TOKEN", "_KEY", "APIKEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS"]
        .iter()
        .any(|part| name.ends_with(part))
}

/// Returns true if the value of this flag usually is a secret.
pub(crate) fn is_secret_flag(flag: &str) -> bool {
    let flag = flag.trim_start_matches('-').replace('_', "-").to_ascii_lowercase();
    matches!(flag.as_str(), "hft" | "token" | "password")
        || ["-key", "-token", "-secret", "-password"].iter().any(|end| flag.ends_with(end))
}
