//! The applications' API (docs/api.md): HTTP/1.1 and HTTP/2 over a Unix socket and, where a socket won't do, loopback TCP.

mod batch;
mod description;
mod events;
mod flow;
mod json;
pub(crate) mod meters;
mod octets;
mod refusal;
mod secrets;
pub(crate) mod service;

use std::{net::SocketAddr, path::Path, sync::Arc};

use base64::{
    alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Handle,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use self::{events::Events, meters::ConnectionMeters, service::Service};
use crate::http::{
    ListenError, Tls, TokenError,
    connection::{Acceptor, TokenSide, UnixSide},
    listener::{self, BoundSocket},
    tls, token,
};
use crate::{
    audit::Recorder, clock::Clock, config::Settings, refresh::Keyring, secrets::Secrets,
    telemetry::Registry,
};

/// Describes the metrics of all listeners.
pub fn describe_metrics(registry: &Registry) {
    meters::describe_metrics(registry);
    tls::describe_metrics(registry);
}

/// Standard base64 as it is written: with padding (RFC 4648 §4).
const STANDARD: GeneralPurpose = base64::engine::general_purpose::STANDARD;
/// Standard base64 as it is read: with or without padding, for languages differ in what they write.
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The listeners, bound but not yet served.
pub struct Listeners {
    socket: BoundSocket,
    tcp: Option<(std::net::TcpListener, token::Token)>,
}

/// Why the applications' side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Listeners {
    /// Binds what the config names.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn bind(settings: &Settings) -> Result<Self, BindError> {
        let tcp = match &settings.listen.tcp {
            Some(tcp) => Some((
                listener::bind_tcp(tcp.address)?,
                token::Token::load(&tcp.token_file)?,
            )),
            None => None,
        };
        Ok(Self {
            socket: BoundSocket::bind(&settings.listen)?,
            tcp,
        })
    }

    /// The Unix socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// The TCP listener's real address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
            .as_ref()
            .and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves the keyrings on `runtime` until `draining` is cancelled; then answers what is in flight, until `ending` is cancelled.
    /// The handle resolves when the last connection is over.
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
        let service = Arc::new(Service::new(parts, events, draining.clone()));
        let acceptor = |listener| {
            let meters = ConnectionMeters::new(&registry, listener);
            let service = Arc::clone(&service);
            Acceptor::new(
                service,
                &settings.limits,
                &settings.timeouts,
                meters,
                draining.clone(),
                ending.clone(),
            )
        };
        let (unix, tcp) = (
            acceptor("unix"),
            self.tcp.map(|bound| (acceptor("tcp"), bound)),
        );
        let socket = self.socket;
        runtime.spawn(async move {
            let on_unix = async {
                match socket.listener.try_clone().and_then(UnixListener::from_std) {
                    Ok(listener) => unix.accept_all(&UnixSide(listener)).await,
                    Err(error) => error!(%error, "the Unix socket can't be served"),
                }
            };
            let on_tcp = async {
                let (acceptor, (listener, token)) = tcp?;
                match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        acceptor
                            .accept_all(&TokenSide {
                                listener,
                                tls,
                                token: Arc::new(token),
                            })
                            .await
                    }
                    Err(error) => error!(%error, "the TCP listener can't be served"),
                }
                Some(acceptor)
            };
            let ((), tcp) = tokio::join!(on_unix, on_tcp);
            // From here on, connecting fails at once instead of waiting for nobody.
            drop(socket);
            unix.finished().await;
            if let Some(tcp) = tcp {
                tcp.finished().await;
            }
        })
    }
}

/// What the API is served from.
pub struct Parts<'s> {
    /// Limits, time-outs and policy.
    pub settings: &'s Settings,
    /// The keyrings.
    pub keyrings: Vec<Arc<Keyring>>,
    /// The secrets.
    pub secrets: Arc<Secrets>,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Takes note of refusals.
    pub audit: Recorder,
    /// The time.
    pub clock: Clock,
    /// TLS of the TCP listener.
    pub tls: Option<Arc<Tls>>,
}
