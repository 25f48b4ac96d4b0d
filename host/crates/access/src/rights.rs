//! What a key may be used for.

use std::ops::RangeInclusive;

use pointsman_domain::Endpoint;

/// What a key may be used for. `None` stands for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Model names; `*` stands for any text.
    pub models: Option<Vec<String>>,
    /// Names of lanes; `*` stands for any text.
    pub lanes: Option<Vec<String>>,
    /// Endpoints.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Addresses of listeners, as the configuration has them.
    pub listeners: Option<Vec<String>>,
    /// The key may use paths of engines that show or change what clients share.
    pub engine_admin: bool,
    /// The priorities that requests may have; others are moved into this range.
    pub priority: Option<RangeInclusive<i32>>,
}

impl Rights {
    /// Returns true if a model with this name may be used.
    pub fn allows_model(&self, name: &str) -> bool {
        is_listed(self.models.as_deref(), name)
    }

    /// Returns true if the lane with this name may be used.
    pub fn allows_lane(&self, name: &str) -> bool {
        is_listed(self.lanes.as_deref(), name)
    }

    /// Returns true if the endpoint may be used. Who may send messages may count their tokens.
    pub fn allows_endpoint(&self, endpoint: Endpoint) -> bool {
        let Some(allowed) = &self.endpoints else { return true };
        let counts = endpoint == Endpoint::CountTokens && allowed.contains(&Endpoint::Messages);
        counts || allowed.contains(&endpoint)
    }

    /// Returns true if a listener with one of these addresses may be used.
    pub fn allows_listener(&self, addresses: &[String]) -> bool {
        let Some(allowed) = &self.listeners else { return true };
        addresses.iter().any(|address| allowed.contains(address))
    }

    /// Returns true if all lanes and models of `other` may be used: what was served with those
    /// rights would be served with these. Only compares how they are written, and so returns false
    /// for some of which it is true.
    pub fn covers(&self, other: &Self) -> bool {
        covers(self.models.as_deref(), other.models.as_deref())
            && covers(self.lanes.as_deref(), other.lanes.as_deref())
    }

    /// Returns true if some lanes or models may not be used, so that what shows all of them is not
    /// for this key.
    pub fn hides_lanes(&self) -> bool {
        self.lanes.is_some() || self.models.is_some()
    }
}

/// Returns the endpoint with a name; `other` is all paths of engines.
pub fn endpoint_named(name: &str) -> Option<Endpoint> {
    let other = Some(Endpoint::Other).filter(|other| other.label() == name);
    Endpoint::from_label(name).or(other)
}

fn covers(own: Option<&[String]>, other: Option<&[String]>) -> bool {
    let Some(own) = own else { return true };
    other.is_some_and(|other| other.iter().all(|pattern| own.contains(pattern)))
}

fn is_listed(patterns: Option<&[String]>, name: &str) -> bool {
    patterns.is_none_or(|patterns| patterns.iter().any(|pattern| matches(pattern, name)))
}

/// Returns true if a name has the form of a pattern, in which `*` stands for any text. Takes time
/// in proportion to both lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        // The first place is enough: what follows it contains what follows any later one.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("coder", "coder", true),
            ("coder", "coder2", false),
            ("coder", "Coder", false),
            ("fast_*", "fast_", true),
            ("fast_*", "fast_a", true),
            ("fast_*", "xfast_a", false),
            ("*", "", true),
            ("*", "a/b", true),
            ("*-coder", "qwen-coder", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a**c", "abc", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    /// The definition of patterns, without regard to time.
    fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|at| by_definition(rest, &name[at..])),
            Some((byte, rest)) => name
                .split_first()
                .is_some_and(|(own, name)| own == byte && by_definition(rest, name)),
        }
    }

    proptest! {
        #[test]
        fn patterns_match_by_definition(pattern in "[ab*]{0,8}", name in "[ab]{0,8}") {
            let expected = by_definition(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(matches(&pattern, &name), expected);
        }
    }

    #[test]
    fn wider_rights_cover_narrower_ones() {
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let rights = |models, lanes| Rights { models, lanes, ..Rights::default() };
        let (both, one) = (rights(list(&["a", "b*"]), None), rights(list(&["b*"]), None));
        let all = Rights::default();
        let on_lane = rights(list(&["b*"]), list(&["l"]));
        assert!(all.covers(&all) && all.covers(&both) && both.covers(&one) && one.covers(&one));
        assert!(!both.covers(&all) && !one.covers(&both) && one.covers(&on_lane));
        assert!(!on_lane.covers(&one) && on_lane.covers(&on_lane));
    }

    #[test]
    fn rights_that_are_not_set_allow_everything() {
        let all = Rights::default();
        assert!(all.allows_model("m") && all.allows_lane("l") && all.allows_listener(&[]));
        assert!(all.allows_endpoint(Endpoint::Speech) && !all.hides_lanes());
        let none = Rights {
            models: Some(Vec::new()),
            lanes: Some(Vec::new()),
            endpoints: Some(Vec::new()),
            listeners: Some(Vec::new()),
            ..Rights::default()
        };
        assert!(!none.allows_model("") && !none.allows_lane("l") && none.hides_lanes());
        assert!(!none.allows_listener(&["127.0.0.1:1".to_owned()]));
        assert!(!none.allows_endpoint(Endpoint::Other));
        let messages = Rights { endpoints: Some(vec![Endpoint::Messages]), ..Rights::default() };
        assert!(messages.allows_endpoint(Endpoint::CountTokens));
        assert!(!messages.allows_endpoint(Endpoint::ChatCompletions));
    }
}
