//! The limit of open file descriptors, and what of it connections may use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for all but clients and their requests: listeners, engines' pipes and probes,
/// policies, records, and the runtime.
const RESERVE: u64 = 256;
/// Maximum number of open connections, whatever the system allows.
const MAX_CONNECTIONS: u64 = 16_384;

/// Raises the limit of open descriptors as far as the system allows, and returns the number of
/// connections that fit into it. Each may need a second descriptor, for the connection to an
/// engine.
pub fn raise_descriptor_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Without a limit, the default of most systems' kernels is more than is ever used.
    let wanted = maximum.unwrap_or(4 * MAX_CONNECTIONS);
    let limit = match current {
        Some(current) if current < wanted => {
            match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
                Ok(()) => wanted,
                Err(error) => {
                    tracing::warn!(%error, limit = current, "failed to raise the limit of open \
                        files");
                    current
                }
            }
        }
        Some(current) => current,
        None => wanted,
    };
    let connections = connections(limit);
    tracing::debug!(limit, connections, "limit of open files");
    connections
}

/// Returns the number of connections for a limit of descriptors.
fn connections(limit: u64) -> usize {
    let connections = (limit.saturating_sub(RESERVE) / 2).clamp(16, MAX_CONNECTIONS);
    usize::try_from(connections).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_raised_and_shared() {
        assert_eq!(
            [0, 1024, 4096, 1 << 20].map(connections),
            [16, 384, 1920, 16_384],
            "descriptors for requests and for the host itself remain"
        );
        raise_descriptor_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert!(maximum.is_none() || current == maximum);
    }
}
