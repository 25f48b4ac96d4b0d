//! Checks the `Host` of a request.
//!
//! A web page can have its own host name resolve to a private address (DNS rebinding), and could
//! then send requests to the host and read the responses. The browser sends the name of the page as
//! `Host`, which gives it away.
//!
//! Accepted are IP addresses, because a browser does not resolve them: only loopback addresses and
//! the listener's own if it listens on one; names without a dot, such as `localhost` or the name of
//! a container, because a web site in the internet does not have such a name; names below domains
//! that are reserved for local networks, for the same reason; the machine's own name; and the
//! configured names. `/livez` and `/readyz` disclose nothing, and may be requested by any name.

use std::net::IpAddr;

use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, Uri, Version};

use crate::error::RouteError;

/// Domains that the public DNS does not have. `.svc` is the short form of Kubernetes, whose long
/// one ends in `.local`.
const LOCAL_DOMAINS: [&str; 6] =
    [".localhost", ".local", ".internal", ".svc", ".home.arpa", ".lan"];
/// Paths whose responses have no details.
const OPEN_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// The names by which clients may address a listener.
#[derive(Debug, Clone)]
pub(crate) struct AllowedHosts {
    listener: IpAddr,
    /// In lower case: `name`, `*.suffix`, or `*` for all names.
    names: Vec<String>,
}

impl AllowedHosts {
    pub(crate) fn new(listener: IpAddr, names: &[String]) -> Self {
        let system = rustix::system::uname();
        let machine = system.nodename().to_str().ok().filter(|name| !name.contains('*'));
        let names = names.iter().map(String::as_str).chain(machine);
        Self { listener, names: names.map(str::to_ascii_lowercase).collect() }
    }

    /// Checks that a request has one `Host`, that it is an allowed one, and that the request is
    /// framed in one way.
    pub(crate) fn check(
        &self,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), RouteError> {
        // Proxies and hosts could disagree on which of two counts.
        if headers.get_all(TRANSFER_ENCODING).iter().nth(1).is_some() {
            return Err(RouteError::InvalidHead("more than one `Transfer-Encoding` header"));
        }
        let mut hosts = headers.get_all(HOST).iter();
        match (hosts.next(), hosts.next()) {
            // Health checks of load balancers use HTTP/1.0 without a name.
            (None, _) if version < Version::HTTP_11 => {}
            // With HTTP/2, the name is the authority.
            (None, _) if version >= Version::HTTP_2 && uri.authority().is_some() => {
                if OPEN_PATHS.contains(&uri.path()) {
                    return Ok(());
                }
            }
            (None, _) => return Err(RouteError::InvalidHead("missing `Host` header")),
            (Some(_), Some(_)) => {
                return Err(RouteError::InvalidHead("more than one `Host` header"));
            }
            (Some(_), None) if OPEN_PATHS.contains(&uri.path()) => return Ok(()),
            (Some(host), None) => {
                let authority = Authority::try_from(host.as_bytes()).ok();
                if !authority.is_some_and(|authority| self.allows(&authority)) {
                    return Err(RouteError::HostNotAllowed);
                }
            }
        }
        // `GET http://name/path`, whose name takes precedence over `Host`.
        match uri.authority() {
            Some(authority) if !self.allows(authority) => Err(RouteError::HostNotAllowed),
            Some(_) | None => Ok(()),
        }
    }

    fn allows(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = address.unwrap_or(host).parse::<IpAddr>() {
            return !self.listener.is_loopback()
                || address.to_canonical().is_loopback()
                || address == self.listener
                || self.names.iter().any(|name| name == host);
        }
        let is_local =
            !host.contains(['.', ':']) || LOCAL_DOMAINS.iter().any(|domain| host.ends_with(domain));
        !host.is_empty() && (is_local || self.names.iter().any(|name| matches(name, host)))
    }
}

/// Returns true if a configured name covers a host.
fn matches(name: &str, host: &str) -> bool {
    match name.strip_prefix('*') {
        // Of `*.suffix`, the dot has to be there as well.
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => name == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_code::ErrorCode;

    fn check(hosts: &AllowedHosts, host: &str) -> Option<ErrorCode> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        let result = hosts.check(Version::HTTP_11, &Uri::from_static("/"), &headers);
        result.err().and_then(|error| error.code())
    }

    #[test]
    fn names_of_web_sites_are_rejected_unless_configured() {
        let names = ["Router.example.org", "*.internal.example"].map(str::to_owned);
        let loopback = AllowedHosts::new([127, 0, 0, 1].into(), &names);
        for host in [
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "a.localhost",
            "my-mac.local:8000",
            "vm.c.project.internal",
            "pointsman.team.svc",
            "pointsman.team.svc.cluster.local",
            "nas.home.arpa",
            "router.lan",
            "pointsman:8000",
            "127.0.0.1:9",
            "[::1]:8000",
            "router.example.org",
            "router.example.org:443",
            "a.internal.example",
        ] {
            assert_eq!(check(&loopback, host), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0:8000",
            "internal.example",
            "local.evil.example",
            "a.notlocal",
            "xrouter.example.org",
            "user@localhost",
            "",
            "a b",
        ] {
            assert_eq!(check(&loopback, host), Some(ErrorCode::HostNotAllowed), "{host}");
        }
        let public = AllowedHosts::new([0, 0, 0, 0].into(), &[]);
        assert_eq!(check(&public, "10.0.0.1:8000"), None);
        assert_eq!(check(&public, "evil.example"), Some(ErrorCode::HostNotAllowed));
        let all = AllowedHosts::new([127, 0, 0, 1].into(), &["*".to_owned()]);
        assert_eq!(check(&all, "any.example"), None);
    }

    #[test]
    fn machine_and_open_paths_are_accepted() {
        let hosts = AllowedHosts::new([127, 0, 0, 1].into(), &[]);
        let system = rustix::system::uname();
        assert_eq!(check(&hosts, system.nodename().to_str().unwrap()), None);
        let headers = HeaderMap::from_iter([(HOST, "evil.example".parse().unwrap())]);
        for (path, code) in [
            ("/livez", None),
            ("/readyz", None),
            ("/status", Some(ErrorCode::HostNotAllowed)),
            ("/livez/x", Some(ErrorCode::HostNotAllowed)),
        ] {
            let result = hosts.check(Version::HTTP_11, &Uri::from_static(path), &headers);
            assert_eq!(result.err().and_then(|error| error.code()), code, "{path}");
        }
    }

    #[test]
    fn heads_that_can_be_read_in_two_ways_are_rejected() {
        let hosts = AllowedHosts::new([127, 0, 0, 1].into(), &[]);
        let check = |version, uri: &'static str, headers: &[(_, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, value.parse().unwrap());
            }
            let result = hosts.check(version, &Uri::from_static(uri), &map);
            result.err().and_then(|error| error.code())
        };
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        let (invalid, not_allowed) =
            (Some(ErrorCode::InvalidRequest), Some(ErrorCode::HostNotAllowed));
        assert_eq!(check(new, "/", &[]), invalid);
        assert_eq!(check(old, "/", &[]), None);
        assert_eq!(check(new, "/", &[(HOST, "localhost"), (HOST, "localhost")]), invalid);
        let twice = [(HOST, "a"), (TRANSFER_ENCODING, "chunked"), (TRANSFER_ENCODING, "chunked")];
        assert_eq!(check(new, "/", &twice), invalid);
        assert_eq!(check(new, "http://evil.example/", &[(HOST, "localhost")]), not_allowed);
        assert_eq!(check(old, "http://evil.example/", &[]), not_allowed);
        // With HTTP/2, the URI has the name.
        let http2 = Version::HTTP_2;
        assert_eq!(check(http2, "http://localhost/", &[]), None);
        assert_eq!(check(http2, "http://evil.example/", &[]), not_allowed);
        assert_eq!(check(http2, "http://evil.example/livez", &[]), None);
        assert_eq!(check(http2, "http://localhost/", &[(HOST, "evil.example")]), not_allowed);
        assert_eq!(check(http2, "/", &[]), invalid);
    }
}
