//! Reads `[records]`: decision records, which are off without a folder.

use std::path::Path;

use pointsman_domain::PlanLimits;
use pointsman_record::{Key, Mode, PERSONAL_HEADERS, QueueLimits, Redact, Rule, Sample, Settings};

use pointsman_settings::{Code, Section, missing, secret};

/// Reads the section. Returns `None` if records are off, or after reporting an error.
pub(super) fn read(section: Section<'_>, folder: &Path, limits: PlanLimits) -> Option<Settings> {
    let max_body = bytes(&section, "max-body", 64 << 10, 32 << 20);
    let modes =
        [("decisions", Mode::Decisions), ("full", Mode::Full { max_body: to_usize(max_body) })];
    let mode = section.choice("mode", &modes, Mode::Decisions);
    let sample = section.parsed("sample", Sample::parse).unwrap_or(Sample::ALL);
    let errors = section.bool("errors", true);
    let max_size = bytes(&section, "max-size", 64 << 20, 1 << 40);
    let keep = section.integer("keep", 0..=10_000, 9);
    let queue = read_queue(section.section("queue"));
    let redact = read_redact(section.section("redact"), folder);
    let dir = section.string("dir");
    if dir.is_none() && (section.has("mode") || section.has("sample") || section.has("redact")) {
        section.error_at("dir", missing("`dir = \"records\"`, or remove [records]"));
    }
    section.report_unknown();
    let dir = folder.join(dir.filter(|dir| !dir.is_empty())?);
    let host = env!("CARGO_PKG_VERSION").to_owned();
    Some(Settings {
        dir,
        mode,
        sample,
        errors,
        max_size,
        keep,
        queue,
        redact: redact?,
        host,
        limits,
    })
}

fn read_queue(section: Section<'_>) -> QueueLimits {
    let records = section.integer("records", 1..=100_000, 1024);
    let bytes = to_usize(bytes(&section, "memory", 16 << 20, 16 << 30));
    section.report_unknown();
    QueueLimits { records, bytes }
}

fn read_redact(section: Section<'_>, folder: &Path) -> Option<Redact> {
    let rules = [("keep", Rule::Keep), ("hash", Rule::Hash), ("drop", Rule::Drop)];
    let names = |key, default: &[&str]| {
        section
            .strings(key)
            .unwrap_or_else(|| default.iter().map(|&name| name.to_owned()).collect())
    };
    let fields = names("fields", &[]);
    if let Some(field) = fields.iter().find(|field| !field.starts_with('/')) {
        section.error_at(
            "fields",
            format!(
                "invalid JSON Pointer \"{field}\": expected for example \"/metadata\" or \
                 \"/messages/*/name\""
            ),
        );
    }
    let headers =
        names("headers", &PERSONAL_HEADERS).iter().map(|name| name.to_ascii_lowercase()).collect();
    let key = match secret(&section, "key-env", "key-file", folder) {
        Some(secret) => Some(Key::from_secret(&secret)),
        None => Key::random()
            .map_err(|error| {
                let message = format!(
                    "failed to generate a random key: {error}; set `key-env` or `key-file`"
                );
                section.error(Code::Unavailable.with(message))
            })
            .ok(),
    };
    let redact = Redact {
        text: section.choice("text", &rules, Rule::Hash),
        tenant: section.choice("tenant", &rules, Rule::Keep),
        state: section.choice("state", &rules, Rule::Keep),
        headers,
        fields,
        key: key?,
    };
    section.report_unknown();
    Some(redact)
}

/// Reads a size greater than zero and at most `max`.
fn bytes(section: &Section<'_>, key: &'static str, default: u64, max: u64) -> u64 {
    let size = section.bytes(key).unwrap_or(default);
    if !(1..=max).contains(&size) {
        let message = format!("must be between 1B and {}MiB", max >> 20);
        section.error_at(key, Code::OutOfRange.with(message));
    }
    size
}

fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use pointsman_settings::Diagnostics;

    fn parse(source: &str) -> (Option<Settings>, Vec<(String, Code)>) {
        let diagnostics = Diagnostics::new(source);
        let (document, _) = toml::de::DeTable::parse_recoverable(source);
        let limits = PlanLimits { max_wait: Duration::from_secs(1), max_steps: 5 };
        let root = Section::root(&diagnostics, document.get_ref());
        let settings = read(root.section("records"), Path::new("/conf"), limits);
        let errors = diagnostics.into_sorted().into_iter().map(|error| (error.key, error.code));
        (settings, errors.collect())
    }

    #[test]
    fn records_are_off_without_a_folder() {
        assert!(matches!(parse(""), (None, errors) if errors.is_empty()));
        assert!(matches!(parse("[records]\ndir = \"\""), (None, errors) if errors.is_empty()));
        let (settings, errors) = parse("[records]\ndir = \"r\"");
        let settings = settings.unwrap();
        assert!(errors.is_empty() && settings.dir == Path::new("/conf/r"), "{errors:?}");
        assert_eq!(
            (settings.mode, settings.sample, settings.errors),
            (Mode::Decisions, Sample::ALL, true)
        );
        assert_eq!((settings.max_size, settings.keep), (64 << 20, 9));
        assert_eq!(settings.queue, QueueLimits { records: 1024, bytes: 16 << 20 });
        let redact = settings.redact;
        assert_eq!(
            (redact.text, redact.tenant, redact.state),
            (Rule::Hash, Rule::Keep, Rule::Keep)
        );
        assert_eq!(
            (redact.headers, redact.fields),
            (PERSONAL_HEADERS.map(str::to_owned).to_vec(), Vec::<String>::new())
        );
    }

    #[test]
    fn all_keys_are_read() {
        let (settings, errors) = parse(
            "[records]\ndir = \"/r\"\nmode = \"full\"\nsample = \"0.5%\"\nerrors = \
             false\nmax-size = \"1MiB\"\nkeep = 0\n\
             max-body = \"1KiB\"\nqueue = { records = 7, memory = \"2MiB\" }\n\
             redact = { text = \"drop\", tenant = \"hash\", state = \"hash\", headers = \
             [\"X-User\"], fields = [\"/user\"] }",
        );
        let settings = settings.unwrap();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((settings.mode, settings.errors), (Mode::Full { max_body: 1024 }, false));
        assert_eq!(settings.sample, Sample::parse("0.5%").unwrap());
        assert_eq!((settings.max_size, settings.keep), (1 << 20, 0));
        assert_eq!(settings.queue, QueueLimits { records: 7, bytes: 2 << 20 });
        let redact = settings.redact;
        assert_eq!(
            (redact.text, redact.tenant, redact.state),
            (Rule::Drop, Rule::Hash, Rule::Hash)
        );
        assert_eq!(
            (redact.headers, redact.fields),
            (vec!["x-user".to_owned()], vec!["/user".to_owned()])
        );
    }

    #[test]
    fn errors_have_key_and_code() {
        for (source, key, code) in [
            ("sample = \"half\"", "sample", Code::InvalidValue),
            ("mode = \"all\"", "mode", Code::InvalidValue),
            ("max-size = \"0B\"", "max-size", Code::OutOfRange),
            ("queue = { records = 0 }", "queue.records", Code::OutOfRange),
            ("redact = { text = \"no\" }", "redact.text", Code::InvalidValue),
            ("redact = { fields = [\"user\"] }", "redact.fields", Code::InvalidValue),
            ("redact = { key-env = \"NOT_SET_ANYWHERE\" }", "redact.key-env", Code::Unavailable),
            ("retain = 1", "retain", Code::UnknownKey),
        ] {
            let (_, errors) = parse(&format!("[records]\ndir = \"r\"\n{source}"));
            assert_eq!(errors, [(format!("records.{key}"), code)], "{source}");
        }
        let (_, errors) = parse("[records]\nmode = \"full\"");
        assert_eq!(errors, [("records.dir".to_owned(), Code::MissingKey)]);
    }
}
