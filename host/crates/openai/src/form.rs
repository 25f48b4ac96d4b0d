//! Multipart forms, by which clients upload audio and images.
//!
//! Policies see a form as a JSON body that has its model, its prompt and what the host needs to
//! know of the response. The contents of the other parts stay where the host has put them. An
//! engine gets a form that is written anew, so that it cannot find other parts in it than the host
//! has found:
//!
//! ```text
//!   parts: file, model, prompt ──> {"model":"whisper","prompt":"…"}   policies, edits
//!     └─────────────────────────────────┴──> Form::write ──> the parts in their order, with the
//!                                                            names and texts of the JSON body
//! ```

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use serde_json::{Map, Value};

use crate::bad_request::BadRequest;
use crate::operator_names;

/// Fields of a form that the JSON body has too. Each may be given once.
const MODEL: &str = "model";
const PROMPT: &str = "prompt";
const STREAM: &str = "stream";
const CHOICES: &str = "n";
/// Maximum size of such a field.
const MAX_FIELD: u64 = 128 << 10;
/// Parts of at least this size are not copied into the text between them.
const MIN_SEGMENT: usize = 4 << 10;

/// The content of a part, or a piece of a form as an engine gets it.
#[derive(Debug, Clone)]
pub enum FormContent {
    /// Bytes in memory.
    Memory(Bytes),
    /// A range of a file.
    File(Arc<File>, Range<u64>),
}

impl FormContent {
    /// Returns the number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end.saturating_sub(range.start),
        }
    }
}

/// One part of a form.
#[derive(Debug, Clone)]
pub struct FormPart {
    /// Name of the field.
    pub name: String,
    /// Name of the file, if the part is one.
    pub file_name: Option<String>,
    /// Headers except `Content-Disposition`.
    pub headers: HeaderMap,
    /// The content.
    pub content: FormContent,
}

/// A form as an engine gets it.
#[derive(Debug, Clone)]
pub struct EngineForm {
    /// The content type, with the boundary.
    pub content_type: String,
    /// The body.
    pub body: Vec<FormContent>,
}

/// The form of a request.
#[derive(Debug)]
pub struct Form {
    parts: Vec<FormPart>,
    boundary: String,
    /// Bytes of the contents of all parts.
    size: u64,
    /// The fields that policies see.
    json: Map<String, Value>,
}

impl Form {
    /// Creates a form. `boundary` must not occur in the contents: a client must not be able to
    /// foresee it. Fields that are the operator's are left out.
    ///
    /// # Errors
    /// If a field that the host reads is given several times, is too long, or not a text.
    pub fn new(parts: Vec<FormPart>, boundary: String) -> Result<Self, BadRequest> {
        let mut parts = parts;
        parts.retain(|part| !operator_names::is_operators(&part.name));
        let size = parts.iter().map(|part| part.content.size()).sum();
        let mut json = Map::new();
        let mut add = |name: &'static str, value: Option<Value>| {
            json.extend(value.map(|value| (name.to_owned(), value)));
        };
        // An empty model is none, as in JSON.
        let model = text(&parts, MODEL)?.filter(|model| !model.is_empty());
        add(MODEL, model.map(Value::from));
        add(PROMPT, text(&parts, PROMPT)?.map(Value::from));
        let stream = text(&parts, STREAM)?.is_some_and(is_true);
        add(STREAM, stream.then_some(Value::Bool(true)));
        let choices = text(&parts, CHOICES)?.and_then(|choices| choices.trim().parse::<u32>().ok());
        add(CHOICES, choices.map(Value::from));
        Ok(Self { parts, boundary, size, json })
    }

    /// Returns the body that policies see.
    pub fn json(&self) -> Bytes {
        Value::from(self.json.clone()).to_string().into()
    }

    /// Returns the parts.
    pub fn parts(&self) -> &[FormPart] {
        &self.parts
    }

    /// Returns the number of bytes of all contents.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the form with this model and prompt, which take the place of the client's.
    pub(crate) fn write(&self, model: &str, prompt: Option<&str>) -> EngineForm {
        let mut writer = Writer { boundary: &self.boundary, text: BytesMut::new(), body: vec![] };
        let has = |name: &str| self.parts.iter().any(|part| part.name == name);
        let replaced = [(MODEL, Some(model)), (PROMPT, prompt)];
        for (name, value) in replaced {
            if let Some(value) = value.filter(|_| !has(name)) {
                writer.part(name, None, &HeaderMap::new(), &memory(value));
            }
        }
        for part in &self.parts {
            let FormPart { name, file_name, headers, content } = part;
            let replaced = replaced.iter().find(|(replaced, _)| replaced == name);
            match replaced {
                // Without headers: they may name another charset.
                Some((_, Some(value))) => {
                    writer.part(name, None, &HeaderMap::new(), &memory(value));
                }
                // A policy has removed it.
                Some((_, None)) => {}
                None => writer.part(name, file_name.as_deref(), headers, content),
            }
        }
        let content_type = format!("multipart/form-data; boundary={}", self.boundary);
        EngineForm { content_type, body: writer.finish() }
    }
}

fn memory(text: &str) -> FormContent {
    FormContent::Memory(Bytes::copy_from_slice(text.as_bytes()))
}

/// Returns the text of a field that may be given once.
fn text<'a>(parts: &'a [FormPart], name: &'static str) -> Result<Option<&'a str>, BadRequest> {
    let mut found = parts.iter().filter(|part| part.name == name);
    let Some(part) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(BadRequest::invalid(name, "one part with this name"));
    }
    match &part.content {
        FormContent::Memory(bytes) if bytes.len() as u64 <= MAX_FIELD => {
            let text = std::str::from_utf8(bytes);
            text.map(Some).map_err(|_| BadRequest::invalid(name, "UTF-8"))
        }
        FormContent::Memory(_) | FormContent::File(..) => {
            Err(BadRequest::invalid(name, "a text of at most 128 KiB"))
        }
    }
}

/// Returns true for what engines read as true in a field of a form.
fn is_true(text: &str) -> bool {
    ["true", "1", "on", "yes", "t", "y"].iter().any(|word| text.trim().eq_ignore_ascii_case(word))
}

struct Writer<'a> {
    boundary: &'a str,
    /// What follows the last piece of the body.
    text: BytesMut,
    body: Vec<FormContent>,
}

impl Writer<'_> {
    fn part(
        &mut self,
        name: &str,
        file_name: Option<&str>,
        headers: &HeaderMap,
        content: &FormContent,
    ) {
        let name = quoted(name);
        let head =
            format!("--{}\r\ncontent-disposition: form-data; name=\"{name}\"", self.boundary);
        self.text.put_slice(head.as_bytes());
        if let Some(file_name) = file_name {
            self.text.put_slice(format!("; filename=\"{}\"", quoted(file_name)).as_bytes());
        }
        self.text.put_slice(b"\r\n");
        for (name, value) in headers {
            self.text.put_slice(name.as_str().as_bytes());
            self.text.put_slice(b": ");
            self.text.put_slice(value.as_bytes());
            self.text.put_slice(b"\r\n");
        }
        self.text.put_slice(b"\r\n");
        match content {
            FormContent::Memory(bytes) if bytes.len() < MIN_SEGMENT => self.text.put_slice(bytes),
            FormContent::Memory(_) | FormContent::File(..) => {
                self.flush();
                self.body.push(content.clone());
            }
        }
        self.text.put_slice(b"\r\n");
    }

    fn flush(&mut self) {
        self.body.push(FormContent::Memory(self.text.split().freeze()));
    }

    fn finish(mut self) -> Vec<FormContent> {
        self.text.put_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        self.flush();
        self.body
    }
}

/// Returns a name as browsers write it between quotes. A backslash is an escape to some readers,
/// and part of the name to others.
fn quoted(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '"' => quoted.push_str("%22"),
            '\\' => quoted.push_str("%5C"),
            '\r' => quoted.push_str("%0D"),
            '\n' => quoted.push_str("%0A"),
            letter if letter.is_ascii_control() => quoted.push('_'),
            letter => quoted.push(letter),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};
    use pointsman_domain::{Edit, Endpoint, RequestView as _};
    use serde_json::json;

    use super::*;
    use crate::request::{Head, Request};

    fn part(name: &str, file_name: Option<&str>, content: impl Into<Bytes>) -> FormPart {
        FormPart {
            name: name.to_owned(),
            file_name: file_name.map(str::to_owned),
            headers: HeaderMap::new(),
            content: FormContent::Memory(content.into()),
        }
    }

    fn request(parts: Vec<FormPart>) -> Request {
        let form = Arc::new(Form::new(parts, "B".to_owned()).unwrap());
        let head = Head { form: Some(Arc::clone(&form)), ..Head::default() };
        Request::parse(Endpoint::Transcriptions, form.json(), head).unwrap()
    }

    fn written(request: &Request, model: Option<&str>) -> String {
        let form = request.body_for_engine(model, true, None).form.unwrap();
        assert_eq!(form.content_type, "multipart/form-data; boundary=B");
        let bytes = form.body.iter().flat_map(|piece| match piece {
            FormContent::Memory(bytes) => bytes.to_vec(),
            FormContent::File(..) => b"<file>".to_vec(),
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    #[test]
    fn form_is_written_anew_with_the_same_parts() {
        let mut file = part("file", Some("a\"b\r\n.wav"), "RIFF\r\n--X--");
        file.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("audio/wav"));
        let spooled = FormContent::File(Arc::new(File::open("/dev/null").unwrap()), 3..10);
        let parts = vec![
            file,
            FormPart { content: spooled, ..part("mask", Some("m"), "") },
            part("priority", None, "-1"),
            part("t[]", None, "word"),
            part("t[]", None, "segment"),
            part("model", None, "whisper"),
        ];
        let request = request(parts);
        let disposition = "content-disposition: form-data; name=";
        let expected = format!(
            "--B\r\n{disposition}\"file\"; filename=\"a%22b%0D%0A.wav\"\r\n\
             content-type: audio/wav\r\n\r\nRIFF\r\n--X--\r\n\
             --B\r\n{disposition}\"mask\"; filename=\"m\"\r\n\r\n<file>\r\n\
             --B\r\n{disposition}\"t[]\"\r\n\r\nword\r\n\
             --B\r\n{disposition}\"t[]\"\r\n\r\nsegment\r\n\
             --B\r\n{disposition}\"model\"\r\n\r\nserved\r\n--B--\r\n"
        );
        assert_eq!(written(&request, Some("served")), expected);
        let own = expected.replace("served", "whisper");
        assert_eq!(written(&request, None), own);
        let info = request.info();
        assert!(info.has_media && !info.streaming);
        assert_eq!(info.body_bytes, 11 + 7 + 4 + 7 + 7);
    }

    #[test]
    fn policies_see_and_edit_model_and_prompt() {
        let parts = vec![
            part("prompt", None, "my name is \"A\""),
            part("file", Some("f"), "x"),
            part("stream", None, "True"),
            part("model", None, "m"),
            part("temperature", None, "0"),
        ];
        let request = request(parts);
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let seen = json!({ "model": "m", "prompt": "my name is \"A\"", "stream": true });
        assert_eq!(body, seen);
        assert!(request.streaming() && request.contains("name is", false));
        let (edited, dropped) = request.apply(&[
            Edit::SetModel("n".to_owned()),
            Edit::SetField("/temperature".to_owned(), "1".to_owned()),
            Edit::SetField("/prompt".to_owned(), "7".to_owned()),
            Edit::ReplaceBody(r#"{"model":"n","stream":true}"#.to_owned()),
            Edit::SetField("/prompt".to_owned(), "\"my name is [x]\"".to_owned()),
            Edit::RemoveField("/stream".to_owned()),
            Edit::SetHeader("x-a".to_owned(), "b".to_owned()),
        ]);
        let dropped: Vec<usize> = dropped.iter().map(|dropped| dropped.index).collect();
        assert_eq!(dropped, [1, 2, 3, 5]);
        assert_eq!(edited.headers()["x-a"], "b");
        let form = written(&edited, None);
        assert!(form.contains("\r\n\r\nn\r\n") && form.contains("\r\n\r\nmy name is [x]\r\n"));
        assert!(form.contains("name=\"temperature\"\r\n\r\n0\r\n"), "{form}");
        let (edited, _) = request.apply(&[Edit::RemoveField("/prompt".to_owned())]);
        assert!(!written(&edited, None).contains("prompt"));
    }

    #[test]
    fn fields_that_the_host_reads_are_given_once() {
        let file = || part("file", Some("f"), "x");
        let twice = vec![part("model", None, "a"), file(), part("model", None, "b")];
        let long = vec![part("prompt", None, vec![b'x'; (128 << 10) + 1])];
        let binary = vec![part("model", None, &b"\xff"[..])];
        for (parts, name) in [(twice, "model"), (long, "prompt"), (binary, "model")] {
            let error = Form::new(parts, "B".to_owned()).unwrap_err();
            assert_eq!(error.body().param.as_deref(), Some(name));
        }
        let form = Form::new(vec![part("model", None, ""), file()], "B".to_owned()).unwrap();
        assert_eq!(form.json(), "{}");
        assert!(Request::parse(Endpoint::Translations, form.json(), Head::default()).is_err());
    }
}
