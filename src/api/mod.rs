//! The applications' API (docs/api.md): HTTP/1.1 and HTTP/2 over a Unix socket and, where a socket
//! is not an option, loopback TCP.

mod aad;
mod batch;
mod denial;
mod description;
mod error;
mod events;
mod forms;
mod job;
mod json;
mod metrics;
mod octets;
mod routes;
mod secrets;
mod service;
mod stream;

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Handle,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::service::Parts;
use self::{denial::Denials, events::Events, service::Service};
use crate::{
    config::{self, Settings},
    http::{
        Tls, TokenError,
        connection::Acceptor,
        listeners::{AppTcpListener, AppUnixListener},
        metrics::ConnectionMetrics,
        socket::{BoundSocket, ListenError},
        tcp,
        token::Token,
    },
    telemetry::Registry,
};

/// Describes the metrics of the applications' API and of all listeners.
pub fn describe_metrics(registry: &Registry) {
    metrics::describe_metrics(registry);
    crate::http::metrics::describe_metrics(registry);
}

/// The applications' listeners, bound but not served yet.
pub struct Listeners {
    socket: BoundSocket,
    tcp: Option<(std::net::TcpListener, Token)>,
}

/// The applications' listeners can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The Unix socket.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The address of the TCP listener.
    #[error("can't listen on {address} (`listen.tcp`): {error}")]
    Tcp {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The token of the TCP listener.
    #[error(transparent)]
    Token(#[from] TokenError),
}

fn unavailable(address: SocketAddr) -> impl FnOnce(io::Error) -> BindError {
    move |error| BindError::Tcp { address, error }
}

/// Returns everything that would keep [`Listeners::bind`] from binding. The socket and the address
/// may be in use: a sidecar with the same settings may be running.
pub fn rehearse(settings: &Settings) -> Vec<BindError> {
    let tcp = settings.listen.tcp.iter().flat_map(|tcp| {
        let bound = tcp::rehearse(tcp.address).map_err(unavailable(tcp.address));
        let token = Token::load(&tcp.token_file).map(drop);
        [bound.err(), token.map_err(BindError::from).err()]
    });
    let socket = BoundSocket::rehearse(&settings.listen).map_err(BindError::from);
    tcp.chain([socket.err()]).flatten().collect()
}

impl Listeners {
    /// Binds the configured listeners.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn bind(settings: &Settings) -> Result<Self, BindError> {
        let tcp = match &settings.listen.tcp {
            Some(tcp) => {
                let listener = tcp::listener(tcp.address).map_err(unavailable(tcp.address))?;
                Some((listener, Token::load(&tcp.token_file)?))
            }
            None => None,
        };
        Ok(Self {
            socket: BoundSocket::bind(&settings.listen)?,
            tcp,
        })
    }

    /// The path of the Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// The actual address of the TCP listener.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
            .as_ref()
            .and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves the API on `runtime` until `draining` is cancelled. Requests in flight then finish,
    /// until `ending` is cancelled. The handle resolves when the last connection has closed.
    pub fn serve(
        self,
        parts: Parts,
        draining: CancellationToken,
        ending: CancellationToken,
        runtime: &Handle,
    ) -> JoinHandle<()> {
        let (settings, registry, tls) = (
            parts.settings,
            Arc::clone(&parts.registry),
            parts.tls.clone(),
        );
        let events = Events::new(
            parts.keyrings.clone(),
            Arc::clone(&parts.secrets),
            settings.limits.connections,
            settings.timeouts.idle,
            parts.clock.clone(),
        );
        events.watch(&ending);
        let denials = Denials::new(parts.audit.clone(), parts.clock.clone());
        denials.report(ending.clone());
        let service = Arc::new(Service::new(parts, events, denials));
        let acceptor = |listener| {
            Acceptor::new(
                Arc::clone(&service),
                &settings.limits,
                &settings.timeouts,
                ConnectionMetrics::new(&registry, listener),
                draining.clone(),
                ending.clone(),
            )
        };
        let unix = acceptor("unix");
        let tcp = self.tcp.map(|bound| (acceptor("tcp"), bound));
        let (socket, listen) = (self.socket, settings.listen.clone());
        runtime.spawn(async move {
            let on_tcp = async {
                let (acceptor, (listener, token)) = tcp?;
                serve_tcp(&acceptor, listener, tls, token).await;
                Some(acceptor)
            };
            let ((), tcp) = tokio::join!(serve_unix(&unix, socket, &listen), on_tcp);
            unix.finished().await;
            if let Some(tcp) = tcp {
                tcp.finished().await;
            }
        })
    }
}

/// Serves the Unix socket until draining begins, then removes it, so that connecting fails at once
/// rather than hangs in the backlog. If its file is removed before, the socket is bound again.
async fn serve_unix(
    acceptor: &Arc<Acceptor<Service>>,
    mut socket: BoundSocket,
    settings: &config::Listen,
) {
    loop {
        let listener = match socket.listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => AppUnixListener(listener),
            Err(error) => return error!(%error, "can't serve the Unix socket"),
        };
        tokio::select! {
            () = acceptor.accept_all(&listener) => return,
            () = socket.lost() => {}
        }
        let path = socket.path.display().to_string();
        warn!(path, "the socket was removed or replaced; binding it again");
        // The old one is kept until then: its listener pins the inode that identifies it.
        socket = tokio::select! {
            socket = BoundSocket::restored(settings) => socket,
            // Serves who connected before.
            () = acceptor.accept_all(&listener) => return,
        };
        info!(path, "listening again");
    }
}

async fn serve_tcp(
    acceptor: &Arc<Acceptor<Service>>,
    listener: std::net::TcpListener,
    tls: Option<Arc<Tls>>,
    token: Token,
) {
    match TcpListener::from_std(listener) {
        Ok(listener) => {
            let listener = AppTcpListener {
                listener,
                tls,
                token: Arc::new(token),
            };
            acceptor.accept_all(&listener).await;
        }
        Err(error) => error!(%error, "can't serve the TCP listener"),
    }
}
