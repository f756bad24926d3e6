//! The limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Descriptors for other things than applications' connections: operators' connections, KEKs and
/// providers, files, watches.
const OTHERS: u64 = 256;

/// Raises the soft limit of open files (`RLIMIT_NOFILE`), usually 1024, so that `connections` can
/// be open at once; not further, because commands inherit it. Warns if the hard limit is too low.
pub fn allow_connections(connections: u64) {
    let needed = connections.saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    let wanted = raised(limit.current, limit.maximum, needed);
    let raised = Rlimit {
        current: wanted,
        maximum: limit.maximum,
    };
    // Raising the soft limit up to the hard one needs no right; what it is then is what counts.
    let _ = setrlimit(Resource::Nofile, raised);
    let current = getrlimit(Resource::Nofile).current;
    if let Some(current) = current.filter(|current| *current < needed) {
        warn!(
            "the process may open {current} files, but {connections} connections and other files \
             need {needed}: raise its hard limit (`ulimit -Hn`, LimitNOFILE= in a systemd unit) or \
             lower `limits.connections`"
        );
    }
}

/// The soft limit to set; `None` is unlimited.
fn raised(soft: Option<u64>, hard: Option<u64>, needed: u64) -> Option<u64> {
    let possible = hard.map_or(needed, |hard| hard.min(needed));
    soft.map(|soft| soft.max(possible))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_as_far_as_needed_and_possible_and_never_lowered() {
        assert_eq!(raised(Some(1024), Some(4096), 1280), Some(1280));
        assert_eq!(raised(Some(1024), None, 1280), Some(1280));
        assert_eq!(raised(Some(1024), Some(1100), 1280), Some(1100));
        assert_eq!(raised(Some(65_536), Some(65_536), 1280), Some(65_536));
        assert_eq!(raised(None, None, 1280), None);
    }
}
