//! Reports on their way to the database: many in one write, acknowledged once they are durable.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    barriers::Barriers,
    caller::Identity,
    hints::Hints,
    metrics::ReportMetrics,
    registry::{Incoming, Outcome},
    report::Received,
    store::Store,
    streams::Streams,
};
use crate::{clock::Clock, http::problem::Problem, wire::Code};

/// How long a report may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(500);
/// The most reports in one write.
const MAX_BATCH: usize = 1000;
/// The most reports that wait for a write to end. Their bodies have a share of the memory, too.
const MAX_WAITING: usize = 4000;
/// How long a report waits for a place among them.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes reports.
pub(super) struct Intake {
    waiting: mpsc::Sender<Waiting>,
    store: Arc<Store>,
}

/// A report, and who sent it and waits for its answer.
struct Waiting {
    received: Received,
    identity: Arc<Identity>,
    /// Why it was refused before. That a report was missed is still recorded.
    refusal: Option<Problem>,
    answer: oneshot::Sender<Result<(), Problem>>,
}

/// Writes reports.
pub(super) struct Writer {
    pub(super) store: Arc<Store>,
    pub(super) clock: Clock,
    pub(super) streams: Arc<Streams>,
    pub(super) hints: Arc<Hints>,
    pub(super) barriers: Arc<Barriers>,
    pub(super) metrics: ReportMetrics,
}

impl Intake {
    /// Starts the task that writes reports, which ends once the intake is dropped and everything is
    /// written.
    pub(super) fn start(writer: Writer) -> (Self, JoinHandle<()>) {
        let (waiting, receiver) = mpsc::channel(MAX_WAITING);
        let store = Arc::clone(&writer.store);
        (Self { waiting, store }, tokio::spawn(writer.run(receiver)))
    }

    /// Resolves once the report is durable, or known to be covered by what is; one that is refused
    /// already, once it is durable that something was missed.
    ///
    /// # Errors
    /// `refusal`; [`Code::OtherKey`], [`Code::ReportConflict`], [`Code::InvalidRequest`];
    /// [`Code::DatabaseUnavailable`], and [`Code::Overloaded`] if writes take too long.
    pub(super) async fn take(
        &self,
        received: Received,
        identity: Arc<Identity>,
        refusal: Option<Problem>,
    ) -> Result<(), Problem> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            received,
            identity,
            refusal,
            answer,
        };
        match timeout(PATIENCE, self.waiting.send(waiting)).await {
            Ok(Ok(())) => answered.await.unwrap_or_else(|_| Err(stopped())),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => {
                self.store.note_not_stored();
                let detail = "more reports arrive than the database takes; the last one that is \
                              sent counts";
                Err(Problem::new(Code::Overloaded, detail).retry_after(5))
            }
        }
    }
}

impl Writer {
    async fn run(self, mut receiver: mpsc::Receiver<Waiting>) {
        while let Some(first) = receiver.recv().await {
            let batch = gather(first, &mut receiver).await;
            self.write(batch).await;
        }
    }

    async fn write(&self, batch: Vec<Waiting>) {
        let reports: Vec<Incoming<'_>> = batch
            .iter()
            .map(|waiting| Incoming {
                received: &waiting.received,
                identity: &waiting.identity.label,
                is_refused: waiting.refusal.is_some(),
            })
            .collect();
        let outcomes = self.store.take(&reports, self.clock.now()).await;
        drop(reports);
        match outcomes {
            Ok(outcomes) => {
                for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                    self.finish(waiting, outcome);
                }
                self.barriers.reported.notify_waiters();
            }
            Err(error) => {
                self.store.note_not_stored();
                for waiting in batch {
                    let _ = waiting.answer.send(Err(Problem::from(&error)));
                }
            }
        }
    }

    fn finish(&self, waiting: Waiting, outcome: Outcome) {
        self.metrics.stored(outcome);
        let result = match outcome {
            Outcome::Taken => {
                let report = &waiting.received.report;
                self.streams.reported(report, &waiting.identity);
                self.hints.catch_up(&self.streams, report);
                Ok(())
            }
            Outcome::Known => Ok(()),
            Outcome::Refused(refusal) => Err(waiting.refusal.unwrap_or_else(|| refusal.into())),
        };
        // The sender may be gone. It sends its report again.
        let _ = waiting.answer.send(result);
    }
}

/// Waits for more reports, unless one can't wait.
async fn gather(first: Waiting, receiver: &mut mpsc::Receiver<Waiting>) -> Vec<Waiting> {
    let mut is_urgent = first.received.is_urgent();
    let mut batch = vec![first];
    let end = sleep(GATHER);
    tokio::pin!(end);
    while batch.len() < MAX_BATCH {
        let next = match receiver.try_recv() {
            Ok(next) => Some(next),
            Err(_) if is_urgent => None,
            Err(_) => tokio::select! {
                next = receiver.recv() => next,
                () = &mut end => None,
            },
        };
        let Some(next) = next else {
            break;
        };
        is_urgent |= next.received.is_urgent();
        batch.push(next);
    }
    batch
}

fn stopped() -> Problem {
    Problem::new(Code::Overloaded, "the hub stops; report to another replica").retry_after(1)
}
