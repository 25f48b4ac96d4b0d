//! Reads `[server]`: the limits of requests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_settings::{Code, Section};

use crate::listeners::Listener;

/// The public listeners and the limits of requests.
#[derive(Debug)]
pub struct Server {
    /// The addresses, of which that of `server.listen` is the first.
    pub listeners: Vec<Listener>,
    /// Names by which clients address the host, in addition to those of its address: `name`,
    /// `*.suffix`, or `*` for all.
    pub hosts: Vec<String>,
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Maximum size of all request bodies in flight in bytes; at least that of one.
    pub body_memory: usize,
    /// Maximum size of a multipart form in bytes.
    pub max_upload: usize,
    /// Bytes of the files of a form that are kept in memory; what exceeds them is spooled.
    pub upload_memory: usize,
    /// Folder of the spool files; `None` for the default one.
    pub spool_dir: Option<PathBuf>,
    /// Maximum size of all spool files in bytes; at least that of one form.
    pub spool_size: usize,
    /// Maximum time for which a client may send nothing of a body that it has begun.
    pub body_timeout: Duration,
    /// Maximum time for which a client may take nothing of a response.
    pub write_timeout: Duration,
    /// Maximum time between two requests on a connection.
    pub idle_timeout: Duration,
    /// Maximum time that requests in flight may take after the host was told to stop.
    pub drain_timeout: Duration,
    /// Interval of keep-alive comments in streams that wait for their first byte; `None` turns them
    /// off.
    pub keep_alive: Option<Duration>,
    /// The name of the model in responses.
    pub response_model: ResponseModel,
    /// Requests with an idempotency key.
    pub idempotency: Idempotency,
    /// Maximum number of attempts per request, on all lanes together.
    pub max_attempts: usize,
    /// Maximum time from a request to the first byte of its response, over all attempts.
    pub deadline: Duration,
}

impl Server {
    /// Returns the ports on which clients are served.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.listeners.iter().filter_map(|listener| Some(listener.address.tcp()?.port()))
    }
}

/// How long and how much is kept of requests with an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// How long a response is kept for retries; zero keeps none.
    pub keep: Duration,
    /// How long a request goes on without a client.
    pub grace: Duration,
    /// Maximum size of all responses that can be joined or replayed; zero ignores keys.
    pub memory: usize,
}

/// The name of the model in responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseModel {
    /// The name that the client asked for.
    Asked,
    /// The name that the engine uses.
    Engine,
}

/// Reads the section. Returns `None` only if an error was reported.
pub(super) fn read(
    section: Section<'_>,
    listeners: Option<Vec<Listener>>,
    folder: &Path,
) -> Option<Server> {
    const MAX_BODY_LIMIT: u64 = 1 << 30;
    let max_body = section.bytes("max-body").unwrap_or(32 << 20);
    if !(1..=MAX_BODY_LIMIT).contains(&max_body) {
        section.error_at("max-body", Code::OutOfRange.with("must be between 1B and 1GiB"));
    }
    let hosts = section.strings("hosts").unwrap_or_default();
    check_hosts(&section, &hosts);
    let body_memory = section.bytes("body-memory").unwrap_or(max_body.max(128 << 20));
    if body_memory < max_body {
        section.error_at("body-memory", Code::OutOfRange.with("must be at least `max-body`"));
    }
    let forms = read_forms(&section, folder, body_memory);
    let body_timeout = section.positive_duration("body-timeout", Duration::from_secs(30));
    let write_timeout = section.positive_duration("write-timeout", Duration::from_secs(30));
    // Longer than the 60 s for which load balancers keep idle connections by default: they must be
    // the first to close one, or they send a request on a connection that is being closed.
    let idle_timeout = section.positive_duration("idle-timeout", Duration::from_secs(75));
    let drain_timeout = section.duration("drain-timeout", Duration::from_secs(30));
    let keep_alive = section.duration("keep-alive", Duration::from_secs(10));
    let names = [("asked", ResponseModel::Asked), ("engine", ResponseModel::Engine)];
    let response_model = section.choice("response-model", &names, ResponseModel::Asked);
    let idempotency = Idempotency {
        keep: section.duration("idempotency-keep", Duration::from_secs(600)),
        grace: section.duration("idempotency-grace", Duration::from_secs(10)),
        memory: usize::try_from(section.bytes("idempotency-memory").unwrap_or(64 << 20))
            .unwrap_or(usize::MAX),
    };
    let max_attempts = section.integer("max-attempts", 1..=20, 5);
    let deadline = section.positive_duration("deadline", Duration::from_secs(600));
    section.report_unknown();
    Some(Server {
        listeners: listeners?,
        hosts,
        max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
        body_memory: usize::try_from(body_memory).unwrap_or(usize::MAX),
        max_upload: forms.max_upload,
        upload_memory: forms.upload_memory,
        spool_dir: forms.spool_dir,
        spool_size: forms.spool_size,
        body_timeout,
        write_timeout,
        idle_timeout,
        drain_timeout,
        keep_alive: Some(keep_alive).filter(|interval| !interval.is_zero()),
        response_model,
        idempotency,
        max_attempts,
        deadline,
    })
}

/// The limits of multipart forms.
struct Forms {
    max_upload: usize,
    upload_memory: usize,
    spool_dir: Option<PathBuf>,
    spool_size: usize,
}

fn read_forms(section: &Section<'_>, folder: &Path, body_memory: u64) -> Forms {
    const MAX_UPLOAD_LIMIT: u64 = 64 << 30;
    let max_upload = section.bytes("max-upload").unwrap_or(200 << 20);
    if !(1..=MAX_UPLOAD_LIMIT).contains(&max_upload) {
        section.error_at("max-upload", Code::OutOfRange.with("must be between 1B and 64GiB"));
    }
    let upload_memory = section.bytes("upload-memory").unwrap_or(1 << 20);
    if upload_memory > body_memory {
        section.error_at("upload-memory", Code::OutOfRange.with("must be at most `body-memory`"));
    }
    let spool_size = section.bytes("spool-size").unwrap_or(max_upload.max(2 << 30));
    if spool_size < max_upload {
        section.error_at("spool-size", Code::OutOfRange.with("must be at least `max-upload`"));
    }
    let to_usize = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Forms {
        max_upload: to_usize(max_upload),
        upload_memory: to_usize(upload_memory),
        spool_dir: section.string("spool-dir").map(|path| folder.join(path)),
        spool_size: to_usize(spool_size),
    }
}

/// Reports names that no `Host` can have, so that a typing error does not lock clients out.
fn check_hosts(section: &Section<'_>, hosts: &[String]) {
    for host in hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if host != "*" && !name.split('.').all(is_label) {
            let message = format!(
                "invalid host name \"{host}\": expected a name without scheme and port, for \
                 example \"router.example.org\", \"*.example.org\", or \"*\" for all names"
            );
            section.error_at("hosts", Code::InvalidValue.with(message));
        }
    }
}
