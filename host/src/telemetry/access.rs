//! The access log: one JSON object for each request that has ended.
//!
//! Lines are made field by field: this is done for every request, on its worker.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pointsman_config::{AccessLog, ShownAddress};
use pointsman_gateway::{FinishedRequest, TraceContext};

use super::fields::{CUT_MARK, MAX_VALUE};
use super::format::{is_unsafe, push_timestamp};
use super::writer::Sink;

/// Writes the access log.
#[derive(Debug)]
pub(super) struct AccessWriter {
    pub(super) settings: AccessLog,
    pub(super) sink: Sink,
    /// What precedes a line, for the journal.
    pub(super) prefix: &'static str,
}

impl AccessWriter {
    pub(super) fn write(&self, request: &FinishedRequest<'_>) {
        self.sink.push(&self.line(request));
    }

    fn line(&self, request: &FinishedRequest<'_>) -> String {
        let mut line = JsonLine::new(self.prefix, &self.settings.omit);
        let flow = request.flow;
        let usage = flow.usage();
        let wait = flow.attempts().map(|attempt| attempt.queue).sum();
        line.time(field!("time"));
        line.text(field!("id"), Some(request.id));
        line.address(field!("client"), request.client, self.settings.client);
        line.text(field!("tenant"), request.tenant);
        line.text(field!("key"), request.key);
        line.word(field!("endpoint"), request.endpoint.label());
        line.text(field!("model"), request.model);
        line.text(field!("lane"), request.lane);
        line.text(field!("policy"), request.policies);
        line.number(field!("status"), request.status.map(u64::from));
        line.word(field!("outcome"), request.outcome);
        line.word(field!("result"), request.result);
        line.text(field!("code"), request.code);
        line.flag(field!("stream"), request.is_streaming);
        line.number(field!("attempts"), Some(flow.attempt_count().into()));
        // Without a prompt, the engine has reported nothing.
        let prompt = usage.map(|usage| usage.prompt).filter(|prompt| *prompt > 0);
        line.number(field!("prompt_tokens"), prompt.map(u64::from));
        line.number(field!("cached_tokens"), usage.map(|usage| usage.cached.into()));
        line.number(field!("output_tokens"), usage.map(|usage| usage.output.into()));
        line.number(field!("queue_ms"), Some(millis(wait)));
        line.number(field!("ttft_ms"), flow.ttft().map(millis));
        line.number(field!("duration_ms"), flow.total().map(millis));
        line.number(field!("request_bytes"), Some(request.request_bytes));
        line.number(field!("response_bytes"), Some(request.response_bytes));
        line.trace_id(field!("trace_id"), request.trace.map(|trace| &trace.context));
        line.finish()
    }
}

fn millis(duration: Duration) -> u64 {
    // Saturates after 500 million years.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A field of a line.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    /// The name as JSON, with what precedes and what follows it.
    key: &'static str,
}

macro_rules! field {
    ($name:literal) => {
        Field { name: $name, key: concat!(",\"", $name, "\":") }
    };
}
use field;

/// A JSON object on one line.
struct JsonLine<'a> {
    text: String,
    omit: &'a [&'static str],
    is_empty: bool,
}

impl<'a> JsonLine<'a> {
    fn new(prefix: &str, omit: &'a [&'static str]) -> Self {
        let mut text = String::with_capacity(768);
        text.push_str(prefix);
        text.push('{');
        Self { text, omit, is_empty: true }
    }

    /// Appends the name of a field, unless the field is left out. Returns true if it was appended.
    fn name(&mut self, field: Field) -> bool {
        if self.omit.contains(&field.name) {
            return false;
        }
        let separator = usize::from(std::mem::take(&mut self.is_empty));
        self.text.push_str(&field.key[separator..]);
        true
    }

    fn flag(&mut self, field: Field, value: bool) {
        if self.name(field) {
            self.text.push_str(if value { "true" } else { "false" });
        }
    }

    fn number(&mut self, field: Field, value: Option<u64>) {
        if let Some(value) = value
            && self.name(field)
        {
            self.text.push_str(itoa::Buffer::new().format(value));
        }
    }

    fn text(&mut self, field: Field, value: Option<&str>) {
        if let Some(value) = value
            && self.name(field)
        {
            self.text.push('"');
            push_json(&mut self.text, value);
            self.text.push('"');
        }
    }

    /// Appends one of the host's own words, which needs no escapes.
    fn word(&mut self, field: Field, word: &'static str) {
        if self.name(field) {
            self.text.push('"');
            self.text.push_str(word);
            self.text.push('"');
        }
    }

    fn time(&mut self, field: Field) {
        if self.name(field) {
            self.text.push('"');
            push_timestamp(&mut self.text);
            self.text.push('"');
        }
    }

    fn trace_id(&mut self, field: Field, context: Option<&TraceContext>) {
        if let Some(context) = context
            && self.name(field)
        {
            self.text.push('"');
            context.push_trace_id(&mut self.text);
            self.text.push('"');
        }
    }

    fn address(&mut self, field: Field, address: Option<IpAddr>, shown: ShownAddress) {
        if let Some(address) = address
            && self.name(field)
        {
            write!(self.text, "\"{}\"", shown_address(address, shown)).ok(); // As below.
        }
    }

    fn finish(mut self) -> String {
        self.text.push_str("}\n");
        self.text
    }
}

/// Returns what is shown of an address.
fn shown_address(address: IpAddr, shown: ShownAddress) -> IpAddr {
    match (shown, address) {
        (ShownAddress::Full, address) => address,
        (ShownAddress::Network, IpAddr::V4(address)) => {
            Ipv4Addr::from_bits(address.to_bits() & !0xff).into()
        }
        (ShownAddress::Network, IpAddr::V6(address)) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 80)).into()
        }
    }
}

/// Appends a value, cut and escaped as in the log.
fn push_json(text: &mut String, value: &str) {
    let end = value.floor_char_boundary(MAX_VALUE);
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if value[..end].bytes().all(is_plain) {
        text.push_str(&value[..end]);
    } else {
        for letter in value[..end].chars() {
            match letter {
                '"' | '\\' => text.extend(['\\', letter]),
                letter if is_unsafe(letter) => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        write!(text, "\\u{unit:04x}").ok(); // A string accepts everything.
                    }
                }
                letter => text.push(letter),
            }
        }
    }
    if end < value.len() {
        text.push_str(CUT_MARK);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn values_stay_within_their_field() {
        let forged = "x\",\"status\":200}\n{\"a\":\u{1b}[31m\0\u{202e}\u{e0001}\\ü";
        let mut line = JsonLine::new("", &["left"]);
        line.text(field!("id"), Some(forged));
        line.text(field!("left"), Some("out"));
        line.text(field!("long"), Some(&"ä".repeat(MAX_VALUE)));
        line.number(field!("n"), Some(7));
        let line = line.finish();
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert!(!line.contains(['\u{1b}', '\0', '\u{202e}', '\u{e0001}']), "{line:?}");
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&object["id"], &object["n"]), (&forged.into(), &7.into()));
        assert_eq!(object.as_object().unwrap().len(), 3);
        assert!(object["long"].as_str().unwrap().len() <= MAX_VALUE + CUT_MARK.len());
    }

    #[test]
    fn addresses_are_cut_to_their_network() {
        for (address, network) in
            [("192.0.2.129", "192.0.2.0"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"), ("::1", "::")]
        {
            let address: IpAddr = address.parse().unwrap();
            let shown = |shown| shown_address(address, shown).to_string();
            assert_eq!(shown(ShownAddress::Network), network);
            assert_eq!(shown(ShownAddress::Full), address.to_string());
        }
    }
}
