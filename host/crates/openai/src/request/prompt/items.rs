//! Items, as the input of the responses API has them.

use super::elements::for_each;
use super::fields::MAX_FIELD_DEPTH;
use super::{Prompt, TOKENS_PER_MESSAGE};
use crate::bad_request::BadRequest;
use crate::request::shape::{ItemShape, Object};

impl Prompt {
    /// Reads the input of a response: a string, or an array of items. What is unknown has no text,
    /// because engines add kinds of items.
    pub(in crate::request) fn read_items(
        &mut self,
        body: &str,
        input: &str,
    ) -> Result<(), BadRequest> {
        let invalid = || BadRequest::invalid("input", "a string or an array of items");
        match input.as_bytes().first() {
            Some(b'"') => {
                self.add_text(body, input);
                return Ok(());
            }
            Some(b'[') => {}
            _ => return Err(invalid()),
        }
        for_each(input, invalid, |item| {
            self.count_item()?;
            // Each item is a message for the engine's chat template.
            self.token_ids += TOKENS_PER_MESSAGE;
            match item.as_bytes().first() {
                Some(b'"') => {
                    self.add_text(body, item);
                    return Ok(());
                }
                Some(b'{') => {}
                _ => return self.read_field(body, item, MAX_FIELD_DEPTH),
            }
            // One with a field that is given twice, which others might read differently.
            let Ok(Object(item)) = serde_json::from_str::<Object<ItemShape<'_>>>(item) else {
                return self.read_field(body, item, MAX_FIELD_DEPTH);
            };
            let texts = [item.summary, item.content, item.arguments, item.output];
            for text in texts.into_iter().flatten() {
                match text.get().as_bytes().first() {
                    Some(b'"') => self.add_text(body, text.get()),
                    Some(b'[') => for_each(text.get(), invalid, |part| {
                        self.count_item()?;
                        match self.read_part(body, part) {
                            // All that might be a text of it.
                            Err(BadRequest::Invalid { .. }) => {
                                self.read_field(body, part, MAX_FIELD_DEPTH)
                            }
                            read => read,
                        }
                    })?,
                    _ => {}
                }
            }
            Ok(())
        })
    }
}
