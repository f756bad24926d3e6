//! Readiness, signals, the service manager, orphans, the limit of open files, and the two stages of
//! stopping.

mod orphans;
mod readiness;
mod signals;
mod systemd;

use tokio_util::sync::CancellationToken;

pub use orphans::reap_orphans;
pub use readiness::Readiness;
pub use signals::{Signal, Signals};
pub use systemd::{notify_ready, notify_stopping};

/// The two stages of stopping.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// Cancelled when draining begins: no new connections, but requests in flight are answered.
    pub draining: CancellationToken,
    /// Cancelled when everything ends.
    pub ending: CancellationToken,
}
