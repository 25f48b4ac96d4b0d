//! Typed edits. Each edit replaces exactly the bytes that it concerns, and sees the results of the
//! edits before it. An edit that would make the request invalid is dropped.

mod conversation;
mod system;

use bytes::Bytes;
use http::header::{InvalidHeaderName, InvalidHeaderValue};
use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::{DroppedEdit, Edit, RequestView as _};
use serde_json::{Value, json};

use self::conversation::Conversation;
use crate::bad_request::BadRequest;
use crate::document::{Container, Node};
use crate::endpoint::{EndpointShape, PromptShape};
use crate::error_form::ErrorForm;
use crate::json::{self, PointerError};
use crate::request::{Head, Limit, Request, check_field, is_streaming, lowest_limit};

/// vLLM's minimum number of tokens.
const MIN_TOKENS: &str = "min_tokens";

/// The reason why an edit cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The field to edit cannot be found.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// The new value is not JSON.
    #[error("value is not valid JSON: {0}")]
    Value(#[source] serde_json::Error),
    /// The edited body would not be a valid request.
    #[error("edit would make the request invalid: {0}")]
    InvalidRequest(#[from] BadRequest),
    /// The new body names another model.
    #[error("edit would change the model from `{from}` to `{to}`")]
    ModelChanged {
        /// Model of the request.
        from: String,
        /// Model of the new body.
        to: String,
    },
    /// The new body asks for a stream and the client does not, or vice versa.
    #[error("edit would change `stream`: expected `{requested}` as requested by the client")]
    StreamChanged {
        /// True if the client asked for a stream.
        requested: bool,
    },
    /// The edit concerns a field of a form that cannot be edited.
    #[error("only the model and the text `prompt` of a form can be edited")]
    Form,
    /// The edit concerns messages, but the request is not a chat request.
    #[error("only chat requests have messages")]
    NotChat,
    /// The request has no `messages`.
    #[error("request has no `messages`")]
    NoMessages,
    /// The `messages` of the request are not an array.
    #[error("`messages` is not an array")]
    MessagesNotArray,
    /// The message is the last one of the user, or a call of a tool or its result.
    #[error("message {index} cannot be removed alone: the conversation would not be valid")]
    MessageNeeded {
        /// Position of the message.
        index: usize,
    },
    /// The header name is invalid.
    #[error("invalid header name `{name}`")]
    HeaderName {
        /// The name.
        name: String,
        /// Error of the parser.
        source: InvalidHeaderName,
    },
    /// The header value has characters that are not allowed.
    #[error("invalid value for header `{name}`")]
    HeaderValue {
        /// Name of the header.
        name: HeaderName,
        /// Error of the parser.
        source: InvalidHeaderValue,
    },
}

#[cfg(test)]
thread_local! {
    /// How often edits had to be applied one by one, because the result was invalid.
    static FALLBACKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The position of an edit that was dropped, with the reason.
type Dropped = (usize, EditError);

impl Request {
    /// Returns the request with `edits` applied in order, and the edits that could not be applied.
    /// A dropped edit does not affect the others.
    #[must_use]
    pub fn apply(&self, edits: &[Edit]) -> (Self, Vec<DroppedEdit>) {
        let (request, dropped) = apply(self, edits);
        let dropped = dropped
            .into_iter()
            .map(|(index, error)| DroppedEdit { index, reason: error.to_string() });
        (request, dropped.collect())
    }
}

/// Returns the request with `edits` applied in order, and the edits that were dropped.
///
/// The body is scanned, copied and parsed once for all edits, except that a new body begins anew.
fn apply(request: &Request, edits: &[Edit]) -> (Request, Vec<Dropped>) {
    let mut request = request.clone();
    let mut dropped = Vec::new();
    let mut index = 0;
    for run in edits.chunk_by(|_, next| !matches!(next, Edit::ReplaceBody(_))) {
        let rest = match run {
            [Edit::ReplaceBody(body), rest @ ..] => {
                match replace_body(&request, body) {
                    Ok(replaced) => request = replaced,
                    Err(error) => dropped.push((index, error)),
                }
                rest
            }
            rest => rest,
        };
        let begin = index + run.len() - rest.len();
        request = apply_at_once(&request, rest, begin, &mut dropped);
        index += run.len();
    }
    (request, dropped)
}

/// Applies edits that keep the body. `begin` is the position of the first one.
fn apply_at_once(
    request: &Request,
    edits: &[Edit],
    begin: usize,
    dropped: &mut Vec<Dropped>,
) -> Request {
    let mut draft = Draft::new(request);
    let dropped_before = dropped.len();
    for (index, edit) in (begin..).zip(edits) {
        if let Err(error) = draft.edit(edit) {
            dropped.push((index, error));
        }
    }
    match draft.finish() {
        Ok(edited) => edited,
        // The draft checks what each edit may break, so this should not happen. If it does, the
        // parser decides about each edit.
        Err(error) if edits.len() == 1 => {
            dropped.push((begin, error.into()));
            request.clone()
        }
        Err(_) => {
            #[cfg(test)]
            FALLBACKS.set(FALLBACKS.get() + 1);
            dropped.truncate(dropped_before);
            (begin..).zip(edits).fold(request.clone(), |request, (index, edit)| {
                apply_at_once(&request, std::slice::from_ref(edit), index, dropped)
            })
        }
    }
}

/// A request under edit.
struct Draft<'a> {
    request: &'a Request,
    shape: &'static EndpointShape,
    /// The body, if an edit needed it.
    body: Option<Node<'a>>,
    /// True if an edit concerned the body; otherwise the body keeps the client's bytes.
    body_is_edited: bool,
    /// The headers, if an edit concerned them.
    headers: Option<HeaderMap>,
}

impl<'a> Draft<'a> {
    fn new(request: &'a Request) -> Self {
        let shape = EndpointShape::for_endpoint(request.endpoint());
        Self { request, shape, body: None, body_is_edited: false, headers: None }
    }

    fn body(&mut self) -> &mut Node<'a> {
        let request = self.request;
        self.body.get_or_insert_with(|| Node::new(request.json().trim_ascii()))
    }

    /// Applies one edit; if it fails, the draft is unchanged.
    fn edit(&mut self, edit: &'a Edit) -> Result<(), EditError> {
        if self.request.head().form.is_some() {
            check_form_edit(edit)?;
        }
        match edit {
            Edit::SetModel(model) => {
                let model = Value::from(model.as_str()).to_string();
                self.body().set(&["model".to_owned()], model.into())?;
            }
            Edit::CapOutputTokens(limit) => return Ok(self.cap_output(*limit)?),
            Edit::SetField(pointer, value) => {
                serde_json::from_str::<serde::de::IgnoredAny>(value).map_err(EditError::Value)?;
                let (tokens, value) = (json::tokens(pointer)?, value.trim_ascii());
                check_field(self.shape.prompt, &tokens, Some(value))?;
                self.guard(&tokens, Some(value))?;
                self.body().set(&tokens, value.into())?;
            }
            Edit::RemoveField(pointer) => {
                let tokens = json::tokens(pointer)?;
                if self.body().has(&tokens)? {
                    check_field(self.shape.prompt, &tokens, None)?;
                    self.check_removal(&tokens)?;
                    self.guard(&tokens, None)?;
                }
                self.body().remove(&tokens)?;
            }
            Edit::PrependSystem(text) if self.shape.prompt == PromptShape::Blocks => {
                system::prepend(self.body(), text)?;
            }
            Edit::PrependSystem(text) if self.shape.prompt == PromptShape::Items => {
                system::prepend_instructions(self.body(), text)?;
            }
            Edit::PrependSystem(text) => {
                let message =
                    format!("{{\"role\":\"system\",\"content\":{}}}", Value::from(&**text));
                self.messages()?.push_front("", message);
            }
            Edit::KeepLastMessages(count) => {
                let messages = self.messages()?;
                let keep = Conversation::read(messages)?.keep_last(*count as usize);
                messages.keep(&keep);
            }
            Edit::SetHeader(name, value) => return self.set_header(name, Some(value)),
            Edit::RemoveHeader(name) => return self.set_header(name, None),
            // The caller replaces the body before it creates the draft.
            Edit::ReplaceBody(_) => return Ok(()),
        }
        self.body_is_edited = true;
        Ok(())
    }

    /// Lowers the limits that the request has. If it has none that every engine reads, sets the
    /// last one, which is such a limit. What is low enough keeps its bytes.
    fn cap_output(&mut self, max: u32) -> Result<(), PointerError> {
        let limits = self.shape.output_limits;
        let Some(default) = limits.last() else { return Ok(()) };
        if self.shape.errors == ErrorForm::Ollama {
            return self.cap_num_predict(max);
        }
        let mut is_limited = false;
        for limit in limits {
            is_limited |= self.lower(limit.name(), max)? && limit.is_read_by_all(self.shape.prompt);
        }
        // vLLM rejects a minimum above the maximum.
        self.lower(MIN_TOKENS, max)?;
        if !is_limited {
            self.body().set(&[default.name().to_owned()], max.to_string().into())?;
            self.body_is_edited = true;
        }
        Ok(())
    }

    /// Lowers or sets the limit that Ollama reads.
    fn cap_num_predict(&mut self, max: u32) -> Result<(), PointerError> {
        let path = ["options", "num_predict"].map(str::to_owned);
        let limit = match self.body().member(&path[0])? {
            Some(options) => options.member(&path[1])?.and_then(|limit| limit.text()),
            None => None,
        };
        let is_low = |limit: u64| limit <= u64::from(max);
        if lowest_limit(limit.into_iter()).is_some_and(is_low) {
            return Ok(());
        }
        self.body_is_edited = true;
        if self.body().set(&path, max.to_string().into()).is_ok() {
            return Ok(());
        }
        // Without options, or with some that are not an object.
        self.body().set(&path[..1], json!({ "num_predict": max }).to_string().into())
    }

    /// Lowers a field that is a number of tokens. Returns false if the request does not have it.
    fn lower(&mut self, name: &str, max: u32) -> Result<bool, PointerError> {
        let Some(field) = self.body().member(name)? else { return Ok(false) };
        let text = field.text().unwrap_or_default();
        let new = match Limit::read(text) {
            None => return Ok(false),
            // vLLM takes a number in a string, for which llama.cpp has no limit.
            Some(Limit::Tokens(tokens)) if tokens <= u64::from(max) => {
                text.starts_with('"').then_some(tokens)
            }
            Some(Limit::Tokens(_) | Limit::Unlimited) => Some(max.into()),
        };
        if let Some(new) = new {
            *field = Node::Text(new.to_string().into());
            self.body_is_edited = true;
        }
        Ok(true)
    }

    /// Checks that setting a field of the body changes neither the model, by which lanes were
    /// selected, nor whether the response is a stream. For the model there is an edit of its own.
    fn guard(&mut self, tokens: &[String], value: Option<&str>) -> Result<(), EditError> {
        let [name] = tokens else { return Ok(()) };
        let value = value.filter(|value| *value != "null");
        if name == "stream" {
            let requested = self.request.streaming();
            if is_streaming(self.request.endpoint(), value)? != requested {
                return Err(EditError::StreamChanged { requested });
            }
        }
        if name == "model" {
            let read = |json: &str| serde_json::from_str::<String>(json).unwrap_or_default();
            let now = self.body().member(name)?.and_then(|model| model.text());
            let from = now.map(read).unwrap_or_default();
            let to = value.map(read).unwrap_or_default();
            if from != to {
                return Err(EditError::ModelChanged { from, to });
            }
        }
        Ok(())
    }

    /// Checks that removing a field does not remove a message that others depend on, or the last
    /// one of the user.
    fn check_removal(&mut self, tokens: &[String]) -> Result<(), EditError> {
        let ([field, index], true) = (tokens, self.shape.prompt.is_chat()) else {
            return Ok(());
        };
        match index.parse() {
            Ok(index) if field == "messages" => {
                let can_remove = Conversation::read(self.messages()?)?.can_remove(index);
                if can_remove { Ok(()) } else { Err(EditError::MessageNeeded { index }) }
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn messages(&mut self) -> Result<&mut Container<'a>, EditError> {
        if !self.shape.prompt.is_chat() {
            return Err(EditError::NotChat);
        }
        let messages = self.body().member("messages")?.ok_or(EditError::NoMessages)?;
        messages.open()?.ok_or(EditError::MessagesNotArray)
    }

    fn set_header(&mut self, name: &str, value: Option<&str>) -> Result<(), EditError> {
        let name: HeaderName = name
            .parse()
            .map_err(|source| EditError::HeaderName { name: name.to_owned(), source })?;
        let value = value.map(HeaderValue::from_str).transpose();
        let value =
            value.map_err(|source| EditError::HeaderValue { name: name.clone(), source })?;
        let headers = self.headers.get_or_insert_with(|| self.request.headers().clone());
        match value {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Request, BadRequest> {
        let mut head: Head = self.request.head().clone();
        if let Some(headers) = self.headers {
            head.headers = headers;
        }
        match self.body.filter(|_| self.body_is_edited) {
            Some(body) => Request::parse(self.request.endpoint(), Bytes::from(body.write()), head),
            None => Ok(self.request.with_head(head)),
        }
    }
}

/// Checks an edit of a form. Its other fields are not in the body that is edited.
fn check_form_edit(edit: &Edit) -> Result<(), EditError> {
    let is_prompt = |pointer: &str| pointer == "/prompt";
    match edit {
        Edit::SetField(pointer, value) => {
            let is_text = serde_json::from_str::<String>(value).is_ok();
            if is_prompt(pointer) && is_text { Ok(()) } else { Err(EditError::Form) }
        }
        Edit::RemoveField(pointer) if !is_prompt(pointer) => Err(EditError::Form),
        Edit::RemoveField(_)
        | Edit::SetModel(_)
        | Edit::CapOutputTokens(_)
        | Edit::PrependSystem(_)
        | Edit::KeepLastMessages(_)
        | Edit::SetHeader(..)
        | Edit::RemoveHeader(_)
        | Edit::ReplaceBody(_) => Ok(()),
    }
}

/// Replaces the whole body. Lanes were selected by the model, and the client expects either a
/// stream or a single response, so neither may change.
fn replace_body(request: &Request, body: &str) -> Result<Request, EditError> {
    if request.head().form.is_some() {
        return Err(EditError::Form);
    }
    let body = Bytes::from(body.to_owned());
    let replaced = Request::parse(request.endpoint(), body, request.head().clone())?;
    if replaced.model() != request.model() {
        let (from, to) = (request.model().to_owned(), replaced.model().to_owned());
        return Err(EditError::ModelChanged { from, to });
    }
    if replaced.streaming() != request.streaming() {
        return Err(EditError::StreamChanged { requested: request.streaming() });
    }
    Ok(replaced)
}

#[cfg(test)]
mod tests;
