//! Connections: accepting them, and serving each within its limits.

use std::{convert::Infallible, io, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    activity::{Activity, Watched},
    admission::{Admission, Place},
    identity::Identity,
    reply::{Delivery, Reply},
    tls::Tls,
    token::Token,
    transport::{self, Accepted, Transport},
};
use crate::api::meters::ConnectionMeters;
use crate::{
    config::{Limits, Timeouts},
    policy::Caller,
};

/// How long accepting pauses when the kernel has no file descriptor or memory to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many times the limit of a head is read at most, so that one that exceeds it can get an answer that says so.
const HEAD_SLACK: usize = 4;

/// Answers a listener's requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Where the requests of one connection come from.
    type Source: Send + Sync + 'static;

    fn answer(
        &self,
        source: &Self::Source,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Reply>> + Send;

    /// Whether requests wait for the memory that others hold.
    fn is_pressed(&self) -> bool {
        false
    }
}

/// Where requests of one connection come from.
pub(crate) struct Source {
    pub(crate) caller: Caller,
    pub(crate) token: Option<Arc<Token>>,
    pub(crate) identity: Identity,
}

/// A listener.
pub(crate) trait Side: Sync {
    type Arrival: Arrival;

    async fn accept(&self) -> io::Result<Self::Arrival>;
}

/// A connection as it was accepted, before its first request.
pub(crate) trait Arrival: Send + 'static {
    type Stream: Stream;
    type Source: Send;

    /// Does what comes before a request, such as a TLS handshake; none if that came to nothing. The peer sets the pace, so this
    /// runs in the connection's own task, and whoever waits for it limits its time.
    fn establish(self) -> impl Future<Output = Option<(Self::Stream, Self::Source)>> + Send;
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl Stream for UnixStream {}

/// Accepts the connections of one listener and serves them.
pub(crate) struct Acceptor<H> {
    handler: Arc<H>,
    limits: Limits,
    timeouts: Timeouts,
    meters: ConnectionMeters,
    admission: Arc<Admission>,
    tasks: TaskTracker,
    draining: CancellationToken,
    ending: CancellationToken,
}

impl<H: Handler> Acceptor<H> {
    pub(crate) fn new(
        handler: Arc<H>,
        limits: &Limits,
        timeouts: &Timeouts,
        meters: ConnectionMeters,
        draining: CancellationToken,
        ending: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            handler,
            admission: Admission::new(limits.connections),
            limits: limits.clone(),
            timeouts: timeouts.clone(),
            meters,
            tasks: TaskTracker::new(),
            draining,
            ending,
        })
    }

    /// Accepts until draining begins.
    pub(crate) async fn accept_all<A: Arrival<Source = H::Source>>(
        self: &Arc<Self>,
        side: &impl Side<Arrival = A>,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = side.accept() => accepted,
                () = self.draining.cancelled() => return,
            };
            match accepted {
                Ok(arrival) => self.admit(arrival),
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection was over before it was accepted")
                }
                Err(error) => {
                    warn!(%error, "can't accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Resolves when the last connection is over.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn admit(self: &Arc<Self>, arrival: impl Arrival<Source = H::Source>) {
        let place = self.admission.place();
        if place.as_ref().is_none_or(Place::is_taken_over) {
            self.meters.refused.increment(1);
        }
        let acceptor = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(place) = place else {
                return acceptor.admission.refuse(arrival).await;
            };
            if let Some(place) = place.vacated().await {
                acceptor.meters.open.increment(1);
                if let Some((stream, source)) = acceptor.establish(arrival, &place.activity).await {
                    acceptor.serve(stream, source, place).await;
                }
                acceptor.meters.open.decrement(1);
            }
        });
    }

    /// Nobody was let in yet, so the connection has as long as for a request's head, and goes when its place is needed.
    async fn establish<A: Arrival>(
        &self,
        arrival: A,
        activity: &Activity,
    ) -> Option<(A::Stream, A::Source)> {
        tokio::select! {
            biased;
            established = arrival.establish() => established,
            // There is no answer yet that anybody could be slow to take.
            () = activity.outlived(&self.timeouts, || false) => None,
            () = self.draining.cancelled() => None,
        }
    }

    async fn serve(&self, stream: impl Stream, source: H::Source, place: Place) {
        let activity = &place.activity;
        let peer = Arc::new((Arc::clone(&self.handler), source, Arc::clone(activity)));
        let service = service_fn(move |request: Request<Incoming>| {
            let peer = Arc::clone(&peer);
            let busy = peer.2.begin(request.version());
            async move {
                let (handler, source, activity) = &*peer;
                let response = handler.answer(source, request).await;
                activity.answered(response.status());
                Ok::<_, Infallible>(response.map(|reply| Delivery::new(reply, busy)))
            }
        });
        let builder = self.http();
        let io = TokioIo::new(Watched {
            stream,
            activity: Arc::clone(activity),
        });
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let mut interruptions = self.interruptions(activity);
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        debug!(%error, "a connection ended badly");
                    }
                    break;
                }
                Some(interruption) = interruptions.next() => match interruption {
                    Interruption::Drain => connection.as_mut().graceful_shutdown(),
                    Interruption::End => break,
                },
            }
        }
    }

    /// What ends a connection from our side. The collection polls only what was woken, so a request pays for none of it.
    fn interruptions<'a>(
        &'a self,
        activity: &'a Activity,
    ) -> FuturesUnordered<Pin<Box<dyn Future<Output = Interruption> + Send + 'a>>> {
        let interruptions =
            FuturesUnordered::<Pin<Box<dyn Future<Output = Interruption> + Send>>>::new();
        interruptions.push(Box::pin(async {
            self.draining.cancelled().await;
            Interruption::Drain
        }));
        interruptions.push(Box::pin(async {
            tokio::select! {
                () = self.ending.cancelled() => return Interruption::End,
                () = activity.outlived(&self.timeouts, || self.handler.is_pressed()) => {}
            }
            if activity.is_flowing() {
                warn!(
                    "closed a connection in the middle of an answer: it didn't move, or was slow while others waited for memory. \
                     Does the client read the answer while it sends?"
                );
            }
            Interruption::End
        }));
        interruptions
    }

    fn http(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // Heads and idle connections are timed by `Activity`, which costs a request no timer.
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
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(1 << 20);
        builder
    }
}

enum Interruption {
    /// Answer what is in flight, then close.
    Drain,
    /// Close.
    End,
}

/// Errors that say something about one connection and nothing about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// The applications' Unix socket: the kernel says who calls.
pub(crate) struct UnixSide(pub(crate) UnixListener);

impl Side for UnixSide {
    type Arrival = (UnixStream, Source);

    async fn accept(&self) -> io::Result<Self::Arrival> {
        let (stream, _) = self.0.accept().await?;
        let peer = stream.peer_cred()?;
        let caller = Caller::Process {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid(),
        };
        Ok((
            stream,
            Source {
                caller,
                token: None,
                identity: Identity::NotAsked,
            },
        ))
    }
}

impl Arrival for (UnixStream, Source) {
    type Stream = UnixStream;
    type Source = Source;

    async fn establish(self) -> Option<Self> {
        Some(self)
    }
}

/// The applications' loopback TCP listener: every request shows the token.
pub(crate) struct TokenSide {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) token: Arc<Token>,
}

impl Side for TokenSide {
    type Arrival = (Accepted, Arc<Token>);

    async fn accept(&self) -> io::Result<Self::Arrival> {
        Ok((
            transport::accept(&self.listener, self.tls.as_ref()).await?,
            Arc::clone(&self.token),
        ))
    }
}

impl Arrival for (Accepted, Arc<Token>) {
    type Stream = Transport;
    type Source = Source;

    async fn establish(self) -> Option<(Transport, Source)> {
        let (accepted, token) = self;
        let (stream, identity) = accepted.shake_hands().await?;
        Some((
            stream,
            Source {
                caller: Caller::TokenHolder,
                token: Some(token),
                identity,
            },
        ))
    }
}

/// The operators' listener.
pub(crate) struct OpsSide {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Side for OpsSide {
    type Arrival = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        transport::accept(&self.listener, self.tls.as_ref()).await
    }
}

impl Arrival for Accepted {
    type Stream = Transport;
    type Source = Identity;

    async fn establish(self) -> Option<(Transport, Identity)> {
        self.shake_hands().await
    }
}
