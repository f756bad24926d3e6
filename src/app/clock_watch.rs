//! Notices that the machine slept or that its clock was set. Timers stand still meanwhile, and so
//! are late; leases may be over. Therefore everything is read again.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock::{Clock, Jump, Jumps},
    refresh::{Keyring, Trigger},
    render::Renders,
    secrets::Secrets,
    telemetry::Registry,
};

const JUMPS: &str = "sidekey_clock_jumps_total";
/// How often the clocks are compared, and how late that is noticed at most.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

pub(super) fn describe_metrics(registry: &Registry) {
    registry.describe_counter(
        JUMPS,
        "How often the machine had slept or the time of day was set, by kind.",
    );
}

/// What is read again.
pub(super) struct ClockWatch {
    pub(super) clock: Clock,
    pub(super) registry: Arc<Registry>,
    pub(super) keyrings: Vec<Arc<Keyring>>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) renders: Arc<Renders>,
}

impl ClockWatch {
    pub(super) async fn run(self, ending: CancellationToken) {
        let mut jumps = Jumps::of(&self.clock);
        let forever = async {
            loop {
                sleep(COMPARE_EVERY).await;
                let found = jumps.observe();
                for jump in &found {
                    self.report(*jump);
                }
                if !found.is_empty() {
                    self.read_again();
                }
            }
        };
        ending.run_until_cancelled(forever).await;
    }

    fn report(&self, jump: Jump) {
        let labels = [("kind", jump.as_str())];
        self.registry.counter(JUMPS, &labels).increment(1);
        match jump {
            Jump::Slept(slept) => {
                info!(
                    ?slept,
                    "the machine was suspended; reading everything again"
                );
            }
            Jump::Forward(by) => warn!(
                ?by,
                "the time of day jumped forward; it was set, or the machine was paused. Reading \
                 everything again"
            ),
            Jump::Back(by) => warn!(
                ?by,
                "the time of day was set back; if it was right before, keyring leases are shorter \
                 than they seem. Reading everything again"
            ),
        }
    }

    fn read_again(&self) {
        for keyring in &self.keyrings {
            keyring.request(Trigger::Clock);
        }
        self.secrets.request(Trigger::Clock);
        self.renders.request();
    }
}
