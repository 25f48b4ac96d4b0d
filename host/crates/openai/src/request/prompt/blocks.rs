//! Content blocks, as Anthropic's API has them: they may have blocks in turn.

use serde_json::value::RawValue;

use super::elements::for_each;
use super::fields::MAX_FIELD_DEPTH;
use super::{Prompt, invalid_part, unescaped};
use crate::bad_request::BadRequest;
use crate::request::shape::{Object, PartShape, SourceShape};

impl Prompt {
    /// Reads the system prompt of a request with content blocks: a text or blocks. Numbers and the
    /// like are the engine's to judge.
    pub(in crate::request) fn read_system(
        &mut self,
        body: &str,
        system: Option<&RawValue>,
    ) -> Result<(), BadRequest> {
        let system = system.map(RawValue::get).unwrap_or_default();
        match system.as_bytes().first() {
            Some(b'"') => self.push_text(body, system),
            Some(b'[') => for_each(system, invalid_part, |block| {
                self.count_item()?;
                if block.starts_with('"') {
                    self.push_text(body, block);
                    return Ok(());
                }
                let Ok(Object(block)) = serde_json::from_str::<Object<PartShape<'_>>>(block) else {
                    return Err(invalid_system());
                };
                let text = block.text.map(RawValue::get).filter(|text| text.starts_with('"'));
                if let Some(text) = text {
                    self.push_text(body, text);
                }
                Ok(())
            })?,
            // Might have texts.
            Some(b'{') => return Err(invalid_system()),
            // Missing, or the engine's to judge.
            _ => {}
        }
        self.system_texts = self.texts.len();
        Ok(())
    }

    /// Reads the content of a block: a text or blocks. What is not valid is the engine's to judge,
    /// and all of its texts are read.
    pub(super) fn read_nested(
        &mut self,
        body: &str,
        content: Option<&RawValue>,
    ) -> Result<(), BadRequest> {
        let content = content.map(RawValue::get).unwrap_or_default();
        if !content.starts_with('[') {
            return self.read_field(body, content, MAX_FIELD_DEPTH);
        }
        for_each(content, invalid_part, |block| {
            self.count_item()?;
            match serde_json::from_str::<Object<PartShape<'_>>>(block) {
                Ok(Object(block)) => self.read_object(body, &block),
                Err(_) => self.read_field(body, block, MAX_FIELD_DEPTH),
            }
        })
    }

    /// Reads what stands before the text of a document.
    pub(super) fn read_titles(&mut self, body: &str, part: &PartShape<'_>) {
        for title in [part.title, part.context].into_iter().flatten() {
            self.add_text(body, title.get());
        }
    }

    /// Reads a document: a text, blocks, or a file.
    pub(super) fn read_document(
        &mut self,
        body: &str,
        source: Option<&RawValue>,
    ) -> Result<(), BadRequest> {
        let source = source.map(RawValue::get).unwrap_or_default();
        let Ok(Object(source)) = serde_json::from_str::<Object<SourceShape<'_>>>(source) else {
            self.add_part(true);
            return self.read_field(body, source, MAX_FIELD_DEPTH);
        };
        match unescaped(source.kind)? {
            Some("\"text\"") => {
                self.add_text(body, source.data.map(RawValue::get).unwrap_or_default());
            }
            Some("\"content\"") => self.read_nested(body, source.content)?,
            _ => self.add_part(true),
        }
        Ok(())
    }
}

fn invalid_system() -> BadRequest {
    BadRequest::invalid("system", "a string, or an array of blocks with a `text`")
}
