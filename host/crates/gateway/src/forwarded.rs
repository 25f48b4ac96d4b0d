//! What a host tells another one of a request that it sends to one of its lanes, in headers.
//!
//! Only a host with the key of another host is believed: from clients, the headers are ignored,
//! and they never reach engines. The lists of hosts makes loops impossible: a host that is in the
//! list itself, or finds it too long, uses its own lanes only.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_access::Identity;
use pointsman_domain::{FleetView, LaneId, QueueShare, Topology};

/// The hosts that have sent the request on, first to last.
const HOPS: HeaderName = HeaderName::from_static("x-pointsman-hops");
/// The priority that the request has at the first host.
const PRIORITY: HeaderName = HeaderName::from_static("x-pointsman-priority");
/// The time until the first byte of the response has to arrive, in milliseconds.
const DEADLINE: HeaderName = HeaderName::from_static("x-pointsman-deadline-ms");
/// The tenant of the client, in UTF-8.
const TENANT: HeaderName = HeaderName::from_static("x-pointsman-tenant");
/// The number of the client's key, as a hexadecimal number.
const KEY: HeaderName = HeaderName::from_static("x-pointsman-key");
/// The model name that the client wrote, in UTF-8, by which prompts are hashed.
const MODEL: HeaderName = HeaderName::from_static("x-pointsman-model");

/// Hosts that may have sent a request on before it stays where it is.
const MAX_HOPS: usize = 4;
/// Maximum size of the list of hosts in bytes.
const MAX_HOPS_BYTES: usize = 512;
/// Maximum size of the name of a tenant or a model in bytes.
const MAX_NAME: usize = 512;

/// What another host has said of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forwarded {
    hops: Vec<String>,
    priority: Option<i32>,
    pub(crate) deadline: Option<Duration>,
    tenant: Option<String>,
    key: Option<u64>,
    pub(crate) model: Option<String>,
    /// The request must not be sent to another host again.
    pub(crate) is_last: bool,
}

/// What is known of the request of a client: no other host has said anything.
pub(crate) static NOTHING: Forwarded = Forwarded {
    hops: Vec::new(),
    priority: None,
    deadline: None,
    tenant: None,
    key: None,
    model: None,
    is_last: false,
};

/// Who has sent a request, as far as that is told other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client<'a> {
    pub(crate) tenant: Option<&'a str>,
    /// The number of the key.
    pub(crate) key: u64,
}

impl<'a> From<&'a Identity> for Client<'a> {
    fn from(identity: &'a Identity) -> Self {
        Self { tenant: identity.tenant.as_deref(), key: identity.key }
    }
}

/// What is sent on with an attempt on a lane of another host.
pub(crate) struct Onward<'a> {
    /// This host.
    pub(crate) host: &'a str,
    pub(crate) priority: i32,
    pub(crate) deadline: Duration,
    pub(crate) client: Client<'a>,
    pub(crate) model: &'a str,
}

impl Forwarded {
    /// Reads what another host says of a request that it sends; `None` for a client. `host` is this
    /// one.
    pub(crate) fn read(identity: &Identity, headers: &HeaderMap, host: &str) -> Option<Self> {
        if !identity.is_peer {
            return None;
        }
        let hops = hops(headers);
        let is_last = hops
            .as_ref()
            .is_none_or(|hops| hops.len() >= MAX_HOPS || hops.iter().any(|hop| hop == host));
        let number = |name: &HeaderName| headers.get(name)?.to_str().ok();
        Some(Self {
            hops: hops.unwrap_or_default(),
            priority: number(&PRIORITY).and_then(|number| number.parse().ok()),
            deadline: number(&DEADLINE)
                .and_then(|number| number.parse().ok())
                .map(Duration::from_millis),
            tenant: text(headers, &TENANT),
            key: number(&KEY).and_then(|number| u64::from_str_radix(number, 16).ok()),
            model: text(headers, &MODEL),
            is_last,
        })
    }

    /// Returns who has sent the request: the tenant is that of the client, what may be used and how
    /// much of it is that of the other host.
    pub(crate) fn identity(&self, identity: Arc<Identity>) -> Arc<Identity> {
        match &self.tenant {
            Some(tenant) => {
                Arc::new(Identity { tenant: Some(tenant.clone()), ..Identity::clone(&identity) })
            }
            None => identity,
        }
    }

    /// Returns the client of the first host, if another host names it, and otherwise this one, of
    /// which the request came.
    pub(crate) fn client<'a>(&'a self, sender: Client<'a>) -> Client<'a> {
        match self.key {
            Some(key) => Client { tenant: self.tenant.as_deref(), key },
            None => sender,
        }
    }

    /// Returns what the request gets in the queues: its priority at the first host holds, as far as
    /// the key of the other host may have it.
    pub(crate) fn limit_share(&self, share: QueueShare) -> QueueShare {
        let (lowest, highest) = share.priority;
        let priority = self.priority.map(|priority| priority.min(highest).max(lowest));
        QueueShare { priority: priority.map_or(share.priority, |only| (only, only)), ..share }
    }

    /// Returns the view in which no lane of another host serves a request that may not be sent on.
    pub(crate) fn restricted(&self, view: Arc<FleetView>) -> Arc<FleetView> {
        let has_peers = || view.topology.lanes().iter().any(|lane| lane.is_peer);
        if !self.is_last || !has_peers() {
            return view;
        }
        let mut restricted = FleetView::clone(&view);
        restricted.topology = Arc::new(view.topology.without(|lane| lane.is_peer));
        Arc::new(restricted)
    }

    /// Returns true if a lane could serve a model that must not get the request for this reason.
    pub(crate) fn keeps_back(&self, topology: &Topology, model: &str) -> bool {
        let is_peer = |lane: &LaneId| topology.lane(*lane).is_some_and(|lane| lane.is_peer);
        self.is_last && topology.candidates(model).iter().any(is_peer)
    }

    /// Sets in the headers of a request what the other host has to know.
    pub(crate) fn set_onward(&self, onward: &Onward<'_>, headers: &mut HeaderMap) {
        let Onward { host, priority, deadline, client, model } = *onward;
        self.set_client(host, client, headers);
        let deadline = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let model = self.model.as_deref().unwrap_or(model);
        let values = [
            (PRIORITY, Some(HeaderValue::from(priority))),
            (DEADLINE, Some(HeaderValue::from(deadline))),
            (MODEL, HeaderValue::from_bytes(model.as_bytes()).ok()),
        ];
        set(headers, values);
    }

    /// Sets in the headers of a request who has sent it, and over which hosts. `host` is this one.
    pub(crate) fn set_client(&self, host: &str, sender: Client<'_>, headers: &mut HeaderMap) {
        let hops: Vec<&str> = self.hops.iter().map(String::as_str).chain([host]).collect();
        let Client { tenant, key } = self.client(sender);
        let values = [
            (HOPS, HeaderValue::from_str(&hops.join(",")).ok()),
            (TENANT, tenant.and_then(|tenant| HeaderValue::from_bytes(tenant.as_bytes()).ok())),
            (KEY, HeaderValue::from_str(&format!("{key:016x}")).ok()),
        ];
        set(headers, values);
    }
}

fn set<const N: usize>(headers: &mut HeaderMap, values: [(HeaderName, Option<HeaderValue>); N]) {
    for (name, value) in values {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

/// Returns the hosts that have sent a request on; `None` if the list is not valid or too long.
fn hops(headers: &HeaderMap) -> Option<Vec<String>> {
    let mut values = headers.get_all(HOPS).into_iter();
    let Some(value) = values.next() else { return Some(Vec::new()) };
    let list = value.to_str().ok().filter(|list| list.len() <= MAX_HOPS_BYTES)?;
    let is_only = values.next().is_none();
    let hops: Vec<String> = list.split(',').map(|hop| hop.trim().to_owned()).collect();
    (is_only && hops.iter().all(|hop| !hop.is_empty())).then_some(hops)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let text = std::str::from_utf8(headers.get(name)?.as_bytes()).ok()?;
    let is_name = (1..=MAX_NAME).contains(&text.len()) && !text.contains(char::is_control);
    is_name.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "this-host";

    fn peer() -> Identity {
        Identity { is_peer: true, ..Identity::default() }
    }

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).unwrap();
        all.iter().map(|(name, text)| (name.clone(), value(text))).collect()
    }

    #[test]
    fn what_one_host_sends_another_one_reads() {
        let mut sent = HeaderMap::new();
        let onward = Onward {
            host: "first",
            priority: -3,
            deadline: Duration::from_millis(1500),
            client: Client { tenant: Some("bücher"), key: 0xab },
            model: "qwen",
        };
        NOTHING.set_onward(&onward, &mut sent);
        let read = Forwarded::read(&peer(), &sent, HOST).unwrap();
        let expected = Forwarded {
            hops: vec!["first".to_owned()],
            priority: Some(-3),
            deadline: Some(Duration::from_millis(1500)),
            tenant: Some("bücher".to_owned()),
            key: Some(0xab),
            model: Some("qwen".to_owned()),
            is_last: false,
        };
        assert_eq!(read, expected);
        assert_eq!(Forwarded::read(&Identity::default(), &sent, HOST), None);
        // The client and its name of the model stay, whatever they are called on the way.
        let mut sent = HeaderMap::new();
        let here = Client { tenant: Some("peer:first"), key: 1 };
        let onward = Onward { host: HOST, model: "lane", client: here, ..onward };
        read.set_onward(&onward, &mut sent);
        let third = Forwarded::read(&peer(), &sent, "third").unwrap();
        assert_eq!(third.hops, ["first", HOST]);
        assert_eq!(third.model.as_deref(), Some("qwen"));
        assert_eq!(third.client(here), Client { tenant: Some("bücher"), key: 0xab });
        assert_eq!(NOTHING.client(here), here);
        sent.insert(KEY, HeaderValue::from_static("not a number"));
        assert_eq!(Forwarded::read(&peer(), &sent, HOST).unwrap().client(here), here);
    }

    #[test]
    fn request_stays_where_it_has_been_or_after_too_many_hosts() {
        let long = "x".repeat(MAX_HOPS_BYTES + 1);
        for (hops, is_last) in [
            ("a", false),
            ("a, b,c", false),
            ("a,b,c,d", true),
            ("this-host", true),
            ("a,this-host,b", true),
            ("", true),
            ("a,,b", true),
            (long.as_str(), true),
            ("\u{fc}", true),
        ] {
            let read = Forwarded::read(&peer(), &headers(&[(HOPS, hops)]), HOST).unwrap();
            assert_eq!(read.is_last, is_last, "{hops}");
        }
        let two = headers(&[(HOPS, "a"), (HOPS, "b")]);
        let mut twice = two.clone();
        twice.append(HOPS, HeaderValue::from_static("a"));
        assert!(Forwarded::read(&peer(), &twice, HOST).unwrap().is_last);
        assert!(!Forwarded::read(&peer(), &HeaderMap::new(), HOST).unwrap().is_last);
    }

    #[test]
    fn priority_of_the_first_host_holds_within_the_range_of_the_key() {
        let share = QueueShare { weight: 2, priority: (-5, 5) };
        for (priority, expected) in [("3", (3, 3)), ("99", (5, 5)), ("-99", (-5, -5))] {
            let read = Forwarded::read(&peer(), &headers(&[(PRIORITY, priority)]), HOST).unwrap();
            assert_eq!(read.limit_share(share), QueueShare { weight: 2, priority: expected });
        }
        for invalid in ["", "high", "99999999999"] {
            let read = Forwarded::read(&peer(), &headers(&[(PRIORITY, invalid)]), HOST).unwrap();
            assert_eq!(read.limit_share(share), share, "{invalid}");
        }
    }
}
