//! The connection limit of a listener, and which connection gives way when it is reached.

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

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
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

use super::{accept::PendingConnection, activity::Activity, problem::Problem};
use crate::wire::Code;

/// How many connections beyond the limit get a response at a time. Others are closed without one.
const MAX_REFUSALS: usize = 64;
/// How long a refusal, or waiting for an evicted connection to close, may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Grants the connection slots of a listener.
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    refusals: Semaphore,
    connections: ConnectionQueue,
}

/// The slot of a connection; freed on drop.
pub(crate) struct ConnectionSlot {
    permit: SlotPermit,
    pub(crate) activity: Arc<Activity>,
    ticket: u64,
    admission: Arc<Admission>,
}

enum SlotPermit {
    Held(#[expect(dead_code, reason = "held for its drop alone")] OwnedSemaphorePermit),
    /// Waits for an evicted connection to close.
    Queued(QueuedPermit),
}

type QueuedPermit =
    Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

impl ConnectionSlot {
    /// Whether another connection was evicted for this one.
    pub(crate) fn has_evicted(&self) -> bool {
        matches!(self.permit, SlotPermit::Queued(_))
    }

    /// Waits for an evicted connection to close. Returns None if that takes too long or this
    /// connection is evicted meanwhile.
    pub(crate) async fn acquired(mut self) -> Option<Self> {
        if let SlotPermit::Queued(queued) = &mut self.permit {
            let permit = tokio::select! {
                permit = timeout(REFUSAL_TIMEOUT, queued) => permit.ok()?.ok()?,
                () = self.activity.evicted() => return None,
            };
            self.permit = SlotPermit::Held(permit);
        }
        Some(self)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.admission.connections.remove(self.ticket);
    }
}

impl Admission {
    /// Admits at most `connections` at a time.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(connections)),
            refusals: Semaphore::new(MAX_REFUSALS),
            connections: ConnectionQueue::default(),
        })
    }

    /// Returns a slot, if necessary that of an evictable connection. Returns None if there is none.
    /// A known peer's connection never gives way.
    pub(crate) fn slot(self: &Arc<Self>, is_known: bool) -> Option<ConnectionSlot> {
        let permit = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => SlotPermit::Held(permit),
            Err(_) if self.connections.evict_oldest() => {
                queue(Arc::clone(&self.slots).acquire_owned())
            }
            Err(_) => return None,
        };
        let activity = Arc::<Activity>::default();
        if is_known {
            activity.recognize();
        }
        // Enqueued now rather than in the connection's task, so that it can be evicted before that
        // task first runs.
        let ticket = self.connections.push(&activity);
        Some(ConnectionSlot {
            permit,
            activity,
            ticket,
            admission: Arc::clone(self),
        })
    }

    /// Answers the first request of a connection beyond the limit, then closes it.
    pub(crate) async fn refuse(&self, pending: impl PendingConnection) {
        let Ok(_permit) = self.refusals.try_acquire() else {
            return;
        };
        let respond = service_fn(|_: Request<Incoming>| async {
            let problem = Problem::new(
                Code::TooManyConnections,
                "all of `limits.connections` are in use; keep connections open and reuse them",
            );
            let mut response: Response<Full<Bytes>> = problem.retry_after(1).into_response();
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        });
        let connection = async {
            let Some((io, _)) = pending.establish().await else {
                return;
            };
            // The connection is refused whether or not the peer takes the response.
            let _ = http1::Builder::new()
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(io), respond)
                .await;
        };
        let _ = timeout(REFUSAL_TIMEOUT, connection).await;
    }
}

/// Joins the semaphore's queue now rather than when the task first runs, so that a later connection
/// cannot take the slot.
fn queue(
    acquire: impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + 'static,
) -> SlotPermit {
    let mut queued: QueuedPermit = Box::pin(acquire);
    match queued
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Ok(permit)) => SlotPermit::Held(permit),
        Poll::Ready(Err(_)) => unreachable!("the semaphore is never closed"),
        Poll::Pending => SlotPermit::Queued(queued),
    }
}

/// The connections of a listener, oldest first.
#[derive(Default)]
struct ConnectionQueue {
    queue: Mutex<VecDeque<(u64, Arc<Activity>)>>,
    next_ticket: AtomicU64,
}

impl ConnectionQueue {
    fn push(&self, activity: &Arc<Activity>) -> u64 {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Drawn under the lock, so that tickets are in order and `remove` can search for one.
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        queue.push_back((ticket, Arc::clone(activity)));
        ticket
    }

    fn remove(&self, ticket: u64) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            queue.remove(at);
        }
    }

    /// Evicts the oldest connection whose peer is not known. Returns whether there was one.
    fn evict_oldest(&self) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = queue.iter().position(|(_, activity)| !activity.is_known()) else {
            return false;
        };
        if let Some((_, activity)) = queue.remove(at) {
            activity.evict();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use hyper::Version;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        time::Instant,
    };

    use super::*;

    struct Pending(DuplexStream);

    impl PendingConnection for Pending {
        type Io = DuplexStream;
        type Peer = ();

        async fn establish(self) -> Option<(DuplexStream, ())> {
            Some((self.0, ()))
        }
    }

    #[tokio::test]
    async fn a_free_slot_is_granted_and_freed_on_drop() {
        let admission = Admission::new(1);
        let slot = admission.slot(true).expect("free");
        assert!(!slot.has_evicted());
        for is_known in [false, true] {
            assert!(admission.slot(is_known).is_none(), "all slots are in use");
        }
        drop(slot);
        let slot = admission.slot(true).expect("free again");
        assert!(!slot.has_evicted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_connection_of_a_stranger_gives_way() {
        let admission = Admission::new(4);
        let _known = admission.slot(true).expect("free");
        let recognized = admission.slot(false).expect("free");
        recognized.activity.recognize();
        let (older, newer) = (admission.slot(false), admission.slot(false));
        let (older, newer) = (older.expect("free"), newer.expect("free"));
        let slot = admission.slot(true).expect("taken over");
        assert!(slot.has_evicted());
        older.activity.evicted().await;
        drop(older);
        let _slot = slot.acquired().await.expect("the evicted one closed");
        let another = admission.slot(false).expect("taken over");
        newer.activity.evicted().await;
        drop(newer);
        another.acquired().await.expect("the evicted one closed");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_that_a_stranger_does_protects_a_connection() {
        let admission = Admission::new(1);
        let stranger = admission.slot(false).expect("free");
        let mut untaken = stranger.activity.begin_request(Version::HTTP_2);
        untaken.respond(false);
        let _unanswered = stranger.activity.begin_request(Version::HTTP_2);
        assert!(admission.slot(false).expect("taken over").has_evicted());
        stranger.activity.evicted().await;
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_an_evicted_connection_has_a_limit() {
        let admission = Admission::new(1);
        let _evicted = admission.slot(false).expect("free");
        let start = Instant::now();
        let slot = admission.slot(true).expect("taken over");
        assert!(slot.acquired().await.is_none());
        assert_eq!(start.elapsed(), REFUSAL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_connection_can_be_evicted_itself() {
        let admission = Admission::new(1);
        let evicted = admission.slot(false).expect("free");
        let waiting = admission.slot(false).expect("taken over");
        let newest = admission.slot(true).expect("taken over");
        assert!(waiting.acquired().await.is_none());
        drop(evicted);
        newest.acquired().await.expect("acquired");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_gets_a_problem_response() {
        let admission = Admission::new(0);
        let (mut client, server) = tokio::io::duplex(4096);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("written");
        admission.refuse(Pending(server)).await;
        let mut response = String::new();
        client.read_to_string(&mut response).await.expect("read");
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        for expected in [
            "connection: close",
            "retry-after: 1",
            "too_many_connections",
        ] {
            assert!(response.contains(expected), "{response}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_that_sends_nothing_is_closed() {
        let admission = Admission::new(0);
        let (_client, server) = tokio::io::duplex(4096);
        let start = Instant::now();
        admission.refuse(Pending(server)).await;
        assert_eq!(start.elapsed(), REFUSAL_TIMEOUT);
    }
}
