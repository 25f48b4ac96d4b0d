//! Fields of any form that have texts, as the endpoints have them that are only passed on.

use super::Prompt;
use crate::bad_request::BadRequest;
use crate::scan::{self, Children};

/// Maximum depth at which a field is searched for texts: below a list of documents or messages, a
/// list of the parts of each. Bounds the time, because each level is scanned once more.
pub(in crate::request) const MAX_FIELD_DEPTH: usize = 6;
/// Members of objects in such a field that are images, recordings and the like.
const MEDIA: [&str; 12] = [
    "image_url",
    "video_url",
    "audio_url",
    "input_audio",
    "image",
    "images",
    "audio",
    "video",
    "file",
    "image_embeds",
    "audio_embeds",
    "multimodal_data",
];
/// Members of objects in such a field that say what the object is.
const NO_TEXT: [&str; 5] = ["type", "role", "id", "tool_call_id", "detail"];

impl Prompt {
    /// Reads a field that has texts: a text, token ids, or a list or object in which there are
    /// some.
    pub(in crate::request) fn read_field(
        &mut self,
        body: &str,
        json: &str,
        depth: usize,
    ) -> Result<(), BadRequest> {
        match json.as_bytes().first() {
            Some(b'"') if is_data_url(json) => self.add_part(true),
            Some(b'"') => self.add_text(body, json),
            Some(b'[' | b'{') if depth > 0 => {
                for child in Children::new(json.as_bytes(), 0).into_iter().flatten() {
                    let end = scan::value_end(json.as_bytes(), child.start);
                    let value = json.get(child.start..end).unwrap_or_default();
                    if child.key.is_empty()
                        && value.starts_with(|first: char| first.is_ascii_digit())
                    {
                        // Without an item of its own: lists of token ids are long.
                        self.token_ids += 1;
                        continue;
                    }
                    self.count_item()?;
                    let key = scan::key(json.as_bytes().get(child.key).unwrap_or_default());
                    if MEDIA.contains(&&*key) {
                        self.add_part(true);
                    } else if !NO_TEXT.contains(&&*key) {
                        self.read_field(body, value, depth - 1)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns true for a literal that is a file in the form of a URL, and nothing else: a text must
/// not be hidden behind the beginning of one.
fn is_data_url(literal: &str) -> bool {
    /// Length in bytes up to which the type of the file is looked for.
    const MAX_TYPE: usize = 200;
    let content = literal.trim_matches('"');
    let Some(at) = content.find(";base64,").filter(|at| *at <= MAX_TYPE) else { return false };
    let (kind, data) = content.split_at(at);
    let is_kind = |byte: u8| byte.is_ascii_alphanumeric() || b":/+-.;=_".contains(&byte);
    let is_data = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte);
    // Some clients write slashes with escapes.
    let is_only = |part: &str, is: &dyn Fn(u8) -> bool| part.replace("\\/", "/").bytes().all(is);
    kind.starts_with("data:")
        && is_only(kind, &is_kind)
        && is_only(&data[";base64,".len()..], &is_data)
}

/// Returns the number of prompts in a list of prompts, as llama.cpp's own endpoints take it: a list
/// with numbers is one prompt, of token ids and texts.
pub(super) fn listed_prompts(json: &str) -> usize {
    if !json.starts_with('[') {
        return 0;
    }
    let starts = Children::new(json.as_bytes(), 0).into_iter().flatten();
    let is_number =
        |start: usize| json.as_bytes().get(start).is_some_and(|b| b.is_ascii_digit() || *b == b'-');
    starts.map(|child| (!is_number(child.start)).then_some(1)).sum::<Option<usize>>().unwrap_or(0)
}
