//! TLS of a listener (rustls on aws-lc-rs): the active certificate, handshakes, and reloading.

mod client;
mod material;
mod metrics;
mod reload;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::{net::TcpStream, sync::Notify};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use self::{
    material::{ClientAuth, Material, TlsFiles},
    metrics::{HandshakeFailure, TlsMetrics},
};
use super::peer::{ClientCertificate, PeerCertificate};
use crate::{
    clock::Clock,
    config,
    files::run_blocking,
    telemetry::Registry,
    wire::{
        CertificateNames,
        status::{LastError, TlsStatus},
    },
};

pub(crate) use self::{client::AcceptedClient, metrics::describe_metrics};

/// How much data a connection may buffer while its peer does not read.
const SEND_BUFFER: usize = 16 << 10;

/// The TLS of one listener.
pub struct Tls {
    settings: config::Tls,
    listener: &'static str,
    client_auth: ClientAuth,
    active: ArcSwap<Material>,
    reloads: Mutex<ReloadState>,
    metrics: TlsMetrics,
    clock: Clock,
    /// Signals that the files may have changed.
    changed: Notify,
    /// Signals that other material is active.
    reloaded: Notify,
}

struct ReloadState {
    /// The files read last, whether or not they are active.
    fingerprint: Option<[u8; 32]>,
    loaded_at: Timestamp,
    failure: Option<(Timestamp, String)>,
}

/// A listener's files can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{table}: {}", .problems.join("; "))]
pub struct TlsError {
    /// Its table in the config.
    table: &'static str,
    problems: Vec<String>,
}

impl Tls {
    /// Loads the TLS of the applications' TCP listener. If it has client authorities, every
    /// connection requires a client certificate.
    ///
    /// # Errors
    /// Lists everything wrong with the files.
    pub async fn for_applications(
        settings: &config::Tls,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let names = ("listen.tls", "tcp");
        Self::load(settings, names, ClientAuth::Required, registry, clock).await
    }

    /// Loads the TLS of the ops listener. Probes have no certificate, so each path decides whether
    /// it requires one.
    ///
    /// # Errors
    /// Lists everything wrong with the files.
    pub async fn for_operators(
        settings: &config::Tls,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let names = ("ops.tls", "ops");
        Self::load(settings, names, ClientAuth::Optional, registry, clock).await
    }

    /// Loads the TLS of a hub's listener. Peers with a token have no certificate.
    ///
    /// # Errors
    /// Lists everything wrong with the files.
    #[cfg(feature = "hub")]
    pub async fn for_hub(
        settings: &config::Tls,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let names = ("tls", "hub");
        Self::load(settings, names, ClientAuth::Optional, registry, clock).await
    }

    async fn load(
        settings: &config::Tls,
        (table, listener): (&'static str, &'static str),
        client_auth: ClientAuth,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let (owned, time) = (settings.clone(), clock.clone());
        let loaded = run_blocking(move || {
            let files = TlsFiles::read(&owned)?;
            let material = files.build(&owned, client_auth, &time)?;
            Ok((material, files.fingerprint(), files.is_key_world_readable))
        });
        let (material, fingerprint, is_key_world_readable) = loaded
            .await
            .map_err(|problems| TlsError { table, problems })?;
        if is_key_world_readable {
            warn!(
                "{}: the private key is world-readable; run: chmod o= on it, or set the volume's \
                 defaultMode to 0440",
                settings.key.display()
            );
        }
        let now = clock.now();
        if let Some(reason) = material.invalid_at(now) {
            // Not fatal: the Unix socket doesn't depend on TLS, and better files are loaded as soon
            // as they appear.
            let certificate = settings.certificate.display();
            warn!(listener, %certificate, "clients will reject this certificate: {reason}");
        }
        let metrics = TlsMetrics::new(registry, listener);
        metrics.activated(&material);
        Ok(Arc::new(Self {
            settings: settings.clone(),
            listener,
            client_auth,
            active: ArcSwap::from_pointee(material),
            reloads: Mutex::new(ReloadState {
                fingerprint: Some(fingerprint),
                loaded_at: now,
                failure: None,
            }),
            metrics,
            clock: clock.clone(),
            changed: Notify::new(),
            reloaded: Notify::new(),
        }))
    }

    /// Performs a handshake with the active certificate. The caller must apply a timeout.
    pub(crate) async fn handshake(
        self: Arc<Self>,
        stream: TcpStream,
    ) -> Option<(TlsStream<TcpStream>, PeerCertificate)> {
        let guard = self.metrics.begin_handshake();
        let material = self.active.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&material.config));
        let result = acceptor
            .accept_with(stream, |session| {
                session.set_buffer_limit(Some(SEND_BUFFER))
            })
            .await;
        guard.finish();
        match result {
            Ok(stream) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let certificate = match self.client_certificate(chain) {
                    ClientCertificate::Accepted => {
                        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
                        let client = AcceptedClient::new(Arc::clone(&self), chain, material);
                        PeerCertificate::Accepted(Box::new(client))
                    }
                    other => PeerCertificate::Fixed(other),
                };
                Some((stream, certificate))
            }
            Err(error) => {
                self.handshake_failed(&error);
                None
            }
        }
    }

    fn client_certificate(&self, chain: &[CertificateDer<'_>]) -> ClientCertificate {
        let Some(clients) = &self.settings.clients else {
            return ClientCertificate::NotRequested;
        };
        let Some(certificate) = chain.first() else {
            return ClientCertificate::Missing;
        };
        let names = CertificateNames::of(certificate);
        if names.are_on(&clients.names) {
            return ClientCertificate::Accepted;
        }
        // A trusted authority issued the certificate, so arbitrary peers can't flood the log.
        warn!(
            listener = self.listener,
            dns = ?names.dns,
            uris = ?names.uris,
            "no name in the client certificate is listed in `client_names`"
        );
        self.metrics.handshake_failed(HandshakeFailure::Name);
        ClientCertificate::NameNotAllowed
    }

    fn handshake_failed(&self, error: &io::Error) {
        let failure = HandshakeFailure::of(error);
        let reason = failure.as_str();
        debug!(listener = self.listener, reason, %error, "TLS handshake failed");
        self.metrics.handshake_failed(failure);
    }

    pub(crate) fn status(&self) -> TlsStatus {
        let reloads = self.lock_reloads();
        let failure = reloads.failure.clone();
        TlsStatus {
            listener: self.listener.into(),
            certificate: self.settings.certificate.display().to_string(),
            expires_at: self.active.load().not_after,
            loaded_at: reloads.loaded_at,
            last_error: failure.map(|(at, message)| LastError {
                at,
                code: "tls_files".into(),
                message,
            }),
        }
    }

    fn lock_reloads(&self) -> MutexGuard<'_, ReloadState> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
