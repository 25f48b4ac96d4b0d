//! A tokenizer for Rust: the words, path separators and punctuation of a source file, without
//! comments and literals.

/// A token, and the line where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// An identifier, a keyword or a number.
    Word(String),
    /// `::`.
    Separator,
    Punctuation(char),
}

impl Token {
    /// Returns the word, or "" if this is not a word.
    pub(super) fn word(&self) -> &str {
        match &self.kind {
            TokenKind::Word(word) => word,
            TokenKind::Separator | TokenKind::Punctuation(_) => "",
        }
    }

    pub(super) fn is(&self, punctuation: char) -> bool {
        self.kind == TokenKind::Punctuation(punctuation)
    }

    pub(super) fn is_separator(&self) -> bool {
        self.kind == TokenKind::Separator
    }
}

/// Splits a source file into tokens.
pub(super) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { text: source.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    loop {
        let line = lexer.line;
        match lexer.next() {
            Some(Some(kind)) => tokens.push(Token { kind, line }),
            Some(None) => {}
            None => return tokens,
        }
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn peek(&self, offset: usize) -> char {
        self.text.get(self.at + offset).copied().unwrap_or('\0')
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(offset, letter)| self.peek(offset) == letter)
    }

    fn skip(&mut self, count: usize) {
        let end = (self.at + count).min(self.text.len());
        self.line += self.text[self.at..end].iter().filter(|letter| **letter == '\n').count();
        self.at = end;
    }

    /// Skips to the end of `end`, or of the file.
    fn skip_past(&mut self, end: &str) {
        while self.at < self.text.len() && !self.starts_with(end) {
            self.skip(1);
        }
        self.skip(end.chars().count());
    }

    /// Returns the next token; `Some(None)` for a space, a comment or a literal, and `None` at the
    /// end of the file.
    fn next(&mut self) -> Option<Option<TokenKind>> {
        let first = *self.text.get(self.at)?;
        if self.starts_with("//") {
            self.skip_past("\n");
        } else if self.starts_with("/*") {
            self.skip_block_comment();
        } else if first == '"' {
            self.skip_string();
        } else if first == '\'' {
            self.skip_quote();
        } else if self.starts_with("::") {
            self.skip(2);
            return Some(Some(TokenKind::Separator));
        } else if is_word(first) {
            return Some(self.word());
        } else {
            self.skip(1);
            return Some((!first.is_whitespace()).then_some(TokenKind::Punctuation(first)));
        }
        Some(None)
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.text.len() {
            if self.starts_with("/*") {
                depth += 1;
                self.skip(2);
            } else if self.starts_with("*/") {
                depth -= 1;
                self.skip(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.skip(1);
            }
        }
    }

    fn skip_string(&mut self) {
        self.skip(1);
        while self.at < self.text.len() && self.peek(0) != '"' {
            self.skip(if self.peek(0) == '\\' { 2 } else { 1 });
        }
        self.skip(1);
    }

    /// Skips a character literal, or the quote of a lifetime or label, whose name is then a word.
    fn skip_quote(&mut self) {
        if self.peek(1) == '\\' {
            self.skip(3);
            self.skip_past("'");
        } else if self.peek(2) == '\'' {
            self.skip(3);
        } else {
            self.skip(1);
        }
    }

    /// Reads a word, or skips a literal with a prefix such as `br#"…"#`.
    fn word(&mut self) -> Option<TokenKind> {
        let length = (0..).take_while(|offset| is_word(self.peek(*offset))).count();
        let word: String = self.text[self.at..self.at + length].iter().collect();
        self.skip(length);
        let hashes = (0..).take_while(|offset| self.peek(*offset) == '#').count();
        let is_raw = ["r", "br", "cr"].contains(&word.as_str());
        if is_raw && self.peek(hashes) == '"' {
            self.skip(hashes + 1);
            self.skip_past(&format!("\"{}", "#".repeat(hashes)));
            None
        } else if ["b", "c"].contains(&word.as_str()) && self.peek(0) == '"' {
            self.skip_string();
            None
        } else if word == "b" && self.peek(0) == '\'' {
            self.skip_quote();
            None
        } else if word == "r" && hashes == 1 && is_word(self.peek(1)) {
            // A raw identifier.
            self.skip(1);
            self.word()
        } else {
            Some(TokenKind::Word(word))
        }
    }
}
