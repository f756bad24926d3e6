//! Connections: how many, how long, and what each may cost.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{
    Request, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, warn};

use super::{
    BoundSocket, Source,
    meters::ConnectionMeters,
    problem::{Code, Problem},
    service::Service,
    token::Token,
};
use crate::{
    config::{Limits, Settings, Timeouts},
    policy::Caller,
    telemetry::Registry,
};

/// How many connections over the limit get an answer at a time, and for how long; those beyond are closed unanswered.
const REFUSALS: usize = 64;
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// How long accepting pauses when the kernel has no file descriptor or memory to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many times the limit of a head is read at most, so that one that exceeds it can get an answer that says so.
const HEAD_SLACK: usize = 4;

/// Accepts connections and serves them.
pub(super) struct Acceptor {
    service: Arc<Service>,
    limits: Limits,
    timeouts: Timeouts,
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    silent: Silent,
    tasks: TaskTracker,
    draining: CancellationToken,
    ending: CancellationToken,
}

impl Acceptor {
    pub(super) fn new(
        settings: &Settings,
        service: Arc<Service>,
        draining: CancellationToken,
        ending: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            service,
            limits: settings.limits.clone(),
            timeouts: settings.timeouts.clone(),
            permits: Arc::new(Semaphore::new(settings.limits.connections)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            silent: Silent::default(),
            tasks: TaskTracker::new(),
            draining,
            ending,
        })
    }

    /// Accepts until draining begins, and returns when the last connection is over.
    pub(super) async fn run(
        self: Arc<Self>,
        socket: BoundSocket,
        tcp: Option<(std::net::TcpListener, Token)>,
        registry: &Registry,
    ) {
        let tcp = async {
            let Some((listener, token)) = tcp else { return };
            let meters = ConnectionMeters::new(registry, "tcp");
            match TcpListener::from_std(listener) {
                Ok(listener) => self.accept_all(&TcpSide { listener, token: Arc::new(token) }, &meters).await,
                Err(error) => error!(%error, "the TCP listener can't be served"),
            }
        };
        let unix = async {
            let meters = ConnectionMeters::new(registry, "unix");
            match socket.listener.try_clone().and_then(UnixListener::from_std) {
                Ok(listener) => self.accept_all(&UnixSide { listener }, &meters).await,
                Err(error) => error!(%error, "the Unix socket can't be served"),
            }
        };
        tokio::join!(tcp, unix);
        // From here on, connecting fails at once instead of waiting for nobody.
        drop(socket);
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept_all(self: &Arc<Self>, side: &impl Side, meters: &ConnectionMeters) {
        loop {
            let accepted = tokio::select! {
                accepted = side.accept() => accepted,
                () = self.draining.cancelled() => return,
            };
            match accepted {
                Ok((stream, source)) => self.admit(stream, source, meters).await,
                Err(error) if is_of_one_connection(&error) => debug!(%error, "a connection was over before it was accepted"),
                Err(error) => {
                    warn!(%error, "can't accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit<S: Stream>(self: &Arc<Self>, stream: S, source: Source, meters: &ConnectionMeters) {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) if self.silent.end_oldest() => {
                meters.refused.increment(1);
                timeout(REFUSAL_TIME, Arc::clone(&self.permits).acquire_owned()).await.ok().and_then(Result::ok)
            }
            Err(_) => None,
        };
        match permit {
            Some(permit) => {
                let connection = Connection { acceptor: Arc::clone(self), source, permit, meters: meters.clone() };
                self.tasks.spawn(connection.serve(stream));
            }
            None => {
                meters.refused.increment(1);
                if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
                    self.tasks.spawn(refuse(stream, permit));
                }
            }
        }
    }
}

/// Errors that say something about one connection and nothing about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers the first request of a connection that is one too many.
async fn refuse(stream: impl Stream, _permit: OwnedSemaphorePermit) {
    let answer = service_fn(|_: Request<Incoming>| async {
        let problem = Problem::new(
            Code::TooManyConnections,
            "all of `limits.connections` are in use; keep connections open and reuse them",
        );
        let mut response = problem.retry_after(1).into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), answer);
    // However it ends, it was refused.
    let _ = timeout(REFUSAL_TIME, connection).await;
}

struct Connection {
    acceptor: Arc<Acceptor>,
    source: Source,
    permit: OwnedSemaphorePermit,
    meters: ConnectionMeters,
}

impl Connection {
    async fn serve<S: Stream>(self, stream: S) {
        let Self { acceptor, source, permit, meters } = self;
        meters.open.increment(1);
        let activity = Arc::new(Activity::default());
        let ticket = acceptor.silent.enter(&activity);

        let peer = Arc::new(Peer { service: Arc::clone(&acceptor.service), source, activity: Arc::clone(&activity) });
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = Busy::begin(&peer, request.version());
            async move { Ok::<_, Infallible>(busy.0.service.answer(&busy.0.source, request).await) }
        });
        let builder = acceptor.http();
        let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let mut interruptions = acceptor.interruptions(&activity);
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
        acceptor.silent.leave(ticket);
        meters.open.decrement(1);
        drop(permit);
    }
}

/// What the requests of one connection share.
struct Peer {
    service: Arc<Service>,
    source: Source,
    activity: Arc<Activity>,
}

enum Interruption {
    /// Answer what is in flight, then close.
    Drain,
    /// Close.
    End,
}

impl Acceptor {
    /// What ends a connection from our side. The collection polls only what was woken, so a request pays for none of it.
    fn interruptions<'a>(
        &'a self,
        activity: &'a Activity,
    ) -> FuturesUnordered<Pin<Box<dyn Future<Output = Interruption> + Send + 'a>>> {
        let interruptions = FuturesUnordered::<Pin<Box<dyn Future<Output = Interruption> + Send>>>::new();
        interruptions.push(Box::pin(async {
            self.draining.cancelled().await;
            Interruption::Drain
        }));
        interruptions.push(Box::pin(async {
            tokio::select! {
                () = self.ending.cancelled() => {}
                () = activity.outlived(&self.timeouts) => {}
                () = activity.evicted.notified() => {}
            }
            Interruption::End
        }));
        interruptions
    }

    fn http(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // Heads and idle connections are timed by `Activity`, which costs a request no timer.
        builder.http1().header_read_timeout(None).max_buf_size(self.limits.header_bytes * HEAD_SLACK).half_close(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams)
            .max_header_list_size(u32::try_from(self.limits.header_bytes * HEAD_SLACK).unwrap_or(u32::MAX))
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(1 << 20);
        builder
    }
}

/// What happens on a connection, for its time-outs. Requests only count here; the time is taken by [`Activity::outlived`].
#[derive(Default)]
struct Activity {
    /// Requests whose head has come.
    begun: AtomicU64,
    in_flight: AtomicU32,
    /// Bytes have come since the last head.
    is_reading: AtomicBool,
    is_http2: AtomicBool,
    evicted: Notify,
}

/// A request in flight; ends with its answer or with the connection.
struct Busy(Arc<Peer>);

impl Busy {
    fn begin(peer: &Arc<Peer>, version: Version) -> Self {
        peer.activity.begin(version);
        Self(Arc::clone(peer))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    fn begin(&self, version: Version) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.is_reading.store(false, Ordering::Relaxed);
        self.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
    }

    fn received(&self) {
        // HTTP/2 has frames of its own between requests; there, only idleness counts.
        if !self.is_http2.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) == 0 {
            self.is_reading.store(true, Ordering::Relaxed);
        }
    }

    fn has_spoken(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    /// Resolves when the peer has been silent, or slow with a head, for longer than it may, give or take half of the shorter limit.
    async fn outlived(&self, limits: &Timeouts) {
        let tick = limits.header.min(limits.idle) / 4;
        let now = || (self.begun.load(Ordering::Relaxed), self.is_reading.load(Ordering::Relaxed));
        let (mut last, mut since) = (now(), Instant::now());
        loop {
            sleep(tick).await;
            let state = now();
            // The body of a request in flight has a time-out of its own.
            if state != last || self.in_flight.load(Ordering::Relaxed) > 0 {
                (last, since) = (state, Instant::now());
                continue;
            }
            let limit = match state {
                (0, _) | (_, true) => limits.header,
                _ => limits.idle,
            };
            if since.elapsed() >= limit {
                return;
            }
        }
    }
}

/// The connections that haven't made a request yet, oldest first: when all are taken, these go first.
#[derive(Default)]
struct Silent {
    queue: Mutex<VecDeque<(u64, Arc<Activity>)>>,
    next: AtomicU64,
}

impl Silent {
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
        let Some(at) = queue.iter().position(|(_, activity)| !activity.has_spoken()) else { return false };
        let silent = queue.remove(at);
        if let Some((_, activity)) = silent {
            activity.evicted.notify_one();
        }
        true
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl Stream for UnixStream {}
impl Stream for TcpStream {}

trait Side: Sync {
    type Stream: Stream;

    async fn accept(&self) -> io::Result<(Self::Stream, Source)>;
}

struct UnixSide {
    listener: UnixListener,
}

impl Side for UnixSide {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Source)> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?;
        let caller = Caller::Process { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
        Ok((stream, Source { caller, token: None }))
    }
}

struct TcpSide {
    listener: TcpListener,
    token: Arc<Token>,
}

impl Side for TcpSide {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Source)> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Source { caller: Caller::TokenHolder, token: Some(Arc::clone(&self.token)) }))
    }
}

/// A stream that tells when bytes come.
struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: Stream> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
