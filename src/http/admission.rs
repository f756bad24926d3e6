//! How many connections a listener has at once, and who goes when all are taken.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    activity::Activity,
    connection::Arrival,
    problem::{Code, Problem},
};

/// How many connections over the limit get an answer at a time, and for how long; those beyond are closed unanswered.
const REFUSALS: usize = 64;
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// A listener's places.
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    unwelcome: Unwelcome,
}

/// A place for a new connection; leaves with it.
pub(crate) struct Place {
    hold: Hold,
    pub(crate) activity: Arc<Activity>,
    ticket: u64,
    admission: Arc<Admission>,
}

enum Hold {
    Taken(#[expect(dead_code, reason = "held for its drop alone")] OwnedSemaphorePermit),
    /// Another connection is still leaving.
    Queued(Queued),
}

type Queued = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

impl Place {
    /// Whether another connection had to go for it.
    pub(crate) fn is_taken_over(&self) -> bool {
        matches!(self.hold, Hold::Queued(_))
    }

    /// Waits for the other connection to leave; gives up if this one has to go, too.
    pub(crate) async fn vacated(mut self) -> Option<Self> {
        if let Hold::Queued(queued) = &mut self.hold {
            let permit = tokio::select! {
                permit = timeout(REFUSAL_TIME, queued) => permit.ok()?.ok()?,
                () = self.activity.evicted() => return None,
            };
            self.hold = Hold::Taken(permit);
        }
        Some(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.unwelcome.leave(self.ticket);
    }
}

impl Admission {
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(connections)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            unwelcome: Unwelcome::default(),
        })
    }

    /// A place, if need be that of a connection on which nobody was let in yet.
    pub(crate) fn place(self: &Arc<Self>) -> Option<Place> {
        let hold = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Hold::Taken(permit),
            Err(_) if self.unwelcome.end_oldest() => {
                queue(Arc::clone(&self.permits).acquire_owned())
            }
            Err(_) => return None,
        };
        let activity = Arc::<Activity>::default();
        // At once, so that it can be found however long its task has to wait.
        let ticket = self.unwelcome.enter(&activity);
        Some(Place {
            hold,
            activity,
            ticket,
            admission: Arc::clone(self),
        })
    }

    /// Answers the first request of a connection that is one too many.
    pub(crate) async fn refuse(&self, arrival: impl Arrival) {
        let Ok(_permit) = self.refusals.try_acquire() else {
            return;
        };
        let answer = service_fn(|_: Request<Incoming>| async {
            let problem = Problem::new(
                Code::TooManyConnections,
                "all of `limits.connections` are in use; keep connections open and reuse them",
            );
            let mut response = problem.retry_after(1).into_response().map(Full::new);
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        });
        let connection = async {
            let Some((stream, _)) = arrival.establish().await else {
                return;
            };
            // However it ends, it was refused.
            let _ = http1::Builder::new()
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        };
        let _ = timeout(REFUSAL_TIME, connection).await;
    }
}

/// Takes a number now, not when the task first runs, so that nobody who comes meanwhile is served before.
fn queue(
    acquire: impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + 'static,
) -> Hold {
    let mut queued: Queued = Box::pin(acquire);
    match queued
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Ok(permit)) => Hold::Taken(permit),
        Poll::Ready(Err(_)) => unreachable!("nobody closes the semaphore"),
        Poll::Pending => Hold::Queued(queued),
    }
}

/// The connections, oldest first; those on which nobody was let in go first when all are taken.
#[derive(Default)]
struct Unwelcome {
    queue: Mutex<VecDeque<(u64, Arc<Activity>)>>,
    next: AtomicU64,
}

impl Unwelcome {
    fn enter(&self, activity: &Arc<Activity>) -> u64 {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Drawn under the lock, so that tickets stand in order and `leave` finds its own.
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        queue.push_back((ticket, Arc::clone(activity)));
        ticket
    }

    fn leave(&self, ticket: u64) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            queue.remove(at);
        }
    }

    fn end_oldest(&self) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = queue
            .iter()
            .position(|(_, activity)| activity.is_dispensable())
        else {
            return false;
        };
        let gone = queue.remove(at);
        if let Some((_, activity)) = gone {
            activity.evict();
        }
        true
    }
}
