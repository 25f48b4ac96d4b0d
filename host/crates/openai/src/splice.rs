//! The name of the model in a response that is not a stream, replaced while the body passes.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use serde_json::Value;

use crate::scan::{self, Children};

/// The key of the name.
pub(crate) const MODEL: &str = "model";
/// Maximum length of the literal of a key that may be [`MODEL`], all of whose letters may be
/// escaped.
const MAX_KEY_BYTES: usize = 2 + 6 * MODEL.len();

/// Replaces the value of the top-level member `model` of a JSON object by another name, wherever
/// the body is cut into chunks. All other bytes pass at once and unchanged: only the depth of the
/// body is followed, so that its size makes no difference to the memory.
#[derive(Debug)]
pub struct ModelSplice {
    /// The literal of the name.
    name: Bytes,
    state: State,
    /// Number of arrays and objects around the next byte.
    depth: usize,
    /// The value of the current top-level member has begun, or is next.
    after_colon: bool,
    /// The literal of the current top-level key, as far as it has arrived.
    key: Vec<u8>,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// White space before the object.
    Start,
    /// Anything outside of a string.
    Outside,
    /// A string: a top-level key, the name to replace, or another one. Behind a backslash, the
    /// next byte does not end it.
    Inside { string: Kind, is_escaped: bool },
    /// What follows the object.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Key,
    Name,
    Other,
}

impl ModelSplice {
    /// Returns the splice for a body that begins with `first`; `None` if that already shows that
    /// the engine uses the same name, or that the body is not an object.
    pub fn new(name: &str, first: &[u8]) -> Option<Self> {
        let start = first.len() - first.trim_ascii_start().len();
        match first.get(start) {
            Some(b'{') | None => {}
            Some(_) => return None,
        }
        if top_level_model(first, start) == Some(Value::from(name).to_string().as_bytes()) {
            return None;
        }
        let name = Value::from(name).to_string().into();
        let state = State::Start;
        Some(Self { name, state, depth: 0, after_colon: false, key: Vec::new() })
    }

    /// Takes a chunk of the body, and returns what is passed on instead.
    pub fn chunk(&mut self, chunk: Bytes) -> Bytes {
        let mut out: Option<BytesMut> = None;
        // What is before this position has been copied or left out.
        let mut copied = 0;
        let mut at = 0;
        while at < chunk.len() {
            match self.state {
                State::Done => break,
                State::Start | State::Outside => {
                    let begins_name = self.outside(chunk[at]);
                    if begins_name {
                        let out = out.get_or_insert_default();
                        out.extend_from_slice(&chunk[copied..at]);
                        out.extend_from_slice(&self.name);
                        copied = at + 1;
                    }
                    at += 1;
                }
                State::Inside { string, is_escaped } => {
                    let before = at;
                    at = self.inside(&chunk, at, string, is_escaped);
                    match string {
                        Kind::Key => self.add_to_key(&chunk[before..at]),
                        Kind::Name => copied = at,
                        Kind::Other => {}
                    }
                }
            }
        }
        match out {
            None => chunk.slice(copied..),
            Some(mut out) => {
                out.extend_from_slice(&chunk[copied..]);
                out.freeze()
            }
        }
    }

    /// Takes a byte outside of strings. Returns true if the name begins with it.
    fn outside(&mut self, byte: u8) -> bool {
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                let is_array = byte == b'[' && self.depth == 1;
                self.state = if is_array { State::Done } else { State::Outside };
            }
            // Another value than an object is passed on as it is.
            _ if self.state == State::Start && byte.is_ascii_whitespace() => {}
            _ if self.state == State::Start => self.state = State::Done,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.state = State::Done;
                }
            }
            b':' if self.depth == 1 => self.after_colon = true,
            b',' if self.depth == 1 => {
                self.after_colon = false;
                self.key.clear();
            }
            b'"' => {
                let string = match (self.depth, self.after_colon) {
                    (1, false) => {
                        self.key.clear();
                        self.key.push(b'"');
                        Kind::Key
                    }
                    (1, true) if scan::is_key(&self.key, MODEL) => Kind::Name,
                    _ => Kind::Other,
                };
                self.state = State::Inside { string, is_escaped: false };
                return string == Kind::Name;
            }
            _ => {}
        }
        false
    }

    /// Takes the bytes of a string from `at` to its end or that of the chunk, which it returns.
    fn inside(&mut self, chunk: &[u8], mut at: usize, string: Kind, is_escaped: bool) -> usize {
        at += usize::from(is_escaped);
        self.state = State::Inside { string, is_escaped: false };
        while let Some(found) = chunk.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
            at += found;
            if chunk[at] == b'"' {
                self.state = State::Outside;
                return at + 1;
            }
            at += 2;
        }
        let is_escaped = at > chunk.len();
        self.state = State::Inside { string, is_escaped };
        chunk.len()
    }

    /// Adds bytes to the literal of the current key. A longer one is not [`MODEL`].
    fn add_to_key(&mut self, part: &[u8]) {
        let rest = (MAX_KEY_BYTES + 1).saturating_sub(self.key.len());
        self.key.extend_from_slice(&part[..part.len().min(rest)]);
    }
}

/// Returns the literal of the name in an object of which only the beginning may have arrived;
/// `None` if it is not in that, or is not the only one.
fn top_level_model(json: &[u8], start: usize) -> Option<&[u8]> {
    let mut found = None;
    for child in Children::new(json, start)? {
        if scan::is_key(&json[child.key], MODEL) {
            let end = scan::value_end(json, child.start).min(json.len());
            // The end of what has arrived may not be the end of the value.
            let is_first = found.replace(&json[child.start..end]).is_none();
            if !is_first || end == json.len() {
                return None;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn splice(body: &str, size: usize) -> String {
        let chunks: Vec<&[u8]> = body.as_bytes().chunks(size.max(1)).collect();
        let first = chunks.first().copied().unwrap_or_default();
        let mut splice = ModelSplice::new("a\"b", first);
        let mut out = Vec::new();
        for chunk in chunks {
            let chunk = Bytes::copy_from_slice(chunk);
            out.extend_from_slice(&match &mut splice {
                Some(splice) => splice.chunk(chunk),
                None => chunk,
            });
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_top_level_name_is_replaced() {
        let name = r#""a\"b""#;
        for (body, expected) in [
            (r#"{"model":"x"}"#, Some(r#"{"model":N}"#)),
            (r#" { "id" : 1.50 , "model" : "x\"y" , "z":[] } "#, {
                Some(r#" { "id" : 1.50 , "model" : N , "z":[] } "#)
            }),
            (r#"{"choices":[{"model":"y","t":"\"model\":\"z\""}],"model":"x","model":"w"}"#, {
                Some(r#"{"choices":[{"model":"y","t":"\"model\":\"z\""}],"model":N,"model":N}"#)
            }),
            (r#"{"mo\u0064el":"x\\"}"#, Some(r#"{"mo\u0064el":N}"#)),
            (r#"{"a":"model","b":"x"}"#, None),
            (r#"{"model":null,"n":"x"}"#, None),
            (r#"{"model":{"model":"x"},"n":"model"}"#, None),
            (r#"{"model":["x"]}"#, None),
            (r#"{"model_":"x","mode":"l"}"#, None),
            (r#"[{"model":"x"}]"#, None),
            (r#""model":"x""#, None),
            (r#"{"a":1}{"model":"x"}"#, None),
            ("}{:\",", None),
            ("", None),
        ] {
            let expected = expected.map_or(body.to_owned(), |text| text.replace('N', name));
            for size in 1..=body.len() + 1 {
                assert_eq!(splice(body, size), expected, "{body} in pieces of {size}");
            }
        }
        let long = format!("{{\"{}model\":\"x\",\"model\":\"x\"}}", "m".repeat(1000));
        assert_eq!(splice(&long, 7), long.replace(":\"x\"}", &format!(":{name}}}")));
    }

    #[test]
    fn equal_name_needs_no_splice() {
        for (first, is_needed) in [
            (r#"{"id":"1","model":"m","choices":["#, false),
            (r#"{"id":"1","model":"m","#, false),
            // A literal that ends with what has arrived may be a longer one.
            (r#"{"id":"1","model":"m""#, true),
            (r#"{"id":"1","model":"m"#, true),
            (r#"{"id":"1","model":"x","#, true),
            (r#"{"model":"m","model":"x","#, true),
            (r#"{"choices":[{"model":"m"}"#, true),
            ("", true),
            ("[", false),
        ] {
            assert_eq!(ModelSplice::new("m", first.as_bytes()).is_some(), is_needed, "{first}");
        }
    }

    /// Returns any JSON value.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[model\"\\\\:,{}é]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("(model|[a\"é]{0,2})", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn everything_else_stays_as_it_is(
            before in prop::collection::vec(("[a-d\"]{1,3}", json()), 0..4),
            after in prop::collection::vec(("[a-d\"]{1,3}", json()), 0..4),
            model in "[a-z/\"\\\\é]{0,12}",
            size in 1_usize..40,
        ) {
            let member =
                |(key, value): &(String, Value)| format!("{} : {value}", Value::from(&**key));
            let body = |name: &str| {
                let model = format!("\"model\" :{name}");
                let members = before.iter().map(member).chain([model]);
                let members: Vec<String> = members.chain(after.iter().map(member)).collect();
                format!("{{{} }}\n", members.join(" ,"))
            };
            let engine = body(&Value::from(model).to_string());
            prop_assert_eq!(splice(&engine, size), body("\"a\\\"b\""));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(body: Vec<u8>, size in 1_usize..20) {
            let mut splice = ModelSplice::new("m", b"");
            for chunk in body.chunks(size) {
                if let Some(splice) = &mut splice {
                    splice.chunk(Bytes::copy_from_slice(chunk));
                }
            }
        }
    }
}
