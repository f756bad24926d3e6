//! Accepting connections and serving each within its limits.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{Method, Request, Response, Version, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{task::yield_now, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    accept::{ConnectionIo, Listener, PendingConnection},
    account::{Account, Accounts},
    activity::{Activity, RequestGuard},
    admission::{Admission, ConnectionSlot, Standing},
    body::RequestBody,
    memory::overloaded,
    metrics::ConnectionMetrics,
    response::{ResponseBody, without_content},
    watched_io::WatchedIo,
};
use crate::config::{Limits, Timeouts};

/// How long accepting pauses when the kernel has no file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How much of an oversized head is read, in multiples of its limit, so that it gets a response.
const HEAD_SLACK: usize = 4;
/// How long a drain waits for a peer that does not take its responses.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// How much an HTTP/2 peer may send before anyone reads it. It is not charged to the peer, so it is
/// what a connection may always send first (RFC 9113 §6.9.2).
const RECEIVE_WINDOW: u32 = 65_535;
/// How much of a streamed response waits to be sent, beyond the chunk being produced.
const SEND_BUFFER: usize = 64 << 10;

/// Answers the requests of a listener.
pub(crate) trait Handler: Send + Sync + 'static {
    /// What is known of a connection's peer.
    type Peer: Send + Sync + 'static;

    /// Who shares what.
    fn accounts(&self) -> &Accounts;

    /// The account of a connection, by its peer where that is known before the first byte.
    fn account(&self, peer: Option<&Self::Peer>) -> Arc<Account>;

    /// Whether the peer is known by the connection alone, before its first request.
    fn knows(&self, peer: &Self::Peer) -> bool;

    /// Resolves when a peer that was accepted no longer is. The connection then finishes its
    /// requests and closes.
    fn withdrawn(&self, peer: &Self::Peer) -> impl Future<Output = ()> + Send;

    /// Responds to a request. Recognizes the peer where only a request can show who it is.
    fn respond(
        &self,
        connection: &Connection<Self::Peer>,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Response<ResponseBody>> + Send;
}

/// What a connection's requests have in common.
pub(crate) struct Connection<P> {
    pub(crate) peer: P,
    pub(crate) activity: Arc<Activity>,
    pub(crate) account: Arc<Account>,
    /// Cancelled when the connection should close: requests end, and streams that never would.
    pub(crate) draining: CancellationToken,
}

/// What the requests of one connection need to be served.
struct Serving<H: Handler> {
    handler: Arc<H>,
    connection: Connection<H::Peer>,
}

impl<H: Handler> Serving<H> {
    /// Begins a request, unless the caller already has its share of concurrent ones.
    ///
    /// # Errors
    /// The reset of the HTTP/2 stream, after which the request may be sent again (RFC 9113 §8.7).
    fn begin_request(&self, version: Version) -> Result<RequestGuard, h2::Error> {
        let Connection {
            activity, account, ..
        } = &self.connection;
        let mut place = None;
        // The first one of each connection needs no place.
        if version == Version::HTTP_2 && activity.is_busy() {
            let account = if activity.is_known() {
                account
            } else {
                self.handler.accounts().of_strangers()
            };
            place = Some(account.try_stream().ok_or(h2::Reason::REFUSED_STREAM)?);
        }
        Ok(activity.begin_request(version, place))
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> Response<ResponseBody> {
        // From here on, an unread body is discarded rather than cut off.
        let activity = &self.connection.activity;
        let watched = (request.version() == Version::HTTP_2).then(|| Arc::clone(activity));
        let is_head = request.method() == Method::HEAD;
        let request = request.map(|body| RequestBody::new(body, watched));
        let mut response = self.handler.respond(&self.connection, request).await;
        if !response.body_mut().charge(&self.connection.account) {
            response = overloaded().into_response();
        }
        if is_head {
            response = without_content(response);
        }
        response.map(|body| body.guarded_by(guard))
    }
}

/// Accepts the connections of a listener and serves them.
pub(crate) struct Acceptor<H> {
    handler: Arc<H>,
    limits: Limits,
    timeouts: Timeouts,
    metrics: ConnectionMetrics,
    admission: Arc<Admission>,
    tasks: TaskTracker,
    draining: CancellationToken,
    ending: CancellationToken,
}

impl<H: Handler> Acceptor<H> {
    /// Connections finish their requests once `draining` is cancelled, and close once `ending` is.
    pub(crate) fn new(
        handler: Arc<H>,
        limits: &Limits,
        timeouts: &Timeouts,
        metrics: ConnectionMetrics,
        draining: CancellationToken,
        ending: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            handler,
            admission: Admission::new(limits.connections),
            limits: limits.clone(),
            timeouts: timeouts.clone(),
            metrics,
            tasks: TaskTracker::new(),
            draining,
            ending,
        })
    }

    /// Accepts connections until draining begins.
    pub(crate) async fn accept_all<P: PendingConnection<Peer = H::Peer>>(
        self: &Arc<Self>,
        listener: &impl Listener<Pending = P>,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.draining.cancelled() => return,
            };
            match accepted {
                // A new connection is served before later ones can displace it.
                Ok(pending) => {
                    if self.admit(pending) {
                        yield_now().await;
                    }
                }
                Err(error) if is_about_one_connection(&error) => {
                    debug!(%error, "connection closed before it was accepted")
                }
                Err(error) => {
                    warn!(%error, "can't accept connections; retrying");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Resolves when the last connection has closed.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns whether another connection had to give way, or this one was refused.
    fn admit(self: &Arc<Self>, pending: impl PendingConnection<Peer = H::Peer>) -> bool {
        let standing = match pending.peer() {
            None => Standing::Unproven,
            Some(peer) if self.handler.knows(peer) => Standing::Known,
            Some(_) => Standing::Stranger,
        };
        let account = self.handler.account(pending.peer());
        let slot = self.admission.slot(account, standing);
        let is_full = slot.as_ref().is_none_or(ConnectionSlot::has_evicted);
        if is_full {
            self.metrics.refused.increment(1);
        }
        let acceptor = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(slot) = slot else {
                return acceptor.admission.refuse(pending).await;
            };
            if let Some(slot) = slot.acquired().await {
                acceptor.metrics.open.increment(1);
                if let Some((io, peer)) = acceptor.establish(pending, &slot.activity).await {
                    acceptor.serve(io, peer, slot).await;
                }
                acceptor.metrics.open.decrement(1);
            }
        });
        is_full
    }

    /// Establishes a connection within the time limit of a request's head. Until then, the
    /// connection is evictable.
    async fn establish<P: PendingConnection>(
        &self,
        pending: P,
        activity: &Activity,
    ) -> Option<(P::Io, P::Peer)> {
        tokio::select! {
            biased;
            established = pending.establish() => established,
            () = activity.expired(&self.timeouts, || false) => None,
            () = self.draining.cancelled() => None,
        }
    }

    async fn serve(&self, io: impl ConnectionIo, peer: H::Peer, slot: ConnectionSlot) {
        let activity = &slot.activity;
        if self.handler.knows(&peer) {
            activity.recognize();
        }
        let serving = Arc::new(Serving {
            handler: Arc::clone(&self.handler),
            connection: Connection {
                peer,
                activity: Arc::clone(activity),
                account: Arc::clone(&slot.account),
                draining: self.draining.child_token(),
            },
        });
        let served = Arc::clone(&serving);
        let service = service_fn(move |request: Request<Incoming>| {
            let serving = Arc::clone(&served);
            let guard = serving.begin_request(request.version());
            async move { Ok::<_, h2::Error>(serving.respond(request, guard?).await) }
        });
        let builder = self.http();
        let io = TokioIo::new(WatchedIo {
            io,
            activity: Arc::clone(activity),
        });
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let mut interruptions = self.interruptions(&serving);
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        debug!(%error, "connection failed");
                    }
                    break;
                }
                Some(interruption) = interruptions.next() => match interruption {
                    Interruption::Drain => {
                        connection.as_mut().graceful_shutdown();
                        interruptions.push(Box::pin(async {
                            activity.left_alone(DRAIN_GRACE).await;
                            Interruption::Close
                        }));
                    }
                    Interruption::Close => break,
                },
            }
        }
    }

    /// What ends a connection from our side. The collection polls only futures that were woken, so
    /// a request does not pay for them.
    fn interruptions<'a>(
        &'a self,
        serving: &'a Serving<H>,
    ) -> FuturesUnordered<Pin<Box<dyn Future<Output = Interruption> + Send + 'a>>> {
        let interruptions =
            FuturesUnordered::<Pin<Box<dyn Future<Output = Interruption> + Send>>>::new();
        let Connection {
            peer,
            activity,
            account,
            draining,
        } = &serving.connection;
        interruptions.push(Box::pin(async {
            tokio::select! {
                () = draining.cancelled() => {}
                () = serving.handler.withdrawn(peer) => draining.cancel(),
            }
            Interruption::Drain
        }));
        interruptions.push(Box::pin(async {
            let is_memory_contended = || account.must_give_way();
            tokio::select! {
                () = self.ending.cancelled() => return Interruption::Close,
                () = activity.expired(&self.timeouts, is_memory_contended) => {}
            }
            if activity.is_streaming() {
                warn!(
                    "closed a connection during a streamed response: it stalled, or was slow while \
                     other requests waited for memory. Does the client read the response while it \
                     sends the request?"
                );
            }
            Interruption::Close
        }));
        interruptions
    }

    fn http(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // `Activity` times heads and idle connections without a timer per request.
        builder
            .http1()
            .header_read_timeout(None)
            .max_buf_size(self.limits.header_bytes * HEAD_SLACK)
            .half_close(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams)
            .max_header_list_size(
                u32::try_from(self.limits.header_bytes * HEAD_SLACK).unwrap_or(u32::MAX),
            )
            .initial_stream_window_size(RECEIVE_WINDOW)
            .initial_connection_window_size(RECEIVE_WINDOW)
            .max_send_buf_size(SEND_BUFFER);
        builder
    }
}

enum Interruption {
    /// Finish the requests in flight, then close.
    Drain,
    Close,
}

/// Whether an accept error concerns one connection rather than the listener.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
