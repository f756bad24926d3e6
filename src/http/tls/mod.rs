//! TLS of a listener (rustls on aws-lc-rs): what is in force, handshakes under it, and how it follows its files.

mod client;
mod material;
mod meters;
mod reload;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::{net::TcpStream, sync::Notify};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use self::{
    material::{Demand, Files, Material},
    meters::{Failure, Meters},
};
use super::{identity::Identity, transport::Transport};
use crate::ops::status::{RefreshError, TlsStatus};
use crate::{backend::aside, clock::Clock, config, telemetry::Registry};

pub use self::client::CertificateNames;
pub(crate) use self::meters::describe_metrics;

/// How much a connection may hold that its peer doesn't take.
const SEND_BUFFER: usize = 16 << 10;

/// TLS of one listener.
pub struct Tls {
    settings: config::Tls,
    listener: &'static str,
    demand: Demand,
    in_force: ArcSwap<Material>,
    standing: Mutex<Standing>,
    meters: Meters,
    clock: Clock,
    /// The files may have changed.
    changed: Notify,
}

struct Standing {
    /// What was read last, whether or not it is in force.
    fingerprint: Option<[u8; 32]>,
    loaded_at: Timestamp,
    failure: Option<(Timestamp, String)>,
}

/// A listener's files can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{table}.tls: {}", .wrong.join("; "))]
pub struct TlsError {
    /// The listener's table in the config.
    table: &'static str,
    wrong: Vec<String>,
}

impl Tls {
    /// TLS of the applications' TCP listener: whoever has to show a certificate gets no connection without.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub async fn of_applications(
        settings: &config::Tls,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        Self::load(settings, ("listen", "tcp"), Demand::Always, registry, clock).await
    }

    /// TLS of the ops listener: probes, which have no certificate, get their connection, and each path decides.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub async fn of_operators(
        settings: &config::Tls,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        Self::load(settings, ("ops", "ops"), Demand::ByPath, registry, clock).await
    }

    async fn load(
        settings: &config::Tls,
        (table, listener): (&'static str, &'static str),
        demand: Demand,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let files = settings.clone();
        let loaded = aside(move || {
            let read = Files::read(&files)?;
            Ok((
                read.build(&files, demand)?,
                read.fingerprint(),
                read.is_key_open,
            ))
        });
        let (material, fingerprint, is_key_open) =
            loaded.await.map_err(|wrong| TlsError { table, wrong })?;
        if is_key_open {
            let key = settings.key.display();
            warn!(
                "{key}: everybody on this machine can read this key; run chmod o= on it, or set the volume's defaultMode to 0440"
            );
        }
        let now = clock.now();
        if let Some(why) = material.unusable(now) {
            // Started all the same: the Unix socket doesn't depend on it, and a better file is taken up as soon as it comes.
            warn!(listener, certificate = %settings.certificate.display(), "clients will refuse this certificate: {why}");
        }
        let meters = Meters::new(registry, listener);
        meters.in_force(&material);
        Ok(Arc::new(Self {
            settings: settings.clone(),
            listener,
            demand,
            in_force: ArcSwap::from_pointee(material),
            standing: Mutex::new(Standing {
                fingerprint: Some(fingerprint),
                loaded_at: now,
                failure: None,
            }),
            meters,
            clock: clock.clone(),
            changed: Notify::new(),
        }))
    }

    /// Shakes hands under what is in force now. It takes as long as the client likes: whoever calls gives up at last.
    pub(crate) async fn handshake(&self, stream: TcpStream) -> Option<(Transport, Identity)> {
        let unfinished = self.meters.unfinished();
        let acceptor = TlsAcceptor::from(Arc::clone(&self.in_force.load().config));
        let result = acceptor
            .accept_with(stream, |session| {
                session.set_buffer_limit(Some(SEND_BUFFER))
            })
            .await;
        unfinished.finish();
        match result {
            Ok(stream) => {
                let identity = self.identity(stream.get_ref().1.peer_certificates());
                Some((Transport::Tls(Box::new(stream)), identity))
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn identity(&self, certificates: Option<&[CertificateDer<'_>]>) -> Identity {
        let Some(clients) = &self.settings.clients else {
            return Identity::NotAsked;
        };
        let Some(certificate) = certificates.and_then(<[_]>::first) else {
            return Identity::None;
        };
        let names = CertificateNames::of(certificate);
        if names.are_on(&clients.names) {
            return Identity::Proven;
        }
        // Of a client that an authority vouches for, so nobody else can fill the log with it.
        warn!(listener = self.listener, dns = ?names.dns, uris = ?names.uris, "no name of a client's certificate is in `client_names`");
        self.meters.failed(Failure::Name);
        Identity::NotListed
    }

    fn failed(&self, error: &io::Error) {
        let failure = Failure::of(error);
        debug!(listener = self.listener, reason = failure.as_str(), %error, "a TLS handshake failed");
        self.meters.failed(failure);
    }

    pub(crate) fn status(&self) -> TlsStatus {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = standing.failure.clone();
        TlsStatus {
            listener: self.listener.into(),
            certificate: self.settings.certificate.display().to_string(),
            expires_at: self.in_force.load().not_after,
            loaded_at: standing.loaded_at,
            last_error: failure.map(|(at, message)| RefreshError {
                at,
                code: "tls_files".into(),
                message,
            }),
        }
    }
}

impl Material {
    /// Why no client would accept our certificate at this time, if so.
    fn unusable(&self, now: Timestamp) -> Option<String> {
        let Self {
            not_before,
            not_after,
            ..
        } = self;
        if now > *not_after {
            Some(format!("it expired at {not_after}"))
        } else if now < *not_before {
            Some(format!("it is not valid before {not_before}"))
        } else {
            None
        }
    }
}
