//! What a registry of metrics needs all the time.

use std::{sync::Arc, time::Duration};

use tokio::time::interval;

use super::{Registry, lost_log_lines};

const LOST_LOG_LINES: &str = "sidekey_log_lost_lines_total";

/// Histograms buffer the samples of this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps histograms from growing without bound between scrapes, and counts lost lines of the log,
/// until the future is dropped.
pub fn keep_up(registry: Arc<Registry>) -> impl Future<Output = ()> + Send + 'static {
    registry.describe_counter(
        LOST_LOG_LINES,
        "Lines of the log that were lost, because standard error failed or was read too slowly.",
    );
    let lost = registry.counter(LOST_LOG_LINES, &[]);
    async move {
        let mut ticks = interval(INTERVAL);
        loop {
            ticks.tick().await;
            lost.absolute(lost_log_lines());
            registry.upkeep();
        }
    }
}
