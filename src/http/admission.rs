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

use super::{
    accept::PendingConnection, account::Account, activity::Activity, body::RequestBody,
    problem::Problem, share::Pool,
};
use crate::wire::Code;

/// How many connections beyond the limit get a response at a time. Others are closed without one.
const MAX_REFUSALS: usize = 64;
/// How long a refusal, or waiting for an evicted connection to close, may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of a peer before its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Some rule allows it something.
    Known,
    /// It may yet prove itself.
    Unproven,
    /// No rule allows it anything.
    Stranger,
}

/// The part of the slots that strangers may hold, as a divisor. They would give way, but each
/// takes a file descriptor and some memory.
const STRANGERS_PART: usize = 4;

/// Grants the connection slots of a listener.
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    /// The slots, as known callers share them.
    shares: Arc<Pool>,
    max_strangers: usize,
    refusals: Semaphore,
    connections: ConnectionQueue,
}

/// The slot of a connection; freed on drop.
pub(crate) struct ConnectionSlot {
    permit: SlotPermit,
    has_evicted: bool,
    pub(crate) activity: Arc<Activity>,
    pub(crate) account: Arc<Account>,
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
        self.has_evicted
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
            shares: Arc::new(Pool::new(connections)),
            max_strangers: (connections / STRANGERS_PART).max(1),
            refusals: Semaphore::new(MAX_REFUSALS),
            connections: ConnectionQueue::default(),
        })
    }

    /// Returns a slot, if necessary that of the oldest connection whose peer is not known. A caller
    /// that has its share gets the slot of its own oldest connection without any request yet.
    /// Returns None if there is no such connection.
    pub(crate) fn slot(
        self: &Arc<Self>,
        account: Arc<Account>,
        standing: Standing,
    ) -> Option<ConnectionSlot> {
        let (share, has_evicted) = match standing {
            Standing::Known => self.share(&account)?,
            Standing::Unproven | Standing::Stranger => (None, false),
        };
        let (permit, has_evicted) = self.permit(standing, has_evicted)?;
        let activity = Arc::<Activity>::default();
        if standing == Standing::Known {
            activity.recognize();
        }
        // Enqueued now rather than in the connection's task, so that it can be evicted before that
        // task first runs.
        let ticket = self.connections.push(&activity, share);
        Some(ConnectionSlot {
            permit,
            has_evicted,
            activity,
            account,
            ticket,
            admission: Arc::clone(self),
        })
    }

    /// Returns a known caller's share, and whether another of its connections was evicted for it.
    fn share(&self, account: &Arc<Account>) -> Option<(Option<Share>, bool)> {
        match Share::take(&self.shares, account) {
            Some(share) => Some((Some(share), false)),
            None => Some((Some(self.connections.evict_silent(account)?), true)),
        }
    }

    /// Returns a permit, and whether a connection was evicted.
    fn permit(&self, standing: Standing, mut has_evicted: bool) -> Option<(SlotPermit, bool)> {
        if standing == Standing::Stranger && self.connections.count_unknown() >= self.max_strangers
        {
            has_evicted = self.connections.evict_oldest();
        }
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => Some((SlotPermit::Held(permit), has_evicted)),
            Err(_) if has_evicted || self.connections.evict_oldest() => {
                Some((queue(Arc::clone(&self.slots).acquire_owned()), true))
            }
            Err(_) => None,
        }
    }

    /// Answers the first request of a connection beyond the limit, then closes it.
    pub(crate) async fn refuse(&self, pending: impl PendingConnection) {
        let Ok(_permit) = self.refusals.try_acquire() else {
            return;
        };
        let respond = service_fn(|request: Request<Incoming>| async {
            // A client that is still sending then gets the response.
            drop(RequestBody::new(request.into_body(), None));
            let problem = Problem::new(
                Code::TooManyConnections,
                "all of `limits.connections` are in use, or this caller's share of them; keep \
                 connections open and reuse them",
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

/// One slot of a known caller.
struct Share {
    pool: Arc<Pool>,
    account: Arc<Account>,
}

impl Share {
    fn take(pool: &Arc<Pool>, account: &Arc<Account>) -> Option<Self> {
        let taken = pool.try_take(&account.connections, 1, usize::MAX);
        taken.is_ok().then(|| Self {
            pool: Arc::clone(pool),
            account: Arc::clone(account),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.give_back(&self.account.connections, 1);
    }
}

/// The connections of a listener, oldest first.
#[derive(Default)]
struct ConnectionQueue {
    queue: Mutex<VecDeque<Entry>>,
    next_ticket: AtomicU64,
}

struct Entry {
    ticket: u64,
    activity: Arc<Activity>,
    share: Option<Share>,
}

impl ConnectionQueue {
    fn push(&self, activity: &Arc<Activity>, share: Option<Share>) -> u64 {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Drawn under the lock, so that tickets are in order and `remove` can search for one.
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        queue.push_back(Entry {
            ticket,
            activity: Arc::clone(activity),
            share,
        });
        ticket
    }

    fn remove(&self, ticket: u64) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = queue.binary_search_by_key(&ticket, |entry| entry.ticket) {
            queue.remove(at);
        }
    }

    fn count_unknown(&self) -> usize {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unknown = |entry: &&Entry| !entry.activity.is_known();
        queue.iter().filter(is_unknown).count()
    }

    /// Evicts the oldest connection whose peer is not known. Returns whether there was one.
    fn evict_oldest(&self) -> bool {
        self.evict(|entry| !entry.activity.is_known()).is_some()
    }

    /// Evicts the oldest connection of a caller on which no request has arrived. Returns its share.
    fn evict_silent(&self, account: &Arc<Account>) -> Option<Share> {
        let is_silent = |entry: &Entry| {
            let owner = entry.share.as_ref().map(|share| &share.account);
            owner.is_some_and(|owner| Arc::ptr_eq(owner, account)) && entry.activity.is_silent()
        };
        self.evict(is_silent)?.share
    }

    fn evict(&self, is_evictable: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let at = queue.iter().position(is_evictable)?;
        let entry = queue.remove(at)?;
        entry.activity.evict();
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use hyper::Version;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        time::Instant,
    };

    use super::{Standing::*, *};
    use crate::http::account::{Accounts, testing::accounts};

    fn users() -> Arc<Accounts> {
        accounts(0, Duration::ZERO)
    }

    /// A slot for one user.
    fn slot(admission: &Arc<Admission>, standing: Standing) -> Option<ConnectionSlot> {
        admission.slot(users().of_user(1), standing)
    }

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
        let granted = slot(&admission, Known).expect("free");
        assert!(!granted.has_evicted());
        for standing in [Known, Unproven, Stranger] {
            assert!(slot(&admission, standing).is_none(), "all slots are in use");
        }
        drop(granted);
        let granted = slot(&admission, Known).expect("free again");
        assert!(!granted.has_evicted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_connection_of_a_stranger_gives_way() {
        let admission = Admission::new(4);
        let _known = slot(&admission, Known).expect("free");
        let recognized = slot(&admission, Unproven).expect("free");
        recognized.activity.recognize();
        let (older, newer) = (slot(&admission, Unproven), slot(&admission, Unproven));
        let (older, newer) = (older.expect("free"), newer.expect("free"));
        let granted = slot(&admission, Known).expect("taken over");
        assert!(granted.has_evicted());
        older.activity.evicted().await;
        drop(older);
        let _granted = granted.acquired().await.expect("the evicted one closed");
        let another = slot(&admission, Unproven).expect("taken over");
        newer.activity.evicted().await;
        drop(newer);
        another.acquired().await.expect("the evicted one closed");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_that_a_stranger_does_protects_a_connection() {
        let admission = Admission::new(1);
        let stranger = slot(&admission, Unproven).expect("free");
        let mut untaken = stranger.activity.begin_request(Version::HTTP_2, None);
        untaken.respond(false);
        let _unanswered = stranger.activity.begin_request(Version::HTTP_2, None);
        assert!(
            slot(&admission, Unproven)
                .expect("taken over")
                .has_evicted()
        );
        stranger.activity.evicted().await;
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_an_evicted_connection_has_a_limit() {
        let admission = Admission::new(1);
        let _evicted = slot(&admission, Unproven).expect("free");
        let start = Instant::now();
        let granted = slot(&admission, Known).expect("taken over");
        assert!(granted.acquired().await.is_none());
        assert_eq!(start.elapsed(), REFUSAL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_connection_can_be_evicted_itself() {
        let admission = Admission::new(1);
        let evicted = slot(&admission, Unproven).expect("free");
        let waiting = slot(&admission, Unproven).expect("taken over");
        let newest = slot(&admission, Known).expect("taken over");
        assert!(waiting.acquired().await.is_none());
        drop(evicted);
        newest.acquired().await.expect("acquired");
    }

    #[tokio::test]
    async fn one_user_leaves_slots_to_others() {
        let (admission, users) = (Admission::new(16), users());
        let mut slots = Vec::new();
        while let Some(slot) = admission.slot(users.of_user(1), Known) {
            drop(slot.activity.begin_request(Version::HTTP_11, None));
            slots.push(slot);
        }
        assert_eq!(slots.len(), 12);
        let other = admission.slot(users.of_user(2), Known).expect("room");
        assert!(!other.has_evicted());
        drop(slots);
        let again = admission.slot(users.of_user(1), Known);
        assert!(again.is_some(), "closing gives the share back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_users_silent_connections_give_way_to_its_own_later_ones() {
        let (admission, users) = (Admission::new(1), users());
        let silent = admission.slot(users.of_user(1), Known).expect("free");
        assert!(
            admission.slot(users.of_user(2), Known).is_none(),
            "not to others"
        );
        let speaking = admission.slot(users.of_user(1), Known).expect("taken over");
        assert!(speaking.has_evicted());
        silent.activity.evicted().await;
        drop(silent);
        let speaking = speaking.acquired().await.expect("the silent one closed");
        drop(speaking.activity.begin_request(Version::HTTP_11, None));
        assert!(
            admission.slot(users.of_user(1), Known).is_none(),
            "it spoke"
        );
        drop(speaking);
        admission
            .slot(users.of_user(2), Known)
            .expect("the share is free again");
    }

    #[tokio::test]
    async fn strangers_displace_each_other_and_give_way_to_users() {
        let (admission, users) = (Admission::new(8), users());
        let mut strangers = Vec::new();
        for _ in 0..3 {
            strangers.extend(admission.slot(users.of_user(9), Stranger));
        }
        let evicted = strangers.iter().map(ConnectionSlot::has_evicted);
        assert_eq!(evicted.collect::<Vec<_>>(), [false, false, true]);
        strangers[0].activity.evicted().await;
        drop(strangers.remove(0));
        let mut slots = Vec::new();
        for uid in 1..=8 {
            slots.extend(admission.slot(users.of_user(uid), Known));
        }
        assert_eq!(slots.len(), 8);
        for stranger in &strangers {
            stranger.activity.evicted().await;
        }
        assert!(admission.slot(users.of_user(9), Stranger).is_none());
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
