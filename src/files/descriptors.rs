//! The limit of open files.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tracing::warn;

/// Descriptors for other things than applications' connections: operators' connections, KEKs and
/// providers, files, watches.
const OTHERS: u64 = 256;

/// The limits before they were raised.
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of open files (`RLIMIT_NOFILE`), usually 1024, so that `connections` can
/// be open at once. Warns if the hard limit is too low.
pub fn allow_connections(connections: u64) {
    let needed = connections.saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    INHERITED.get_or_init(|| limit);
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

/// Gives a command that this process has started the limit that this process itself was started
/// with: programs that use select(2), or that close every descriptor, can't do with a higher one.
///
/// The command may run a moment before that. A limit can't be changed between fork and exec without
/// unsafe code, and this process can't do with a lower one even for that long.
pub fn restore_limit(command: u32) {
    let (Some(inherited), Some(pid)) = (INHERITED.get(), Pid::from_raw(command.cast_signed()))
    else {
        return;
    };
    // Fails if it has ended, or runs as another user.
    let _ = prlimit(Some(pid), Resource::Nofile, *inherited);
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
