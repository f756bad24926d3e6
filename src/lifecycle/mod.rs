//! From start to end: readiness, signals and the two stages of stopping.

mod readiness;
mod signals;
mod supervisor;

use tokio_util::sync::CancellationToken;

pub use readiness::Readiness;
pub use signals::{Signal, Signals};
pub use supervisor::{tell_started, tell_stopping};

/// The two stages of stopping.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// No more connections; what is in flight is answered.
    pub draining: CancellationToken,
    /// Everything ends.
    pub ending: CancellationToken,
}
