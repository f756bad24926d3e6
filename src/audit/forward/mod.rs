//! Copies of a sidecar's records for collectors. The log itself is what counts: a collector that is
//! slow or gone holds up no record and no other collector. Lines that find no room, and lines that
//! a collector refuses, are counted, and the `seq` of those that arrive shows the gap.

mod deliver;
#[cfg(feature = "https-client")]
mod http;
mod message;
mod queue;
mod syslog;
#[cfg(test)]
mod tests;
mod unsure;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

#[cfg(feature = "https-client")]
use self::http::Http;
use self::{queue::Queue, syslog::Syslog};
use crate::{clock::Clock, config::AuditForward, model::Collector, telemetry::Registry};

pub use self::queue::ForwardHealth;
pub(in crate::audit) use self::queue::describe_metrics;

/// How long a collector that the config no longer names may take what waits for it.
const LEAVE: Duration = Duration::from_secs(10);

/// The collectors that get copies.
pub(super) struct Forwards {
    clock: Clock,
    registry: Arc<Registry>,
    running: Mutex<Vec<Running>>,
}

struct Running {
    settings: AuditForward,
    queue: Arc<Queue>,
    task: AbortOnDropHandle<()>,
}

impl Forwards {
    /// There is no collector yet.
    pub(super) fn new(clock: Clock, registry: Arc<Registry>) -> Self {
        Self {
            clock,
            registry,
            running: Mutex::default(),
        }
    }

    /// Forwards to these collectors from now on, in tasks of the current runtime. Those that are
    /// the same as before go on; others get what waits for them, for a while.
    pub(super) fn install(&self, settings: &[AuditForward]) {
        let mut running = self.running();
        let (mut same, former) = std::mem::take(&mut *running)
            .into_iter()
            .partition::<Vec<_>, _>(|one| settings.contains(&one.settings));
        for ended in former {
            // Before another starts, which may be at the same place.
            ended.queue.forget();
            tokio::spawn(ended.finish(LEAVE));
        }
        for settings in settings {
            let index = same.iter().position(|one| one.settings == *settings);
            running.push(match index {
                Some(index) => same.swap_remove(index),
                None => self.start(settings),
            });
        }
    }

    fn start(&self, settings: &AuditForward) -> Running {
        let to = settings.to.to_string();
        let queue = Arc::new(Queue::new(to, self.clock.clone(), &self.registry));
        let lines = Arc::clone(&queue);
        let task = match &settings.to {
            Collector::Syslog { host, port, .. } => {
                tokio::spawn(lines.deliver_all(Syslog::new(host, *port, settings)))
            }
            #[cfg(feature = "https-client")]
            Collector::Http { url, .. } => {
                tokio::spawn(lines.deliver_all(Http::new(url, settings)))
            }
            #[cfg(not(feature = "https-client"))]
            Collector::Http { .. } => {
                unreachable!("no config has one in a build without an HTTP client")
            }
        };
        Running {
            settings: settings.clone(),
            queue,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Offers lines that were written. Never waits.
    pub(super) fn offer(&self, lines: &Bytes) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let each: Vec<Bytes> = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| lines.slice_ref(line))
            .collect();
        for one in running.iter() {
            one.queue.offer(&each);
        }
    }

    /// Forwards what waits and nothing more, for at most `patience`.
    pub(super) async fn finish(&self, patience: Duration) {
        let running = std::mem::take(&mut *self.running());
        join_all(running.into_iter().map(|one| one.finish(patience))).await;
    }

    pub(super) fn health(&self) -> Vec<ForwardHealth> {
        let running = self.running();
        running.iter().map(|one| one.queue.health()).collect()
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    async fn finish(self, patience: Duration) {
        self.queue.close();
        if timeout(patience, self.task).await.is_err() {
            self.queue.give_up();
        }
    }
}
