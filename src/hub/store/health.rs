//! Whether the database works: one line in the log for each change, and metrics.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::StoreError;
use crate::hub::metrics::StoreMetrics;

pub(super) struct Health {
    is_failing: AtomicBool,
    metrics: StoreMetrics,
}

impl Health {
    pub(super) fn new(metrics: StoreMetrics) -> Self {
        metrics.up.set(1.0);
        Self {
            is_failing: AtomicBool::new(false),
            metrics,
        }
    }

    /// Records that something could not be read.
    pub(super) fn failed_to_read(&self) {
        self.metrics.failures.increment(1);
    }

    /// Records how long a write took, and what became of it. There is one every few seconds, and a
    /// database that is full may still be read.
    pub(super) fn wrote(&self, duration: Duration, error: Option<&StoreError>) {
        self.metrics.write.record(duration);
        let was_failing = self.is_failing.swap(error.is_some(), Ordering::SeqCst);
        self.metrics.up.set(if error.is_some() { 0.0 } else { 1.0 });
        match error {
            Some(error) => {
                self.metrics.failures.increment(1);
                if !was_failing {
                    tracing::error!(
                        %error,
                        "no report is acknowledged and no evidence given until the database works \
                         again; that time will count as not watched"
                    );
                }
            }
            None if was_failing => tracing::info!("the database works again"),
            None => {}
        }
    }
}
