//! Receives multipart forms.
//!
//! The contents of parts stay in memory as long as they are small. What exceeds that goes to a
//! spool file, so that a field behind a large file is found, and a form can be sent again.

use std::error::Error;
use std::future::poll_fn;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt as _;
use multer::{Field, Multipart};
use pointsman_fleet::{ContentEncoding, decode};
use pointsman_openai::{BadRequest, Form, FormContent, FormPart};
use uuid::Uuid;

use super::spool::SpoolFile;
use super::{Reservation, Uploads, Wire, body_error};
use crate::error::RouteError;

/// Parts of a form.
pub(crate) const MAX_PARTS: usize = 256;
/// Size of the headers of a part.
pub(crate) const MAX_PART_HEAD: usize = 8 << 10;
/// Length of the name of a field, and of that of a file.
const MAX_NAME: usize = 256;
const MAX_FILE_NAME: usize = 1 << 10;
/// Bytes of all parts that are not files, which stay in memory.
const FIELD_MEMORY: usize = 256 << 10;
/// Bytes that the parser gets at a time.
const PIECE: usize = 16 << 10;
/// Bytes within which the parser must find something: the headers of a part, with a piece before
/// and behind them.
const MAX_UNPARSED: usize = MAX_PART_HEAD + 2 * PIECE;
/// Maximum length of a boundary (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// How the content of a part is encoded, in mails.
const TRANSFER_ENCODING: HeaderName = HeaderName::from_static("content-transfer-encoding");

/// The cause of an error of a body.
type Cause = Box<dyn Error + Send + Sync>;

/// Returns the boundary that a content type names.
pub(super) fn boundary_of(content_type: &str) -> Result<String, RouteError> {
    let boundary = multer::parse_boundary(content_type).ok();
    let is_valid = |boundary: &String| (1..=MAX_BOUNDARY).contains(&boundary.len());
    boundary.filter(is_valid).ok_or(RouteError::InvalidForm("the boundary is missing or too long"))
}

/// Receives a form. The reservation includes the space of its file.
pub(super) async fn receive_form(
    uploads: &Uploads,
    encoding: Option<ContentEncoding>,
    boundary: String,
    body: Body,
    tenant: Option<&str>,
) -> Result<(Form, Reservation), RouteError> {
    let max = uploads.max_upload;
    // A decoder has memory that no byte of its body accounts for.
    let _decoder = match encoding {
        Some(_) => Some(uploads.decoders.acquire(tenant).await),
        None => None,
    };
    let mut body = decode(encoding, Wire::new(uploads, body, max)).await;
    let gate = Gate::default();
    let mut contents = Contents::new(uploads, tenant);
    let parts = {
        let pieces = Pieces { body: &mut body, rest: Bytes::new(), gate: &gate, left: max };
        let multipart = Multipart::new(pieces, boundary);
        let failed = |error| form_error(error, encoding, max);
        read_parts(multipart, &gate, &mut contents, failed).await?
    };
    // What follows the last boundary has no meaning, but belongs to the request.
    let mut left = max;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| body_error(error, encoding, max))?;
        let length = frame.data_ref().map_or(0, Bytes::len);
        left = left.checked_sub(length).ok_or(RouteError::BodyTooLarge { max })?;
    }
    let (parts, reservation) = contents.finish(parts).await?;
    // Random, from the keys that the standard library draws for each process: a client cannot write
    // it into a part.
    let random = RandomState::new().hash_one(());
    let boundary = format!("pointsman-{}-{random:016x}", Uuid::now_v7().simple());
    Ok((Form::new(parts, boundary)?, reservation))
}

/// Reads all parts.
async fn read_parts(
    mut multipart: Multipart<'_>,
    gate: &Gate,
    contents: &mut Contents<'_>,
    failed: impl Fn(multer::Error) -> RouteError,
) -> Result<Vec<ReadPart>, RouteError> {
    let mut parts = Vec::new();
    while let Some(field) = gate.step(|cx| multipart.poll_next_field(cx)).await?.map_err(&failed)? {
        if parts.len() == MAX_PARTS {
            return Err(BadRequest::TooMany { what: "parts", max: MAX_PARTS }.into());
        }
        let mut part = read_head(&field)?;
        let mut field = pin!(field);
        while let Some(chunk) = gate.step(|cx| field.as_mut().poll_next(cx)).await? {
            let chunk = chunk.map_err(&failed)?;
            contents.append(&mut part.content, part.file_name.is_some(), &chunk).await?;
        }
        parts.push(part);
    }
    Ok(parts)
}

/// A part whose content may still be in the buffer of the file.
struct ReadPart {
    name: String,
    file_name: Option<String>,
    headers: HeaderMap,
    content: Content,
}

/// Reads the headers of a part.
fn read_head(field: &Field<'_>) -> Result<ReadPart, RouteError> {
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    if field.headers().iter().map(size).sum::<usize>() > MAX_PART_HEAD {
        return Err(RouteError::InvalidForm("the headers of a part are too long"));
    }
    let name = field.name().unwrap_or_default();
    // Readers of forms disagree about escapes, of which the names of APIs need none.
    let is_odd = |letter: char| letter.is_control() || matches!(letter, '"' | '\\' | '%');
    if name.is_empty() || name.len() > MAX_NAME || name.contains(is_odd) {
        return Err(RouteError::InvalidForm("a part has no valid name"));
    }
    // Browsers do not encode contents (RFC 7578); the host and the engine would read two texts.
    let encoding = field.headers().get(TRANSFER_ENCODING);
    let is_plain = |encoding: &HeaderValue| {
        ["7bit", "8bit", "binary"]
            .iter()
            .any(|plain| encoding.as_bytes().eq_ignore_ascii_case(plain.as_bytes()))
    };
    if encoding.is_some_and(|encoding| !is_plain(encoding)) {
        return Err(RouteError::InvalidForm("a part has a transfer encoding"));
    }
    let disposition = field.headers().get(header::CONTENT_DISPOSITION);
    let disposition = disposition.map_or(&b""[..], |value| value.as_bytes());
    let file_name = field.file_name().map(str::to_owned).or_else(|| extended_name(disposition));
    if file_name.as_ref().is_some_and(|name| name.len() > MAX_FILE_NAME) {
        return Err(RouteError::InvalidForm("the name of a file is too long"));
    }
    let mut headers = field.headers().clone();
    // Written anew, so that the engine reads the same names.
    headers.remove(header::CONTENT_DISPOSITION);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    let content = Content::Memory(Vec::new());
    Ok(ReadPart { name: name.to_owned(), file_name, headers, content })
}

/// Returns the name of a file that is given as `filename*` only (RFC 8187).
fn extended_name(disposition: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(disposition).ok()?;
    let at = text.to_ascii_lowercase().find("filename*=")?;
    let value = text[at + "filename*=".len()..].split(';').next()?.trim();
    let encoded = value.splitn(3, '\'').nth(2)?;
    let mut decoded = Vec::new();
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let code = 16 * digit(bytes.next()?)? + digit(bytes.next()?)?;
                u8::try_from(code).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// The content of a part while it is received.
enum Content {
    Memory(Vec<u8>),
    /// In the spool file, in this range.
    Spooled(Range<u64>),
}

/// Where the contents of all parts go.
struct Contents<'a> {
    uploads: &'a Uploads,
    tenant: Option<&'a str>,
    reservation: Reservation,
    /// Bytes in memory of fields and of files.
    in_memory: [usize; 2],
    file: Option<SpoolFile>,
}

impl<'a> Contents<'a> {
    fn new(uploads: &'a Uploads, tenant: Option<&'a str>) -> Self {
        let reservation = Reservation::new(&uploads.memory, tenant);
        Self { uploads, tenant, reservation, in_memory: [0; 2], file: None }
    }

    /// Appends to the content of a part.
    async fn append(
        &mut self,
        content: &mut Content,
        is_file: bool,
        chunk: &[u8],
    ) -> Result<(), RouteError> {
        let limit = if is_file { self.uploads.form_memory } else { FIELD_MEMORY };
        let used = &mut self.in_memory[usize::from(is_file)];
        if let Content::Memory(data) = content {
            if *used + chunk.len() <= limit {
                self.reservation.grow(chunk.len())?;
                *used += chunk.len();
                data.extend_from_slice(chunk);
                return Ok(());
            }
            // The reservation keeps these bytes, in place of the buffer of the file.
            *used -= data.len();
            let data = std::mem::take(data);
            let file = self.open().await?;
            let start = file.size();
            file.append(&data).await?;
            *content = Content::Spooled(start..file.size());
        }
        let file = self.open().await?;
        file.append(chunk).await?;
        if let Content::Spooled(range) = content {
            range.end = file.size();
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<&mut SpoolFile, RouteError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.uploads.spool.create(self.tenant).await?,
        };
        Ok(self.file.insert(file))
    }

    /// Returns the parts with what holds their memory and space.
    async fn finish(
        mut self,
        parts: Vec<ReadPart>,
    ) -> Result<(Vec<FormPart>, Reservation), RouteError> {
        let file = match self.file.take() {
            Some(file) => {
                let (file, space) = file.finish().await?;
                self.reservation.spooled = Some(Box::new(space));
                Some(file)
            }
            None => None,
        };
        let part = |part: ReadPart| {
            let ReadPart { name, file_name, headers, content } = part;
            let content = match (content, &file) {
                (Content::Spooled(range), Some(file)) => FormContent::File(file.clone(), range),
                (Content::Memory(data), _) => FormContent::Memory(data.into()),
                // Never: a part is spooled to a file.
                (Content::Spooled(_), None) => FormContent::Memory(Bytes::new()),
            };
            FormPart { name, file_name, headers, content }
        };
        Ok((parts.into_iter().map(part).collect(), self.reservation))
    }
}

/// Lets pieces of the body through to the parser one at a time, and only if it cannot go on
/// without. It would read all that has arrived into its memory otherwise.
#[derive(Debug, Default)]
struct Gate {
    is_open: AtomicBool,
    /// The body had nothing when it was asked last.
    waits: AtomicBool,
    ended: AtomicBool,
    /// Bytes that were let through in this step.
    passed: AtomicUsize,
}

impl Gate {
    /// Carries out a step of the parser.
    async fn step<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, RouteError> {
        // Relaxed, here and below: all is done by one task at a time.
        self.passed.store(0, Ordering::Relaxed);
        poll_fn(|cx| {
            loop {
                // First with what has been read.
                self.is_open.store(false, Ordering::Relaxed);
                if let Poll::Ready(done) = poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                self.is_open.store(true, Ordering::Relaxed);
                self.waits.store(false, Ordering::Relaxed);
                if let Poll::Ready(done) = poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                if self.waits.load(Ordering::Relaxed) {
                    return Poll::Pending;
                }
                if self.ended.load(Ordering::Relaxed) {
                    return Poll::Ready(Err(RouteError::InvalidForm("it ends early")));
                }
            }
        })
        .await
    }
}

/// The body in pieces.
struct Pieces<'a, B> {
    body: &'a mut B,
    rest: Bytes,
    gate: &'a Gate,
    /// Decoded bytes that may still come.
    left: usize,
}

/// The reason why the parser gets no further piece.
#[derive(Debug, thiserror::Error)]
enum PieceError {
    #[error("the body is too large")]
    TooLarge,
    #[error("the headers of a part are too long")]
    Unparsed,
    #[error(transparent)]
    Body(Cause),
}

impl<B> Stream for Pieces<'_, B>
where
    B: http_body::Body<Data = Bytes, Error = Cause> + Unpin,
{
    type Item = Result<Bytes, PieceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if !this.gate.is_open.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        while this.rest.is_empty() {
            let frame = Pin::new(&mut *this.body).poll_frame(cx);
            if frame.is_pending() {
                this.gate.waits.store(true, Ordering::Relaxed);
            }
            match ready!(frame) {
                None => {
                    this.gate.ended.store(true, Ordering::Relaxed);
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(PieceError::Body(error)))),
                // Trailers have no meaning here.
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
            }
            match this.left.checked_sub(this.rest.len()) {
                Some(left) => this.left = left,
                None => return Poll::Ready(Some(Err(PieceError::TooLarge))),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        this.gate.is_open.store(false, Ordering::Relaxed);
        let passed = this.gate.passed.fetch_add(piece.len(), Ordering::Relaxed);
        if passed > MAX_UNPARSED {
            return Poll::Ready(Some(Err(PieceError::Unparsed)));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Returns why a form could not be read.
fn form_error(error: multer::Error, encoding: Option<ContentEncoding>, max: usize) -> RouteError {
    let multer::Error::StreamReadFailed(cause) = error else {
        return RouteError::InvalidForm(match error {
            multer::Error::ReadHeaderFailed(_)
            | multer::Error::DecodeHeaderName { .. }
            | multer::Error::DecodeHeaderValue { .. }
            | multer::Error::IncompleteHeaders => "the headers of a part are invalid",
            _ => "it ends early, or its boundary is not that of the content type",
        });
    };
    match cause.downcast::<PieceError>().map(|error| *error) {
        Ok(PieceError::TooLarge) => RouteError::BodyTooLarge { max },
        Ok(PieceError::Unparsed) => RouteError::InvalidForm("the headers of a part are too long"),
        Ok(PieceError::Body(error)) => body_error(error, encoding, max),
        Err(cause) => RouteError::IncompleteBody(cause),
    }
}

#[cfg(test)]
mod tests;
